// SPDX-License-Identifier: Apache-2.0
#include "cli/memory_report.h"

#include <algorithm>
#include <string>

#include <fmt/core.h>

#include "r1d/base/bytes.h"

namespace r1d::cli {
namespace {

using engine::MemoryPart;

std::string beside(const char* what, int64_t bytes, int64_t planned) {
  return fmt::format("{} {} ({})", what, readable_bytes(bytes), readable_bytes(planned));
}

// One GPU's bytes, each part with its plan in brackets.
std::string describe(const engine::DeviceStages& device, const engine::MemoryPlan& plan) {
  const int64_t attached = plan[MemoryPart::kWorkspaces] + plan[MemoryPart::kCollectives];
  const int64_t loaded =
      plan.weights() + plan[MemoryPart::kLatentCache] + plan[MemoryPart::kActivations];
  const int64_t expected = plan.expected();
  return fmt::format(
      "{} in use, {} planned ({:+.2f} %): {}, {}, {}, {}",
      readable_bytes(device.ready),
      readable_bytes(expected),
      100.0 * static_cast<double>(device.ready - expected) / static_cast<double>(expected),
      beside("context", device.context, plan[MemoryPart::kContext]),
      beside("workspaces and collectives", device.attached - device.context, attached),
      beside("weights and latent cache", device.loaded - device.attached, loaded),
      beside("graphs", device.ready - device.loaded, plan[MemoryPart::kGraphs]));
}

}  // namespace

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
  for (size_t rank = 0; rank < report.devices.size(); ++rank) {
    log.info("GPU of rank {}: {}", rank, describe(report.devices[rank], report.plan));
  }
  if (!report.devices.empty()) {
    log.info("ready {:.2f} s after weights and latent cache were in place", report.warm_up_seconds);
  }
}

}  // namespace r1d::cli
