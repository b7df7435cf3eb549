// SPDX-License-Identifier: Apache-2.0
#include "cli/memory_report.h"

#include <algorithm>

#include "r1d/base/bytes.h"

namespace r1d::cli {

void report_memory_plan(const engine::MemoryPlan& plan,
                        spdlog::logger& log,
                        telemetry::MemoryMetrics& metrics) {
  log.info("memory plan: {}", engine::describe(plan));
  for (size_t i = 0; i < engine::kMemoryParts; ++i) {
    metrics.planned(engine::memory_part_name(static_cast<engine::MemoryPart>(i)), plan.parts[i]);
  }
}

void report_memory_use(const engine::MemoryReport& report,
                       spdlog::logger& log,
                       telemetry::MemoryMetrics& metrics) {
  int64_t fullest = 0;
  for (size_t rank = 0; rank < report.ranks.size(); ++rank) {
    const ops::MemoryUse& use = report.ranks[rank];
    fullest = std::max(fullest, use.total());
    for (size_t i = 0; i < ops::kMemoryKinds; ++i) {
      const auto kind = static_cast<ops::MemoryKind>(i);
      metrics.used(static_cast<int32_t>(rank), ops::memory_kind_name(kind), use[kind]);
    }
  }
  metrics.measured(report.measured_bytes);
  log.info("memory in use: {} a rank by count ({} planned for the same), {} measured in all",
           readable_bytes(fullest),
           readable_bytes(report.plan.counted().total()),
           readable_bytes(report.measured_bytes));
}

}  // namespace r1d::cli
