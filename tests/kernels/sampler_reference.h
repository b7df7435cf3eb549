// SPDX-License-Identifier: Apache-2.0
// The CPU's sampler behind plain types, so that nvcc sees none of the headers it is built from.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace r1d::kernels::test {

struct ReferenceRow {
  double temperature = 1;
  double top_p = 1;
  int32_t top_k = 0;
  double min_p = 0;
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;
  int32_t num_logprobs = -1;
  int32_t min_tokens = 0;
  std::vector<int32_t> stop_token_ids;
  int32_t forced = -1;           // by way of a thinking limit
  std::vector<int32_t> history;  // prompt, then output
  int32_t num_prompt_tokens = 0;
};

struct ReferenceSample {
  bool ok = false;
  std::vector<char> message;  // of the failure, with its 0
  int32_t token = -1;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;
};

// engine::sample_token; `logits` [size] are edited in place.
[[nodiscard]] ReferenceSample reference_sample(float* logits,
                                               int64_t size,
                                               int32_t last_token_id,
                                               const ReferenceRow& row);

}  // namespace r1d::kernels::test
