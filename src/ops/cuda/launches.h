// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/status.h>

#include "r1d/device/cuda.h"
#include "r1d/ops/cuda_ops.h"

#include "kernels/common/launch.h"

namespace r1d::ops::cuda {

// The kinds of kernels a step is made of, in its order.
enum class Kind : uint8_t {
  kBegin,
  kEmbed,
  kNorm,
  kQkvA,
  kSplitNorm,
  kQB,
  kAbsorb,
  kDecode,
  kExpand,
  kGather,
  kKvB,
  kPrefill,
  kO,
  kDenseGateUp,
  kDenseDown,
  kRouter,
  kExperts,
  kShared,
  kCombine,
  kHead,
  kAllReduce,
  kGatherLogits,
  kCount,
};
[[nodiscard]] const char* kind_name(Kind kind);

// What a launch owes: bytes that must move, floating-point operations that must be done.
struct Cost {
  double bytes = 0;
  double flops = 0;
};

// The one door through which kernels are enqueued: names them in errors, adds up what they owe, and
// can leave all but one kind out. Threads: confined to the rank's thread.
class Launches {
 public:
  // `dependent`: programmatic dependent launch (kernels/common/launch.h).
  Launches(const device::Stream& stream, bool dependent) : stream_(stream), dependent_(dependent) {}

  // enqueue(const kernels::Launch&) -> cudaError_t.
  template <typename Enqueue>
  [[nodiscard]] absl::Status operator()(Kind kind, const Cost& cost, Enqueue&& enqueue) {
    if (!count(kind, cost)) return absl::OkStatus();
    const cudaError_t error = enqueue(kernels::Launch{stream_.get(), dependent_});
    if (error == cudaSuccess) return absl::OkStatus();
    return device::cuda_status(error, kind_name(kind), "step", 0);
  }
  // work() -> absl::Status, for libraries.
  template <typename Work>
  [[nodiscard]] absl::Status library(Kind kind, const Cost& cost, Work&& work) {
    return count(kind, cost) ? work() : absl::OkStatus();
  }

  void start_step() { totals_ = {}; }
  void only(std::optional<Kind> kind) { only_ = kind; }
  [[nodiscard]] std::vector<KernelCost> costs() const;

 private:
  // False when this kind is left out.
  bool count(Kind kind, const Cost& cost);

  struct Total {
    int64_t calls = 0;
    Cost cost;
  };
  const device::Stream& stream_;
  const bool dependent_;
  std::optional<Kind> only_;
  std::array<Total, static_cast<size_t>(Kind::kCount)> totals_{};
};

}  // namespace r1d::ops::cuda
