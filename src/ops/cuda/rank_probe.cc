// SPDX-License-Identifier: Apache-2.0
// What `r1d bench` measures on a rank.
#include <algorithm>
#include <array>

#include "r1d/base/status.h"

#include "kernels/bandwidth/bandwidth.h"
#include "ops/cuda/rank.h"

namespace r1d::ops {
namespace cuda {

absl::StatusOr<double> CudaOps::last_step_micros() {
  return end_.micros_since(begin_);
}

std::vector<KernelCost> CudaOps::costs() const {
  return launches_.costs();
}

void CudaOps::only(const std::string* name) {
  std::optional<Kind> kind;
  for (uint8_t k = 0; name != nullptr && k < static_cast<uint8_t>(Kind::kCount); ++k) {
    if (*name == kind_name(static_cast<Kind>(k))) kind = static_cast<Kind>(k);
  }
  launches_.only(kind);
  graphs_.clear();
}

int64_t CudaOps::graph_nodes() const {
  return graph_nodes_;
}

absl::StatusOr<int32_t> CudaOps::active_experts() {
  std::vector<int32_t> chosen(static_cast<size_t>(num_tokens_ * dims_.router.top_k));
  if (chosen.empty()) return 0;
  R1D_RETURN_IF_ERROR(stream_.copy_out(
      chosen.data(), feed_forward_.chosen_experts(), chosen.size() * sizeof(int32_t)));
  R1D_RETURN_IF_ERROR(stream_.synchronize());
  std::sort(chosen.begin(), chosen.end());
  return static_cast<int32_t>(std::unique(chosen.begin(), chosen.end()) - chosen.begin());
}

absl::StatusOr<double> CudaOps::read_bandwidth(size_t bytes) {
  R1D_ASSIGN_OR_RETURN(const auto memory, device::DeviceMemory::allocate(bytes, "bandwidth test"));
  R1D_ASSIGN_OR_RETURN(const auto sink,
                       device::DeviceMemory::allocate(sizeof(uint32_t), "bandwidth test"));
  std::array<double, 7> micros{};
  for (double& time : micros) {
    R1D_RETURN_IF_ERROR(begin_.record(stream_));
    R1D_CUDA_TRY(kernels::read_memory(memory.data(),
                                      static_cast<int64_t>(bytes),
                                      reinterpret_cast<uint32_t*>(sink.data()),
                                      {.stream = stream_.get()}));
    R1D_RETURN_IF_ERROR(end_.record(stream_));
    R1D_RETURN_IF_ERROR(stream_.synchronize());
    R1D_ASSIGN_OR_RETURN(time, end_.micros_since(begin_));
  }
  std::sort(micros.begin(), micros.end());
  return static_cast<double>(bytes) / micros[micros.size() / 2] * 1e6;
}

}  // namespace cuda

CudaProbe* cuda_probe(Ops& ops) {
  return dynamic_cast<CudaProbe*>(&ops);
}

}  // namespace r1d::ops
