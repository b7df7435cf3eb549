// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/convert.h"

#include <algorithm>

namespace r1d::transport {
namespace {

void take_prompt(const v1::Prompt& prompt, admission::GenerateRequest& request) {
  if (prompt.has_text()) request.prompt_text = prompt.text();
  if (prompt.has_token_ids()) {
    const auto& ids = prompt.token_ids().ids();
    request.prompt_token_ids.emplace(ids.begin(), ids.end());
  }
}

void take_sampling(const v1::SamplingParams& sampling, admission::GenerateRequest& request) {
  if (sampling.has_temperature()) request.temperature = sampling.temperature();
  if (sampling.has_top_p()) request.top_p = sampling.top_p();
  if (sampling.has_top_k()) request.top_k = sampling.top_k();
  request.min_p = sampling.min_p();
  if (sampling.has_repetition_penalty()) request.repetition_penalty = sampling.repetition_penalty();
  request.frequency_penalty = sampling.frequency_penalty();
  request.presence_penalty = sampling.presence_penalty();
  request.logit_bias.assign(sampling.logit_bias().begin(), sampling.logit_bias().end());
  // A map has no order; results must not depend on it.
  std::sort(request.logit_bias.begin(), request.logit_bias.end());
  if (sampling.has_seed()) request.seed = sampling.seed();
  if (sampling.has_logprobs()) request.logprobs = sampling.logprobs();
  request.stop_token_ids.assign(sampling.stop_token_ids().begin(), sampling.stop_token_ids().end());
  request.ignore_eos = sampling.ignore_eos();
  request.min_tokens = sampling.min_tokens();
  if (sampling.has_max_tokens()) request.max_tokens = sampling.max_tokens();
  if (sampling.has_n()) request.n = sampling.n();
}

v1::FinishReason reason_to_proto(scheduler::FinishReason reason) {
  switch (reason) {
    case scheduler::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case scheduler::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case scheduler::FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case scheduler::FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case scheduler::FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void fill_timings(const scheduler::FinishEvent& event, v1::Timings& timings) {
  timings.set_queue_seconds(seconds_between(event.arrival, event.first_scheduled));
  if (event.num_output_tokens > 0) {
    timings.set_time_to_first_token_seconds(seconds_between(event.arrival, event.first_token));
  }
  timings.set_total_seconds(seconds_between(event.arrival, event.time));
}

void fill_finish(const scheduler::FinishEvent& event, v1::Finish& finish) {
  finish.set_reason(reason_to_proto(event.reason));
  if (event.stop_token.has_value()) finish.set_stop_token_id(*event.stop_token);
  v1::Usage& usage = *finish.mutable_usage();
  usage.set_prompt_tokens(event.num_prompt_tokens);
  usage.set_cached_tokens(event.num_cached_tokens);
  usage.set_output_tokens(event.num_output_tokens);
  fill_timings(event, *finish.mutable_timings());
  finish.set_num_preemptions(event.num_preemptions);
  if (!event.status.ok()) {
    finish.set_message(event.status.message().data(), event.status.message().size());
  }
}

void fill_logprobs(const engine::SampledToken& token, v1::TokenLogprobs& entry) {
  entry.set_token_id(token.token);
  entry.set_logprob(token.logprob);
  for (const engine::TokenLogprob& candidate : token.top) {
    v1::TokenLogprob& top = *entry.add_top();
    top.set_token_id(candidate.token);
    top.set_logprob(candidate.logprob);
  }
}

// GenerateResponse and Choice share these fields.
template <typename Message>
void fill_output(const OutputPiece& piece, bool logprobs, Message& message) {
  message.set_index(piece.index);
  for (const engine::SampledToken& token : piece.tokens) {
    message.add_token_ids(token.token);
    if (logprobs) fill_logprobs(token, *message.add_logprobs());
  }
  if (piece.finish.has_value()) fill_finish(*piece.finish, *message.mutable_finish());
}

}  // namespace

admission::GenerateRequest request_from_proto(const v1::GenerateRequest& message) {
  admission::GenerateRequest request;
  take_prompt(message.prompt(), request);
  if (!message.model().empty()) request.model = message.model();
  take_sampling(message.sampling(), request);
  request.priority = message.priority();
  request.cache_salt = message.cache_salt();
  request.request_id = message.request_id();
  return request;
}

void fill_response(const OutputPiece& piece, bool logprobs, v1::GenerateResponse& message) {
  message.Clear();
  fill_output(piece, logprobs, message);
}

void fill_choice(const OutputPiece& piece, bool logprobs, v1::Choice& choice) {
  fill_output(piece, logprobs, choice);
}

void fill_model(const ServedModel& model,
                const admission::Limits& limits,
                v1::GetModelResponse& message) {
  message.set_name(model.name);
  message.set_architecture(model.architecture);
  message.set_num_parameters(model.num_parameters);
  message.set_num_layers(model.num_layers);
  message.set_hidden_size(model.hidden_size);
  message.set_vocab_size(model.vocab_size);
  message.set_last_token_id(limits.last_token_id);
  message.mutable_eos_token_ids()->Assign(limits.eos_token_ids.begin(), limits.eos_token_ids.end());
  message.set_max_model_len(model.max_model_len);
  message.set_weight_dtype(model.weight_dtype);
  message.set_kv_cache_dtype(model.kv_cache_dtype);
  message.set_kv_cache_bytes_per_token(model.kv_bytes_per_token);
  message.set_has_tokenizer(model.has_tokenizer);
  message.set_has_mtp(model.has_mtp);
  v1::SamplingParams& sampling = *message.mutable_default_sampling();
  sampling.set_temperature(limits.default_temperature);
  sampling.set_top_p(limits.default_top_p);
  sampling.set_top_k(limits.default_top_k);
}

v1::ServerState state_to_proto(admission::Frontend::State state) {
  switch (state) {
    case admission::Frontend::State::kLoading:
      return v1::SERVER_STATE_LOADING;
    case admission::Frontend::State::kServing:
      return v1::SERVER_STATE_SERVING;
    case admission::Frontend::State::kDraining:
      return v1::SERVER_STATE_DRAINING;
    case admission::Frontend::State::kFailed:
      return v1::SERVER_STATE_FAILED;
  }
  return v1::SERVER_STATE_UNSPECIFIED;
}

}  // namespace r1d::transport
