// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/convert.h"

#include <algorithm>

#include <fmt/format.h>

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
  request.stop.assign(sampling.stop().begin(), sampling.stop().end());
  request.include_stop = sampling.include_stop();
  request.stop_token_ids.assign(sampling.stop_token_ids().begin(), sampling.stop_token_ids().end());
  request.ignore_eos = sampling.ignore_eos();
  request.min_tokens = sampling.min_tokens();
  if (sampling.has_max_tokens()) request.max_tokens = sampling.max_tokens();
  if (sampling.has_n()) request.n = sampling.n();
}

chat::Message message_from_proto(const v1::Message& message) {
  chat::Message turn;
  turn.role = message.role();
  turn.content = message.content();
  turn.tool_call_id = message.tool_call_id();
  turn.name = message.name();
  for (const v1::ToolCall& call : message.tool_calls()) {
    turn.tool_calls.push_back(
        {.id = call.id(), .type = call.type(), .name = call.name(), .arguments = call.arguments()});
  }
  return turn;
}

admission::ChatInput chat_from_proto(const v1::ChatRequest& message) {
  admission::ChatInput chat;
  for (const v1::Message& turn : message.messages()) {
    chat.messages.push_back(message_from_proto(turn));
  }
  for (const v1::Tool& tool : message.tools()) {
    chat.tools.push_back({tool.name(), tool.description(), tool.parameters()});
  }
  chat.template_variables = message.template_variables();
  if (message.has_thinking_budget()) chat.thinking_budget = message.thinking_budget();
  chat.keep_reasoning_in_content = message.keep_reasoning_in_content();
  return chat;
}

// What Generate and Chat have in common.
template <typename Message>
void take_common(const Message& message, admission::GenerateRequest& request) {
  if (!message.model().empty()) request.model = message.model();
  take_sampling(message.sampling(), request);
  request.priority = message.priority();
  request.cache_salt = message.cache_salt();
  request.request_id = message.request_id();
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

void fill_finish(const admission::ReadOutput& output, v1::Finish& finish) {
  const scheduler::FinishEvent& event = *output.finish;
  finish.set_reason(reason_to_proto(event.reason));
  if (event.reason == scheduler::FinishReason::kStop && output.num_tool_calls > 0) {
    finish.set_reason(v1::FINISH_REASON_TOOL_CALLS);
  }
  if (event.stop_token.has_value()) finish.set_stop_token_id(*event.stop_token);
  if (output.stop_text.has_value()) finish.set_stop_text(*output.stop_text);
  v1::Usage& usage = *finish.mutable_usage();
  usage.set_prompt_tokens(event.num_prompt_tokens);
  usage.set_cached_tokens(event.num_cached_tokens);
  usage.set_output_tokens(event.num_output_tokens);
  usage.set_reasoning_tokens(output.num_reasoning_tokens);
  fill_timings(event, *finish.mutable_timings());
  finish.set_num_preemptions(event.num_preemptions);
  if (!event.status.ok()) {
    finish.set_message(event.status.message().data(), event.status.message().size());
  }
}

void fill_logprobs(const engine::SampledToken& token, v1::TokenLogprobs& entry) {
  entry.set_token_id(token.token);
  entry.set_logprob(token.logprob.value_or(0));  // the client asked, so it is known
  for (const engine::TokenLogprob& candidate : token.top) {
    v1::TokenLogprob& top = *entry.add_top();
    top.set_token_id(candidate.token);
    top.set_logprob(candidate.logprob);
  }
}

// The fields that all four messages have.
template <typename Message>
void add_tokens(const admission::ReadOutput& output, bool logprobs, Message& message) {
  for (const engine::SampledToken& token : output.tokens) {
    message.add_token_ids(token.token);
    if (logprobs) fill_logprobs(token, *message.add_logprobs());
  }
  if (output.finish.has_value()) fill_finish(output, *message.mutable_finish());
}

std::string tool_call_id(const AnswerContext& context, int32_t index, int32_t call_idx) {
  return fmt::format("{}-{}-{}", context.call_id, index, call_idx);
}

void add_tool_delta(int32_t index,
                    const chat::OutputEvent& event,
                    const AnswerContext& context,
                    v1::ChatResponse& message) {
  const int last = message.tool_calls_size() - 1;
  const bool goes_on = last >= 0 && message.tool_calls(last).index() == event.call_idx;
  v1::ToolCallDelta& delta =
      goes_on ? *message.mutable_tool_calls(last) : *message.add_tool_calls();
  delta.set_index(event.call_idx);
  if (event.kind == chat::OutputEvent::Kind::kToolCallBegin) {
    delta.set_id(tool_call_id(context, index, event.call_idx));
    delta.set_name(event.name);
  }
  delta.mutable_arguments()->append(event.text);
  if (event.malformed) delta.set_malformed(true);
}

void add_tool_event(int32_t index,
                    const chat::OutputEvent& event,
                    const AnswerContext& context,
                    v1::Message& message) {
  if (event.kind == chat::OutputEvent::Kind::kToolCallBegin) {
    v1::ToolCall& call = *message.add_tool_calls();
    call.set_id(tool_call_id(context, index, event.call_idx));
    call.set_type(event.type);
    call.set_name(event.name);
  }
  v1::ToolCall& call = *message.mutable_tool_calls(event.call_idx);
  call.mutable_arguments()->append(event.text);
  if (event.malformed) call.set_malformed(true);
}

template <typename Message>
void total_usage(Message& message) {
  v1::Usage& usage = *message.mutable_usage();
  const v1::Usage& first = message.choices(0).finish().usage();
  usage.set_prompt_tokens(first.prompt_tokens());
  usage.set_cached_tokens(first.cached_tokens());
  for (const auto& choice : message.choices()) {
    const v1::Usage& own = choice.finish().usage();
    usage.set_output_tokens(usage.output_tokens() + own.output_tokens());
    usage.set_reasoning_tokens(usage.reasoning_tokens() + own.reasoning_tokens());
  }
}

}  // namespace

