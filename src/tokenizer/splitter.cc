// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/splitter.h"

#include <array>
#include <cstdint>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "r1d/base/status.h"

#include "tokenizer/regex_dialect.h"

namespace r1d::tokenizer {
namespace {

// Steps of one match. The patterns in use need one a character; a hostile one ends here.
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kMaxPatternBytes = 16 << 10;

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct ContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

struct Range {
  size_t begin = 0;
  size_t end = 0;
};

size_t next_character(std::string_view text, size_t at) {
  do {
    ++at;
  } while (at < text.size() && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

PCRE2_SPTR bytes(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

}  // namespace

struct Splitter::Compiled {
  std::unique_ptr<pcre2_code, CodeDeleter> code;
  std::unique_ptr<pcre2_match_context, ContextDeleter> limits;

  [[nodiscard]] absl::StatusOr<Range> find(std::string_view text,
                                           size_t from,
                                           pcre2_match_data* match) const;
};

Splitter::Splitter(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
Splitter::~Splitter() = default;
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;

absl::StatusOr<Splitter> Splitter::make(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return invalid_argument(
        "is {} bytes long, at most {} are accepted", pattern.size(), kMaxPatternBytes);
  }
  R1D_ASSIGN_OR_RETURN(const std::string translated, to_pcre2(pattern));
  int error = 0;
  size_t offset = 0;
  auto compiled = std::make_unique<Compiled>();
  compiled->code.reset(pcre2_compile(bytes(translated),
                                     translated.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                                     &error,
                                     &offset,
                                     nullptr));
  if (compiled->code == nullptr)
    return invalid_argument("is no regular expression: {}", error_text(error));
  // Without a JIT for this machine the interpreter gives the same matches.
  pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE);
  compiled->limits.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(compiled->limits.get(), kMatchLimit);
  pcre2_set_heap_limit(compiled->limits.get(), kHeapLimitKib);
  return Splitter(std::move(compiled));
}

// The next match at or after `from`; empty at the end of `text` when there is none.
absl::StatusOr<Range> Splitter::Compiled::find(std::string_view text,
                                               size_t from,
                                               pcre2_match_data* match) const {
  const auto run = [&](uint32_t options) {
    return pcre2_match(code.get(),
                       bytes(text),
                       text.size(),
                       from,
                       options | PCRE2_NO_UTF_CHECK,
                       match,
                       limits.get());
  };
  int count = run(0);
  if (count == PCRE2_ERROR_JIT_STACKLIMIT) count = run(PCRE2_NO_JIT);  // its stack is the heap
  if (count == PCRE2_ERROR_NOMATCH) return Range{text.size(), text.size()};
  if (count < 0) {
    return invalid_argument(
        "the tokenizer's pattern gave up at byte {}: {}", from, error_text(count));
  }
  const size_t* const range = pcre2_get_ovector_pointer(match);
  return Range{range[0], range[1]};
}

absl::Status Splitter::split(std::span<const std::string_view> texts,
                             std::vector<std::string_view>& pieces) const {
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> match(
      pcre2_match_data_create(1, nullptr));
  for (const std::string_view text : texts) {
    size_t done = 0;  // everything before is in pieces
    for (size_t from = 0; from < text.size();) {
      R1D_ASSIGN_OR_RETURN(const Range found, compiled_->find(text, from, match.get()));
      if (found.begin == found.end) {  // an empty match cuts nothing
        from = next_character(text, found.begin);
        continue;
      }
      if (found.begin > done) pieces.push_back(text.substr(done, found.begin - done));
      pieces.push_back(text.substr(found.begin, found.end - found.begin));
      done = from = found.end;
    }
    if (done < text.size()) pieces.push_back(text.substr(done));
  }
  return absl::OkStatus();
}

}  // namespace r1d::tokenizer
