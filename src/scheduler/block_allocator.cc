// SPDX-License-Identifier: Apache-2.0
#include "scheduler/block_allocator.h"

#include "r1d/base/check.h"

namespace r1d::scheduler {

BlockAllocator::BlockAllocator(int32_t num_blocks) {
  R1D_CHECK(num_blocks > 0);
  entries_.resize(static_cast<size_t>(num_blocks));
  free_.reserve(entries_.size());
  for (BlockId block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

bool BlockAllocator::take(int32_t count, std::vector<BlockId>& table) {
  R1D_CHECK(count >= 0);
  if (count > num_free()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const BlockId block = free_.back();
    free_.pop_back();
    entry(block) = {.num_holders = 1, .state = State::kHeld};
    table.push_back(block);
  }
  return true;
}

void BlockAllocator::share(BlockId block) {
  Entry& shared = entry(block);
  R1D_CHECK(shared.state != State::kFree);
  if (shared.state == State::kCached) --num_cached_;
  shared.state = State::kHeld;
  ++shared.num_holders;
}

void BlockAllocator::release(BlockId block, bool keep) {
  Entry& released = entry(block);
  R1D_CHECK(released.state == State::kHeld);
  if (--released.num_holders > 0) return;
  if (keep) {
    released.state = State::kCached;
    ++num_cached_;
  } else {
    released.state = State::kFree;
    free_.push_back(block);
  }
}

void BlockAllocator::reclaim(BlockId block) {
  R1D_CHECK(state(block) == State::kCached);
  entry(block).state = State::kFree;
  --num_cached_;
  free_.push_back(block);
}

}  // namespace r1d::scheduler