admission::GenerateRequest request_from_proto(const v1::GenerateRequest& message) {
  admission::GenerateRequest request;
  take_prompt(message.prompt(), request);
  take_common(message, request);
  return request;
}

admission::GenerateRequest request_from_proto(const v1::ChatRequest& message) {
  admission::GenerateRequest request;
  request.chat = chat_from_proto(message);
  take_common(message, request);
  return request;
}

bool fill_response(int32_t index,
                   const admission::ReadOutput& output,
                   const AnswerContext& context,
                   v1::GenerateResponse& message) {
  message.set_index(index);
  message.set_text(output.text);
  add_tokens(output, context.logprobs, message);
  return !output.tokens.empty() || output.finish.has_value();
}

bool fill_response(int32_t index,
                   const admission::ReadOutput& output,
                   const AnswerContext& context,
                   v1::ChatResponse& message) {
  message.set_index(index);
  for (const chat::OutputEvent& event : output.events) {
    switch (event.kind) {
      case chat::OutputEvent::Kind::kReasoning:
        message.mutable_reasoning()->append(event.text);
        break;
      case chat::OutputEvent::Kind::kContent:
        message.mutable_content()->append(event.text);
        break;
      default:
        add_tool_delta(index, event, context, message);
    }
  }
  add_tokens(output, context.logprobs, message);
  return !output.tokens.empty() || output.finish.has_value();
}

void add_to_choice(const admission::ReadOutput& output,
                   const AnswerContext& context,
                   v1::Choice& choice) {
  choice.mutable_text()->append(output.text);
  add_tokens(output, context.logprobs, choice);
}

void add_to_choice(const admission::ReadOutput& output,
                   const AnswerContext& context,
                   v1::ChatChoice& choice) {
  v1::Message& message = *choice.mutable_message();
  message.set_role("assistant");
  for (const chat::OutputEvent& event : output.events) {
    switch (event.kind) {
      case chat::OutputEvent::Kind::kReasoning:
        message.mutable_reasoning()->append(event.text);
        break;
      case chat::OutputEvent::Kind::kContent:
        message.mutable_content()->append(event.text);
        break;
      default:
        add_tool_event(choice.index(), event, context, message);
    }
  }
  add_tokens(output, context.logprobs, choice);
}

void sum_usage(v1::GenerateOnceResponse& message) {
  total_usage(message);
}

void sum_usage(v1::ChatOnceResponse& message) {
  total_usage(message);
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
  message.set_has_chat_template(model.has_chat_template);
  message.set_has_reasoning(model.has_reasoning);
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
    case admission::Frontend::State::kStalled:
      return v1::SERVER_STATE_STALLED;
    case admission::Frontend::State::kDraining:
      return v1::SERVER_STATE_DRAINING;
    case admission::Frontend::State::kFailed:
      return v1::SERVER_STATE_FAILED;
  }
  return v1::SERVER_STATE_UNSPECIFIED;
}

}  // namespace r1d::transport
