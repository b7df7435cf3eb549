// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/log.h"
#include "r1d/base/status.h"
#include "r1d/device/cuda.h"

namespace r1d::device {

absl::Status cuda_status(cudaError_t error, const char* call, const char* file, int line) {
  const std::string text = fmt::format(
      "{}: {} ({}) at {}:{}", call, cudaGetErrorString(error), cudaGetErrorName(error), file, line);
  if (error == cudaErrorMemoryAllocation) return resource_exhausted("{}", text);
  return unavailable("{}", text);
}

absl::Status use_device(int32_t index) {
  // A waiting thread sleeps: a rank must not burn the core that the scheduler needs.
  R1D_CUDA_TRY(cudaSetDevice(index));
  R1D_CUDA_TRY(cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync));
  return absl::OkStatus();
}

absl::StatusOr<DeviceMemoryInfo> memory_info() {
  size_t free = 0;
  size_t total = 0;
  R1D_CUDA_TRY(cudaMemGetInfo(&free, &total));
  return DeviceMemoryInfo{static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

absl::StatusOr<DeviceMemory> DeviceMemory::allocate(size_t bytes, const std::string& what) {
  DeviceMemory memory;
  memory.size_ = bytes;
  if (bytes == 0) return memory;
  void* data = nullptr;
  if (const cudaError_t error = cudaMalloc(&data, bytes); error != cudaSuccess) {
    cudaGetLastError();  // the failed allocation is no error of what comes next
    const auto info = memory_info();
    return resource_exhausted("{}: no {} bytes on the GPU ({} free): {}",
                              what,
                              bytes,
                              info.ok() ? info->free_bytes : 0,
                              cudaGetErrorString(error));
  }
  memory.data_.reset(static_cast<std::byte*>(data));
  // cudaMemset returns before it is done, and our streams do not wait for the legacy one it runs
  // on: without the wait it could clear what a stream has already written.
  R1D_CUDA_TRY(cudaMemset(data, 0, bytes));
  R1D_CUDA_TRY(cudaStreamSynchronize(nullptr));
  return memory;
}

void DeviceMemory::Free::operator()(std::byte* data) const {
  if (const cudaError_t error = cudaFree(data); error != cudaSuccess) {
    base::make_logger("device")->warn("cudaFree: {}", cudaGetErrorString(error));
  }
}

absl::StatusOr<PinnedMemory> PinnedMemory::allocate(size_t bytes, const std::string& what) {
  PinnedMemory memory;
  memory.size_ = bytes;
  if (bytes == 0) return memory;
  void* data = nullptr;
  if (const cudaError_t error = cudaMallocHost(&data, bytes); error != cudaSuccess) {
    cudaGetLastError();
    return resource_exhausted(
        "{}: no {} bytes of page-locked host memory: {}", what, bytes, cudaGetErrorString(error));
  }
  memory.data_.reset(static_cast<std::byte*>(data));
  return memory;
}

void PinnedMemory::Free::operator()(std::byte* data) const {
  if (const cudaError_t error = cudaFreeHost(data); error != cudaSuccess) {
    base::make_logger("device")->warn("cudaFreeHost: {}", cudaGetErrorString(error));
  }
}

}  // namespace r1d::device
