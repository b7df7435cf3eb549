// SPDX-License-Identifier: Apache-2.0
#include "scheduler/prefix_cache.h"

#include <gtest/gtest.h>

namespace r1d::scheduler {
namespace {

const std::vector<TokenId> kOneTwo = {1, 2};
const std::vector<TokenId> kThreeFour = {3, 4};
constexpr Digest kDigest{7, 7};
constexpr Digest kOther{8, 8};

BlockContent content(const std::vector<TokenId>& tokens,
                     BlockId parent = kNoBlock,
                     std::string_view salt = "") {
  return {.parent = parent, .salt = salt, .tokens = tokens};
}

TEST(PrefixCacheTest, FindsWhatWasInserted) {
  PrefixCache cache(4, 2);
  EXPECT_EQ(cache.find(kDigest, content(kOneTwo)), kNoBlock);
  ASSERT_TRUE(cache.insert(kDigest, content(kOneTwo), 3));
  EXPECT_EQ(cache.find(kDigest, content(kOneTwo)), 3);
  cache.check_invariants();
}

TEST(PrefixCacheTest, TakesACollisionForAMiss) {
  PrefixCache cache(4, 2);
  ASSERT_TRUE(cache.insert(kDigest, content(kOneTwo), 0));
  EXPECT_EQ(cache.find(kDigest, content(kThreeFour)), kNoBlock) << "other tokens";
  EXPECT_EQ(cache.find(kDigest, content(kOneTwo, kNoBlock, "s")), kNoBlock) << "other salt";
  EXPECT_EQ(cache.find(kDigest, content(kOneTwo, 2)), kNoBlock) << "other parent";
  EXPECT_FALSE(cache.insert(kDigest, content(kThreeFour), 1)) << "the first entry stays";
  EXPECT_EQ(cache.find(kDigest, content(kOneTwo)), 0);
  EXPECT_FALSE(cache.contains(1));
  cache.check_invariants();
}

TEST(PrefixCacheTest, EvictsWhatRetiredFirst) {
  PrefixCache cache(3, 2);
  ASSERT_TRUE(cache.insert({1, 1}, content(kOneTwo), 0));
  ASSERT_TRUE(cache.insert({2, 2}, content(kOneTwo, 0), 1));
  ASSERT_TRUE(cache.insert({3, 3}, content(kThreeFour), 2));
  cache.retire(1);
  cache.retire(0);
  cache.retire(2);
  cache.check_invariants();
  EXPECT_EQ(cache.evict(), 1) << "the child";
  EXPECT_EQ(cache.find({2, 2}, content(kOneTwo, 0)), kNoBlock);
  EXPECT_EQ(cache.evict(), 0);
  EXPECT_EQ(cache.evict(), 2);
  EXPECT_EQ(cache.num_entries(), 0);
  cache.check_invariants();
}

TEST(PrefixCacheTest, ARevivedBlockGoesToTheEndOfTheLine) {
  PrefixCache cache(3, 2);
  for (BlockId block = 0; block < 3; ++block) {
    const auto digest = static_cast<uint64_t>(block);
    ASSERT_TRUE(cache.insert({digest, digest}, content({block, block}), block));
    cache.retire(block);
  }
  cache.revive(0);
  cache.revive(2);
  EXPECT_EQ(cache.num_retired(), 1);
  cache.retire(2);
  cache.retire(0);
  cache.check_invariants();
  EXPECT_EQ(cache.evict(), 1);
  EXPECT_EQ(cache.evict(), 2);
  EXPECT_EQ(cache.evict(), 0);
}

TEST(PrefixCacheTest, AForgottenBlockIsNotFoundAndItsDigestIsFree) {
  PrefixCache cache(2, 2);
  ASSERT_TRUE(cache.insert(kDigest, content(kOneTwo), 0));
  ASSERT_TRUE(cache.insert(kOther, content(kThreeFour, 0), 1));
  EXPECT_FALSE(cache.is_leaf(0));
  cache.forget(1);
  EXPECT_TRUE(cache.is_leaf(0));
  cache.forget(0);
  EXPECT_EQ(cache.find(kDigest, content(kOneTwo)), kNoBlock);
  EXPECT_TRUE(cache.insert(kDigest, content(kThreeFour), 1));
  cache.check_invariants();
}

}  // namespace
}  // namespace r1d::scheduler
