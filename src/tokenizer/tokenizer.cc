// SPDX-License-Identifier: Apache-2.0
#include "r1d/tokenizer/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <unordered_set>
#include <utility>

#include "r1d/base/file.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/nfc.h"
#include "tokenizer/splitter.h"
#include "tokenizer/tokenizer_json.h"

namespace r1d::tokenizer {
namespace {

constexpr int64_t kMaxFileBytes = 64 << 20;

// Special tokens may stand in the vocabulary too. No merge may lead to one, and ordinary text that
// is spelled like one must not become it.
void drop_added(TokenizerSpec& spec) {
  std::unordered_set<TokenId> added;
  for (const AddedToken& token : spec.added) added.insert(token.id);
  std::erase_if(spec.vocabulary, [&](const VocabEntry& entry) { return added.contains(entry.id); });
}

// The bytes of every token, one after another.
class TokenTable {
 public:
  explicit TokenTable(const TokenizerSpec& spec) {
    std::vector<const std::string*> contents;
    const auto place = [&](TokenId id, const std::string& content) {
      const auto index = static_cast<size_t>(id);
      if (contents.size() <= index) contents.resize(index + 1);
      contents[index] = &content;
    };
    for (const VocabEntry& entry : spec.vocabulary) place(entry.id, entry.bytes);
    for (const AddedToken& token : spec.added) place(token.id, token.content);
    begins_.reserve(contents.size() + 1);
    begins_.push_back(0);
    for (const std::string* content : contents) {
      if (content != nullptr) bytes_ += *content;
      begins_.push_back(static_cast<uint32_t>(bytes_.size()));
    }
  }

  [[nodiscard]] TokenId last_id() const { return static_cast<TokenId>(begins_.size()) - 2; }

  [[nodiscard]] std::string_view operator[](TokenId id) const {
    if (id < 0 || id > last_id()) return {};
    const auto index = static_cast<size_t>(id);
    return std::string_view(bytes_).substr(begins_[index], begins_[index + 1] - begins_[index]);
  }

 private:
  std::string bytes_;
  std::vector<uint32_t> begins_;
};

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(const TokenizerSpec& spec, Bpe bpe, std::vector<Splitter> splitters)
      : bpe_(std::move(bpe)),
        splitters_(std::move(splitters)),
        added_(spec.added),
        table_(spec),
        nfc_(spec.nfc),
        prefix_token_(spec.prefix_token),
        kinds_(static_cast<size_t>(table_.last_id()) + 1, Kind::kOrdinary) {
    for (const AddedToken& token : spec.added) {
      kinds_[static_cast<size_t>(token.id)] = token.special ? Kind::kSpecial : Kind::kAdded;
    }
  }

  absl::Status encode(std::span<const Segment> segments, std::vector<TokenId>& ids) const override {
    std::string text;
    for (const Segment& segment : segments) text += segment.text;
    if (const auto invalid = find_invalid_utf8(text)) {
      return invalid_argument(
          "not UTF-8: byte {} is {:#04x}", *invalid, static_cast<uint8_t>(text[*invalid]));
    }
    const std::string_view whole = text;
    size_t done = 0;  // everything before is in ids
    for (const auto& [begin, end] : matching_ranges(segments)) {
      for (size_t from = begin; from < end;) {
        const auto match = added_.find(whole.substr(0, end), from);
        if (!match) break;
        R1D_RETURN_IF_ERROR(encode_plain(whole.substr(done, match->begin - done), ids));
        ids.push_back(match->id);
        done = from = match->begin + match->size;
      }
    }
    return encode_plain(whole.substr(done), ids);
  }

  std::string_view bytes_of(TokenId id) const override { return table_[id]; }
  std::optional<TokenId> find_added(std::string_view content) const override {
    return added_.id_of(content);
  }
  bool is_added(TokenId id) const override { return kind_of(id) != Kind::kOrdinary; }
  bool is_special(TokenId id) const override { return kind_of(id) == Kind::kSpecial; }
  std::optional<TokenId> prefix_token() const override { return prefix_token_; }
  TokenId last_id() const override { return table_.last_id(); }

