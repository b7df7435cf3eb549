// SPDX-License-Identifier: Apache-2.0
// The calls that generate: streamed and whole, for Generate and for Chat.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include <grpcpp/support/server_callback.h>

#include "transport/grpc/call.h"
#include "transport/grpc/convert.h"
#include "transport/grpc/status.h"

namespace r1d::transport {

// Generate, Chat: one write at a time; what comes meanwhile is joined into the next message.
// Response: v1::GenerateResponse or v1::ChatResponse.
template <typename Response>
class StreamCall final : public GenerateCall, public grpc::ServerWriteReactor<Response> {
 public:
  StreamCall(const CallTraits& traits,
             CallEnvironment& environment,
             grpc::CallbackServerContext& context)
      : GenerateCall(traits, environment, context) {}

  void OnWriteDone(bool ok) override;
  void OnCancel() override { client_left(); }
  void OnDone() override { close(); }

 private:
  // What gRPC is to be given now.
  struct Turn {
    std::optional<OutputPiece> piece;
    std::string request_name;            // of the stream's first message
    std::optional<absl::Status> status;  // ends the stream, after `piece`
  };

  void advance() override;
  void send_initial_metadata() override { this->StartSendInitialMetadata(); }
  void take_turn(Turn& turn);
  // The next turn with something in it for the client, its message in response_.
  [[nodiscard]] Turn next_turn();
  // Reads the turn's piece into response_; false when there is nothing in it for the client.
  [[nodiscard]] bool fill(Turn& turn);
  // Gives gRPC the turn; true when there may be another.
  [[nodiscard]] bool play(const Turn& turn);

  Response response_;  // of the write under way, alone
  // Somebody took a piece that gRPC has not got yet, and goes on with whatever comes meanwhile.
  // Till then nobody else may end the call: gRPC would be done with it before that write.
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
};

// GenerateOnce, ChatOnce: collects everything, then answers.
// Response: v1::GenerateOnceResponse or v1::ChatOnceResponse.
template <typename Response>
class OnceCall final : public GenerateCall, public grpc::ServerUnaryReactor {
 public:
  // `response` is gRPC's, valid until OnDone.
  OnceCall(const CallTraits& traits,
           CallEnvironment& environment,
           grpc::CallbackServerContext& context,
           Response& response)
      : GenerateCall(traits, environment, context), response_(response) {}

  void OnCancel() override { client_left(); }
  void OnDone() override { close(); }

 private:
  void advance() override;
  void send_initial_metadata() override { StartSendInitialMetadata(); }
  [[nodiscard]] std::optional<absl::Status> take_status();
  // Moves what has come into the answer.
  void collect() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Response& response_;
};

extern template class StreamCall<v1::GenerateResponse>;
extern template class StreamCall<v1::ChatResponse>;
extern template class OnceCall<v1::GenerateOnceResponse>;
extern template class OnceCall<v1::ChatOnceResponse>;

}  // namespace r1d::transport
