// SPDX-License-Identifier: Apache-2.0
// golden.json and golden.safetensors: what a reference computed from the same checkpoint.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"

namespace r1d::cli {

struct GoldenCase {
  size_t number = 0;  // in golden.json
  std::vector<TokenId> prompt;
  std::vector<TokenId> greedy;  // the reference's argmax continuation
  std::vector<double> gap;      // top1 - top2 logit at each of its steps
  double logit_std = 0;         // of the last position's row
  // By how much the router chose its experts, in the spread of a token's scores, least of all
  // layers: at each of those steps, and at any position of the prompt. None: not recorded.
  std::vector<double> router_margin;
  std::optional<double> prompt_router_margin;
  bool e4m3 = false;  // the reference rounds activations as FP8 kernels do
  // How far such rounding takes the reference's logits (relative L2). None: not recorded, or the
  // device does not round so.
  std::optional<double> e4m3_error;
  std::vector<float> last_logits;  // [V], at the prompt's last position
};

// Errors name the file, the case and the field.
[[nodiscard]] absl::StatusOr<std::vector<GoldenCase>> load_golden_cases(const std::string& dir,
                                                                        int64_t vocab_size);

enum class GoldenOutcome : uint8_t { kPassed, kFailed, kNearTie };

// How one answer compares with its case.
struct GoldenVerdict {
  double logits_error = 0;  // relative L2
  double allowed_error = 0;
  int32_t matching_tokens = 0;  // before the first difference
  bool excused = false;         // the first difference stands where the tolerance does not decide
  GoldenOutcome outcome = GoldenOutcome::kFailed;
};

// With a relative error e each logit, or score of the router, is off by about e times their spread,
// a difference of two by sqrt(2) of that; 8 e is beyond five standard deviations. Below it,
// rounding decides: a token between two logits that close may be either; a token that stands so
// near a tie of the router may take other experts, and then its logits say nothing of the kernels.
[[nodiscard]] constexpr double undecided_below(double tolerance) {
  return 8 * tolerance;
}

// Kernels that round activations to e4m3 are judged by how far that takes the reference: from one
// that does not round they should be as far, and from one that does no further than sqrt(2) of it.
// (A difference as small as the order of a sum flips codes, and after two or three products two
// implementations hardly round the same values; errors that have nothing in common are that far
// apart.) Where the router is undecided it says nothing, and `tolerance` holds.
//
// Greedy tokens are compared up to the first step that the tolerance does not decide. kNearTie
// instead of kFailed where a position of the prompt is undecided, and the tolerance is not that of
// f32 throughout.
[[nodiscard]] GoldenVerdict judge(const GoldenCase& expected,
                                  const std::vector<TokenId>& tokens,
                                  const std::vector<float>& logits,
                                  double tolerance);

// So many of a checkpoint's cases, or all if there are fewer, must have passed: near ties alone
// prove nothing.
inline constexpr size_t kLeastPassed = 3;

}  // namespace r1d::cli
