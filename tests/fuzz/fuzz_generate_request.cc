// SPDX-License-Identifier: Apache-2.0
// Bytes as a GenerateRequest, converted and judged as the gRPC door does it. Whatever comes through
// must be within the ranges that scheduler and sampler rely on.
#include <cstddef>
#include <cstdint>

#include "r1d/admission/frontend.h"
#include "r1d/base/check.h"
#include "r1d/v1/inference.pb.h"

#include "transport/grpc/convert.h"

namespace {

r1d::admission::Limits small_limits() {
  r1d::admission::Limits limits;
  limits.max_model_len = 64;
  limits.vocab_size = 100;
  limits.last_token_id = 95;
  limits.eos_token_ids = {1};
  limits.max_logit_bias = 8;
  limits.model_name = "m";
  return limits;
}

void check(const r1d::scheduler::Request& request, const r1d::admission::Limits& limits) {
  const auto length = static_cast<int64_t>(request.prompt.size());
  R1D_CHECK(length >= 1 && length < limits.max_model_len);
  for (const r1d::TokenId id : request.prompt) R1D_CHECK(id >= 0 && id <= limits.last_token_id);
  const r1d::engine::SamplingParams& sampling = request.sampling;
  R1D_CHECK(sampling.max_tokens >= 1 && sampling.max_tokens + length <= limits.max_model_len);
  R1D_CHECK(sampling.min_tokens >= 0 && sampling.min_tokens <= sampling.max_tokens);
  R1D_CHECK(sampling.temperature >= 0 && sampling.temperature <= 2);
  R1D_CHECK(sampling.top_p > 0 && sampling.top_p <= 1);
  R1D_CHECK(sampling.top_k >= 0 && sampling.top_k <= limits.vocab_size);
  R1D_CHECK(sampling.min_p >= 0 && sampling.min_p < 1);
  R1D_CHECK(sampling.repetition_penalty > 0 && sampling.repetition_penalty <= 2);
  R1D_CHECK(request.n >= 1 && request.n <= limits.max_n);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const r1d::admission::Limits limits = small_limits();
  r1d::v1::GenerateRequest message;
  if (!message.ParseFromArray(data, static_cast<int>(size))) return 0;
  const auto checked =
      r1d::admission::validate(r1d::transport::request_from_proto(message), limits, 1);
  if (checked.ok()) {
    check(*checked, limits);
  } else {
    R1D_CHECK(!checked.status().message().empty());
  }
  return 0;
}
