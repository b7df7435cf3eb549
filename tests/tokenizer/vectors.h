// SPDX-License-Identifier: Apache-2.0
// Tokenizer fixtures: the tiny ones in tests/data/tokenizers, and the published ones where a copy
// stands on this machine (environment variable R1D_DEEPSEEK_DATA, else a folder beside the
// checkout).
#pragma once

#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "r1d/base/status.h"
#include "r1d/tokenizer/tokenizer.h"

#include "tests/support/test_data.h"

namespace r1d::tokenizer::testing {

using Ids = std::vector<TokenId>;
using nlohmann::json;

inline std::string tiny(const std::string& name) {
  return test::data("tokenizers/") + name;
}

inline std::string deepseek_data() {
  const char* const given = std::getenv("R1D_DEEPSEEK_DATA");
  return given != nullptr ? given : test::data("../../../shared/data/deepseek-r1");
}

inline std::unique_ptr<const Tokenizer> load(const std::string& path) {
  auto tokenizer = Tokenizer::load(path);
  if (!tokenizer.ok()) ADD_FAILURE() << message_of(tokenizer.status());
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

inline std::vector<json> read_lines(const std::string& path) {
  std::vector<json> lines;
  std::ifstream file(path);
  EXPECT_TRUE(file.is_open()) << path;
  for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
  return lines;
}

inline Ids encoded(const Tokenizer& tokenizer,
                   std::string_view text,
                   AddedTokens added = AddedTokens::kMatch) {
  const auto ids = encode(tokenizer, text, added);
  EXPECT_TRUE(ids.ok()) << message_of(ids.status());
  return ids.ok() ? *ids : Ids();
}

}  // namespace r1d::tokenizer::testing
