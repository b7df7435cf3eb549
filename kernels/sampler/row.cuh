// SPDX-License-Identifier: Apache-2.0
// What both of the sampler's kernels use: the order of candidates, the first look at a row, and how
// rows are shared out among blocks.
#pragma once

#include <algorithm>

#include "kernels/common/ptx.cuh"
#include "kernels/sampler/sampler.h"

namespace r1d::kernels::sampling {

inline constexpr int kSamplerTeam = 8;  // blocks that share a row in sample_tokens, as a cluster
inline constexpr int kGreedyThreads = 256;

// What the blocks of a row leave for the last of them; zero between launches.
struct GreedyRow {
  unsigned long long best;
  uint32_t fault;
  uint32_t arrived;
};

__device__ __forceinline__ void wait_for_inputs() {
#ifdef R1D_SM90
  grid_dependency_wait();
#endif
}
__device__ __forceinline__ void let_dependents_start() {
#ifdef R1D_SM90
  grid_launch_dependents();
#endif
}

struct Larger {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
struct Sum {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
template <typename Combine>
__device__ __forceinline__ uint64_t warp_reduce(uint64_t value, Combine combine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xFFFFFFFFU, value, offset));
  }
  return value;
}

__device__ __forceinline__ uint64_t candidate(float logit, int32_t id) {
  return sampler_candidate(__float_as_uint(logit), id);
}
__device__ __forceinline__ uint32_t key_of(uint64_t candidate) {
  return static_cast<uint32_t>(candidate >> 32);
}
__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float(sampler_key_bits(key));
}
__device__ __forceinline__ bool is_finite(float value) {
  return (__float_as_uint(value) & 0x7F800000U) != 0x7F800000U;
}

// What a thread saw of a row, by offset.
struct Seen {
  float best = -INFINITY;
  int best_at = -1;
  int bad = INT32_MAX;  // the first that is not finite

  __device__ __forceinline__ void see(float value, int i) {
    if (!is_finite(value)) bad = min(bad, i);
    if (value > best) {  // the first of equals: offsets rise
      best = value;
      best_at = i;
    }
  }
  // 0: saw none.
  [[nodiscard]] __device__ uint64_t candidate(int begin) const {
    return best_at < 0 ? 0 : sampling::candidate(best, begin + best_at);
  }
  // The largest is the lowest id; 0: none.
  [[nodiscard]] __device__ uint32_t fault(int begin) const {
    return bad == INT32_MAX ? 0 : ~static_cast<uint32_t>(begin + bad);
  }
};
__device__ __forceinline__ int32_t fault_token(uint64_t fault) {
  return fault == 0 ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(fault));
}

// Reads `size` logits with a whole block, kAhead vectors of a thread under way at a time;
// keep(offset, value) gets each float4 or float. `aligned`: `from` is 16-byte aligned.
template <int kThreads, int kAhead, typename Keep>
__device__ __forceinline__ Seen scan(const float* from, int size, bool aligned, const Keep& keep) {
  Seen seen;
  const int vectors = aligned ? size / 4 : 0;
  for (int base = threadIdx.x; base < vectors; base += kThreads * kAhead) {
    float4 values[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = base + j * kThreads;
      if (i < vectors) values[j] = reinterpret_cast<const float4*>(from)[i];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = base + j * kThreads;
      if (i >= vectors) continue;
      keep(4 * i, values[j]);
      seen.see(values[j].x, 4 * i);
      seen.see(values[j].y, 4 * i + 1);
      seen.see(values[j].z, 4 * i + 2);
      seen.see(values[j].w, 4 * i + 3);
    }
  }
  for (int i = 4 * vectors + threadIdx.x; i < size; i += kThreads) {
    keep(i, from[i]);
    seen.see(from[i], i);
  }
  return seen;
}

// ---- on the host

[[nodiscard]] constexpr int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Ids per block, a multiple of 4 so that every share begins as aligned as the row.
[[nodiscard]] constexpr int share_of(int32_t vocab, int32_t blocks) {
  return static_cast<int>(4 * divide_up(divide_up(vocab, 4), blocks));
}

[[nodiscard]] inline bool serves(const SamplerInput& input, const SamplerPlan& plan) {
  return input.rows >= 0 && input.rows <= plan.rows && input.vocab >= 1 &&
         input.vocab <= kSamplerMaxVocab && input.row_stride >= input.vocab &&
         (plan.team == 1 || plan.team == kSamplerTeam) && plan.greedy_splits >= 1;
}
[[nodiscard]] inline bool is_aligned(const SamplerInput& input) {
  return input.row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(input.logits) % 16 == 0;
}
// The workspace: GreedyRow [rows], then, without clusters, a copy of every row.
[[nodiscard]] constexpr int64_t counter_bytes(int32_t rows) {
  return rows * static_cast<int64_t>(sizeof(GreedyRow));
}

}  // namespace r1d::kernels::sampling
