// SPDX-License-Identifier: Apache-2.0
// A small model's limits and a request that is good in every field.
#pragma once

#include "r1d/admission/frontend.h"

namespace r1d::admission {

inline Limits small_limits() {
  Limits limits;
  limits.max_model_len = 64;
  limits.vocab_size = 100;
  limits.last_token_id = 95;
  limits.eos_token_ids = {1, 2};
  limits.default_temperature = 0.6;
  limits.default_top_p = 0.95;
  limits.default_top_k = 5;
  limits.max_logit_bias = 4;
  limits.max_stop_token_ids = 3;
  limits.model_name = "small";
  return limits;
}

inline GenerateRequest good_request() {
  GenerateRequest request;
  request.prompt_token_ids = {10, 11, 12};
  return request;
}

}  // namespace r1d::admission
