// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/refusal_log.h"

#include <chrono>
#include <utility>

namespace r1d::transport {

void RefusalLog::write(const std::string& client, Refusal reason, std::string_view what) {
  const TimePoint now = std::chrono::steady_clock::now();
  int64_t num_left_out = 0;
  {
    const base::MutexLock lock(mu_);
    if (now >= second_ + std::chrono::seconds(1)) {
      second_ = now;
      num_lines_ = 0;
    }
    if (++num_lines_ > kLinesPerSecond) {
      ++num_left_out_;
      return;
    }
    num_left_out = std::exchange(num_left_out_, 0);
  }
  if (num_left_out > 0) log_->warn("{} more clients were refused", num_left_out);
  log_->warn("client {} refused: {} ({})", client, what, refusal_name(reason));
}

}  // namespace r1d::transport
