// SPDX-License-Identifier: Apache-2.0
// Problem   every 16 bytes of an array are loaded once.
// Layout    a grid-stride loop, eight independent loads a thread before the first use.
// Bound     bytes; an H200 reaches 4.2 to 4.3 TB/s from 256 MB on (data sheet 4.8).
// Launch    16 blocks of 256 threads for each of up to 160 SMs; no shared memory.
#include "kernels/bandwidth/bandwidth.h"

namespace r1d::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 160 * 16;
constexpr int kUnroll = 8;

__global__ void __launch_bounds__(kThreads)
    read_all(const uint4* data, int64_t count, uint32_t* sink) {
  const int64_t stride = int64_t{kBlocks} * kThreads;
  uint32_t seen = 0;
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = __ldcs(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) seen ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  for (; i < count; i += stride) {
    const uint4 v = __ldcs(data + i);
    seen ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (seen == 0x9E3779B9U) *sink = seen;  // the loads must not be optimised away
}

}  // namespace

cudaError_t read_memory(const void* data, int64_t bytes, uint32_t* sink, const Launch& launch) {
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(data) % 16 != 0) return cudaErrorInvalidValue;
  if (bytes == 0) return cudaSuccess;
  return enqueue(read_all,
                 {.blocks = kBlocks, .threads = kThreads},
                 launch,
                 static_cast<const uint4*>(data),
                 bytes / 16,
                 sink);
}

}  // namespace r1d::kernels
