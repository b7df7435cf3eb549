// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace r1d::ops::cpu {
namespace {

constexpr float kDropped = -std::numeric_limits<float>::infinity();
// Stands for NaN: after every real score and before dropped experts. Such a token is lost, but it
// must route somewhere.
constexpr float kNotANumber = -1e30F;

// The index of the largest value that is not `kDropped`, the lowest among equals; -1 when all are.
int32_t best_of(const float* values, int32_t count) {
  int32_t best = -1;
  for (int32_t i = 0; i < count; ++i) {
    if (values[i] > (best < 0 ? kDropped : values[best])) best = i;
  }
  return best;
}

float sum_of_top_two(const float* values, int32_t count) {
  float first = kDropped;
  float second = kDropped;
  for (int32_t i = 0; i < count; ++i) {
    if (values[i] > first) {
      second = first;
      first = values[i];
    } else if (values[i] > second) {
      second = values[i];
    }
  }
  return count == 1 ? first : first + second;
}

// Sets the scores of all but the `kept_groups` best groups to kDropped.
void drop_groups(float* choice, const RouterOptions& options, float* group_scores) {
  const int32_t size = options.num_experts / options.num_groups;
  for (int32_t g = 0; g < options.num_groups; ++g) {
    group_scores[g] = sum_of_top_two(choice + g * size, size);
  }
  for (int32_t kept = 0; kept < options.kept_groups; ++kept) {
    const int32_t best = best_of(group_scores, options.num_groups);
    if (best >= 0) group_scores[best] = std::numeric_limits<float>::quiet_NaN();  // marks: kept
  }
  for (int32_t g = 0; g < options.num_groups; ++g) {
    if (!std::isnan(group_scores[g])) std::fill_n(choice + g * size, size, kDropped);
  }
}

}  // namespace

int64_t router_scratch(const RouterOptions& options) {
  return 2 * int64_t{options.num_experts} + options.num_groups;
}

void choose_experts(const float* logits,
                    const float* bias,
                    const RouterOptions& options,
                    float* scratch,
                    int32_t* experts,
                    float* weights) {
  float* score = scratch;
  float* choice = scratch + options.num_experts;
  for (int32_t e = 0; e < options.num_experts; ++e) {
    score[e] = 1.0F / (1.0F + std::exp(-logits[e]));
    const float biased = score[e] + (bias != nullptr ? bias[e] : 0.0F);
    choice[e] = std::isnan(biased) ? kNotANumber : biased;
  }
  if (options.kept_groups < options.num_groups) {
    drop_groups(choice, options, choice + options.num_experts);
  }
  float sum = 0;
  for (int32_t i = 0; i < options.top_k; ++i) {
    const int32_t best = std::max(best_of(choice, options.num_experts), 0);
    experts[i] = best;
    weights[i] = score[best];
    sum += score[best];
    choice[best] = kDropped;
  }
  const float factor =
      options.normalize ? options.scaling_factor / (sum + 1e-20F) : options.scaling_factor;
  for (int32_t i = 0; i < options.top_k; ++i) weights[i] *= factor;
}

}  // namespace r1d::ops::cpu
