// SPDX-License-Identifier: Apache-2.0
#include "scheduler/block_allocator.h"

#include <set>

#include <gtest/gtest.h>

namespace r1d::scheduler {
namespace {

TEST(BlockAllocatorTest, GivesEachBlockOnce) {
  BlockAllocator allocator(5);
  std::vector<BlockId> table;
  EXPECT_TRUE(allocator.take(2, table));
  EXPECT_TRUE(allocator.take(3, table));
  EXPECT_EQ(std::set<BlockId>(table.begin(), table.end()), (std::set<BlockId>{0, 1, 2, 3, 4}));
  EXPECT_EQ(allocator.num_free(), 0);
  EXPECT_EQ(allocator.num_held(), 5);
}

TEST(BlockAllocatorTest, TakesNothingWhenTooFewAreFree) {
  BlockAllocator allocator(4);
  std::vector<BlockId> table;
  ASSERT_TRUE(allocator.take(3, table));
  EXPECT_FALSE(allocator.take(2, table));
  EXPECT_EQ(table.size(), 3U);
  EXPECT_EQ(allocator.num_free(), 1);
}

TEST(BlockAllocatorTest, FreesABlockAfterItsLastHolder) {
  BlockAllocator allocator(1);
  std::vector<BlockId> table;
  ASSERT_TRUE(allocator.take(1, table));
  allocator.share(0);
  EXPECT_EQ(allocator.num_holders(0), 2);
  allocator.release(0, /*keep=*/false);
  EXPECT_EQ(allocator.state(0), BlockAllocator::State::kHeld);
  allocator.release(0, /*keep=*/false);
  EXPECT_EQ(allocator.state(0), BlockAllocator::State::kFree);
  EXPECT_EQ(allocator.num_free(), 1);
}

TEST(BlockAllocatorTest, KeepsACachedBlockOutOfTheFreeListUntilReclaimed) {
  BlockAllocator allocator(1);
  std::vector<BlockId> table;
  ASSERT_TRUE(allocator.take(1, table));
  allocator.release(0, /*keep=*/true);
  EXPECT_EQ(allocator.state(0), BlockAllocator::State::kCached);
  EXPECT_EQ(allocator.num_cached(), 1);
  EXPECT_FALSE(allocator.take(1, table));
  allocator.reclaim(0);
  EXPECT_EQ(allocator.num_cached(), 0);
  EXPECT_TRUE(allocator.take(1, table));
}

TEST(BlockAllocatorTest, HoldsACachedBlockAgainWhenShared) {
  BlockAllocator allocator(1);
  std::vector<BlockId> table;
  ASSERT_TRUE(allocator.take(1, table));
  allocator.release(0, /*keep=*/true);
  allocator.share(0);
  EXPECT_EQ(allocator.state(0), BlockAllocator::State::kHeld);
  EXPECT_EQ(allocator.num_holders(0), 1);
  EXPECT_EQ(allocator.num_cached(), 0);
}

TEST(BlockAllocatorDeathTest, RefusesToReleaseWhatNobodyHolds) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  BlockAllocator allocator(1);
  EXPECT_DEATH(allocator.release(0, /*keep=*/false), "kHeld");
}

}  // namespace
}  // namespace r1d::scheduler
