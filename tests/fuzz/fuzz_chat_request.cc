// SPDX-License-Identifier: Apache-2.0
// Any bytes as a ChatRequest: refused with a field, or a request that the scheduler may have.
#include <cstddef>
#include <cstdint>
#include <memory>

#include "r1d/admission/frontend.h"
#include "r1d/base/check.h"
#include "r1d/v1/inference.pb.h"

#include "tests/support/test_data.h"
#include "transport/grpc/convert.h"

namespace {

using namespace r1d;  // NOLINT(google-build-using-namespace): a program of one file

std::shared_ptr<const admission::TextModel> small_model() {
  auto text =
      admission::TextModel::load({.model_dir = "",
                                  .tokenizer = test::data("tokenizers/deepseek"),
                                  .chat_template = test::data("templates/deepseek-r1.jinja"),
                                  .match_control_tokens = false});
  R1D_CHECK(text.ok());
  return *std::move(text);
}

admission::Limits small_limits(const admission::TextModel& text) {
  admission::Limits limits;
  limits.max_model_len = 4096;
  limits.last_token_id = text.tokenizer().last_id();
  limits.vocab_size = limits.last_token_id + 1;
  limits.model_name = "small";
  return limits;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto text = small_model();
  static const admission::Limits limits = small_limits(*text);
  v1::ChatRequest message;
  if (!message.ParseFromArray(data, static_cast<int>(size))) return 0;
  const admission::GenerateRequest request = transport::request_from_proto(message);
  const auto prepared = admission::prepare_text(request, limits, text.get());
  if (!prepared.ok()) {
    R1D_CHECK(!prepared.status().message().empty());
    return 0;
  }
  R1D_CHECK(prepared->prompt.has_value());
  const auto checked = admission::validate(request, limits, 1, *prepared);
  if (checked.ok()) R1D_CHECK(checked->prompt == prepared->prompt->ids);
  return 0;
}
