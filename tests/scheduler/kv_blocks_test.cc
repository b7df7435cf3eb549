// SPDX-License-Identifier: Apache-2.0
#include "scheduler/kv_blocks.h"

#include <gtest/gtest.h>

#include "tests/scheduler/fakes.h"

namespace r1d::scheduler {
namespace {

constexpr int32_t kBlockSize = 4;

class KvBlocksTest : public ::testing::Test {
 protected:
  // Starts a table and computes the whole history. Returns the tokens found in the cache.
  int32_t compute(BlockTable& table, const std::vector<TokenId>& history) {
    EXPECT_TRUE(kv_.open(table, history, 0));
    const int32_t cached = table.num_known * kBlockSize;
    EXPECT_TRUE(kv_.grow(table, static_cast<int32_t>(history.size())));
    kv_.record(table, history, static_cast<int32_t>(history.size()));
    return cached;
  }
  void check(std::initializer_list<const BlockTable*> tables) {
    kv_.check_invariants(std::span(tables.begin(), tables.size()));
  }

  KvBlocks kv_{8, kBlockSize, /*prefix_cache=*/true, BlockHasher::Key{}};
  BlockTable a_;
  BlockTable b_;
};

TEST_F(KvBlocksTest, GrowsByWholeBlocksAndOnlyWhenNeeded) {
  EXPECT_TRUE(kv_.grow(a_, 1));
  EXPECT_EQ(a_.blocks.size(), 1U);
  EXPECT_TRUE(kv_.grow(a_, 4));
  EXPECT_EQ(a_.blocks.size(), 1U);
  EXPECT_TRUE(kv_.grow(a_, 5));
  EXPECT_EQ(a_.blocks.size(), 2U);
  check({&a_});
}

TEST_F(KvBlocksTest, GrowTakesNothingWhenItIsNotEnough) {
  ASSERT_TRUE(kv_.grow(a_, 6 * kBlockSize));
  EXPECT_FALSE(kv_.grow(b_, 3 * kBlockSize));
  EXPECT_TRUE(b_.blocks.empty());
  EXPECT_EQ(kv_.num_available(), 2);
}

TEST_F(KvBlocksTest, SharesThePrefixOfARunningSequence) {
  compute(a_, counting_prompt(10));
  EXPECT_EQ(compute(b_, counting_prompt(11)), 8);
  EXPECT_EQ(b_.blocks[0], a_.blocks[0]);
  EXPECT_EQ(b_.blocks[1], a_.blocks[1]);
  EXPECT_NE(b_.blocks[2], a_.blocks[2]);
  check({&a_, &b_});
}

TEST_F(KvBlocksTest, FindsThePrefixOfAnEndedSequence) {
  compute(a_, counting_prompt(10));
  kv_.close(a_);
  EXPECT_EQ(kv_.allocator().num_cached(), 2) << "full blocks";
  EXPECT_EQ(kv_.allocator().num_free(), 6);
  EXPECT_EQ(compute(b_, counting_prompt(10)), 8);
  check({&a_, &b_});
}

TEST_F(KvBlocksTest, LeavesAtLeastOneTokenToCompute) {
  compute(a_, counting_prompt(8));
  EXPECT_EQ(compute(b_, counting_prompt(8)), 4);
  BlockTable c;
  EXPECT_EQ(compute(c, counting_prompt(9)), 8);
  check({&a_, &b_, &c});
}

TEST_F(KvBlocksTest, KeepsTheFirstOfTwoEqualBlocks) {
  const std::vector<TokenId> history = counting_prompt(9);
  ASSERT_TRUE(kv_.open(a_, history, 0) && kv_.open(b_, history, 0));
  ASSERT_TRUE(kv_.grow(a_, 9) && kv_.grow(b_, 9));
  kv_.record(a_, history, 9);
  EXPECT_EQ(kv_.num_available(), 2);
  kv_.record(b_, history, 9);
  EXPECT_EQ(kv_.num_available(), 4) << "the second copies are free";
  EXPECT_EQ(a_.blocks[0], b_.blocks[0]);
  EXPECT_EQ(a_.blocks[1], b_.blocks[1]);
  EXPECT_NE(a_.blocks[2], b_.blocks[2]) << "not full: each writes its own";
  check({&a_, &b_});
}

TEST_F(KvBlocksTest, SaltsKeepPrefixesApart) {
  a_.salt = "alice";
  b_.salt = "bob";
  compute(a_, counting_prompt(10));
  EXPECT_EQ(compute(b_, counting_prompt(10)), 0);
  BlockTable c;
  c.salt = "alice";
  kv_.close(b_);
  EXPECT_EQ(compute(c, counting_prompt(10)), 8);
  check({&a_, &b_, &c});
}

TEST_F(KvBlocksTest, EvictsTheTailOfTheOldestSequenceFirst) {
  compute(a_, counting_prompt(16));
  compute(b_, counting_prompt(16, 100));
  kv_.close(a_);
  kv_.close(b_);
  EXPECT_EQ(kv_.allocator().num_cached(), 8);
  BlockTable c;
  ASSERT_TRUE(kv_.grow(c, 2 * kBlockSize));
  kv_.close(c);
  EXPECT_EQ(compute(a_, counting_prompt(17)), 8) << "the head of a's chain is still there";
  kv_.close(a_);
  EXPECT_EQ(kv_.allocator().num_blocks(), kv_.num_available());
  check({&a_, &b_, &c});
}

TEST_F(KvBlocksTest, OpenLeavesTheHeadroom) {
  const std::vector<TokenId> history = counting_prompt(6 * kBlockSize);
  EXPECT_FALSE(kv_.open(a_, history, 3));
  EXPECT_TRUE(a_.blocks.empty());
  EXPECT_TRUE(kv_.open(a_, history, 2));
}

TEST_F(KvBlocksTest, OpenDoesNotCountCachedBlocksTwice) {
  compute(a_, counting_prompt(5 * kBlockSize));
  kv_.close(a_);
  ASSERT_TRUE(kv_.grow(b_, 3 * kBlockSize));  // nothing is free, 5 are cached
  // 5 blocks found and one to take: of the 5 that are available none is left for it.
  EXPECT_FALSE(kv_.open(a_, counting_prompt(5 * kBlockSize + 1), 0));
  EXPECT_EQ(kv_.allocator().num_cached(), 5);
  check({&a_, &b_});
}

TEST_F(KvBlocksTest, DiscardedContentIsNotFoundAgain) {
  compute(a_, counting_prompt(10));
  kv_.discard(a_);
  EXPECT_EQ(kv_.allocator().num_free(), 8);
  EXPECT_EQ(compute(b_, counting_prompt(10)), 0);
  check({&a_, &b_});
}

TEST_F(KvBlocksTest, DiscardKeepsWhatOthersUse) {
  compute(a_, counting_prompt(10));
  std::vector<TokenId> longer = counting_prompt(8);
  for (const TokenId token : {50, 51, 52, 53, 54}) longer.push_back(token);
  EXPECT_EQ(compute(b_, longer), 8);
  kv_.discard(b_);
  check({&a_, &b_});
  EXPECT_EQ(compute(b_, longer), 8) << "its third block alone is forgotten";
}

TEST(KvBlocksOffTest, FindsNothingWithThePrefixCacheOff) {
  KvBlocks kv(8, kBlockSize, /*prefix_cache=*/false, BlockHasher::Key{});
  const std::vector<TokenId> history = counting_prompt(10);
  BlockTable table;
  ASSERT_TRUE(kv.open(table, history, 0) && kv.grow(table, 10));
  kv.record(table, history, 10);
  kv.close(table);
  EXPECT_EQ(kv.allocator().num_free(), 8);
  ASSERT_TRUE(kv.open(table, history, 0));
  EXPECT_TRUE(table.blocks.empty());
}

}  // namespace
}  // namespace r1d::scheduler
