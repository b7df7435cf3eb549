// SPDX-License-Identifier: Apache-2.0
#include "cli/load_report.h"

#include <numeric>

#include "r1d/base/log.h"

namespace r1d::cli {

std::string load_mode_name(const checkpoint::LoadReport& report) {
  if (report.num_direct_files == 0) return "cached";
  return report.num_direct_files == report.num_files ? "direct" : "mixed";
}

void tell_load(const checkpoint::LoadReport& report,
               spdlog::logger& log,
               telemetry::StartupMetrics& metrics) {
  if (report.bytes_read == 0) return;
  const double gigabytes = static_cast<double>(report.bytes_read) / 1e9;
  const double rate = report.seconds > 0 ? gigabytes / report.seconds : 0;
  base::log_event(
      log,
      base::LogLevel::info,
      "weights read",
      {{"gigabytes", gigabytes},
       {"seconds", report.seconds},
       {"gigabytes_per_second", rate},
       {"mode", load_mode_name(report)},
       {"threads", report.num_threads},
       {"retries", std::accumulate(report.retries.begin(), report.retries.end(), int64_t{0})}});
  metrics.weights_read({.bytes = report.bytes_read,
                        .bytes_per_second = rate * 1e9,
                        .io_retries = report.retries[0],
                        .stale_retries = report.retries[1],
                        .timeout_retries = report.retries[2]});
}

}  // namespace r1d::cli
