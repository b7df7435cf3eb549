// SPDX-License-Identifier: Apache-2.0
// Which GPUs this host has. No CUDA types: host code reads this header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::device {

struct GpuInfo {
  int32_t index = 0;
  std::string name;  // "NVIDIA H200"
  int32_t compute_major = 0;
  int32_t compute_minor = 0;
  int64_t memory_bytes = 0;
  int32_t num_multiprocessors = 0;
  std::string pci_address;  // "0000:18:00.0", as sysfs spells it
};

// True when this binary was built with a CUDA toolkit (R1D_CUDA).
[[nodiscard]] bool built_with_cuda();

// The GPUs the driver shows; none without a driver or in a build without CUDA. kUnavailable when
// a driver is there but answers with an error.
[[nodiscard]] absl::StatusOr<std::vector<GpuInfo>> list_gpus();

// "built without CUDA", "CUDA 13.0, no GPU" or "CUDA 13.0; GPU 0: NVIDIA H200, sm_90, 139.7 GiB".
[[nodiscard]] std::string describe_gpus();

}  // namespace r1d::device
