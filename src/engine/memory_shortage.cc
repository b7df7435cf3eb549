// SPDX-License-Identifier: Apache-2.0
#include "engine/memory_shortage.h"

#include <algorithm>
#include <vector>

#include <fmt/ranges.h>

#include "r1d/base/bytes.h"
#include "r1d/base/status.h"

namespace r1d::engine {
namespace {

// Parts that another setting makes smaller.
int64_t step_bytes(const MemoryPlan& plan) {
  return plan[MemoryPart::kActivations] + plan[MemoryPart::kWorkspaces];
}

// GPUs that have `needed` with a reserve of their own size in place of the plan's.
std::vector<std::string> large_enough(const MemoryPlan& plan, int64_t needed) {
  std::vector<std::string> names;
  for (const device::GpuModel& model : device::gpu_models()) {
    const int64_t reserve = (model.memory_bytes - plan.memory_bytes) / 50;  // 2 %
    if (needed + reserve <= model.memory_bytes) names.emplace_back(model.name);
  }
  return names;
}

std::string remedies(const MemoryPlan& plan,
                     const EngineOptions& options,
                     const MemoryTarget& target,
                     const Remedy& remedy,
                     int64_t needed) {
  std::vector<std::string> ways;
  if (remedy.world_size > 0) ways.push_back(fmt::format("engine.world_size {}", remedy.world_size));
  if (target.device == Device::kCuda) {
    const auto gpus = large_enough(plan, needed);
    if (!gpus.empty()) ways.push_back(fmt::format("a GPU like {}", fmt::join(gpus, ", ")));
  } else {
    ways.push_back(
        fmt::format("a host with {} to spare", readable_bytes(needed * options.world_size)));
  }
  const int64_t shrunk = needed - step_bytes(plan);
  if (step_bytes(plan) > plan.memory_bytes / 50 && shrunk < plan.memory_bytes) {
    ways.emplace_back("a lower scheduler.max_num_batched_tokens");
  }
  if (options.kv_cache_bytes > 0) ways.emplace_back("a lower engine.kv_cache_memory");
  if (options.max_model_len > 0) ways.emplace_back("a lower scheduler.max_model_len");
  return ways.empty() ? "" : fmt::format("; it takes {}", fmt::join(ways, ", or "));
}

}  // namespace

std::string list_parts(const MemoryPlan& plan, const char* separator) {
  std::string text;
  for (size_t i = 0; i < kMemoryParts; ++i) {
    if (plan.parts[i] == 0) continue;
    if (!text.empty()) text += separator;
    std::string name = memory_part_name(static_cast<MemoryPart>(i));
    std::replace(name.begin(), name.end(), '_', ' ');
    text += name + " " + readable_bytes(plan.parts[i]);
  }
  return text;
}

absl::Status shortage(const MemoryPlan& plan,
                      const EngineOptions& options,
                      const MemoryTarget& target,
                      const Remedy& remedy) {
  const int64_t needed = plan.total() + remedy.cache_bytes;
  const bool on_gpu = target.device == Device::kCuda;
  return resource_exhausted(
      "the model does not fit: a rank of {} takes {}: {} + {} of KV cache at least; {} {}{}",
      options.world_size,
      readable_bytes(needed),
      list_parts(plan, " + "),
      readable_bytes(remedy.cache_bytes),
      on_gpu ? target.name + " has" : "its share of what the host can spare is",
      readable_bytes(plan.memory_bytes),
      remedies(plan, options, target, remedy, needed));
}

absl::Status check_free_memory(const MemoryPlan& plan,
                               const ops::DeviceBytes& device,
                               int32_t rank) {
  // The context is there when free memory is asked for.
  const int64_t needed = plan.expected() - plan[MemoryPart::kContext];
  if (needed <= device.free_at_start) return absl::OkStatus();
  return resource_exhausted(
      "GPU {}: {} of {} are free, the plan takes {} ({}): does another process hold the rest?",
      rank,
      readable_bytes(device.free_at_start),
      readable_bytes(device.total),
      readable_bytes(needed),
      list_parts(plan, " + "));
}

}  // namespace r1d::engine
