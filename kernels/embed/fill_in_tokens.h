// SPDX-License-Identifier: Apache-2.0
// A step may be enqueued before the tokens of the step before are known to the host: its ids then
// name rows of what the sampler has chosen, on the device, by the time the step runs.
#pragma once

#include <cstdint>

#include "kernels/all_reduce/all_reduce.h"
#include "kernels/common/launch.h"
#include "kernels/sampler/sampler.h"

namespace r1d::kernels {

// Every ids[t] below 0 becomes the token of row -1 - ids[t] of `sampled`; others stay.
struct FillInTokens {
  int32_t* ids = nullptr;  // [tokens], on the device
  int64_t tokens = 0;
  const SampledRow* sampled = nullptr;  // where they were sampled: rank 0
};
cudaError_t fill_in_tokens(const FillInTokens& a, const Launch& launch);

// On several ranks, with the same ids on each: rank 0 sends what it has, the others wait for it.
// Rows are below kMaxPeerTokens. A one-way message: takes no index, but carries the epoch of
// collective `index`, and between two of them stands an all-reduce, which tells rank 0 that the
// first has been read.
cudaError_t fill_in_tokens(const PeerMemory& peers,
                           const FillInTokens& a,
                           uint32_t index,
                           const Launch& launch);

// Loads the code, so that a first launch does not.
cudaError_t load_fill_in_tokens();

}  // namespace r1d::kernels
