// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <prometheus/metric_family.h>

namespace r1d::telemetry {

// The numbers of one process out of /proc/PID/stat that process_* metrics need.
struct ProcessStat {
  double cpu_ticks = 0;  // user and system
  double num_threads = 0;
  double start_ticks = 0;  // since boot
  double virtual_bytes = 0;
  double resident_pages = 0;
};

// Reads the text of /proc/PID/stat; false when it is not of that form. The command name in
// parentheses may hold blanks and parentheses.
[[nodiscard]] bool parse_process_stat(std::string_view text, ProcessStat& out);

// The process_* families as of now, read from /proc. A number that cannot be read is left out
// rather than shown as zero.
[[nodiscard]] std::vector<prometheus::MetricFamily> collect_process_metrics();

}  // namespace r1d::telemetry
