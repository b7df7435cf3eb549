// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <spdlog/logger.h>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"

#include "transport/guard/limits.h"

namespace r1d::transport {

// Names refused clients in the log, a few a second, so that no client fills it. Thread-safe.
class RefusalLog {
 public:
  explicit RefusalLog(std::shared_ptr<spdlog::logger> log) : log_(std::move(log)) {}
  void write(const std::string& client, Refusal reason, std::string_view what);

 private:
  static constexpr int32_t kLinesPerSecond = 5;

  const std::shared_ptr<spdlog::logger> log_;
  base::Mutex mu_;
  TimePoint second_ ABSL_GUARDED_BY(mu_);
  int32_t num_lines_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t num_left_out_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace r1d::transport
