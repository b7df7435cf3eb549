// SPDX-License-Identifier: Apache-2.0
// The choice of one token's experts; the rules stand in router.h. Places are found by counting: an
// expert's place in a row is the number of those ahead of it, so that no round waits for the one
// before. First in each segment of the experts, then among the segments' best.
#pragma once

#include "kernels/common/ptx.cuh"
#include "kernels/router/router.h"

namespace r1d::kernels::router {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 32;
constexpr int kMaxGroups = 32;

inline bool valid(const RouterRules& rules) {
  return rules.num_experts >= 1 && rules.num_experts <= kMaxExperts && rules.num_groups >= 1 &&
         rules.num_groups <= kMaxGroups && rules.num_experts % rules.num_groups == 0 &&
         rules.kept_groups >= 1 && rules.kept_groups <= rules.num_groups && rules.top_k >= 1 &&
         rules.top_k <= kMaxTopK &&
         rules.top_k <= rules.kept_groups * (rules.num_experts / rules.num_groups);
}

// i / n as a product, exact for i * n < 2^20: the reciprocal is off by less than 2^-20, and
// fractions are multiples of 1 / n.
struct Divisor {
  int n;
  uint32_t reciprocal;
  explicit Divisor(int by) : n(by), reciprocal(((1U << 20) + by - 1) / by) {}
  __device__ int divide(int i) const {
    return static_cast<int>(static_cast<uint32_t>(i) * reciprocal >> 20);
  }
};

// Where a token's experts stand while it chooses: in segments, which are the groups where groups
// are chosen, else runs of 32. A segment's row of places is padded to fours.
struct ChoicePlan {
  RouterRules rules;
  bool by_group;
  int size;      // experts of a segment
  int segments;  // up to 32
  Divisor pitch;
  Divisor depth;  // the best of a segment that may be chosen

  explicit ChoicePlan(const RouterRules& r)
      : rules(r),
        by_group(r.kept_groups < r.num_groups),
        size(by_group ? r.num_experts / r.num_groups : 32),
        segments((r.num_experts + size - 1) / size),
        pitch((size + 3) / 4 * 4),
        depth(size < r.top_k ? size : r.top_k) {}
  __host__ __device__ int places() const { return segments * pitch.n; }
  __host__ __device__ int keys() const { return places() > 32 ? places() : 32; }
  // 32-bit words of shared memory for a token, a multiple of four.
  __host__ __device__ int words() const {
    return (rules.num_experts + 3) / 4 * 4 + keys() + 2 * places() + kMaxTopK;
  }
};

#ifdef R1D_SM90

constexpr float kNotANumber = -1e30F;

__device__ __forceinline__ float infinity() {
  return __int_as_float(0x7F800000);
}

// Order of floats as order of integers; -0 equals +0, 0 is left for "not a candidate".
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0F);
  const uint32_t key = bits ^ (bits >> 31 != 0 ? 0xFFFFFFFFU : 0x80000000U);
  return value == -infinity() ? 0 : key;
}
__device__ __forceinline__ float from_ordered(uint32_t key) {
  return key == 0 ? -infinity() : __uint_as_float(key ^ (key >> 31 != 0 ? 0x80000000U : ~0U));
}

// A token's shared memory, 16-byte aligned.
struct Choice {
  float* score;        // [E]
  uint32_t* key;       // [keys()]; later the candidates'
  uint32_t* sorted;    // [places]: keys of each segment, best first
  uint16_t* expert;    // [places]: whose they are
  uint16_t* finalist;  // [places]: the candidates'
  int32_t* chosen;     // [32]

  __device__ __forceinline__ Choice(const ChoicePlan& plan, uint32_t* words) {
    const int places = plan.places();
    key = words;
    sorted = key + plan.keys();
    expert = reinterpret_cast<uint16_t*>(sorted + places);
    finalist = expert + places;
    chosen = reinterpret_cast<int32_t*>(finalist + places);
    score = reinterpret_cast<float*>(chosen + kMaxTopK);
  }
};

