// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace r1d {

// A regular file opened for reading; symbolic links are followed, since a Hugging Face cache is
// made of them. Owns the descriptor. Threads: const after open(); read_at() has no file position
// and may run on several threads.
class File {
 public:
  // kNotFound when there is no such file. Messages do not name the file: the caller does.
  [[nodiscard]] static absl::StatusOr<File> open(const std::string& path);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // At the time of opening.
  [[nodiscard]] int64_t size() const { return size_; }

  // Fills `dest` from byte `offset`. kDataLoss when the file ends before or the system call fails.
  [[nodiscard]] absl::Status read_at(int64_t offset, std::span<std::byte> dest) const;

  // kDataLoss when size or time of change are not what they were at open(): somebody writes to it.
  [[nodiscard]] absl::Status check_unchanged() const;

  // For system calls that have no function here; stays the File's.
  [[nodiscard]] int descriptor() const { return descriptor_; }

 private:
  explicit File(int descriptor) : descriptor_(descriptor) {}

  int descriptor_ = -1;
  int64_t size_ = 0;
  int64_t changed_ns_ = 0;  // since the epoch, as the file system says
};

// The whole file. kInvalidArgument when it is larger than `max_bytes`; nothing is read then.
[[nodiscard]] absl::StatusOr<std::string> read_text_file(const std::string& path,
                                                         int64_t max_bytes);

}  // namespace r1d
