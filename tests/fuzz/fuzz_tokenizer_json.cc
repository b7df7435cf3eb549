// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json: refused, or an id that a token can have.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "r1d/base/check.h"

#include "checkpoint/tokenizer_ids.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto id =
      r1d::checkpoint::max_token_id(std::string_view(reinterpret_cast<const char*>(data), size));
  if (id.ok()) R1D_CHECK(*id >= 0);
  return 0;
}
