// SPDX-License-Identifier: Apache-2.0
#include "scheduler/prefix_cache.h"

#include <algorithm>

#include "r1d/base/check.h"

namespace r1d::scheduler {

PrefixCache::PrefixCache(int32_t num_blocks, int32_t block_size)
    : block_size_(static_cast<size_t>(block_size)),
      entries_(static_cast<size_t>(num_blocks)),
      tokens_(entries_.size() * block_size_) {
  blocks_.reserve(entries_.size());  // never rehashes while serving
}

BlockId PrefixCache::find(const Digest& digest, const BlockContent& content) const {
  const auto found = blocks_.find(digest);
  if (found == blocks_.end() || !holds(found->second, content)) return kNoBlock;
  return found->second;
}

bool PrefixCache::insert(const Digest& digest, const BlockContent& content, BlockId block) {
  R1D_CHECK(!contains(block) && content.tokens.size() == block_size_);
  if (!blocks_.emplace(digest, block).second) return false;
  Entry& added = entry(block);
  added.digest = digest;
  added.parent = content.parent;
  added.present = true;
  if (content.parent == kNoBlock) {
    added.salt = content.salt;
  } else {
    R1D_CHECK(contains(content.parent));
    ++entry(content.parent).num_children;
  }
  std::copy(content.tokens.begin(),
            content.tokens.end(),
            tokens_.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(block) * block_size_));
  return true;
}

void PrefixCache::retire(BlockId block) {
  Entry& retiring = entry(block);
  R1D_CHECK(retiring.present && !retiring.retired);
  retiring.retired = true;
  retiring.older = newest_;
  (newest_ == kNoBlock ? oldest_ : entry(newest_).newer) = block;
  newest_ = block;
  ++num_retired_;
}

void PrefixCache::revive(BlockId block) {
  R1D_CHECK(entry(block).retired);
  unlink(block);
}

BlockId PrefixCache::evict() {
  const BlockId block = oldest_;
  R1D_CHECK(block != kNoBlock);
  unlink(block);
  erase(block);
  return block;
}

void PrefixCache::forget(BlockId block) {
  R1D_CHECK(contains(block) && !entry(block).retired);
  erase(block);
}

std::span<const TokenId> PrefixCache::tokens_of(BlockId block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block) * block_size_, block_size_);
}

bool PrefixCache::holds(BlockId block, const BlockContent& content) const {
  const Entry& known = entry(block);
  return known.parent == content.parent &&
         (content.parent != kNoBlock || known.salt == content.salt) &&
         std::ranges::equal(tokens_of(block), content.tokens);
}

void PrefixCache::unlink(BlockId block) {
  Entry& leaving = entry(block);
  (leaving.older == kNoBlock ? oldest_ : entry(leaving.older).newer) = leaving.newer;
  (leaving.newer == kNoBlock ? newest_ : entry(leaving.newer).older) = leaving.older;
  leaving.older = leaving.newer = kNoBlock;
  leaving.retired = false;
  --num_retired_;
}

void PrefixCache::erase(BlockId block) {
  Entry& erased = entry(block);
  R1D_CHECK(erased.num_children == 0);
  if (erased.parent != kNoBlock) --entry(erased.parent).num_children;
  blocks_.erase(erased.digest);
  erased = Entry{};
}

void PrefixCache::check_invariants() const {
  std::vector<int32_t> children(entries_.size(), 0);
  int32_t num_present = 0;
  for (const Entry& known : entries_) {
    if (!known.present) continue;
    ++num_present;
    if (known.parent == kNoBlock) continue;
    R1D_CHECK(contains(known.parent));
    R1D_CHECK(known.retired || !entry(known.parent).retired);
    ++children[static_cast<size_t>(known.parent)];
  }
  R1D_CHECK(num_present == num_entries());
  for (size_t i = 0; i < entries_.size(); ++i) R1D_CHECK(children[i] == entries_[i].num_children);
  int32_t num_linked = 0;
  for (BlockId block = oldest_; block != kNoBlock; block = entry(block).newer) {
    R1D_CHECK(entry(block).retired && ++num_linked <= num_retired_);
  }
  R1D_CHECK(num_linked == num_retired_);
}

}  // namespace r1d::scheduler
