// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "r1d/base/types.h"

#include "scheduler/block_allocator.h"
#include "scheduler/block_hasher.h"
#include "scheduler/prefix_cache.h"

namespace r1d::scheduler {

// A sequence's list of block ids, with what the prefix cache knows of them.
struct BlockTable {
  std::vector<BlockId> blocks;
  std::string_view salt;        // borrowed from the request
  std::vector<Digest> digests;  // [0] the root's, [i + 1] block i's; survives preemption
  int32_t num_known = 0;        // leading blocks that the prefix cache can find
};

// The scheduler's view of the KV cache: gives blocks to sequences, shares those of equal prefixes,
// and keeps full blocks findable after their sequence has ended, until the room is needed.
// Threads: confined to the scheduler thread.
// Invariants: a block is free, held or cached; a block with several holders is full and is never
// written again; the first `num_known` blocks of every table are prefix cache entries.
class KvBlocks {
 public:
  KvBlocks(int32_t num_blocks, int32_t block_size, bool prefix_cache, const BlockHasher::Key& key);

  // Starts an empty table with the longest cached prefix of `history`, at most all but the last
  // token: that one is computed, to give logits. False, and nothing held, unless the whole history
  // fits now and leaves `headroom` blocks besides.
  [[nodiscard]] bool open(BlockTable& table, std::span<const TokenId> history, int32_t headroom);

  // Extends the table to cover `num_tokens`, taking cached blocks (oldest first) when none is free.
  // False, and nothing taken, if that is not enough.
  [[nodiscard]] bool grow(BlockTable& table, int32_t num_tokens);

  // Blocks that grow() would take.
  [[nodiscard]] int32_t num_missing(const BlockTable& table, int32_t num_tokens) const;

  // Tells that the first `num_computed` tokens of `history` are in the blocks: full ones become
  // findable. A block whose content another block holds already is swapped for that one.
  void record(BlockTable& table, std::span<const TokenId> history, int32_t num_computed);

  // Lets go of the table's blocks; those that can be found stay cached.
  void close(BlockTable& table);

  // close() for content that cannot be trusted: what nobody else uses is not found again.
  void discard(BlockTable& table);

  // Every table is closed: from now on no content is found, all blocks are free.
  void forget_all();

  [[nodiscard]] int32_t num_available() const {
    return allocator_.num_free() + allocator_.num_cached();
  }
  [[nodiscard]] const BlockAllocator& allocator() const { return allocator_; }
  [[nodiscard]] int32_t block_size() const { return block_size_; }
  [[nodiscard]] bool prefix_cache_on() const { return prefix_cache_on_; }

  // R1D_CHECKs the above, given the tables of all sequences.
  void check_invariants(std::span<const BlockTable* const> tables) const;

 private:
  [[nodiscard]] int32_t blocks_for(size_t num_tokens) const;
  void match(BlockTable& table, std::span<const TokenId> history);
  [[nodiscard]] bool record_next(BlockTable& table, std::span<const TokenId> history);
  const Digest& digest_of(BlockTable& table, std::span<const TokenId> history, int32_t block_idx);
  [[nodiscard]] std::span<const TokenId> tokens_of(std::span<const TokenId> history,
                                                   int32_t block_idx) const;
  [[nodiscard]] BlockContent content_of(const BlockTable& table,
                                        std::span<const TokenId> history,
                                        int32_t block_idx) const;
  void hold(BlockId block);
  void let_go(BlockId block);

  const int32_t block_size_;
  const bool prefix_cache_on_;
  BlockHasher hasher_;
  BlockAllocator allocator_;
  PrefixCache cache_;
};

}  // namespace r1d::scheduler
