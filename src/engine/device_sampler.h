// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "r1d/base/types.h"
#include "r1d/engine/executor.h"
#include "r1d/ops/ops.h"

namespace r1d::engine {

// What a step's sequences want sampled, in the form that a device takes: a row for each that
// samples, in their order. What needs the history (penalties' counts, masked stop tokens, the end
// of a thought that is too long) is worked out here, so that sample_token() and a device choose
// alike.
void fill_sample_request(std::span<const SequenceStep> batch,
                         TokenId last_token_id,
                         int64_t vocab_size,
                         ops::SampleRequest& request);

// Row `row` of a filled request's results.
[[nodiscard]] SampledToken sampled_token(const ops::SampleRequest& request, size_t row);

}  // namespace r1d::engine
