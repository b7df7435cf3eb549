// SPDX-License-Identifier: Apache-2.0
#include "scheduler/block_hasher.h"

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace r1d::scheduler {
namespace {

constexpr BlockHasher::Key kKey = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

std::string hex(const Digest& digest) {
  std::array<uint8_t, 16> bytes{};
  std::memcpy(bytes.data(), &digest, bytes.size());
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

// Provenance: vectors_sip128 of the SipHash reference implementation (github.com/veorq/SipHash);
// the key is 00 .. 0f, the message 00, 01, 02, ...
TEST(BlockHasherTest, MatchesThePublishedSipHashVectors) {
  BlockHasher hasher(kKey);
  std::vector<std::byte> message(15);
  for (size_t i = 0; i < message.size(); ++i) message[i] = static_cast<std::byte>(i);
  const std::span<const std::byte> all(message);
  EXPECT_EQ(hex(hasher.hash({})), "a3817f04ba25a8e66df67214c7550293");
  EXPECT_EQ(hex(hasher.hash({all.first(1)})), "da87c1d86b99af44347659119b22fc45");
  EXPECT_EQ(hex(hasher.hash({all})), "5493e99933b0a8117e08ec0f97cfc3d9");
  EXPECT_EQ(hex(hasher.hash({all.first(4), all.subspan(4)})), "5493e99933b0a8117e08ec0f97cfc3d9");
}

TEST(BlockHasherTest, DependsOnParentTokensSaltAndKey) {
  BlockHasher hasher(kKey);
  const std::vector<TokenId> tokens = {1, 2, 3, 4};
  const std::vector<TokenId> others = {1, 2, 3, 5};
  const Digest root = hasher.root("");
  const Digest block = hasher.block(root, tokens);
  EXPECT_EQ(block, hasher.block(hasher.root(""), tokens));
  EXPECT_NE(block, hasher.block(root, others));
  EXPECT_NE(block, hasher.block(block, tokens));
  EXPECT_NE(block, hasher.block(hasher.root("tenant"), tokens));
  BlockHasher other_key(BlockHasher::random_key());
  EXPECT_NE(block, other_key.block(other_key.root(""), tokens));
}

TEST(BlockHasherTest, TakesNoSaltForABlock) {
  BlockHasher hasher(kKey);
  const std::vector<TokenId> tokens = {1, 2, 3, 4};
  const Digest root = hasher.root("");
  std::string spelled(sizeof(Digest) + tokens.size() * sizeof(TokenId), '\0');
  std::memcpy(spelled.data(), &root, sizeof(root));
  std::memcpy(spelled.data() + sizeof(root), tokens.data(), tokens.size() * sizeof(TokenId));
  EXPECT_NE(hasher.root(spelled), hasher.block(root, tokens));
}

TEST(BlockHasherTest, DrawsADifferentKeyEachTime) {
  EXPECT_NE(BlockHasher::random_key(), BlockHasher::random_key());
}

}  // namespace
}  // namespace r1d::scheduler
