// SPDX-License-Identifier: Apache-2.0
// `r1d generate`: a small client that shows that a daemon answers.
#include <chrono>
#include <cstdio>
#include <memory>

#include <grpcpp/grpcpp.h>

#include "r1d/base/status.h"
#include "r1d/v1/inference.grpc.pb.h"

#include "cli/commands.h"

namespace r1d::cli {
namespace {

v1::GenerateRequest make_request(const GenerateOptions& options) {
  v1::GenerateRequest request;
  if (options.token_ids.empty()) {
    request.mutable_prompt()->set_text(options.text);
  } else {
    auto* ids = request.mutable_prompt()->mutable_token_ids()->mutable_ids();
    ids->Add(options.token_ids.begin(), options.token_ids.end());
  }
  request.mutable_sampling()->set_max_tokens(options.max_tokens);
  request.mutable_sampling()->set_temperature(options.temperature);
  return request;
}

// Text when text was sent, ids when ids were.
void print_output(const v1::GenerateResponse& message, bool as_text) {
  if (as_text) std::fputs(message.text().c_str(), stdout);
  for (const int32_t id : message.token_ids()) {
    if (!as_text) std::printf("%d ", id);
  }
  std::fflush(stdout);
}

void print_finish(const v1::Finish& finish) {
  const double decode =
      finish.timings().total_seconds() - finish.timings().time_to_first_token_seconds();
  const int32_t gaps = finish.usage().output_tokens() - 1;
  fmt::print("\n{}: {} prompt tokens ({} cached), {} output tokens, first after {:.1f} ms",
             v1::FinishReason_Name(finish.reason()),
             finish.usage().prompt_tokens(),
             finish.usage().cached_tokens(),
             finish.usage().output_tokens(),
             finish.timings().time_to_first_token_seconds() * 1e3);
  if (gaps > 0) fmt::print(", then {:.1f} tokens/s", gaps / decode);
  fmt::print("\n");
}

}  // namespace

absl::Status generate(const GenerateOptions& options) {
  const auto channel = grpc::CreateChannel(options.address, grpc::InsecureChannelCredentials());
  const auto stub = v1::InferenceService::NewStub(channel);
  grpc::ClientContext context;
  const auto stream = stub->Generate(&context, make_request(options));
  v1::GenerateResponse message;
  while (stream->Read(&message)) {
    print_output(message, /*as_text=*/options.token_ids.empty());
    if (message.has_finish()) print_finish(message.finish());
  }
  const grpc::Status status = stream->Finish();
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      fmt::format("{}: {}", options.address, status.error_message()));
}

}  // namespace r1d::cli
