// SPDX-License-Identifier: Apache-2.0
#include "scheduler/kv_blocks.h"

#include <algorithm>

#include "r1d/base/check.h"

namespace r1d::scheduler {

KvBlocks::KvBlocks(int32_t num_blocks,
                   int32_t block_size,
                   bool prefix_cache,
                   const BlockHasher::Key& key)
    : block_size_(block_size),
      prefix_cache_on_(prefix_cache),
      hasher_(key),
      allocator_(num_blocks),
      cache_(num_blocks, block_size) {
  R1D_CHECK(block_size > 0);
}

bool KvBlocks::open(BlockTable& table, std::span<const TokenId> history, int32_t headroom) {
  R1D_CHECK(table.blocks.empty() && table.num_known == 0);
  match(table, history);
  const auto num_found = static_cast<int32_t>(table.blocks.size());
  // A found block that no one holds is available as well, but not for another use.
  const auto num_revived = std::ranges::count_if(table.blocks, [&](BlockId block) {
    return allocator_.state(block) == BlockAllocator::State::kCached;
  });
  if (blocks_for(history.size()) - num_found > num_available() - num_revived - headroom) {
    table.blocks.clear();
    return false;
  }
  for (const BlockId block : table.blocks) hold(block);
  table.num_known = num_found;
  return true;
}

int32_t KvBlocks::num_missing(const BlockTable& table, int32_t num_tokens) const {
  return std::max(
      0, blocks_for(static_cast<size_t>(num_tokens)) - static_cast<int32_t>(table.blocks.size()));
}

bool KvBlocks::grow(BlockTable& table, int32_t num_tokens) {
  const int32_t missing = num_missing(table, num_tokens);
  if (missing == 0) return true;
  if (missing > num_available()) return false;
  while (allocator_.num_free() < missing) allocator_.reclaim(cache_.evict());
  R1D_CHECK(allocator_.take(missing, table.blocks));
  return true;
}

void KvBlocks::record(BlockTable& table, std::span<const TokenId> history, int32_t num_computed) {
  if (!prefix_cache_on_) return;
  const int32_t num_full = num_computed / block_size_;
  while (table.num_known < num_full && record_next(table, history)) ++table.num_known;
}

// Tail first, so that children retire before their parents.
void KvBlocks::close(BlockTable& table) {
  std::for_each(table.blocks.rbegin(), table.blocks.rend(), [this](BlockId b) { let_go(b); });
  table.blocks.clear();
  table.num_known = 0;
}

void KvBlocks::discard(BlockTable& table) {
  for (int32_t i = table.num_known - 1; i >= 0; --i) {
    const BlockId block = table.blocks[static_cast<size_t>(i)];
    if (allocator_.num_holders(block) > 1 || !cache_.is_leaf(block)) break;
    cache_.forget(block);
  }
  close(table);
}

void KvBlocks::forget_all() {
  R1D_CHECK(allocator_.num_held() == 0);
  while (cache_.num_retired() > 0) allocator_.reclaim(cache_.evict());
}

int32_t KvBlocks::blocks_for(size_t num_tokens) const {
  const auto block_size = static_cast<size_t>(block_size_);
  return static_cast<int32_t>((num_tokens + block_size - 1) / block_size);
}

// Fills table.blocks with the cached prefix; holds nothing yet.
void KvBlocks::match(BlockTable& table, std::span<const TokenId> history) {
  if (!prefix_cache_on_ || history.empty()) return;
  const auto num_blocks = static_cast<int32_t>((history.size() - 1) / block_size_);
  for (int32_t i = 0; i < num_blocks; ++i) {
    const BlockId found = cache_.find(digest_of(table, history, i), content_of(table, history, i));
    if (found == kNoBlock) return;
    table.blocks.push_back(found);
  }
}

// Makes block number num_known findable. False when its digest is taken by other content: then
// neither this block nor those after it can be found.
bool KvBlocks::record_next(BlockTable& table, std::span<const TokenId> history) {
  const Digest digest = digest_of(table, history, table.num_known);
  const BlockContent content = content_of(table, history, table.num_known);
  BlockId& own = table.blocks[static_cast<size_t>(table.num_known)];
  const BlockId known = cache_.find(digest, content);
  if (known == kNoBlock) return cache_.insert(digest, content, own);
  // Two sequences computed the same block side by side. One copy is enough; and holding the known
  // one keeps the parent of this sequence's next block from being evicted.
  hold(known);
  let_go(own);
  own = known;
  return true;
}

const Digest& KvBlocks::digest_of(BlockTable& table,
                                  std::span<const TokenId> history,
                                  int32_t block_idx) {
  const auto wanted = static_cast<size_t>(block_idx) + 1;
  if (table.digests.empty()) table.digests.push_back(hasher_.root(table.salt));
  while (table.digests.size() <= wanted) {
    const auto next = static_cast<int32_t>(table.digests.size()) - 1;
    table.digests.push_back(hasher_.block(table.digests.back(), tokens_of(history, next)));
  }
  return table.digests[wanted];
}

std::span<const TokenId> KvBlocks::tokens_of(std::span<const TokenId> history,
                                             int32_t block_idx) const {
  const auto block_size = static_cast<size_t>(block_size_);
  return history.subspan(static_cast<size_t>(block_idx) * block_size, block_size);
}

BlockContent KvBlocks::content_of(const BlockTable& table,
                                  std::span<const TokenId> history,
                                  int32_t block_idx) const {
  return {.parent = block_idx == 0 ? kNoBlock : table.blocks[static_cast<size_t>(block_idx) - 1],
          .salt = table.salt,
          .tokens = tokens_of(history, block_idx)};
}

void KvBlocks::hold(BlockId block) {
  if (allocator_.state(block) == BlockAllocator::State::kCached) cache_.revive(block);
  allocator_.share(block);
}

void KvBlocks::let_go(BlockId block) {
  const bool keep = cache_.contains(block);
  allocator_.release(block, keep);
  if (keep && allocator_.num_holders(block) == 0) cache_.retire(block);
}

void KvBlocks::check_invariants(std::span<const BlockTable* const> tables) const {
  std::vector<int32_t> holders(static_cast<size_t>(allocator_.num_blocks()), 0);
  for (const BlockTable* table : tables) {
    R1D_CHECK(table->num_known <= static_cast<int32_t>(table->blocks.size()));
    for (size_t i = 0; i < table->blocks.size(); ++i) {
      const BlockId block = table->blocks[i];
      R1D_CHECK(cache_.contains(block) == (static_cast<int32_t>(i) < table->num_known));
      ++holders[static_cast<size_t>(block)];
    }
  }
  int32_t num_held = 0;
  for (BlockId block = 0; block < allocator_.num_blocks(); ++block) {
    const int32_t expected = holders[static_cast<size_t>(block)];
    R1D_CHECK(allocator_.num_holders(block) == expected);
    R1D_CHECK((allocator_.state(block) == BlockAllocator::State::kHeld) == (expected > 0));
    R1D_CHECK(expected <= 1 || cache_.contains(block));
    num_held += expected > 0 ? 1 : 0;
  }
  R1D_CHECK(num_held == allocator_.num_held());
  R1D_CHECK(cache_.num_retired() == allocator_.num_cached());
  cache_.check_invariants();
}

}  // namespace r1d::scheduler
