// SPDX-License-Identifier: Apache-2.0
#include "engine/device_sampler.h"

#include <algorithm>
#include <map>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

namespace r1d::engine {
namespace {

bool has_penalties(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.frequency_penalty != 0 ||
         params.presence_penalty != 0;
}

// repetition_penalty looks at prompt and output, the others at the output alone.
void add_counts(const SequenceStep& step, ops::SampleRow& row, ops::SampleRequest& request) {
  const SamplingParams& params = *step.sampling;
  row.first_count = static_cast<int32_t>(request.counts.size());
  if (!has_penalties(params)) return;
  const bool repetition = params.repetition_penalty != 1;
  std::map<TokenId, int32_t> counts;
  for (size_t i = 0; i < step.tokens.size(); ++i) {
    const bool output = i >= static_cast<size_t>(step.num_prompt_tokens);
    if (output || repetition) counts[step.tokens[i]] += output ? 1 : 0;
  }
  for (const auto& [token, count] : counts) request.counts.push_back({token, count});
  row.num_counts = static_cast<int32_t>(counts.size());
}

void add_biases(const SamplingParams& params, ops::SampleRow& row, ops::SampleRequest& request) {
  row.first_bias = static_cast<int32_t>(request.biases.size());
  row.num_biases = static_cast<int32_t>(params.logit_bias.size());
  for (const auto& [token, bias] : params.logit_bias) request.biases.push_back({token, bias});
}

void add_masked(const SamplingParams& params,
                int32_t num_output,
                ops::SampleRow& row,
                ops::SampleRequest& request) {
  row.first_masked = static_cast<int32_t>(request.masked.size());
  if (num_output >= params.min_tokens) return;
  row.num_masked = static_cast<int32_t>(params.stop_token_ids.size());
  request.masked.insert(
      request.masked.end(), params.stop_token_ids.begin(), params.stop_token_ids.end());
}

ops::SampleRow make_row(const SequenceStep& step, ops::SampleRequest& request) {
  const SamplingParams& params = *step.sampling;
  R1D_CHECK(step.follows < 0 || !looks_back(params));
  const auto output = step.tokens.subspan(static_cast<size_t>(step.num_prompt_tokens));
  const int32_t num_output = static_cast<int32_t>(output.size()) + (step.follows >= 0 ? 1 : 0);
  ops::SampleRow row{.temperature = params.temperature,
                     .top_p = params.top_p,
                     .min_p = params.min_p,
                     .repetition_penalty = params.repetition_penalty,
                     .frequency_penalty = params.frequency_penalty,
                     .presence_penalty = params.presence_penalty,
                     .seed = params.seed,
                     .draw = static_cast<uint64_t>(num_output),
                     .top_k = params.top_k,
                     .num_logprobs = params.num_logprobs};
  if (params.thinking_limit) {
    row.forced = forced_token(output, *params.thinking_limit).value_or(-1);
  }
  add_counts(step, row, request);
  add_biases(params, row, request);
  add_masked(params, num_output, row, request);
  return row;
}

bool is_plain_greedy(const ops::SampleRow& row) {
  return row.temperature == 0 && row.forced < 0 && row.num_logprobs < 0 && row.num_counts == 0 &&
         row.num_biases == 0 && row.num_masked == 0;
}

}  // namespace

bool looks_back(const SamplingParams& params) {
  return has_penalties(params) || params.thinking_limit.has_value();
}

void fill_sample_request(std::span<const SequenceStep> batch,
                         TokenId last_token_id,
                         int64_t vocab_size,
                         ops::SampleRequest& request) {
  request.vocab = static_cast<int32_t>(std::min<int64_t>(vocab_size, int64_t{last_token_id} + 1));
  request.rows.clear();
  request.counts.clear();
  request.biases.clear();
  request.masked.clear();
  request.top_stride = 0;
  for (const SequenceStep& step : batch) {
    if (step.sampling == nullptr) continue;
    request.rows.push_back(make_row(step, request));
    request.top_stride = std::max(request.top_stride, step.sampling->num_logprobs);
  }
  request.greedy = std::all_of(request.rows.begin(), request.rows.end(), is_plain_greedy);
}

SampledToken sampled_token(const ops::SampleRequest& request, size_t row) {
  const ops::SampleResult& result = request.results[row];
  SampledToken sampled;
  if (result.fault == ops::SampleResult::Fault::kNotFinite) {
    sampled.status = internal_error("the model's logit of token {} is {}; the sequence was ended",
                                    result.bad_token,
                                    result.bad_logit);
    return sampled;
  }
  if (result.fault == ops::SampleResult::Fault::kAllMasked) {
    sampled.status = internal_error(
        "every token is masked: min_tokens and stop_token_ids leave nothing to sample");
    return sampled;
  }
  sampled.token = result.token;
  const int32_t num_logprobs = request.rows[row].num_logprobs;
  if (num_logprobs < 0) return sampled;
  sampled.logprob = result.logprob;
  const size_t first = row * static_cast<size_t>(request.top_stride);
  const int32_t count = std::min(num_logprobs, request.vocab);
  for (size_t i = first; i < first + static_cast<size_t>(count); ++i) {
    sampled.top.push_back({request.top_tokens[i], request.top_logprobs[i]});
  }
  return sampled;
}

}  // namespace r1d::engine
