// SPDX-License-Identifier: Apache-2.0
// golden.json and golden.safetensors: what a reference computed from the same checkpoint.
#pragma once

#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"

namespace r1d::cli {

struct GoldenCase {
  std::vector<TokenId> prompt;
  std::vector<TokenId> greedy;     // the reference's argmax continuation
  std::vector<double> gap;         // top1 - top2 logit at each of its steps
  double logit_std = 0;            // of the last position's row
  std::vector<float> last_logits;  // [V], at the prompt's last position
};

// Errors name the file, the case and the field.
[[nodiscard]] absl::StatusOr<std::vector<GoldenCase>> load_golden_cases(const std::string& dir,
                                                                        int64_t vocab_size);

// How one answer compares with its case.
struct GoldenVerdict {
  double logits_error = 0;      // relative L2
  int32_t matching_tokens = 0;  // before the first difference
  bool excused = false;         // the first difference stands where the gap is within the tolerance
  bool passed = false;
};

// Greedy tokens are compared up to the first step whose gap the tolerance does not resolve. With a
// relative error e each logit is off by about e * std, a difference of two by sqrt(2) of that; 8 e
// std is beyond five standard deviations.
[[nodiscard]] GoldenVerdict judge(const GoldenCase& expected,
                                  const std::vector<TokenId>& tokens,
                                  const std::vector<float>& logits,
                                  double tolerance);

}  // namespace r1d::cli
