// SPDX-License-Identifier: Apache-2.0
// Problem   scale(t, g) = max |x(t, 128 g ..)| / 448 (1 where all are zero); code(t, k) = e4m3(x(t,
// k) / scale(t, k / 128)). Layout    x [rows, stride] bf16; codes [rows, cols] e4m3; scales [cols /
// 128, scale_stride] f32. Bound     3 bytes a value; arithmetic about 10 instructions for 8 values
// and lane. Launch    one warp quantizes two neighbouring groups, 8 warps a block. Numerics  f32;
// the quotient is the correctly rounded one, then nearest even. Source    DeepSeek-V3 report,
// section 3.3.2.
#include "kernels/common/ptx.cuh"
#include "kernels/quantize/quantize.cuh"
#include "kernels/quantize/quantize.h"

namespace r1d::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 128;
constexpr int kLanesPerGroup = 16;

__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(const __nv_bfloat16* x,
                                                                 int64_t stride,
                                                                 int64_t groups,
                                                                 int64_t groups_per_row,
                                                                 QuantizedRows out) {
#ifdef R1D_SM90
  grid_launch_dependents();
  grid_dependency_wait();
#endif
  const int64_t group =
      (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanesPerGroup;
  const int lane = static_cast<int>(threadIdx.x) % kLanesPerGroup;
  const bool real = group < groups;
  const int64_t row = group / groups_per_row;
  const int64_t block = group % groups_per_row;
  uint4 packed[1] = {make_uint4(0, 0, 0, 0)};
  if (real) {
    packed[0] = *reinterpret_cast<const uint4*>(x + row * stride + block * kGroup + lane * 8);
  }
  QuantizedOctet octet[1];
  quantize_octets(packed, octet);
  if (!real) return;
  *reinterpret_cast<uint2*>(out.data + row * out.cols + block * kGroup + lane * 8) = octet[0].codes;
  if (lane == 0) out.scale[block * out.scale_stride + row] = octet[0].scale;
}

}  // namespace

cudaError_t quantize_rows(const __nv_bfloat16* x,
                          int64_t stride,
                          int64_t rows,
                          const QuantizedRows& out,
                          const Launch& launch) {
  if (rows < 0 || out.cols % kGroup != 0 || stride % 8 != 0 || stride < out.cols ||
      out.scale_stride < rows) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0 || out.cols == 0) return cudaSuccess;
  const int64_t groups_per_row = out.cols / kGroup;
  const int64_t groups = rows * groups_per_row;
  constexpr int kGroupsPerBlock = kThreads / kLanesPerGroup;
  const auto blocks = static_cast<unsigned>((groups + kGroupsPerBlock - 1) / kGroupsPerBlock);
  return enqueue(
      quantize_rows_kernel, {blocks, kThreads}, launch, x, stride, groups, groups_per_row, out);
}

}  // namespace r1d::kernels
