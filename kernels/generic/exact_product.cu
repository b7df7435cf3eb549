// SPDX-License-Identifier: Apache-2.0
// Problem   out[t, n] = sum over k of x[t, k] W(n, k) with f32 multiply-adds, per head; W by rows
//           or transposed.
// Layout    W bf16, f32 or e4m3 with scales, widened exactly; x bf16 or f32; out bf16 or f32. Any
//           sizes.
// Bound     2 T N K flop on the f32 units. R1's absorb, one rank of eight, 2048 tokens: 4.3 GFLOP.
// Launch    A CTA of 256 threads per 16 tokens x 16 outputs; K in stages of 128 through shared
//           memory. 16 groups of 16 threads split each stage's K; a thread holds 4x4 sums, so 8
//           shared-memory loads feed 64 multiply-adds.
// Numerics  f32; a group's partial sums run over its K in order, then the 16 are added in order.
//           Independent of T.
#include "kernels/generic/exact_product.cuh"
#include "kernels/generic/loads.cuh"
#include "kernels/generic/tile16.cuh"

namespace r1d::kernels::generic {
namespace {

constexpr int kTile = Tile16::kTile;
constexpr int kThreads = Tile16::kThreads;
constexpr int kDepth = 128;
constexpr int kStride = kDepth + 4;  // 4 banks further every row

struct Shared {
  float x[kTile * kStride];
  float w[kTile * kStride];
  float partial[Tile16::kPartials];
};

__device__ void store8(float* to, const float (&values)[8]) {
  reinterpret_cast<float4*>(to)[0] = {values[0], values[1], values[2], values[3]};
  reinterpret_cast<float4*>(to)[1] = {values[4], values[5], values[6], values[7]};
}

__device__ void store_out(const ExactProduct& p, int64_t at, float value) {
  if (p.out_f32) {
    static_cast<float*>(p.out)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16_rn(value);
  }
}

// Thread i of the tile's 256 takes token i / 16 and every 16th pair.
__device__ void rotate(const ExactProduct& p, int64_t first_token, int64_t head) {
  const int64_t token = first_token + threadIdx.x / 16;
  if (token >= p.num_tokens) return;
  const auto* x =
      static_cast<const __nv_bfloat16*>(p.x) + token * p.x_stride + head * p.head_x + p.depth;
  const int64_t out = token * p.out_stride + head * p.head_out + p.rows;
  const float* cosines = p.cos_sin + token * p.rope;
  const int32_t pairs = p.rope / 2;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % 16; i < pairs; i += 16) {
    const int32_t a = p.interleave ? 2 * i : i;
    const int32_t b = p.interleave ? 2 * i + 1 : i + pairs;
    const float first = __bfloat162float(x[a]);
    const float second = __bfloat162float(x[b]);
    const float cosine = cosines[i];
    const float sine = cosines[pairs + i];
    store_out(p, out + a, first * cosine - second * sine);
    store_out(p, out + b, second * cosine + first * sine);
  }
}

template <typename X, bool kTransposed>
__global__ void __launch_bounds__(kThreads) exact_product(const ExactProduct p) {
  __shared__ Shared shared;
  begin_dependent_kernel();
  const int64_t head = blockIdx.z;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTile;
  const auto first_row = static_cast<int32_t>(blockIdx.x) * kTile;
  if (first_row >= p.rows) return rotate(p, first_token, head);

  const auto weight_row = static_cast<int32_t>(p.weight_row + head * p.head_weight_rows);
  const auto depth = static_cast<int32_t>(p.depth);
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / 16;
  const int col = thread % 16 * 8;
  const int64_t token = first_token + row;
  const ActivationRow<X> x(token < p.num_tokens
                               ? static_cast<const X*>(p.x) + head * p.head_x + token * p.x_stride
                               : nullptr,
                           depth);
  // Transposed: eight outputs n of one k; lanes take neighbouring k, so that their stores meet
  // different banks.
  const int transposed_k = thread % kDepth;
  const int transposed_n = thread / kDepth * 8;
  float x8[8];
  float w8[8];
  const auto load = [&](int32_t first) {
    x.load8_f32(first + col, x8);
    if constexpr (kTransposed) {
      const bool inside = first + transposed_k < depth;
      load8_weights_f32(p.weights,
                        inside ? weight_row + first + transposed_k : INT32_MAX,  // no such row
                        first_row + transposed_n,
                        w8);
    } else {
      load8_weights_f32(p.weights,
                        first_row + row < p.rows ? weight_row + first_row + row : INT32_MAX,
                        first + col,
                        w8);
    }
  };
  Tile16 tile;
  if (depth > 0) load(0);
  for (int32_t first = 0; first < depth; first += kDepth) {
    // ---- load: 8 elements of x and of W per thread, the next stage's while this one is multiplied
    __syncthreads();  // the stage before is used up
    store8(shared.x + row * kStride + col, x8);
    if constexpr (kTransposed) {
#pragma unroll
      for (int i = 0; i < 8; ++i) shared.w[(transposed_n + i) * kStride + transposed_k] = w8[i];
    } else {
      store8(shared.w + row * kStride + col, w8);
    }
    __syncthreads();
    if (first + kDepth < depth) load(first + kDepth);

    // ---- compute
    tile.multiply(shared.x, shared.w, kStride, kDepth);
  }

  // ---- reduce and store
  const float sum = tile.reduce(shared.partial);
  const int32_t n = first_row + thread % kTile;
  if (token < p.num_tokens && n < p.rows) {
    store_out(p, token * p.out_stride + head * p.head_out + n, sum);
  }
}

}  // namespace

cudaError_t enqueue_exact_product(const ExactProduct& product, const Launch& launch) {
  const int64_t token_tiles = (product.num_tokens + kTile - 1) / kTile;
  const int64_t row_tiles = (product.rows + kTile - 1) / kTile + (product.rope > 0 ? 1 : 0);
  if (token_tiles > 65535 || product.heads > 65535) return cudaErrorInvalidValue;
  if (token_tiles == 0 || row_tiles == 0 || product.heads == 0) return cudaSuccess;
  const Grid grid{dim3(static_cast<unsigned>(row_tiles),
                       static_cast<unsigned>(token_tiles),
                       static_cast<unsigned>(product.heads)),
                  dim3(kThreads)};
  if (product.x_f32) {
    if (product.transposed) return cudaErrorInvalidValue;
    return enqueue(exact_product<float, false>, grid, launch, product);
  }
  if (product.transposed) return enqueue(exact_product<__nv_bfloat16, true>, grid, launch, product);
  return enqueue(exact_product<__nv_bfloat16, false>, grid, launch, product);
}

}  // namespace r1d::kernels::generic
