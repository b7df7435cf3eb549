// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "r1d/base/types.h"

namespace r1d::scheduler {

// Hands out KV block ids. Owns no device memory: the page lives in the engine under the same id.
// Lifecycle of an id: free -> held (by one block table, or shared by several) -> free, or cached:
// held by no table, its content kept for the prefix cache until it is shared again or reclaimed.
// Threads: confined to the scheduler thread.
// Invariant: num_free() + num_held() + num_cached() == num_blocks().
class BlockAllocator {
 public:
  enum class State : uint8_t { kFree, kHeld, kCached };

  explicit BlockAllocator(int32_t num_blocks);

  // Appends `count` free ids to `table`, each with one holder. False, and nothing taken, if fewer
  // are free; the caller may reclaim or preempt and ask again.
  [[nodiscard]] bool take(int32_t count, std::vector<BlockId>& table);

  // One holder more for a held or cached block.
  void share(BlockId block);

  // One holder less. After the last, the block is cached if `keep`, else free.
  void release(BlockId block, bool keep);

  // cached -> free.
  void reclaim(BlockId block);

  [[nodiscard]] State state(BlockId block) const { return entry(block).state; }
  [[nodiscard]] int32_t num_holders(BlockId block) const { return entry(block).num_holders; }
  [[nodiscard]] int32_t num_blocks() const { return static_cast<int32_t>(entries_.size()); }
  [[nodiscard]] int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  [[nodiscard]] int32_t num_cached() const { return num_cached_; }
  [[nodiscard]] int32_t num_held() const { return num_blocks() - num_free() - num_cached(); }

 private:
  struct Entry {
    int32_t num_holders = 0;
    State state = State::kFree;
  };
  [[nodiscard]] const Entry& entry(BlockId block) const {
    return entries_[static_cast<size_t>(block)];
  }
  [[nodiscard]] Entry& entry(BlockId block) { return entries_[static_cast<size_t>(block)]; }

  std::vector<Entry> entries_;
  std::vector<BlockId> free_;  // a stack: what was used last is still warm
  int32_t num_cached_ = 0;
};

}  // namespace r1d::scheduler
