// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/new_file.h"

#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <system_error>
#include <unistd.h>

#include "r1d/base/status.h"

#include "checkpoint/errors.h"

namespace r1d::checkpoint {
namespace {

absl::Status system_error(const std::string& path, const std::string& what, int error) {
  const std::string text = std::generic_category().message(error);
  if (error == ENOSPC || error == EDQUOT) {
    return resource_exhausted("{}: {}: {}", path, what, text);
  }
  return failed_precondition("{}: {}: {}", path, what, text);
}

}  // namespace

absl::StatusOr<std::unique_ptr<NewFile>> NewFile::create(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) return system_error(path, "cannot be created", errno);
  return std::unique_ptr<NewFile>(new NewFile(path, descriptor));
}

NewFile::~NewFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!kept_) ::unlink(path_.c_str());
}

absl::Status NewFile::reserve(int64_t bytes) const {
  if (::fallocate(descriptor_, 0, 0, bytes) == 0) return absl::OkStatus();
  if (errno == EOPNOTSUPP || errno == ENOSYS) return absl::OkStatus();
  return system_error(path_, fmt::format("{} bytes cannot be had", grouped(bytes)), errno);
}

absl::Status NewFile::resize(int64_t bytes) const {
  if (::ftruncate(descriptor_, bytes) == 0) return absl::OkStatus();
  return system_error(path_, fmt::format("cannot be {} bytes long", grouped(bytes)), errno);
}

absl::Status NewFile::write_at(int64_t offset, std::span<const std::byte> data) const {
  while (!data.empty()) {
    const ssize_t count = ::pwrite(descriptor_, data.data(), data.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      return system_error(
          path_,
          fmt::format("writing {} bytes at byte {} failed", grouped(std::ssize(data)), offset),
          count == 0 ? ENOSPC : errno);
    }
    offset += count;
    data = data.subspan(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

void NewFile::start_writeback(int64_t offset, int64_t num_bytes) const {
  // Advice: what it cannot do, sync() will.
  ::sync_file_range(descriptor_, offset, num_bytes, SYNC_FILE_RANGE_WRITE);
}

absl::Status NewFile::sync() const {
  if (::fsync(descriptor_) != 0) {
    return system_error(path_, "writing it to the device failed", errno);
  }
  ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);  // advice: its failure changes nothing
  return absl::OkStatus();
}

absl::Status NewFile::close() {
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    return system_error(path_, "closing it failed", errno);
  }
  return absl::OkStatus();
}

absl::Status NewFile::rename(const std::string& path) {
  if (std::rename(path_.c_str(), path.c_str()) != 0) {
    return system_error(path_, "cannot be renamed to " + path, errno);
  }
  path_ = path;
  return absl::OkStatus();
}

}  // namespace r1d::checkpoint
