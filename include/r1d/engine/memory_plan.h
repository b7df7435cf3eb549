// SPDX-License-Identifier: Apache-2.0
// What a rank's memory goes to, worked out before any of it is taken. Engine::create() decides by
// this plan, and `r1d plan` prints it for machines that are not there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/weight_source.h"
#include "r1d/device/gpu_table.h"
#include "r1d/engine/engine.h"
#include "r1d/model/deepseek_v3.h"
#include "r1d/ops/cuda_ops.h"

namespace r1d::engine {

// The parts of a plan; a closed set, as metrics have a series for each.
enum class MemoryPart : uint8_t {
  kAttention,  // weights as loaded: model::RankWeights
  kExperts,
  kSharedExperts,
  kDense,
  kRouters,
  kEmbeddings,
  kNorms,
  kMtp,
  kKernelWeights,  // weights in forms that kernels read
  kLatentCache,
  kActivations,
  kWorkspaces,
  kCollectives,
  kLogits,   // on the host: all ranks' together, a share each
  kGraphs,   // recorded decode steps; estimated
  kContext,  // the driver's context and kernels' code; as measured
  kReserve,  // kept free
  kCount,
};
inline constexpr size_t kMemoryParts = static_cast<size_t>(MemoryPart::kCount);

// "shared_experts": label values and JSON.
[[nodiscard]] const char* memory_part_name(MemoryPart part);

// Where a plan is to hold.
struct MemoryTarget {
  Device device = Device::kCpu;
  std::string name;          // "cpu", "h200", "NVIDIA H200"
  int64_t memory_bytes = 0;  // one GPU's; or what the host can spare for all ranks together
  ops::GpuTarget gpu;
};
[[nodiscard]] MemoryTarget target_of(const device::GpuModel& model);

// Of the fullest rank.
struct MemoryPlan {
  std::array<int64_t, kMemoryParts> parts{};
  CachePlan cache;
  int64_t memory_bytes = 0;  // a rank's: the GPU's, or its share of what the host can spare

  [[nodiscard]] int64_t operator[](MemoryPart part) const {
    return parts[static_cast<size_t>(part)];
  }
  [[nodiscard]] int64_t& operator[](MemoryPart part) { return parts[static_cast<size_t>(part)]; }
  [[nodiscard]] int64_t weights() const;  // with those for kernels
  [[nodiscard]] int64_t total() const;
  [[nodiscard]] int64_t expected() const;  // all but the reserve
  // The same in the kinds that Ops counts, without what no Ops object takes.
  [[nodiscard]] ops::MemoryUse counted() const;
};

// Pure. kInvalidArgument: a size that does not divide among the ranks, a length that the model or
// the cache does not have, a cache format that the device lacks. kFailedPrecondition: a GPU that
// r1d's kernels do not run on. kResourceExhausted: it does not fit; the message is the sum, and
// what would.
[[nodiscard]] absl::StatusOr<MemoryPlan> plan_memory(const checkpoint::WeightSource& source,
                                                     const EngineOptions& options,
                                                     const MemoryTarget& target);

// This machine, as its driver and its kernel describe it. kFailedPrecondition when the build, the
// driver or the number of GPUs does not serve `options`.
[[nodiscard]] absl::StatusOr<MemoryTarget> local_target(const EngineOptions& options);

// One line: "attention 1.83 GB, experts 79.47 GB, ...: 95.12 of 150.00 GB".
[[nodiscard]] std::string describe(const MemoryPlan& plan);

// Bytes of a GPU in use while its rank loads, as the driver sees it, whoever holds them.
struct DeviceStages {
  int64_t context = 0;   // before the rank took any: the driver's own, and other processes'
  int64_t attached = 0;  // with workspaces and collectives
  int64_t loaded = 0;    // with weights and latent cache
  int64_t ready = 0;     // with kernels' code and recorded steps
};

// What loading took, beside its plan.
struct MemoryReport {
  MemoryPlan plan;
  std::vector<ops::MemoryUse> ranks;  // as each rank's Ops counts it
  std::vector<DeviceStages> devices;  // each rank's; empty on a CPU
  // As the driver sees it when all is loaded, summed over the ranks' GPUs, whoever holds it; or
  // what this process grew by in resident memory, where untouched pages do not count.
  int64_t measured_bytes = 0;
  double warm_up_seconds = 0;  // from weights and cache in place to ready; the slowest rank's
};

}  // namespace r1d::engine
