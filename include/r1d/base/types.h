// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace r1d {

using TokenId = int32_t;      // an id of the model's vocabulary, 0 .. vocab_size - 1
using BlockId = int32_t;      // a KV cache block; the page under it has the same id in every layer
using SequenceId = uint64_t;  // one token stream, unique for the life of the process, never 0
using RequestId = uint64_t;   // one client call, unique for the life of the process, never 0

}  // namespace r1d
