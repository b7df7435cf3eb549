// SPDX-License-Identifier: Apache-2.0
// Problem   The lists of slots per expert, silu(gate) * up, and the weighted sum of a token's
//           slots.
// Layout    experts and weights [T, k]; slot rows [T * k, cols] bf16, written only where the expert
//           is local.
// Bound     Bytes: 3 * rows * cols * 2 for swiglu, (k + 2) * T * cols * 2 for the sum.
// Launch    Lists: a CTA per expert reads all choices twice, 32 per warp at a time; ballots place
//           its own, so slots ascend. The others: a thread per 8 columns (or 1 where rows are not
//           whole 16 bytes).
// Numerics  f32 in slot order, one rounding.
#include <algorithm>

#include "kernels/generic/generic.h"
#include "kernels/generic/loads.cuh"

namespace r1d::kernels::generic {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxListThreads = 1024;

__global__ void __launch_bounds__(kMaxListThreads) build_lists_kernel(const int32_t* experts,
                                                                      int32_t num_slots,
                                                                      int32_t first_expert,
                                                                      int32_t num_experts,
                                                                      ExpertLists lists) {
  __shared__ int32_t warp_own[kMaxListThreads / 32];
  __shared__ int32_t warp_before[kMaxListThreads / 32];
  begin_dependent_kernel();
  const auto expert = static_cast<int32_t>(blockIdx.x);
  const auto num_warps = static_cast<int32_t>(blockDim.x) / 32;
  const auto warp = static_cast<int32_t>(threadIdx.x) / 32;
  const auto lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t share = (num_slots + num_warps - 1) / num_warps;
  const int32_t begin = min(warp * share, num_slots);
  const int32_t end = min(begin + share, num_slots);
  const auto local_of = [&](int32_t slot) {
    return slot < end ? experts[slot] - first_expert : -1;
  };

  int32_t own = 0;
  int32_t before = 0;  // slots of the rank's earlier experts
#pragma unroll 4
  for (int32_t base = begin; base < end; base += 32) {
    const int32_t local = local_of(base + lane);
    own += __popc(__ballot_sync(0xFFFFFFFFU, local == expert));
    before += __popc(__ballot_sync(0xFFFFFFFFU, local >= 0 && local < expert));
  }
  if (lane == 0) {
    warp_own[warp] = own;
    warp_before[warp] = before;
  }
  __syncthreads();
  int32_t at = 0;
  int32_t list_begin = 0;
  int32_t list_end = 0;
  for (int32_t w = 0; w < num_warps; ++w) {
    if (w < warp) at += warp_own[w];
    list_begin += warp_before[w];
    list_end += warp_before[w] + warp_own[w];
  }
  at += list_begin;
  if (threadIdx.x == 0) {
    lists.offset[expert] = list_begin;
    if (expert == num_experts - 1) lists.offset[num_experts] = list_end;
  }
  if (own == 0) return;
#pragma unroll 4
  for (int32_t base = begin; base < end; base += 32) {
    const bool mine = local_of(base + lane) == expert;
    const uint32_t all = __ballot_sync(0xFFFFFFFFU, mine);
    if (mine) lists.slots[at + __popc(all & ((1U << lane) - 1))] = base + lane;
    at += __popc(all);
  }
}

__device__ __forceinline__ float silu(float x) {
  return x / (1.0F + expf(-x));
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const __nv_bfloat16* gate,
                                                          int64_t gate_stride,
                                                          const __nv_bfloat16* up,
                                                          int64_t up_stride,
                                                          __nv_bfloat16* out,
                                                          int64_t out_stride,
                                                          int64_t rows,
                                                          int64_t cols) {
  begin_dependent_kernel();
  constexpr int kColumns = kVector ? 8 : 1;
  const int64_t per_row = cols / kColumns;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * per_row;
       i += step) {
    const int64_t row = i / per_row;
    const int64_t column = i % per_row * kColumns;
    const __nv_bfloat16* g = gate + row * gate_stride + column;
    const __nv_bfloat16* u = up + row * up_stride + column;
    __nv_bfloat16* o = out + row * out_stride + column;
    if constexpr (kVector) {
      const uint4 gs = *reinterpret_cast<const uint4*>(g);
      const uint4 us = *reinterpret_cast<const uint4*>(u);
      const auto pair = [](uint32_t two_g, uint32_t two_u) {
        const float2 a = unpack_bf16(two_g);
        const float2 b = unpack_bf16(two_u);
        return pack_bf16(silu(a.x) * b.x, silu(a.y) * b.y);
      };
      *reinterpret_cast<uint4*>(o) = {
          pair(gs.x, us.x), pair(gs.y, us.y), pair(gs.z, us.z), pair(gs.w, us.w)};
    } else {
      *o = __float2bfloat16_rn(silu(__bfloat162float(*g)) * __bfloat162float(*u));
    }
  }
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads) combine_slots_kernel(const CombineSlots p) {
  begin_dependent_kernel();
  constexpr int kColumns = kVector ? 8 : 1;
  const int64_t token = blockIdx.y;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kColumns;
  if (column >= p.cols) return;
  float sum[kColumns] = {};
  const auto add = [&](const __nv_bfloat16* row, float weight) {
    if constexpr (kVector) {
      const uint4 bits = *reinterpret_cast<const uint4*>(row + column);
      const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = unpack_bf16(pairs[i]);
        sum[2 * i] = fmaf(weight, two.x, sum[2 * i]);
        sum[2 * i + 1] = fmaf(weight, two.y, sum[2 * i + 1]);
      }
    } else {
      sum[0] = fmaf(weight, __bfloat162float(row[column]), sum[0]);
    }
  };
  for (int32_t j = 0; j < p.k; ++j) {
    const int64_t slot = token * p.k + j;
    const float weight = p.weights[slot];
    if (weight == 0) continue;
    if (p.experts != nullptr) {
      const int32_t local = p.experts[slot] - p.first_expert;
      if (local < 0 || local >= p.num_experts) continue;
    }
    add(p.rows + slot * p.cols, weight);
  }
  if (p.shared != nullptr) add(p.shared + token * p.cols, 1.0F);
  __nv_bfloat16* out = p.out + token * p.out_stride + column;
  if constexpr (kVector) {
    *reinterpret_cast<uint4*>(out) = {pack_bf16(sum[0], sum[1]),
                                      pack_bf16(sum[2], sum[3]),
                                      pack_bf16(sum[4], sum[5]),
                                      pack_bf16(sum[6], sum[7])};
  } else {
    *out = __float2bfloat16_rn(sum[0]);
  }
}

