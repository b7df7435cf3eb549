// SPDX-License-Identifier: Apache-2.0
// The choice of one token's experts by one warp; the rules stand in router.h.
#pragma once

#include "kernels/common/ptx.cuh"
#include "kernels/router/router.h"

namespace r1d::kernels::router {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 32;
constexpr int kMaxGroups = 32;
constexpr int kFewExperts = 256;  // up to here a lane holds eight of them, else sixteen

#ifdef R1D_SM90

constexpr float kNotANumber = -1e30F;

__device__ __forceinline__ float infinity() {
  return __int_as_float(0x7F800000);
}

__device__ __forceinline__ void score_expert(float logit, float bias, float* score, float* choice) {
  const float s = 1.0F / (1.0F + expf(-logit));
  const float biased = s + bias;
  *score = s;
  *choice = isnan(biased) ? kNotANumber : biased;
}

// Order of floats as order of integers; -0 equals +0, 0 is left for "not a candidate".
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0F);
  const uint32_t key = bits ^ (bits >> 31 != 0 ? 0xFFFFFFFFU : 0x80000000U);
  return value == -infinity() ? 0 : key;
}

// The two largest of `lanes` neighbouring lanes' two largest.
__device__ __forceinline__ void merge_two(float& first, float& second, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    const float other_first = __shfl_xor_sync(~0U, first, offset);
    const float other_second = __shfl_xor_sync(~0U, second, offset);
    second = fmaxf(fminf(first, other_first), fmaxf(second, other_second));
    first = fmaxf(first, other_first);
  }
}

// One warp: lanes g * lanes .. get the sum of group g's two best choices.
__device__ __forceinline__ float sum_of_two(const float* choice,
                                            const RouterRules& rules,
                                            int lanes) {
  const int lane = threadIdx.x % 32;
  const int size = rules.num_experts / rules.num_groups;
  const int group = lane / lanes;
  float first = -infinity();
  float second = -infinity();
  if (group < rules.num_groups) {
    for (int e = lane % lanes; e < size; e += lanes) {
      const float value = choice[group * size + e];
      second = fmaxf(second, fminf(first, value));
      first = fmaxf(first, value);
    }
  }
  merge_two(first, second, lanes);
  return size == 1 ? first : first + second;
}

__device__ __forceinline__ float from_ordered(uint32_t key) {
  return key == 0 ? -infinity() : __uint_as_float(key ^ (key >> 31 != 0 ? 0x80000000U : ~0U));
}

// The groups that stay, from each group's sum of its two best choices: bit g * lanes is set where
// group g stays. Lanes g * lanes .. hold group g's `sum`; those past the last group are ignored.
__device__ __forceinline__ uint32_t best_groups(float sum, const RouterRules& rules, int lanes) {
  const int group = static_cast<int>(threadIdx.x) % 32 / lanes;
  int better = 0;
  for (int begin = 0; begin < rules.num_groups; begin += 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // shuffles that do not wait for each other
      const int g = begin + i;
      const float other = __shfl_sync(~0U, sum, g * lanes % 32);
      const bool ahead = (other > sum) | ((other == sum) & (g < group));
      better += static_cast<int>(ahead & (g < rules.num_groups));
    }
  }
  const bool kept = isnan(sum) || (sum > -infinity() && better < rules.kept_groups);
  return __ballot_sync(~0U, kept && group < rules.num_groups);
}

// A lane's candidates, best first: key in the upper half, in the lower what is larger for an
// earlier place, so that one comparison orders both.
template <int kCount>
struct Candidates {
  uint64_t value[kCount];

  __device__ __forceinline__ void set(int i, uint32_t key) {
    value[i] = static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(kCount - 1 - i);
  }
  __device__ __forceinline__ uint32_t key(int i) const {
    return static_cast<uint32_t>(value[i] >> 32);
  }
  __device__ __forceinline__ int first_place() const {
    return kCount - 1 - static_cast<int>(static_cast<uint32_t>(value[0]));
  }
  __device__ __forceinline__ void sort() {  // bitonic
#pragma unroll
    for (int size = 2; size <= kCount; size *= 2) {
#pragma unroll
      for (int stride = size / 2; stride > 0; stride /= 2) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int j = i ^ stride;
          if (j < i) continue;
          const uint64_t most = max(value[i], value[j]);
          const uint64_t least = min(value[i], value[j]);
          value[i] = (i & size) == 0 ? most : least;
          value[j] = (i & size) == 0 ? least : most;
        }
      }
    }
  }
  __device__ __forceinline__ void drop_first(bool drop) {
#pragma unroll
    for (int i = 0; i + 1 < kCount; ++i) value[i] = drop ? value[i + 1] : value[i];
    value[kCount - 1] = drop ? 0 : value[kCount - 1];
  }
};

