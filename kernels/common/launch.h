// SPDX-License-Identifier: Apache-2.0
// What every launcher takes and how it enqueues. A launcher never synchronises, allocates or
// touches a handle; it returns the launch's own error (cudaErrorInvalidValue for shapes it does not
// serve) and enqueues nothing for an empty problem.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

namespace r1d::kernels {

// Where and how a launcher enqueues.
//
// Programmatic dependent launch (`dependent`, sm_90): the kernel may start while the one before it
// in the stream still runs. Two rules make that safe for a chain of ours. Every block of every
// kernel calls grid_dependency_wait() before it reads or WRITES memory that another kernel of the
// step writes or reads, and it does so even when it has no work, since the kernel behind it relies
// on this one's wait for all that came earlier. Before it, weights may be read, and what is sure to
// be complete when the kernel ahead lets this one start: what that one had waited for, or has
// written and fenced (__threadfence) before any thread of the block calls
// grid_launch_dependents(), and is read past L1. The reader's head or header says what and why
// (moe_decode.h, mla_decode.cu, many.cu).
struct Launch {
  cudaStream_t stream = nullptr;
  bool dependent = false;
};

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;  // dynamic
  int cluster = 1;          // CTAs along x
};

// Raises the kernel's dynamic shared-memory limit and enqueues it.
template <typename... Parameters, typename... Arguments>
cudaError_t enqueue(void (*kernel)(Parameters...),
                    const Grid& grid,
                    const Launch& launch,
                    Arguments&&... arguments) {
  if (grid.shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(grid.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (launch.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (grid.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(grid.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// Leaves as much shared memory as there is to the kernels beside this one: an SM that would have to
// shift its border between cache and shared memory cannot start the next kernel while one runs.
template <typename... Parameters>
cudaError_t leave_shared_memory(void (*kernel)(Parameters...)) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

}  // namespace r1d::kernels