// The expert at a place of segment place / pitch, -1 where none is.
__device__ __forceinline__ int expert_at(const ChoicePlan& plan, int place) {
  const int segment = plan.pitch.divide(place);
  const int within = place - segment * plan.pitch.n;
  const int expert = segment * plan.size + within;
  return within < plan.size && expert < plan.rules.num_experts ? expert : -1;
}

__device__ __forceinline__ float score_of(float logit) {
  return 1.0F / (1.0F + expf(-logit));
}
__device__ __forceinline__ uint32_t key_of(float score, float bias) {
  const float choice = score + bias;
  return ordered(isnan(choice) ? kNotANumber : choice);
}

// Step 1, for each place.
__device__ __forceinline__ void enter(
    const Choice& token, int place, int expert, float logit, float bias) {
  uint32_t key = 0;
  if (expert >= 0) {
    const float score = score_of(logit);
    token.score[expert] = score;
    key = key_of(score, bias);
  }
  token.key[place] = key;
  token.sorted[place] = 0;
}

__device__ __forceinline__ void count_above(int& count, uint32_t key, uint32_t bar) {
  asm("{\n.reg .pred p;\nsetp.gt.u32 p, %1, %2;\n@p add.s32 %0, %0, 1;\n}"
      : "+r"(count)
      : "r"(key), "r"(bar));
}

// How many of 4 * quads keys are ahead of `mine`, which stands at place `at` among them: those
// above it and its equals at earlier places. mine > 0. kQuads: where known at compile time, for
// then all loads are under way together.
template <int kQuads = 0>
__device__ __forceinline__ int num_ahead(const uint32_t* keys, int quads, int at, uint32_t mine) {
  const auto* rows = reinterpret_cast<const uint4*>(keys);
  const int own = at / 4;
  int ahead[4] = {};
  const auto count = [&](const uint4& k, int q) {
    const uint32_t bar = mine - (q < own ? 1 : 0);
    count_above(ahead[0], k.x, bar);
    count_above(ahead[1], k.y, bar);
    count_above(ahead[2], k.z, bar);
    count_above(ahead[3], k.w, bar);
  };
  const uint4 equals = rows[own];
  if constexpr (kQuads > 0) {
    uint4 k[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) k[q] = rows[q];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) count(k[q], q);
  } else {
#pragma unroll 2
    for (int q = 0; q < quads; ++q) count(rows[q], q);
  }
  ahead[0] += static_cast<int>((at % 4 > 0) & (equals.x == mine));
  ahead[1] += static_cast<int>((at % 4 > 1) & (equals.y == mine));
  ahead[2] += static_cast<int>((at % 4 > 2) & (equals.z == mine));
  return ahead[0] + ahead[1] + ahead[2] + ahead[3];
}
constexpr int kWarpQuads = 8;  // 32 keys

// Step 2, for each place once all have been entered.
__device__ __forceinline__ void sort_place(const ChoicePlan& plan, const Choice& token, int place) {
  const int segment = plan.pitch.divide(place);
  const int first = segment * plan.pitch.n;
  const int quads = plan.pitch.n / 4;
  const uint32_t mine = token.key[place];
  if (mine == 0) return;
  const uint32_t* keys = token.key + first;
  const int at = place - first;
  const int to = first + (quads == kWarpQuads ? num_ahead<kWarpQuads>(keys, quads, at, mine)
                                              : num_ahead(keys, quads, at, mine));
  token.sorted[to] = mine;
  token.expert[to] = static_cast<uint16_t>(segment * plan.size + at);
}

