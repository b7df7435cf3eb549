// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <absl/status/statusor.h>

namespace r1d::cli::bench {

// What a daemon has used so far, from its /metrics.
struct ProcessUse {
  double cpu_seconds = 0;
  double resident_bytes = 0;
};

// One GET of /metrics from `address` (host:port of the management port).
[[nodiscard]] absl::StatusOr<ProcessUse> scrape_process(const std::string& address);

// The value of a metric without labels in a text exposition. kNotFound when there is none.
[[nodiscard]] absl::StatusOr<double> metric_value(const std::string& exposition,
                                                  const std::string& name);

}  // namespace r1d::cli::bench
