// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "r1d/base/file.h"

#include "checkpoint/packed_header.h"

namespace r1d::checkpoint {

// "rank-03-of-08.r1dpack".
[[nodiscard]] std::string packed_file_name(int32_t rank, int32_t world_size);

// The world size in such a name; nullopt for other names.
[[nodiscard]] std::optional<int32_t> world_size_of_name(const std::string& name);

// An open rank file whose header has been read and checked; data stays in the file until asked for.
// Error texts start with the file's name. Threads: const and thread-safe after open().
class PackedFile {
 public:
  [[nodiscard]] static absl::StatusOr<PackedFile> open(const std::string& path, std::string name);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const File& file() const { return file_; }
  [[nodiscard]] const PackedPage& page() const { return header_.page; }
  [[nodiscard]] const std::vector<PackedSection>& sections() const { return header_.sections; }

  // Bytes of section `index` from byte `begin` of it. With `verify`, every piece that `dest`
  // touches is compared with its checksum; one that it covers in part is read whole for that.
  // kDataLoss names section and tensor.
  [[nodiscard]] absl::Status read(size_t index,
                                  int64_t begin,
                                  std::span<std::byte> dest,
                                  bool verify) const;

  // As read() with `verify` does for one whole piece that was read otherwise.
  [[nodiscard]] absl::Status check_piece(size_t index,
                                         int64_t piece,
                                         std::span<const std::byte> bytes) const;

  // Bytes between sections, as they are.
  [[nodiscard]] absl::Status read_raw(int64_t offset, std::span<std::byte> dest) const;

  // "NAME: section 17, tensor model.norm.weight".
  [[nodiscard]] std::string place_of(size_t index) const;

 private:
  PackedFile(std::string name, File file) : name_(std::move(name)), file_(std::move(file)) {}
  [[nodiscard]] absl::Status read_header();
  [[nodiscard]] absl::Status read_piece(size_t index,
                                        int64_t piece,
                                        std::span<std::byte> dest) const;
  [[nodiscard]] absl::Status compare(size_t index,
                                     int64_t piece,
                                     std::span<const std::byte> bytes) const;
  [[nodiscard]] absl::Status read_verified(size_t index,
                                           int64_t begin,
                                           std::span<std::byte> dest) const;

  std::string name_;
  File file_;
  PackedHeader header_;
};

}  // namespace r1d::checkpoint
