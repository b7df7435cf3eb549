// SPDX-License-Identifier: Apache-2.0
// Between the wire's messages and the stages' structs. Judges nothing: admission does.
#pragma once

#include "r1d/admission/frontend.h"
#include "r1d/scheduler/request.h"
#include "r1d/transport/grpc_server.h"
#include "r1d/v1/inference.pb.h"

#include "transport/grpc/output_buffer.h"

namespace r1d::transport {

// No deadline: that is the call's, not the message's.
[[nodiscard]] admission::GenerateRequest request_from_proto(const v1::GenerateRequest& message);

// What is new of one sequence; overwrites `message`. Log probabilities only when asked for.
void fill_response(const OutputPiece& piece, bool logprobs, v1::GenerateResponse& message);

// One whole sequence, added to `choice`.
void fill_choice(const OutputPiece& piece, bool logprobs, v1::Choice& choice);

void fill_model(const ServedModel& model,
                const admission::Limits& limits,
                v1::GetModelResponse& message);

[[nodiscard]] v1::ServerState state_to_proto(admission::Frontend::State state);

}  // namespace r1d::transport
