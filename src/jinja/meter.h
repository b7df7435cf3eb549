// SPDX-License-Identifier: Apache-2.0
// What one rendering has used of its limits. Every loop and every copy asks here first.
#pragma once

#include <cstddef>

#include <absl/status/status.h>

#include "r1d/jinja/template.h"

namespace r1d::jinja {

class Meter {
 public:
  explicit Meter(const Limits& limits) : limits_(limits) {}

  [[nodiscard]] const Limits& limits() const { return limits_; }

  [[nodiscard]] absl::Status step(int64_t count = 1);
  // `bytes` are about to be looked at.
  [[nodiscard]] absl::Status scan(size_t bytes);
  // `bytes` are about to be copied into a new value.
  [[nodiscard]] absl::Status make(size_t bytes);
  [[nodiscard]] absl::Status output(size_t bytes);
  // Depth `depth` of a list or dict.
  [[nodiscard]] absl::Status nest(int depth) const;

  // Running one level deeper. Each enter, failed or not, is followed by one leave.
  [[nodiscard]] absl::Status enter();
  void leave() { --run_depth_; }

 private:
  Limits limits_;
  int64_t steps_ = 0;
  int64_t memory_bytes_ = 0;
  int64_t output_bytes_ = 0;
  int run_depth_ = 0;
};

}  // namespace r1d::jinja
