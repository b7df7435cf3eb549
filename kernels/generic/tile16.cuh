// SPDX-License-Identifier: Apache-2.0
// 16 x 16 dot products over operands in shared memory, by 256 threads in f32.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

namespace r1d::kernels::generic {

// 16 groups of 16 threads split the depth; a thread holds rows y + 4 i of `a` against rows x + 4 j
// of `b`.
struct Tile16 {
  static constexpr int kTile = 16;
  static constexpr int kThreads = 256;
  static constexpr int kPartials = 16 * (kThreads + 8);  // floats

  float sum[4][4] = {};

  // Adds a[i, :] . b[j, :] over `depth` (a multiple of 4). Rows are `stride` floats apart, stride =
  // 4 (mod 32), 16-byte aligned: the rows and the two groups of a warp then read different banks.
  __device__ __forceinline__ void multiply(const float* a, const float* b, int stride, int depth) {
    const int thread = static_cast<int>(threadIdx.x);
    const int group = thread / 16;
    const int y = thread % 16 / 4;
    const int x = thread % 4;
    // The groups of one warp (2 w, 2 w + 1) stand 16 floats apart.
    const int start = 4 * (group / 2 % 4 + 4 * (group % 2) + 8 * (group / 8));
    for (int k = start; k < depth; k += 64) {
      float4 as[4];
      float4 bs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        as[i] = *reinterpret_cast<const float4*>(a + (y + 4 * i) * stride + k);
        bs[i] = *reinterpret_cast<const float4*>(b + (x + 4 * i) * stride + k);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[i][j] = fmaf(as[i].x, bs[j].x, sum[i][j]);
          sum[i][j] = fmaf(as[i].y, bs[j].y, sum[i][j]);
          sum[i][j] = fmaf(as[i].z, bs[j].z, sum[i][j]);
          sum[i][j] = fmaf(as[i].w, bs[j].w, sum[i][j]);
        }
      }
    }
  }

  // Thread 16 i + j gets the dot product of a's row i and b's row j. `partial` [kPartials] is free
  // again after the caller's next barrier.
  __device__ __forceinline__ float reduce(float* partial) const {
    // [4 i + j][thread]; the padding sends a warp's reads to different banks.
    constexpr int kRow = kThreads + 8;
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) partial[(4 * i + j) * kRow + thread] = sum[i][j];
    }
    __syncthreads();
    const int row = thread / kTile;
    const int col = thread % kTile;
    const float* own = partial + (row / 4 * 4 + col / 4) * kRow + row % 4 * 4 + col % 4;
    float total = 0;
#pragma unroll
    for (int g = 0; g < 16; ++g) total += own[g * 16];
    return total;
  }
};

}  // namespace r1d::kernels::generic
