// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"

namespace r1d::checkpoint {

// The largest id in the text of a tokenizer.json: of `model.vocab`'s values and of the `id` of each
// of `added_tokens`. One SAX walk; nothing but the ids is kept.
[[nodiscard]] absl::StatusOr<TokenId> max_token_id(std::string_view tokenizer_json);

}  // namespace r1d::checkpoint
