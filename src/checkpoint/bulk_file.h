// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <sys/uio.h>

#include <absl/status/statusor.h>

#include "r1d/base/file.h"

#include "checkpoint/read_plan.h"

namespace r1d::checkpoint {

// Memory for direct reads: whole blocks, at the address of one.
class BlockBuffer {
 public:
  // At least `bytes`. kResourceExhausted when there is no memory.
  [[nodiscard]] static absl::StatusOr<BlockBuffer> take(int64_t bytes);
  [[nodiscard]] std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
};

// How a read ended: `done` of the wanted bytes are there. error == 0 and too few: the file ended.
struct ReadOutcome {
  int64_t done = 0;
  int error = 0;          // errno
  bool injected = false;  // by the fault point, not by the system
};

// A file of weights open for large reads on many threads, through the page cache or past it.
// Threads: thread-safe. The File outlives it.
class BulkFile {
 public:
  // `direct`: past the page cache, where the file system can.
  BulkFile(const File& file, std::string name, bool direct);
  ~BulkFile();
  BulkFile(const BulkFile&) = delete;
  BulkFile& operator=(const BulkFile&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const File& file() const { return file_; }
  // False after a direct open or read was refused: from then on reads go through the page cache.
  [[nodiscard]] bool direct() const { return direct_.load(std::memory_order_relaxed); }

  // Bytes [begin, end) into `pieces`, one after the other, through the page cache. `pieces` are
  // used up.
  [[nodiscard]] ReadOutcome read(int64_t begin, int64_t end, std::span<iovec> pieces) const;

  // The same to a block-aligned buffer that has room for whole blocks around them: byte `begin`
  // comes to blocks + begin % kReadBlock. Past the page cache if direct().
  [[nodiscard]] ReadOutcome read_blocks(int64_t begin, int64_t end, std::byte* blocks);

 private:
  [[nodiscard]] ReadOutcome read_direct(int64_t begin, int64_t end, std::byte* blocks) const;

  const File& file_;
  const std::string name_;
  int direct_descriptor_ = -1;
  std::atomic<bool> direct_{false};
};

}  // namespace r1d::checkpoint
