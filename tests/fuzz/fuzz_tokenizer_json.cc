// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json: refused, or a tokenizer whose tokens spell the text they came from.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "r1d/base/check.h"
#include "r1d/tokenizer/tokenizer.h"

#include "checkpoint/tokenizer_ids.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace r1d;  // NOLINT(google-build-using-namespace): a function of one file
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto id = checkpoint::max_token_id(text);
  if (id.ok()) R1D_CHECK(*id >= 0);
  const auto parsed = tokenizer::Tokenizer::parse(text);
  if (!parsed.ok()) return 0;
  const tokenizer::Tokenizer& tokenizer = **parsed;
  R1D_CHECK(id.ok() && *id == tokenizer.last_id());
  constexpr std::string_view kText = "Hello, world 12345\n  <think>\u00e9\u4f60 'll";
  const auto ids = tokenizer::encode(tokenizer, kText, tokenizer::AddedTokens::kPlain);
  if (ids.ok()) R1D_CHECK(tokenizer.decode(*ids) == kText);  // none of it changes under NFC
  return 0;
}
