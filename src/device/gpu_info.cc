// SPDX-License-Identifier: Apache-2.0
#include "r1d/device/gpu_info.h"

#ifdef R1D_HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

#include "r1d/base/status.h"

namespace r1d::device {
namespace {

#ifdef R1D_HAVE_CUDA

absl::Status cuda_error(const char* call, cudaError_t error) {
  return unavailable("{}: {} ({})", call, cudaGetErrorString(error), cudaGetErrorName(error));
}

absl::StatusOr<GpuInfo> read_gpu(int32_t index) {
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    return cuda_error("cudaGetDeviceProperties", error);
  }
  return GpuInfo{.index = index,
                 .name = properties.name,
                 .compute_major = properties.major,
                 .compute_minor = properties.minor,
                 .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                 .num_multiprocessors = properties.multiProcessorCount,
                 .pci_address = fmt::format("{:04x}:{:02x}:{:02x}.0",
                                            properties.pciDomainID,
                                            properties.pciBusID,
                                            properties.pciDeviceID)};
}

std::string toolkit() {
  return fmt::format("CUDA {}.{}", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
}

#endif

std::string describe(const GpuInfo& gpu) {
  return fmt::format("GPU {}: {}, sm_{}{}, {:.1f} GiB",
                     gpu.index,
                     gpu.name,
                     gpu.compute_major,
                     gpu.compute_minor,
                     static_cast<double>(gpu.memory_bytes) / (1 << 30));
}

}  // namespace

#ifdef R1D_HAVE_CUDA

bool built_with_cuda() {
  return true;
}

absl::StatusOr<std::vector<GpuInfo>> list_gpus() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver)
    return std::vector<GpuInfo>{};
  if (error != cudaSuccess) return cuda_error("cudaGetDeviceCount", error);
  std::vector<GpuInfo> gpus;
  for (int32_t index = 0; index < count; ++index) {
    R1D_ASSIGN_OR_RETURN(GpuInfo gpu, read_gpu(index));
    gpus.push_back(std::move(gpu));
  }
  return gpus;
}

#else

bool built_with_cuda() {
  return false;
}

absl::StatusOr<std::vector<GpuInfo>> list_gpus() {
  return std::vector<GpuInfo>{};
}

namespace {
std::string toolkit() {
  return "built without CUDA";
}
}  // namespace

#endif

std::string describe_gpus() {
  std::string text = toolkit();
  const auto gpus = list_gpus();
  if (!gpus.ok()) return text + "; " + message_of(gpus.status());
  if (gpus->empty() && built_with_cuda()) text += ", no GPU";
  for (const GpuInfo& gpu : *gpus) text += "; " + describe(gpu);
  return text;
}

}  // namespace r1d::device
