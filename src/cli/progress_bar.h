// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>

namespace r1d::cli {

// A line that redraws itself on a terminal, and nothing elsewhere (logs and the metric tell there).
// Threads: externally locked.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();  // ends the line

  void update(double fraction);  // 0 .. 1; redraws at most ten times a second

 private:
  const std::string label_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point drawn_;
};

}  // namespace r1d::cli
