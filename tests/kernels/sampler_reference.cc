// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels/sampler_reference.h"

#include <string>

#include "r1d/engine/sampling.h"

namespace r1d::kernels::test {

ReferenceSample reference_sample(float* logits,
                                 int64_t size,
                                 int32_t last_token_id,
                                 const ReferenceRow& row) {
  engine::SamplingParams params;
  params.temperature = row.temperature;
  params.top_p = row.top_p;
  params.top_k = row.top_k;
  params.min_p = row.min_p;
  params.repetition_penalty = row.repetition_penalty;
  params.frequency_penalty = row.frequency_penalty;
  params.presence_penalty = row.presence_penalty;
  params.logit_bias = row.logit_bias;
  params.seed = row.seed;
  params.num_logprobs = row.num_logprobs;
  params.min_tokens = row.min_tokens;
  params.stop_token_ids = row.stop_token_ids;
  if (row.forced >= 0) {
    const size_t num_output = row.history.size() - static_cast<size_t>(row.num_prompt_tokens);
    params.thinking_limit =
        engine::ThinkingLimit{.max_tokens = 0,
                              .open = std::nullopt,
                              .close = -1,
                              .closing = std::vector<TokenId>(num_output + 1, row.forced),
                              .starts_open = true};
  }
  const engine::SampledToken sampled = engine::sample_token({logits, static_cast<size_t>(size)},
                                                            row.history,
                                                            row.num_prompt_tokens,
                                                            last_token_id,
                                                            params);
  ReferenceSample result;
  result.ok = sampled.status.ok();
  const std::string message(sampled.status.message());
  result.message.assign(message.c_str(), message.c_str() + message.size() + 1);
  result.token = sampled.token;
  if (row.num_logprobs >= 0) result.logprob = sampled.logprob.value_or(0);
  for (const engine::TokenLogprob& top : sampled.top)
    result.top.emplace_back(top.token, top.logprob);
  return result;
}

}  // namespace r1d::kernels::test
