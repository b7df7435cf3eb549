// SPDX-License-Identifier: Apache-2.0
// The memory plan and what came of it, for an operator: a line of the log each, and metrics.
#pragma once

#include <spdlog/logger.h>

#include "r1d/engine/memory_plan.h"
#include "r1d/telemetry/metrics.h"

namespace r1d::cli {

void report_memory_plan(const engine::MemoryPlan& plan,
                        spdlog::logger& log,
                        telemetry::MemoryMetrics& metrics);

void report_memory_use(const engine::MemoryReport& report,
                       spdlog::logger& log,
                       telemetry::MemoryMetrics& metrics);

}  // namespace r1d::cli
