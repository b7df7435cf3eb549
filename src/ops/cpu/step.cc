// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/step.h"

#include <algorithm>
#include <cmath>

#include "r1d/base/status.h"

namespace r1d::ops::cpu {

void Step::layout(Arena& arena) {
  const auto pairs = static_cast<int64_t>(dims_.rope_inv_freq.size());
  sequence_of_ = arena.take<int32_t>(max_tokens_);
  cos_ = arena.take<float>(max_tokens_ * pairs);
  sin_ = arena.take<float>(max_tokens_ * pairs);
}

absl::Status Step::begin(const StepInputs& inputs) {
  inputs_ = StepInputs{};
  R1D_RETURN_IF_ERROR(check(inputs));
  inputs_ = inputs;
  R1D_RETURN_IF_ERROR(assign_sequences());
  compute_angles();
  return absl::OkStatus();
}

absl::Status Step::check(const StepInputs& inputs) const {
  const size_t tokens = inputs.token_ids.size();
  if (static_cast<int64_t>(tokens) > max_tokens_) {
    return invalid_argument("step: {} tokens, scratch was taken for {}", tokens, max_tokens_);
  }
  if (inputs.positions.size() != tokens) {
    return invalid_argument("step: {} positions for {} tokens", inputs.positions.size(), tokens);
  }
  for (const int32_t row : inputs.logit_rows) {
    if (row < 0 || static_cast<size_t>(row) >= tokens) {
      return invalid_argument("step: logit row {} of {} tokens", row, tokens);
    }
  }
  return absl::OkStatus();
}

absl::Status Step::assign_sequences() {
  const auto tokens = static_cast<int32_t>(num_tokens());
  std::fill_n(sequence_of_, tokens, -1);
  for (size_t s = 0; s < inputs_.sequences.size(); ++s) {
    const SequenceSpan& span = inputs_.sequences[s];
    if (span.query_begin < 0 || span.query_len < 0 || span.query_begin > tokens - span.query_len ||
        span.context_len < span.query_len) {
      return invalid_argument("step: sequence {} spans tokens {} + {} of {}, context {}",
                              s,
                              span.query_begin,
                              span.query_len,
                              tokens,
                              span.context_len);
    }
    for (int32_t i = 0; i < span.query_len; ++i) {
      const int32_t token = span.query_begin + i;
      const int32_t position = span.context_len - span.query_len + i;
      if (sequence_of_[token] >= 0 || inputs_.positions[static_cast<size_t>(token)] != position) {
        return invalid_argument(
            "step: token {} of sequence {} belongs to another sequence, or its "
            "position is {} and not {}",
            token,
            s,
            inputs_.positions[static_cast<size_t>(token)],
            position);
      }
      sequence_of_[token] = static_cast<int32_t>(s);
    }
  }
  const int32_t* orphan = std::find(sequence_of_, sequence_of_ + tokens, -1);
  if (orphan != sequence_of_ + tokens) {
    return invalid_argument("step: token {} belongs to no sequence", orphan - sequence_of_);
  }
  return absl::OkStatus();
}

void Step::compute_angles() {
  const size_t pairs = dims_.rope_inv_freq.size();
  for (size_t t = 0; t < inputs_.positions.size(); ++t) {
    for (size_t j = 0; j < pairs; ++j) {
      const float angle = static_cast<float>(inputs_.positions[t]) * dims_.rope_inv_freq[j];
      cos_[t * pairs + j] = std::cos(angle) * dims_.rope_cos_sin_scale;
      sin_[t * pairs + j] = std::sin(angle) * dims_.rope_cos_sin_scale;
    }
  }
}

void Step::rotate(int64_t token, float* x) const {
  const auto pairs = static_cast<int64_t>(dims_.rope_inv_freq.size());
  const float* cos = cos_ + token * pairs;
  const float* sin = sin_ + token * pairs;
  const int64_t step = dims_.rope_interleave ? 2 : 1;
  const int64_t partner = dims_.rope_interleave ? 1 : pairs;
  for (int64_t j = 0; j < pairs; ++j) {
    float& a = x[j * step];
    float& b = x[j * step + partner];
    const float rotated = a * cos[j] - b * sin[j];
    b = a * sin[j] + b * cos[j];
    a = rotated;
  }
}

}  // namespace r1d::ops::cpu
