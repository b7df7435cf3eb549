// SPDX-License-Identifier: Apache-2.0
// Between the wire's messages and the stages' structs. Judges nothing: admission does.
#pragma once

#include <string>

#include "r1d/admission/frontend.h"
#include "r1d/scheduler/request.h"
#include "r1d/transport/grpc_server.h"
#include "r1d/v1/inference.pb.h"

namespace r1d::transport {

// No deadline: that is the call's, not the message's.
[[nodiscard]] admission::GenerateRequest request_from_proto(const v1::GenerateRequest& message);
[[nodiscard]] admission::GenerateRequest request_from_proto(const v1::ChatRequest& message);

// What of an answer the call knows and its output does not.
struct AnswerContext {
  bool logprobs = false;
  std::string call_id;  // begins the ids of tool calls
};

// What is new of one sequence, into an empty message. False when that is nothing.
[[nodiscard]] bool fill_response(int32_t index,
                                 const admission::ReadOutput& output,
                                 const AnswerContext& context,
                                 v1::GenerateResponse& message);
[[nodiscard]] bool fill_response(int32_t index,
                                 const admission::ReadOutput& output,
                                 const AnswerContext& context,
                                 v1::ChatResponse& message);

// The same, added to what `choice` has.
void add_to_choice(const admission::ReadOutput& output,
                   const AnswerContext& context,
                   v1::Choice& choice);
void add_to_choice(const admission::ReadOutput& output,
                   const AnswerContext& context,
                   v1::ChatChoice& choice);

// The usage of a request from that of its choices.
void sum_usage(v1::GenerateOnceResponse& message);
void sum_usage(v1::ChatOnceResponse& message);

void fill_model(const ServedModel& model,
                const admission::Limits& limits,
                v1::GetModelResponse& message);

[[nodiscard]] v1::ServerState state_to_proto(admission::Frontend::State state);

}  // namespace r1d::transport
