// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <spdlog/logger.h>

#include "r1d/checkpoint/weight_load.h"
#include "r1d/telemetry/metrics.h"

namespace r1d::cli {

// "cached", "direct"; "mixed" where some files could not be read past the page cache.
[[nodiscard]] std::string load_mode_name(const checkpoint::LoadReport& report);

// A line of log and the metrics of a load from files; nothing for dummy weights.
void tell_load(const checkpoint::LoadReport& report,
               spdlog::logger& log,
               telemetry::StartupMetrics& metrics);

}  // namespace r1d::cli
