// SPDX-License-Identifier: Apache-2.0
// The words for a model that does not fit.
#pragma once

#include <cstdint>
#include <string>

#include <absl/status/status.h>

#include "r1d/engine/memory_plan.h"

namespace r1d::engine {

// "attention 1.83 GB, experts 79.47 GB": the parts that are not nothing, in their order.
[[nodiscard]] std::string list_parts(const MemoryPlan& plan, const char* separator);

struct Remedy {
  int64_t cache_bytes = 0;  // the least that a rank needs on top of `plan`
  int32_t world_size = 0;   // that would fit; 0: none known
};
// kResourceExhausted. `plan` has no cache yet.
[[nodiscard]] absl::Status shortage(const MemoryPlan& plan,
                                    const EngineOptions& options,
                                    const MemoryTarget& target,
                                    const Remedy& remedy);

// kResourceExhausted when the GPU's free memory is less than the plan wants to take: somebody else
// holds the difference.
[[nodiscard]] absl::Status check_free_memory(const MemoryPlan& plan,
                                             const ops::DeviceBytes& device,
                                             int32_t rank);

}  // namespace r1d::engine
