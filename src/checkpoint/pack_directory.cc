// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/pack_directory.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <numeric>
#include <sys/file.h>
#include <system_error>
#include <unistd.h>

#include "r1d/base/status.h"

#include "checkpoint/errors.h"

namespace r1d::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPartial = ".r1d-partial";

std::string error_text(int error) {
  return std::generic_category().message(error);
}

// Removes what an interrupted run left; refuses to go on beside anything else.
absl::Status clear_leftovers(const std::string& dir) {
  std::vector<fs::path> leftovers;
  std::error_code error;
  fs::directory_iterator file(dir, error);
  for (const fs::directory_iterator end; !error && file != end; file.increment(error)) {
    if (!file->path().string().ends_with(kPartial)) {
      return failed_precondition("{}: is not empty: it has {}; nothing is overwritten",
                                 dir,
                                 printable(file->path().filename().string()));
    }
    leftovers.push_back(file->path());
  }
  if (error) return failed_precondition("{}: cannot be read: {}", dir, error.message());
  for (const fs::path& path : leftovers) {
    if (!fs::remove(path, error)) {
      return failed_precondition(
          "{}: {} cannot be removed: {}", dir, path.filename().string(), error.message());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackDirectory>> PackDirectory::open(const std::string& dir) {
  std::error_code error;
  const bool made = fs::create_directories(dir, error);
  if (error) return failed_precondition("{}: cannot be created: {}", dir, error.message());
  const int descriptor = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    return failed_precondition("{}: cannot be opened: {}", dir, error_text(errno));
  }
  auto directory = std::unique_ptr<PackDirectory>(new PackDirectory(dir, descriptor, made));
  // A file system without locks is used without.
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return failed_precondition("{}: another process is packing into it", dir);
  }
  R1D_RETURN_IF_ERROR(clear_leftovers(dir));
  return directory;
}

PackDirectory::~PackDirectory() {
  entries_.clear();
  std::error_code ignored;
  if (made_) fs::remove(dir_, ignored);  // fails, rightly, when files were kept
  ::close(descriptor_);
}

absl::Status PackDirectory::check_space(std::span<const int64_t> rank_bytes,
                                        int64_t copied_bytes) const {
  std::error_code error;
  const fs::space_info space = fs::space(dir_, error);
  const int64_t needed =
      std::accumulate(rank_bytes.begin(), rank_bytes.end(), int64_t{0}) + copied_bytes;
  if (error || needed <= static_cast<int64_t>(space.available)) return absl::OkStatus();
  return resource_exhausted(
      "{}: {} bytes are needed ({} rank files of up to {}, and {} of copied files), {} are free",
      dir_,
      grouped(needed),
      rank_bytes.size(),
      grouped(*std::max_element(rank_bytes.begin(), rank_bytes.end())),
      grouped(copied_bytes),
      grouped(static_cast<int64_t>(space.available)));
}

absl::StatusOr<NewFile*> PackDirectory::add(const std::string& name) {
  R1D_ASSIGN_OR_RETURN(auto file, NewFile::create(dir_ + "/" + name + std::string(kPartial)));
  entries_.push_back({name, std::move(file)});
  return entries_.back().file.get();
}

absl::Status PackDirectory::add_text(const std::string& name, std::string_view text) {
  R1D_ASSIGN_OR_RETURN(const NewFile* file, add(name));
  return file->write_at(0, std::as_bytes(std::span(text)));
}

absl::Status PackDirectory::publish() {
  for (const Entry& entry : entries_) {
    R1D_RETURN_IF_ERROR(entry.file->sync());
    R1D_RETURN_IF_ERROR(entry.file->close());
  }
  for (const Entry& entry : entries_) {
    R1D_RETURN_IF_ERROR(entry.file->rename(dir_ + "/" + entry.name));
  }
  if (::fsync(descriptor_) != 0) {
    return failed_precondition("{}: writing it to the device failed: {}", dir_, error_text(errno));
  }
  for (const Entry& entry : entries_) entry.file->keep();
  return absl::OkStatus();
}

}  // namespace r1d::checkpoint
