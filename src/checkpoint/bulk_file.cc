// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/bulk_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

#include "r1d/base/fault.h"
#include "r1d/base/status.h"

namespace r1d::checkpoint {
namespace {

int64_t round_down(int64_t offset) {
  return offset / kReadBlock * kReadBlock;
}

int64_t up_to_block(int64_t offset) {
  return round_down(offset + kReadBlock - 1);
}

// Takes `count` bytes off the front of `pieces`.
std::span<iovec> skip(std::span<iovec> pieces, size_t count) {
  while (!pieces.empty() && count >= pieces.front().iov_len) {
    count -= pieces.front().iov_len;
    pieces = pieces.subspan(1);
  }
  if (count > 0) {
    pieces.front().iov_base = static_cast<std::byte*>(pieces.front().iov_base) + count;
    pieces.front().iov_len -= count;
  }
  return pieces;
}

}  // namespace

absl::StatusOr<BlockBuffer> BlockBuffer::take(int64_t bytes) {
  BlockBuffer buffer;
  buffer.data_.reset(static_cast<std::byte*>(std::aligned_alloc(
      static_cast<size_t>(kReadBlock), static_cast<size_t>(up_to_block(bytes)))));
  if (buffer.data_ == nullptr) return resource_exhausted("no {} bytes to read to", bytes);
  return buffer;
}

void BlockBuffer::Free::operator()(std::byte* data) const {
  std::free(data);
}

// The same file again through /proc: by its name it might be another one by now, and O_DIRECT on
// the descriptor that we have would hold for reads of any size.
BulkFile::BulkFile(const File& file, std::string name, bool direct)
    : file_(file), name_(std::move(name)) {
  ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_SEQUENTIAL);
  if (!direct) return;
  const std::string path = fmt::format("/proc/self/fd/{}", file.descriptor());
  direct_descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  direct_.store(direct_descriptor_ >= 0);
}

BulkFile::~BulkFile() {
  if (direct_descriptor_ >= 0) ::close(direct_descriptor_);
}

ReadOutcome BulkFile::read(int64_t begin, int64_t end, std::span<iovec> pieces) const {
  const int64_t wanted = end - begin;
  switch (base::hit_fault(base::FaultPoint::kWeightRead)) {
    case base::FaultAction::kError:
      return {.error = EIO, .injected = true};
    case base::FaultAction::kShort:
      begin = file_.size() - wanted + 1;
      break;
    default:
      break;
  }
  ReadOutcome outcome;
  while (outcome.done < wanted) {
    const ssize_t count = ::preadv(
        file_.descriptor(), pieces.data(), static_cast<int>(pieces.size()), begin + outcome.done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) outcome.error = errno;
    if (count <= 0) return outcome;
    outcome.done += count;
    pieces = skip(pieces, static_cast<size_t>(count));
  }
  return outcome;
}

ReadOutcome BulkFile::read_blocks(int64_t begin, int64_t end, std::byte* blocks) {
  if (direct()) {
    const ReadOutcome outcome = read_direct(begin, end, blocks);
    if (outcome.error != EINVAL) return outcome;
    direct_.store(false);  // a file system that opens so, but does not read so
  }
  iovec piece{.iov_base = blocks + begin % kReadBlock, .iov_len = static_cast<size_t>(end - begin)};
  return read(begin, end, std::span(&piece, 1));
}

// Whole blocks; the last one of a file is as long as it is.
ReadOutcome BulkFile::read_direct(int64_t begin, int64_t end, std::byte* blocks) const {
  switch (base::hit_fault(base::FaultPoint::kWeightRead)) {
    case base::FaultAction::kError:
      return {.error = EIO, .injected = true};
    case base::FaultAction::kShort:
      return {.done = end - begin - 1};
    default:
      break;
  }
  const int64_t first = round_down(begin);
  const int64_t last = up_to_block(end);
  int64_t at = first;
  ReadOutcome outcome;
  while (at < end) {
    const ssize_t count =
        ::pread(direct_descriptor_, blocks + (at - first), static_cast<size_t>(last - at), at);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) outcome.error = errno;
    if (count <= 0) break;
    at += count;
    if (count % kReadBlock != 0) break;  // the end of the file
  }
  outcome.done = std::clamp<int64_t>(at - begin, 0, end - begin);
  return outcome;
}

}  // namespace r1d::checkpoint