// The groups that stay, bit g for group g; lane g holds the sum of its two best choices.
__device__ __forceinline__ uint32_t best_groups(float sum, const RouterRules& rules) {
  const int group = static_cast<int>(threadIdx.x) % 32;
  int better = 0;
  for (int begin = 0; begin < rules.num_groups; begin += 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // shuffles that do not wait for each other
      const int g = begin + i;
      const float other = __shfl_sync(~0U, sum, g % 32);
      const bool ahead = (other > sum) | ((other == sum) & (g < group));
      better += static_cast<int>(ahead & (g < rules.num_groups));
    }
  }
  const bool kept = isnan(sum) || (sum > -infinity() && better < rules.kept_groups);
  return __ballot_sync(~0U, kept && group < rules.num_groups);
}

// Step 3, one warp, once all places are sorted: lane `slot` returns that slot's expert.
__device__ __forceinline__ int32_t choose(const ChoicePlan& plan, const Choice& token) {
  const int lane = threadIdx.x % 32;
  uint32_t kept = ~0U;
  int num_kept = plan.segments;
  if (plan.by_group) {
    float sum = -infinity();
    if (lane < plan.segments) {
      const uint32_t* best = token.sorted + lane * plan.pitch.n;
      sum = from_ordered(best[0]);
      if (plan.size > 1) sum += from_ordered(best[1]);
    }
    kept = best_groups(sum, plan.rules);
    num_kept = __popc(kept);
  }
  // Candidates ascend by segment, then by place in it, so that equals do by expert. Zeros fill a
  // warp.
  const int count = num_kept * plan.depth.n;
  token.chosen[lane] = 0;  // stays where no candidate is left
  int c = lane;
  do {
    const int nth = plan.depth.divide(c);
    int segment = nth;
    if (plan.by_group) {
      uint32_t left = kept;
#pragma unroll 1
      for (int i = 0; i < nth; ++i) left &= left - 1;
      segment = __ffs(left) - 1;
    }
    const int from = segment * plan.pitch.n + c - nth * plan.depth.n;
    const bool valid = c < count;
    token.key[c] = valid ? token.sorted[from] : 0;
    if (valid) token.finalist[c] = token.expert[from];
    c += 32;
  } while (c < (count + 3) / 4 * 4);
  __syncwarp();
  if (count <= 32) {
    const uint32_t mine = token.key[lane];
    const int slot = num_ahead<kWarpQuads>(token.key, kWarpQuads, lane, mine);
    if (mine != 0 && slot < plan.rules.top_k) token.chosen[slot] = token.finalist[lane];
  } else {
#pragma unroll 1
    for (c = lane; c < count; c += 32) {
      const uint32_t mine = token.key[c];
      const int slot = num_ahead(token.key, (count + 3) / 4, c, mine);
      if (mine != 0 && slot < plan.rules.top_k) token.chosen[slot] = token.finalist[c];
    }
  }
  __syncwarp();
  return token.chosen[lane];
}

// The weights of a token's experts, from the score of each slot's in its lane.
__device__ __forceinline__ void weigh(
    const RouterRules& rules, float score, int32_t expert, int64_t to, const Routing& routing) {
  const int lane = threadIdx.x % 32;
  float sum = 0;
  for (int begin = 0; begin < rules.top_k; begin += 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float other = __shfl_sync(~0U, score, (begin + i) % 32);
      sum += begin + i < rules.top_k ? other : 0.0F;
    }
  }
  const float factor =
      rules.normalize ? rules.scaling_factor / (sum + 1e-20F) : rules.scaling_factor;
  if (lane < rules.top_k) {
    routing.experts[to * rules.top_k + lane] = expert;
    routing.weights[to * rules.top_k + lane] = score * factor;
  }
}
// Step 4, the same warp: the chosen experts' weights.
__device__ __forceinline__ void weigh(const RouterRules& rules,
                                      const Choice& token,
                                      int32_t expert,
                                      int64_t to,
                                      const Routing& routing) {
  weigh(rules, token.score[expert], expert, to, routing);
}

#endif  // R1D_SM90

}  // namespace r1d::kernels::router
