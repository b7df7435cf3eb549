// SPDX-License-Identifier: Apache-2.0
// The safetensors container: 8 bytes of little-endian header length N, N bytes of JSON, then the
// data of all tensors without holes. Source: README of huggingface/safetensors, "Format".
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "r1d/base/dtype.h"
#include "r1d/base/file.h"

namespace r1d::checkpoint {

inline constexpr int64_t kSafetensorsLengthBytes = 8;

// One tensor as its header entry says; `begin` and `end` count from the start of the data section.
struct TensorEntry {
  std::string name;
  std::string_view dtype;  // a name of the format's list, with static storage
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;
};

// The dtype of ours, or nullopt for one of the format's that r1d does not load.
[[nodiscard]] std::optional<DType> loadable_dtype(std::string_view dtype);

// The length of the JSON header of a file of `file_bytes` that starts with `prefix`.
[[nodiscard]] absl::StatusOr<int64_t> safetensors_header_bytes(
    std::span<const std::byte, kSafetensorsLengthBytes> prefix, int64_t file_bytes);

// Entries in the order of their data. Checked: limits, dtype names, sizes against shapes without
// overflow, and that the tensors cover the `data_bytes` of the data section exactly once.
[[nodiscard]] absl::StatusOr<std::vector<TensorEntry>> parse_safetensors_header(
    std::string_view json, int64_t data_bytes);

// An open file whose header has been read and checked; data stays in the file until asked for.
// Threads: const and thread-safe after open().
class SafetensorsFile {
 public:
  // `name` is what error texts call the file; theirs all start with it.
  [[nodiscard]] static absl::StatusOr<SafetensorsFile> open(const std::string& path,
                                                            std::string name);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::vector<TensorEntry>& tensors() const { return tensors_; }
  [[nodiscard]] const File& file() const { return file_; }
  [[nodiscard]] int64_t data_begin() const { return data_begin_; }  // bytes from the file's start

  // Bytes of the data section from `offset`.
  [[nodiscard]] absl::Status read_at(int64_t offset, std::span<std::byte> dest) const;

 private:
  SafetensorsFile(std::string name, File file) : name_(std::move(name)), file_(std::move(file)) {}
  [[nodiscard]] absl::Status read_header();

  std::string name_;
  File file_;
  int64_t data_begin_ = 0;
  std::vector<TensorEntry> tensors_;
};

}  // namespace r1d::checkpoint
