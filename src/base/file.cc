// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/file.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

#include "r1d/base/status.h"

namespace r1d {
namespace {

std::string error_text(int error) {
  return std::generic_category().message(error);
}

absl::Status open_error(int error) {
  const std::string text = error_text(error);
  if (error == ENOENT || error == ENOTDIR) return not_found("{}", text);
  return failed_precondition("cannot be opened: {}", text);
}

int64_t change_time_ns(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

absl::StatusOr<File> File::open(const std::string& path) {
  // O_NONBLOCK: a FIFO under that name must not hang the start; it is refused below.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return open_error(errno);
  File file(descriptor);
  struct stat info = {};
  if (::fstat(descriptor, &info) != 0) return open_error(errno);
  if (!S_ISREG(info.st_mode)) return failed_precondition("is not a regular file");
  file.size_ = info.st_size;
  file.changed_ns_ = change_time_ns(info);
  return file;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_),
      changed_ns_(other.changed_ns_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(changed_ns_, other.changed_ns_);
  return *this;
}

absl::Status File::read_at(int64_t offset, std::span<std::byte> dest) const {
  while (!dest.empty()) {
    const ssize_t count = ::pread(descriptor_, dest.data(), dest.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return data_loss("read at byte {} failed: {}", offset, error_text(errno));
    if (count == 0) {
      return data_loss("file ends at byte {}, {} bytes too early", offset, dest.size());
    }
    offset += count;
    dest = dest.subspan(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status File::check_unchanged() const {
  struct stat info = {};
  if (::fstat(descriptor_, &info) != 0) return data_loss("{}", error_text(errno));
  if (info.st_size != size_) {
    return data_loss("was {} bytes long when it was opened, now {}", size_, info.st_size);
  }
  if (change_time_ns(info) != changed_ns_) return data_loss("was written to while it was read");
  return absl::OkStatus();
}

absl::StatusOr<std::string> read_text_file(const std::string& path, int64_t max_bytes) {
  R1D_ASSIGN_OR_RETURN(const File file, File::open(path));
  if (file.size() > max_bytes) {
    return invalid_argument("is {} bytes long, at most {} are accepted", file.size(), max_bytes);
  }
  std::string text(static_cast<size_t>(file.size()), '\0');
  R1D_RETURN_IF_ERROR(file.read_at(0, std::as_writable_bytes(std::span(text))));
  return text;
}

}  // namespace r1d
