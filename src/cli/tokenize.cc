// SPDX-License-Identifier: Apache-2.0
// `r1d tokenize`: the tokenizer alone, line by line.
#include <charconv>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "r1d/base/json.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"
#include "r1d/tokenizer/tokenizer.h"

#include "cli/commands.h"

namespace r1d::cli {
namespace {

using tokenizer::AddedTokens;
using tokenizer::Tokenizer;

constexpr JsonLimits kLineJson{256 << 20, 4, 4096, 64'000'000};

// "1 2 3", or with commas.
absl::StatusOr<std::vector<TokenId>> parse_ids(const std::string& line) {
  std::vector<TokenId> ids;
  const char* at = line.data();
  const char* const end = at + line.size();
  while (at < end) {
    if (*at == ' ' || *at == ',' || *at == '\t' || *at == '\r') {
      ++at;
      continue;
    }
    TokenId id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc()) {
      return invalid_argument("\"{}\" is no token id",
                              printable(std::string_view(at, static_cast<size_t>(end - at)), 20));
    }
    ids.push_back(id);
    at = next;
  }
  return ids;
}

absl::StatusOr<std::vector<TokenId>> ids_of(const Json& object) {
  const auto found = object.find("ids");
  if (found == object.end() || !found->is_array())
    return invalid_argument("ids: expected an array");
  std::vector<TokenId> ids;
  for (const Json& id : *found) {
    if (!id.is_number_integer())
      return invalid_argument("ids: expected integers, found {}", describe(id));
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

// One line of input to one of output.
class LineConverter {
 public:
  LineConverter(const Tokenizer& tokenizer, const TokenizeOptions& options)
      : tokenizer_(tokenizer), options_(options) {}

  [[nodiscard]] absl::StatusOr<std::string> convert(const std::string& line) const {
    if (options_.jsonl) return convert_json(line);
    if (options_.decode) {
      R1D_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, parse_ids(line));
      return decode(ids);
    }
    R1D_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, encode(line));
    return fmt::format("{}", fmt::join(ids, " "));
  }

 private:
  [[nodiscard]] absl::StatusOr<std::string> convert_json(const std::string& line) const {
    R1D_ASSIGN_OR_RETURN(const Json object, parse_json(line, kLineJson));
    if (!object.is_object())
      return invalid_argument("expected an object, found {}", describe(object));
    if (options_.decode) {
      R1D_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ids_of(object));
      return Json{{"text", decode(ids)}}.dump();
    }
    const auto text = object.find("text");
    if (text == object.end() || !text->is_string())
      return invalid_argument("text: expected a string");
    R1D_ASSIGN_OR_RETURN(const std::vector<TokenId> ids,
                         encode(text->get_ref<const std::string&>()));
    return Json{{"ids", ids}}.dump();
  }

  [[nodiscard]] absl::StatusOr<std::vector<TokenId>> encode(const std::string& text) const {
    return tokenizer::encode(
        tokenizer_, text, options_.plain ? AddedTokens::kPlain : AddedTokens::kMatch);
  }
  [[nodiscard]] std::string decode(const std::vector<TokenId>& ids) const {
    return tokenizer_.decode(ids, options_.skip_special);
  }

  const Tokenizer& tokenizer_;
  const TokenizeOptions& options_;
};

}  // namespace

absl::Status tokenize(const TokenizeOptions& options) {
  R1D_ASSIGN_OR_RETURN(const auto loaded, Tokenizer::load(options.tokenizer));
  const LineConverter converter(*loaded, options);
  std::ios::sync_with_stdio(false);
  int64_t number = 0;
  for (std::string line; std::getline(std::cin, line);) {
    ++number;
    const absl::StatusOr<std::string> result = converter.convert(line);
    if (!result.ok()) return with_context(result.status(), fmt::format("line {}", number));
    std::cout << *result << '\n';
  }
  if (!std::cout.flush()) return data_loss("standard output: cannot be written");
  return absl::OkStatus();
}

}  // namespace r1d::cli
