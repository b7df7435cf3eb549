// SPDX-License-Identifier: Apache-2.0
// Problem   the choice of router.h for many tokens, from their logits.
// Layout    logits [T, stride] f32; bias [E] f32; experts [T, k] i32, weights [T, k] f32.
// Bound     instructions: some 500 of a warp a token; bytes are 4 E a token (8.4 MB at T = 8192,
//           2 us at 4.3 TB/s).
// Launch    a warp a token. Groups of 32 experts, at most 8 of them, are held in registers, lane i
//           the i-th of each; any other shape counts places in shared memory (choice.cuh).
// Numerics  as the decode form, bit for bit.
// Source    DeepSeek-V3 report, section 2.1.2; rules of src/ops/cpu/router.cc.
#include "kernels/router/choice.cuh"

namespace r1d::kernels {
namespace router {
namespace {

constexpr int kTokensPerBlock = 8;
constexpr int kGroupSize = 32;  // of choose_by_groups, and the most groups
constexpr int kMostGroups = 8;

#ifdef R1D_SM90

// Lane `slot` returns that slot's expert. key: a lane's candidates, 0 where it has none; id: whose
// they are, ascending.
template <int kKeys>
__device__ __forceinline__ int32_t pick(uint32_t (&key)[kKeys],
                                        const uint32_t (&id)[kKeys],
                                        int top_k) {
  const int lane = threadIdx.x % 32;
  int32_t chosen = 0;  // stays where no candidate is left
  for (int slot = 0; slot < top_k; ++slot) {
    uint32_t best = key[0];
#pragma unroll
    for (int i = 1; i < kKeys; ++i) best = max(best, key[i]);
    best = __reduce_max_sync(~0U, best);
    if (best == 0) break;
    uint32_t expert = ~0U;
#pragma unroll
    for (int i = kKeys - 1; i >= 0; --i) expert = key[i] == best ? id[i] : expert;
    expert = __reduce_min_sync(~0U, expert);
    if (lane == slot) chosen = static_cast<int32_t>(expert);
#pragma unroll
    for (int i = 0; i < kKeys; ++i) key[i] = id[i] == expert ? 0 : key[i];
  }
  return chosen;
}

#endif  // R1D_SM90

__global__ void __launch_bounds__(32 * kTokensPerBlock) choose_by_groups(const float* logits,
                                                                         int64_t logits_stride,
                                                                         const float* bias,
                                                                         int num_tokens,
                                                                         RouterRules rules,
                                                                         Routing routing) {
#ifdef R1D_SM90
  constexpr int kKept = 4;  // groups whose keys are moved together
  const int lane = threadIdx.x % 32;
  const int t = blockIdx.x * kTokensPerBlock + threadIdx.x / 32;
  float biases[kMostGroups];
#pragma unroll
  for (int g = 0; g < kMostGroups; ++g) {
    biases[g] = g < rules.num_groups && bias != nullptr ? bias[g * kGroupSize + lane] : 0.0F;
  }
  grid_dependency_wait();
  if (t >= num_tokens) return;
  const float* own = logits + t * logits_stride;
  float logit[kMostGroups];
#pragma unroll
  for (int g = 0; g < kMostGroups; ++g) {
    logit[g] = g < rules.num_groups ? own[g * kGroupSize + lane] : 0.0F;
  }
  uint32_t key[kMostGroups];
  uint32_t id[kMostGroups];
  uint32_t best = 0;  // lane g: group g's best
  uint32_t next = 0;  // and the one behind it
#pragma unroll
  for (int g = 0; g < kMostGroups; ++g) {
    id[g] = g * kGroupSize + lane;
    key[g] = g < rules.num_groups ? key_of(score_of(logit[g]), biases[g]) : 0;
    const uint32_t first = __reduce_max_sync(~0U, key[g]);
    const uint32_t holders = __ballot_sync(~0U, key[g] == first);
    const uint32_t second = __reduce_max_sync(~0U, key[g] == first ? 0 : key[g]);
    best = lane == g ? first : best;
    next = lane == g ? (__popc(holders) > 1 ? first : second) : next;
  }
  const float sum = from_ordered(best) + from_ordered(next);
  const uint32_t kept = best_groups(sum, rules);
  int32_t expert;
  if (__popc(kept) <= kKept) {
    uint32_t kept_key[kKept] = {};
    uint32_t kept_id[kKept] = {};
#pragma unroll
    for (int g = 0; g < kMostGroups; ++g) {
      if ((kept >> g & 1) == 0) continue;
#pragma unroll
      for (int i = 0; i < kKept - 1; ++i) {
        kept_key[i] = kept_key[i + 1];
        kept_id[i] = kept_id[i + 1];
      }
      kept_key[kKept - 1] = key[g];
      kept_id[kKept - 1] = id[g];
    }
    expert = pick(kept_key, kept_id, rules.top_k);
  } else {
#pragma unroll
    for (int g = 0; g < kMostGroups; ++g) key[g] = (kept >> g & 1) != 0 ? key[g] : 0;
    expert = pick(key, id, rules.top_k);
  }
  weigh(rules, score_of(own[expert]), expert, t, routing);
#endif  // R1D_SM90
}

__global__ void __launch_bounds__(32 * kTokensPerBlock)
    choose_logits(const float* logits,
                  int64_t logits_stride,
                  const float* bias,
                  int num_tokens,
                  const __grid_constant__ ChoicePlan plan,
                  Routing routing) {
#ifdef R1D_SM90
  extern __shared__ __align__(16) uint32_t choices[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int t = blockIdx.x * kTokensPerBlock + warp;
  grid_dependency_wait();
  grid_launch_dependents();
  if (t >= num_tokens) return;
  const Choice token(plan, choices + warp * plan.words());
  for (int place = lane; place < plan.places(); place += 32) {
    const int expert = expert_at(plan, place);
    const float logit = expert < 0 ? 0.0F : logits[t * logits_stride + expert];
    enter(token, place, expert, logit, expert < 0 || bias == nullptr ? 0.0F : bias[expert]);
  }
  __syncwarp();
  for (int place = lane; place < plan.places(); place += 32) sort_place(plan, token, place);
  __syncwarp();
  weigh(plan.rules, token, choose(plan, token), t, routing);
#endif  // R1D_SM90
}

}  // namespace
}  // namespace router

cudaError_t route_from_logits(const float* logits,
                              int64_t logits_stride,
                              const float* bias,
                              int32_t num_tokens,
                              const RouterRules& rules,
                              const Routing& routing,
                              const Launch& launch) {
  using namespace router;
  if (num_tokens == 0) return cudaSuccess;
  if (num_tokens < 0 || !valid(rules) || logits_stride < rules.num_experts)
    return cudaErrorInvalidValue;
  Grid grid;
  grid.blocks = dim3((num_tokens + kTokensPerBlock - 1) / kTokensPerBlock);
  grid.threads = dim3(32 * kTokensPerBlock);
  const ChoicePlan plan(rules);
  if (plan.by_group && plan.size == kGroupSize && rules.num_groups <= kMostGroups) {
    return enqueue(
        choose_by_groups, grid, launch, logits, logits_stride, bias, num_tokens, rules, routing);
  }
  grid.shared_bytes = static_cast<size_t>(kTokensPerBlock) * plan.words() * sizeof(uint32_t);
  return enqueue(
      choose_logits, grid, launch, logits, logits_stride, bias, num_tokens, plan, routing);
}

}  // namespace r1d::kernels
