// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/support/server_callback.h>

#include "transport/grpc/call.h"

namespace r1d::transport {

// Generate: one write at a time; what comes meanwhile is joined into the next message.
class GenerateStream final : public GenerateCall,
                             public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  GenerateStream(CallEnvironment& environment,
                 grpc::CallbackServerContext& context,
                 const v1::GenerateRequest& message)
      : GenerateCall(
            "Generate", environment.options.stream_buffer_tokens, environment, context, message) {}

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
  void send_initial_metadata() override { StartSendInitialMetadata(); }
  [[nodiscard]] Turn take_turn();

  v1::GenerateResponse response_;  // of the write under way, alone
};

// GenerateOnce: collects everything, then answers.
class GenerateOnceCall final : public GenerateCall, public grpc::ServerUnaryReactor {
 public:
  // `response` is gRPC's, valid until OnDone.
  GenerateOnceCall(CallEnvironment& environment,
                   grpc::CallbackServerContext& context,
                   const v1::GenerateRequest& message,
                   v1::GenerateOnceResponse& response)
      : GenerateCall(
            "GenerateOnce", /*max_unread_tokens=*/std::nullopt, environment, context, message),
        response_(response) {}

  void OnCancel() override { client_left(); }
  void OnDone() override { close(); }

 private:
  void advance() override;
  void send_initial_metadata() override { StartSendInitialMetadata(); }
  [[nodiscard]] std::optional<absl::Status> take_status();
  void fill_answer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  v1::GenerateOnceResponse& response_;
};

}  // namespace r1d::transport