 private:
  enum class Kind : uint8_t { kOrdinary, kAdded, kSpecial };

  [[nodiscard]] Kind kind_of(TokenId id) const {
    return id >= 0 && id <= last_id() ? kinds_[static_cast<size_t>(id)] : Kind::kOrdinary;
  }

  // Where added tokens count: neighbouring kMatch segments, joined.
  static std::vector<std::pair<size_t, size_t>> matching_ranges(std::span<const Segment> segments) {
    std::vector<std::pair<size_t, size_t>> ranges;
    size_t at = 0;
    for (const Segment& segment : segments) {
      const size_t end = at + segment.text.size();
      if (segment.added == AddedTokens::kMatch) {
        const bool joins = !ranges.empty() && ranges.back().second == at;
        if (joins)
          ranges.back().second = end;
        else
          ranges.emplace_back(at, end);
      }
      at = end;
    }
    return ranges;
  }

  // A stretch without added tokens.
  absl::Status encode_plain(std::string_view text, std::vector<TokenId>& ids) const {
    if (text.empty()) return absl::OkStatus();
    std::string normalized;
    if (nfc_) {
      normalized = to_nfc(text);
      text = normalized;
    }
    std::vector<std::string_view> pieces = {text};
    std::vector<std::string_view> finer;
    for (const Splitter& splitter : splitters_) {
      finer.clear();
      R1D_RETURN_IF_ERROR(splitter.split(pieces, finer));
      pieces.swap(finer);
    }
    for (const std::string_view piece : pieces) bpe_.encode(piece, ids);
    return absl::OkStatus();
  }

  const Bpe bpe_;
  const std::vector<Splitter> splitters_;
  const AddedTokenFinder added_;
  const TokenTable table_;
  const bool nfc_;
  const std::optional<TokenId> prefix_token_;
  std::vector<Kind> kinds_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::parse(std::string_view tokenizer_json) {
  R1D_ASSIGN_OR_RETURN(TokenizerSpec spec, parse_tokenizer_json(tokenizer_json));
  drop_added(spec);
  R1D_ASSIGN_OR_RETURN(Bpe bpe, Bpe::make(spec.vocabulary, spec.merges, spec.ignore_merges));
  std::vector<Splitter> splitters;
  for (const std::string& pattern : spec.splits) {
    absl::StatusOr<Splitter> splitter = Splitter::make(pattern);
    if (!splitter.ok()) {
      return with_context(splitter.status(),
                          "pre_tokenizer: pattern \"" + printable(pattern) + "\"");
    }
    splitters.push_back(*std::move(splitter));
  }
  return std::make_unique<BpeTokenizer>(spec, std::move(bpe), std::move(splitters));
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::load(const std::string& path) {
  std::error_code ignored;
  const std::string file =
      std::filesystem::is_directory(path, ignored) ? path + "/tokenizer.json" : path;
  const absl::StatusOr<std::string> text = read_text_file(file, kMaxFileBytes);
  if (!text.ok()) return with_context(text.status(), file);
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = parse(*text);
  if (!tokenizer.ok()) return with_context(tokenizer.status(), file);
  return tokenizer;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  std::string bytes;
  for (const TokenId id : ids) {
    if (!skip_special || !is_special(id)) bytes += bytes_of(id);
  }
  std::string text;
  text.reserve(bytes.size());
  append_as_utf8(bytes, text);
  return text;
}

absl::StatusOr<std::vector<TokenId>> encode(const Tokenizer& tokenizer,
                                            std::string_view text,
                                            AddedTokens added) {
  const Segment segment{text, added};
  std::vector<TokenId> ids;
  R1D_RETURN_IF_ERROR(tokenizer.encode(std::span(&segment, 1), ids));
  return ids;
}

}  // namespace r1d::tokenizer
