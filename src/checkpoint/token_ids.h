// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "r1d/base/types.h"

#include "checkpoint/json_fields.h"

namespace r1d::checkpoint {

// A field that holds one token id or a list of them, each from 0 to `last`, as eos_token_id does.
// Absent or null gives none.
void read_token_ids(JsonFields& fields,
                    const char* name,
                    int64_t last,
                    std::vector<TokenId>& target);

}  // namespace r1d::checkpoint