// One warp chooses for one token; lane `slot` returns that slot's expert. score, choice: in shared
// memory, visible to the warp, 16-byte aligned, 32 kPerLane places of which num_experts are valid.
template <int kPerLane>
__device__ __forceinline__ int32_t choose_experts(const float* score,
                                                  const float* choice,
                                                  const RouterRules& rules,
                                                  int64_t token,
                                                  const Routing& routing) {
  const int lane = threadIdx.x % 32;
  const int first = lane * kPerLane;  // a lane's experts: first .. first + kPerLane - 1
  uint32_t key[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(choice + first + i);
    key[i] = ordered(four.x);
    key[i + 1] = ordered(four.y);
    key[i + 2] = ordered(four.z);
    key[i + 3] = ordered(four.w);
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (first + i >= rules.num_experts) key[i] = 0;
  }
  if (rules.kept_groups < rules.num_groups) {
    const uint32_t size = rules.num_experts / rules.num_groups;
    // Lanes of a group: here where no lane holds parts of two, else of its experts in shared
    // memory.
    const uint32_t lanes = size / kPerLane;
    if (size % kPerLane == 0 && (lanes & (lanes - 1)) == 0) {
      uint32_t best = 0;
      uint32_t second = 0;
#pragma unroll
      for (const uint32_t k : key) {
        second = max(second, min(best, k));
        best = max(best, k);
      }
      float best_choice = from_ordered(best);
      float second_choice = from_ordered(second);
      merge_two(best_choice, second_choice, lanes);
      const uint32_t kept = best_groups(best_choice + second_choice, rules, lanes);
      const bool stays = (kept >> (lane / lanes * lanes) & 1) != 0;
#pragma unroll
      for (uint32_t& k : key) k = stays ? k : 0;
    } else {
      const int each = 1 << (31 - __clz(32 / rules.num_groups));
      const uint32_t kept = best_groups(sum_of_two(choice, rules, each), rules, each);
      // e / size as a product: off by less than 512 / 2^20, and fractions are multiples of 1 / size
      // >= 1 / 512.
      const uint32_t reciprocal = ((1U << 20) + size - 1) / size;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const uint32_t group = (static_cast<uint32_t>(first + i) * reciprocal) >> 20;
        if ((kept >> (group * each) & 1) == 0) key[i] = 0;
      }
    }
  }
  Candidates<kPerLane> mine;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) mine.set(i, key[i]);
  mine.sort();
  // Lanes hold ascending experts, so that the lowest lane with the largest key has the expert.
  int32_t my_expert = 0;
#pragma unroll 1
  for (int slot = 0; slot < rules.top_k; ++slot) {
    const uint32_t largest = __reduce_max_sync(~0U, mine.key(0));
    const int owner = __ffs(__ballot_sync(~0U, mine.key(0) == largest)) - 1;
    const int winner = __shfl_sync(~0U, first + mine.first_place(), owner);
    if (lane == slot) my_expert = largest == 0 ? 0 : winner;  // 0: no candidate is left
    mine.drop_first(lane == owner);
  }
  const float my_score = score[my_expert];
  float sum = 0;
#pragma unroll 4
  for (int slot = 0; slot < rules.top_k; ++slot) sum += __shfl_sync(~0U, my_score, slot);
  const float factor =
      rules.normalize ? rules.scaling_factor / (sum + 1e-20F) : rules.scaling_factor;
  if (lane < rules.top_k) {
    routing.experts[token * rules.top_k + lane] = my_expert;
    routing.weights[token * rules.top_k + lane] = my_score * factor;
  }
  return my_expert;
}

// The same for any number of experts served.
__device__ __forceinline__ int32_t choose(const float* score,
                                          const float* choice,
                                          const RouterRules& rules,
                                          int64_t token,
                                          const Routing& routing) {
  return rules.num_experts <= kFewExperts
             ? choose_experts<kFewExperts / 32>(score, choice, rules, token, routing)
             : choose_experts<kMaxExperts / 32>(score, choice, rules, token, routing);
}

#endif  // R1D_SM90

}  // namespace r1d::kernels::router
