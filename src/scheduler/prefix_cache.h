// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "r1d/base/types.h"

#include "scheduler/block_hasher.h"

namespace r1d::scheduler {

inline constexpr BlockId kNoBlock = -1;

// What the entries of a full block depend on: its own tokens and everything before them.
struct BlockContent {
  BlockId parent = kNoBlock;        // the cached block before it; kNoBlock: a sequence's first
  std::string_view salt;            // looked at where there is no parent
  std::span<const TokenId> tokens;  // block_size of them
};

// Which full blocks hold which content, and in which order those that no sequence holds are given
// up. A digest only finds an entry; the parent, the salt and the tokens are compared, so that a
// collision is a miss.
// Lifecycle of an entry: insert() -> retire() when the last holder leaves -> revive() when the next
// one comes, or evict(); forget() drops what should not be found again.
// Threads: confined to the scheduler thread.
// Invariant: a parent is held whenever a child is, and retires after it (holders of a child hold
// the parent and let go from the tail), so the oldest retired block has no child and an entry's
// parent id always names the parent it was inserted with.
class PrefixCache {
 public:
  PrefixCache(int32_t num_blocks, int32_t block_size);

  // The block with this content, or kNoBlock.
  [[nodiscard]] BlockId find(const Digest& digest, const BlockContent& content) const;

  // Makes `block` findable. False if the digest stands for other content already.
  [[nodiscard]] bool insert(const Digest& digest, const BlockContent& content, BlockId block);

  [[nodiscard]] bool contains(BlockId block) const { return entry(block).present; }
  [[nodiscard]] bool is_leaf(BlockId block) const { return entry(block).num_children == 0; }

  void retire(BlockId block);
  void revive(BlockId block);

  // Drops the entry of the block that retired first, and returns the block. There must be one.
  [[nodiscard]] BlockId evict();

  // Drops the entry of a block that is held and has no child.
  void forget(BlockId block);

  [[nodiscard]] int32_t num_entries() const { return static_cast<int32_t>(blocks_.size()); }
  [[nodiscard]] int32_t num_retired() const { return num_retired_; }

  // R1D_CHECKs the links, the children's counts and the table.
  void check_invariants() const;

 private:
  struct Entry {
    Digest digest;
    std::string salt;  // of a block without parent
    BlockId parent = kNoBlock;
    int32_t num_children = 0;
    BlockId older = kNoBlock;  // neighbours among the retired
    BlockId newer = kNoBlock;
    bool present = false;
    bool retired = false;
  };
  struct DigestHash {
    size_t operator()(const Digest& digest) const { return digest.low; }  // keyed: random enough
  };

  [[nodiscard]] const Entry& entry(BlockId block) const {
    return entries_[static_cast<size_t>(block)];
  }
  [[nodiscard]] Entry& entry(BlockId block) { return entries_[static_cast<size_t>(block)]; }
  [[nodiscard]] std::span<const TokenId> tokens_of(BlockId block) const;
  [[nodiscard]] bool holds(BlockId block, const BlockContent& content) const;
  void unlink(BlockId block);
  void erase(BlockId block);

  size_t block_size_;
  std::vector<Entry> entries_;   // by block id
  std::vector<TokenId> tokens_;  // [num_blocks, block_size]
  std::unordered_map<Digest, BlockId, DigestHash> blocks_;
  BlockId oldest_ = kNoBlock;
  BlockId newest_ = kNoBlock;
  int32_t num_retired_ = 0;
};

}  // namespace r1d::scheduler