bool rows_of_16_bytes(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

}  // namespace

cudaError_t build_lists(const int32_t* experts,
                        int64_t num_slots,
                        int32_t first_expert,
                        int32_t num_experts,
                        const ExpertLists& lists,
                        const Launch& launch) {
  if (num_slots < 0 || num_slots > INT32_MAX / 2 || num_experts < 0) return cudaErrorInvalidValue;
  if (num_slots == 0 || num_experts == 0) return cudaSuccess;
  const int threads = num_slots > 4096 ? kMaxListThreads : kThreads;
  return enqueue(build_lists_kernel,
                 {dim3(static_cast<unsigned>(num_experts)), dim3(static_cast<unsigned>(threads))},
                 launch,
                 experts,
                 num_slots,
                 first_expert,
                 num_experts,
                 lists);
}

cudaError_t swiglu(const __nv_bfloat16* gate,
                   int64_t gate_stride,
                   const __nv_bfloat16* up,
                   int64_t up_stride,
                   __nv_bfloat16* out,
                   int64_t out_stride,
                   int64_t rows,
                   int64_t cols,
                   const Launch& launch) {
  if (rows < 0 || cols < 0) return cudaErrorInvalidValue;
  if (rows == 0 || cols == 0) return cudaSuccess;
  const bool vector = cols % 8 == 0 && rows_of_16_bytes(gate, gate_stride) &&
                      rows_of_16_bytes(up, up_stride) && rows_of_16_bytes(out, out_stride);
  const int64_t items = rows * cols / (vector ? 8 : 1);
  const int64_t blocks = std::min<int64_t>((items + kThreads - 1) / kThreads, 1 << 20);
  const Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  return enqueue(vector ? swiglu_kernel<true> : swiglu_kernel<false>,
                 grid,
                 launch,
                 gate,
                 gate_stride,
                 up,
                 up_stride,
                 out,
                 out_stride,
                 rows,
                 cols);
}

cudaError_t combine_slots(const CombineSlots& problem, const Launch& launch) {
  if (problem.num_tokens < 0 || problem.num_tokens > 65535 || problem.cols < 0 || problem.k < 0) {
    return cudaErrorInvalidValue;
  }
  if (problem.num_tokens == 0 || problem.cols == 0) return cudaSuccess;
  const bool vector = rows_of_16_bytes(problem.rows, problem.cols) &&
                      rows_of_16_bytes(problem.shared, problem.cols) &&
                      rows_of_16_bytes(problem.out, problem.out_stride);
  const int64_t items = problem.cols / (vector ? 8 : 1);
  const Grid grid{dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads),
                       static_cast<unsigned>(problem.num_tokens)),
                  dim3(kThreads)};
  return enqueue(
      vector ? combine_slots_kernel<true> : combine_slots_kernel<false>, grid, launch, problem);
}

}  // namespace r1d::kernels::generic
