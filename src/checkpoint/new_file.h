// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace r1d::checkpoint {

// A file that is being written, removed again unless keep() was called. Errors name it;
// kResourceExhausted when the disk is full. Threads: write_at() on several, all else on one.
class NewFile {
 public:
  // kFailedPrecondition when there is such a file.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<NewFile>> create(const std::string& path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // Takes `bytes` of the disk at once, where the file system can, so that none is missing later.
  [[nodiscard]] absl::Status reserve(int64_t bytes) const;
  // So long from now on: what is not written reads as zero.
  [[nodiscard]] absl::Status resize(int64_t bytes) const;
  [[nodiscard]] absl::Status write_at(int64_t offset, std::span<const std::byte> data) const;
  // Lets the disk begin with these bytes, so that sync() has little left to do.
  void start_writeback(int64_t offset, int64_t num_bytes) const;
  // Returns when the device has it all. The page cache lets go of it then: who reads it, reads the
  // device.
  [[nodiscard]] absl::Status sync() const;
  [[nodiscard]] absl::Status close();
  // After close(): it has this name from now on.
  [[nodiscard]] absl::Status rename(const std::string& path);

  void keep() { kept_ = true; }

 private:
  NewFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
  bool kept_ = false;
};

}  // namespace r1d::checkpoint
