// SPDX-License-Identifier: Apache-2.0
// Byte pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <absl/status/statusor.h>

#include "r1d/base/types.h"

namespace r1d::tokenizer {

// A vocabulary entry and a merge as the file has them, in bytes.
struct VocabEntry {
  std::string bytes;
  TokenId id = 0;
};
struct MergeRule {
  std::string left;
  std::string right;
};

// Starts with one symbol a byte; merges the adjacent pair of lowest rank, the leftmost among
// equals, until no pair has one. n log n in the length of the piece. Threads: const after make().
class Bpe {
 public:
  // `merges` in order of rank. With `whole_first` a piece that is in the vocabulary is taken as it
  // is, whatever its merges give. kInvalidArgument when a byte has no token or a merge names a
  // token that there is not.
  [[nodiscard]] static absl::StatusOr<Bpe> make(const std::vector<VocabEntry>& vocabulary,
                                                const std::vector<MergeRule>& merges,
                                                bool whole_first);

  void encode(std::string_view piece, std::vector<TokenId>& ids) const;

 private:
  struct Merge {
    int32_t rank = 0;
    TokenId result = 0;
  };
  struct Symbol {
    TokenId id = 0;
    int32_t previous = -1;
    int32_t next = -1;
  };

  [[nodiscard]] const Merge* find_merge(TokenId left, TokenId right) const;
  void merge_short(std::string_view piece, std::vector<TokenId>& ids) const;
  void merge_long(std::string_view piece, std::vector<TokenId>& ids) const;
  void find_whole_tokens(const std::vector<VocabEntry>& vocabulary, bool whole_first);

  std::array<TokenId, 256> byte_ids_{};
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by (left id, right id)
  // Tokens that a piece of just their bytes becomes: one look-up in place of all merges. Most
  // pieces of ordinary text are such, so no cache is needed.
  absl::flat_hash_map<std::string, TokenId> whole_;
};

}  // namespace r1d::tokenizer
