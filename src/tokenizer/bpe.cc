// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/bpe.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <utility>

#include "r1d/base/status.h"
#include "r1d/base/text.h"

namespace r1d::tokenizer {
namespace {

// Up to this many bytes a scan for the lowest rank is faster than a heap.
constexpr size_t kShortPiece = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

absl::StatusOr<Bpe> Bpe::make(const std::vector<VocabEntry>& vocabulary,
                              const std::vector<MergeRule>& merges,
                              bool whole_first) {
  absl::flat_hash_map<std::string_view, TokenId> ids;
  ids.reserve(vocabulary.size());
  for (const VocabEntry& entry : vocabulary) ids.emplace(entry.bytes, entry.id);

  Bpe bpe;
  for (size_t byte = 0; byte < 256; ++byte) {
    const char as_char = static_cast<char>(byte);
    const auto found = ids.find(std::string_view(&as_char, 1));
    if (found == ids.end())
      return invalid_argument("model.vocab has no token for byte {:#04x}", byte);
    bpe.byte_ids_[byte] = found->second;
  }
  bpe.merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const MergeRule& rule = merges[rank];
    const auto left = ids.find(rule.left);
    const auto right = ids.find(rule.right);
    const auto result = ids.find(rule.left + rule.right);
    if (left == ids.end() || right == ids.end() || result == ids.end()) {
      return invalid_argument(
          "model.merges[{}]: \"{}\" + \"{}\" or a part of it is not in model.vocab",
          rank,
          printable(rule.left, 40),
          printable(rule.right, 40));
    }
    bpe.merges_[pair_key(left->second, right->second)] = {.rank = static_cast<int32_t>(rank),
                                                          .result = result->second};
  }
  bpe.find_whole_tokens(vocabulary, whole_first);
  return bpe;
}

void Bpe::find_whole_tokens(const std::vector<VocabEntry>& vocabulary, bool whole_first) {
  whole_.reserve(vocabulary.size());
  std::vector<TokenId> ids;
  for (const VocabEntry& entry : vocabulary) {
    if (entry.bytes.empty()) continue;
    ids.clear();
    if (!whole_first) encode(entry.bytes, ids);  // a token that merges never make stays out
    if (whole_first || (ids.size() == 1 && ids[0] == entry.id))
      whole_.emplace(entry.bytes, entry.id);
  }
}

const Bpe::Merge* Bpe::find_merge(TokenId left, TokenId right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>& ids) const {
  if (const auto whole = whole_.find(absl::string_view(piece.data(), piece.size()));
      whole != whole_.end()) {
    ids.push_back(whole->second);
  } else if (piece.size() <= kShortPiece) {
    merge_short(piece, ids);
  } else {
    merge_long(piece, ids);
  }
}

void Bpe::merge_short(std::string_view piece, std::vector<TokenId>& ids) const {
  std::array<TokenId, kShortPiece> symbols;
  std::array<Merge, kShortPiece> merges;  // of symbol i with the next one
  size_t count = piece.size();
  for (size_t i = 0; i < count; ++i) symbols[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  const auto look_up = [&](size_t i) {
    const Merge* merge = find_merge(symbols[i], symbols[i + 1]);
    merges[i] = merge == nullptr ? Merge{.rank = kNoRank, .result = 0} : *merge;
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    symbols[best] = merges[best].result;
    std::copy(&symbols[best] + 2, symbols.data() + count, &symbols[best] + 1);
    std::copy(&merges[best] + 1, merges.data() + count - 1, &merges[best]);
    --count;
    if (best + 1 < count) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.begin() + static_cast<std::ptrdiff_t>(count));
}

void Bpe::merge_long(std::string_view piece, std::vector<TokenId>& ids) const {
  std::vector<Symbol> symbols(piece.size());
  const auto size = static_cast<int32_t>(piece.size());
  for (int32_t i = 0; i < size; ++i) {
    const auto byte = static_cast<uint8_t>(piece[static_cast<size_t>(i)]);
    symbols[static_cast<size_t>(i)] = {
        .id = byte_ids_[byte], .previous = i - 1, .next = i + 1 < size ? i + 1 : -1};
  }
  // A pair that could merge; stale once one of its symbols has changed.
  struct Candidate {
    int32_t rank;
    int32_t at;
    TokenId left, right;
    bool operator>(const Candidate& other) const {
      return std::pair(rank, at) > std::pair(other.rank, other.at);
    }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](int32_t at) {
    if (at < 0) return;
    const Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.next < 0) return;
    const TokenId right = symbols[static_cast<size_t>(left.next)].id;
    const Merge* merge = find_merge(left.id, right);
    if (merge != nullptr) candidates.push({merge->rank, at, left.id, right});
  };
  for (int32_t i = 0; i + 1 < size; ++i) consider(i);
  constexpr TokenId kGone = -1;
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = symbols[static_cast<size_t>(best.at)];
    if (left.id != best.left || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != best.right) continue;
    left.id = find_merge(best.left, best.right)->result;
    right.id = kGone;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.at;
    consider(best.at);
    consider(left.previous);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    ids.push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace r1d::tokenizer
