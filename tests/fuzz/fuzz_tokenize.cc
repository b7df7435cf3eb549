// SPDX-License-Identifier: Apache-2.0
// Any bytes as text: refused where they are no UTF-8, else tokens that spell it, whole and
// streamed.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "r1d/base/check.h"
#include "r1d/base/text.h"
#include "r1d/tokenizer/stream_decoder.h"
#include "r1d/tokenizer/tokenizer.h"

#include "tests/support/test_data.h"

namespace {

using namespace r1d::tokenizer;  // NOLINT(google-build-using-namespace): a program of one file

std::unique_ptr<const Tokenizer> load(const std::string& path) {
  auto tokenizer = Tokenizer::load(path);
  R1D_CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

void check(const Tokenizer& tokenizer, std::string_view text, AddedTokens added) {
  const auto ids = encode(tokenizer, text, added);
  R1D_CHECK(ids.ok() == !r1d::find_invalid_utf8(text).has_value());
  if (!ids.ok()) return;
  R1D_CHECK(tokenizer.decode(*ids) == text);
  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const r1d::TokenId id : *ids) {
    streamed += stream.push(id);
    R1D_CHECK(!r1d::find_invalid_utf8(streamed).has_value());
  }
  R1D_CHECK(streamed + stream.flush() == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto deepseek = load(r1d::test::data("tokenizers/deepseek"));
  static const auto llama3 = load(r1d::test::data("tokenizers/llama3"));
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const AddedTokens added : {AddedTokens::kMatch, AddedTokens::kPlain}) {
    check(*deepseek, text, added);
    check(*llama3, text, added);
  }
  return 0;
}
