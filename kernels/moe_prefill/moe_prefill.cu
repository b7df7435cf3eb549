// SPDX-License-Identifier: Apache-2.0
// Problem   gate_up: h(row) = quantize(silu(gate_e x(token)) up_e x(token)); down: y(row) = down_e
//           h(row), for every row of the lists, e its expert; combine: the weighted sum of a
//           token's rows.
// Layout    moe_prefill.h. Rows of an expert are contiguous, so h and y need no padding.
// Bound     R1, one rank of 8 (E = 256, I = 256, D = 7168, k = 8), T = 4096: gate_up reads 940 MB
// of
//           weights (219 us at 4.3 TB/s) for 240 GFLOP; down reads 470 MB and writes 470 MB of y
//           (220 us); combine reads y again (137 us).
// Launch    the products: fp8_gemm_prefill/block_product.cuh; combine: one thread per token and 8
//           columns.
// Numerics  f32 sums in a fixed order; y is rounded to bf16 once before its weight applies.
// Source    DeepSeek-V3 report, section 2.1.2.
#include <algorithm>

#include "kernels/fp8_gemm_prefill/block_product.cuh"
#include "kernels/moe_prefill/moe_prefill.h"

namespace r1d::kernels {
namespace {

using prefill::BlockShape;
using prefill::Output;
using prefill::Parameters;
using prefill::Rows;

constexpr int32_t kSms = 132;  // of an H100 or H200; another count costs speed alone
constexpr int32_t kMaxSlots = 16;
constexpr int32_t kCombineThreads = 128;

//                         groups: rows cols K, columns, stages, cluster, parts, engine stores, row
//                         tiles
using Block64x256 = BlockShape<1, 2, 1, 128, 5, 1>;
using Pair128x256 = BlockShape<1, 2, 1, 128, 4, 2, 1, false, 2>;  // neighbours share W
using DownBlock = BlockShape<1, 2, 1, 128, 4, 1, 1, true>;
static_assert(Block64x256::kRows == kMoeTileRows && DownBlock::kRows == kMoeTileRows);
static_assert(Pair128x256::kRows == kMoeWideRows);
// From so many tokens on most wide tiles have more than 64 rows.
constexpr int32_t kFewestWideTokens = 4096;
constexpr int32_t kBlockCols = 256;  // moe_down_combine's unit

bool served_rows(int64_t tokens, int32_t k, int64_t rows, int64_t cols) {
  constexpr int64_t kMost = 1 << 20;
  return k > 0 && tokens * k < 1 << 24 && rows > 0 && rows <= kMost && cols > 0 && cols <= kMost &&
         rows % 64 == 0 && cols % 128 == 0;
}

template <class Shape = Block64x256>
Grid product_grid(int64_t pairs, int64_t col_tiles) {
  const int64_t most = std::min<int64_t>(pairs * col_tiles, kSms);
  return {.blocks = dim3(static_cast<unsigned>(most)),
          .threads = dim3(Shape::kThreads),
          .shared_bytes = Shape::kSharedBytes};
}

// Columns first .. first + y_cols of every token.
__global__ void __launch_bounds__(kCombineThreads) combine(const __nv_bfloat16* y,
                                                           int64_t y_cols,
                                                           const int32_t* pair_row,
                                                           const float* weights,
                                                           const __nv_bfloat16* shared,
                                                           int32_t k,
                                                           int64_t dim,
                                                           int64_t first,
                                                           __nv_bfloat16* out) {
#ifdef R1D_SM90
  grid_dependency_wait();
  grid_launch_dependents();
  const int64_t token = blockIdx.x;
  const int64_t col = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * 8;
  if (col >= y_cols) return;
  uint4 rows[8];
  float sum[8] = {};
  for (int32_t begin = 0; begin < k; begin += 8) {
    float weight[8];
#pragma unroll
    for (int s = 0; s < 8; ++s) {
      const int64_t pair = token * k + begin + s;
      const int32_t row = begin + s < k ? pair_row[pair] : -1;
      weight[s] = row >= 0 ? weights[pair] : 0;
      rows[s] = row >= 0 ? __ldcs(reinterpret_cast<const uint4*>(y + row * y_cols + col)) : uint4{};
    }
#pragma unroll
    for (int s = 0; s < 8; ++s) {
      const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&rows[s]);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 value = __bfloat1622float2(pairs[c]);
        sum[2 * c] = fmaf(weight[s], value.x, sum[2 * c]);
        sum[2 * c + 1] = fmaf(weight[s], value.y, sum[2 * c + 1]);
      }
    }
  }
  const int64_t at = token * dim + first + col;
  uint4 bits{};
  if (shared != nullptr) bits = *reinterpret_cast<const uint4*>(shared + at);
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(&bits);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const float2 value = __bfloat1622float2(pairs[c]);
    pairs[c] = __floats2bfloat162_rn(value.x + sum[2 * c], value.y + sum[2 * c + 1]);
  }
  *reinterpret_cast<uint4*>(out + at) = bits;
#endif
}

Parameters list_parameters(const PairLists& lists, const QuantizedRows& x, int64_t w_rows) {
  Parameters p;
  p.x_scale = x.scale;
  p.x_scale_stride = x.scale_stride;
  p.w_rows = static_cast<int32_t>(w_rows);
  p.k_blocks = static_cast<int32_t>(x.cols / 128);
  p.tiles = reinterpret_cast<const int4*>(lists.tiles);
  p.totals = lists.totals;
  return p;
}

}  // namespace

cudaError_t moe_gate_up(const ExpertGateUp& weight,
                        const QuantizedRows& x,
                        int32_t tokens,
                        int32_t k,
                        const PairLists& lists,
                        const QuantizedRows& h,
                        const Launch& launch) {
  if (tokens <= 0) return cudaSuccess;
  const int64_t intermediate = weight.first.intermediate;
  const int64_t pairs = int64_t{tokens} * k;
  const bool served = served_rows(tokens, k, 2 * intermediate, x.cols) && intermediate % 128 == 0 &&
                      x.cols == weight.first.cols && h.cols == intermediate &&
                      h.scale_stride >= pairs;
  if (!served) return cudaErrorInvalidValue;
  Parameters p = list_parameters(lists, x, 2 * intermediate);
  p.x = x.data;
  p.x_cols = x.cols;
  p.row_pair = lists.row_pair;
  p.slots = k;
  p.w_tiles = weight.first.tiles;
  p.w_scale = weight.first.gate_scale;
  p.up_scale = weight.first.up_scale;
  p.expert_tiles_stride = weight.tiles_stride;
  p.expert_scale_stride = weight.scale_stride;
  p.out_data = h.data;
  p.out_scale = h.scale;
  p.out_scale_stride = h.scale_stride;
  p.col_tiles = p.w_rows / Block64x256::kCols;
  if (tokens >= kFewestWideTokens) {
    p.tiles = reinterpret_cast<const int4*>(lists.wide_tiles);
    p.totals = lists.totals + 2;
    Grid grid = product_grid<Pair128x256>(pairs, p.col_tiles);
    grid.cluster = 2;
    return enqueue(prefill::block_product<Pair128x256, Rows::kGathered, Output::kSwiGluQuantized>,
                   grid,
                   launch,
                   prefill::XMaps{},
                   p);
  }
  return enqueue(prefill::block_product<Block64x256, Rows::kGathered, Output::kSwiGluQuantized>,
                 product_grid(pairs, p.col_tiles),
                 launch,
                 prefill::XMaps{},
                 p);
}

int64_t moe_down_block(int64_t tokens, int32_t k, int64_t dim) {
  constexpr int64_t kScratchBytes = 480 << 20;
  const int64_t most = (dim + kBlockCols - 1) / kBlockCols;
  const int64_t fit = kScratchBytes / (std::max<int64_t>(tokens * k, 1) * 2 * kBlockCols);
  const int64_t blocks =
      (most + std::clamp<int64_t>(fit, 1, most) - 1) / std::clamp<int64_t>(fit, 1, most);
  return (most + blocks - 1) / blocks * kBlockCols;  // as even as can be
}

cudaError_t moe_down_combine(const ExpertDown& weight,
                             const QuantizedRows& h,
                             const PairLists& lists,
                             const float* weights,
                             const __nv_bfloat16* shared,
                             int32_t tokens,
                             int32_t k,
                             __nv_bfloat16* scratch,
                             int64_t block_cols,
                             __nv_bfloat16* out,
                             const Launch& launch) {
  if (tokens <= 0) return cudaSuccess;
  const int64_t pairs = int64_t{tokens} * k;
  const int64_t dim = weight.first.rows;
  const bool served = served_rows(tokens, k, dim, h.cols) && k <= kMaxSlots &&
                      h.cols == weight.first.cols && h.scale_stride >= pairs && block_cols > 0 &&
                      block_cols % kBlockCols == 0;
  if (!served) return cudaErrorInvalidValue;
  prefill::XMaps maps;
  cudaError_t error = prefill::encode_rows(h, pairs, kMoeTileRows, &maps);
  for (int64_t first = 0; first < dim && error == cudaSuccess; first += block_cols) {
    const int64_t cols = std::min(block_cols, dim - first);
    Parameters p = list_parameters(lists, h, cols);
    p.w_tiles = weight.first.tiles + first * h.cols;
    p.w_scale = weight.first.scale + first / 128 * p.k_blocks;
    p.expert_tiles_stride = weight.tiles_stride;
    p.expert_scale_stride = weight.scale_stride;
    p.out = scratch;
    p.out_stride = cols;
    p.col_tiles = static_cast<int32_t>((cols + DownBlock::kCols - 1) / DownBlock::kCols);
    error = prefill::encode_out(p, pairs, &maps);
    if (error != cudaSuccess) break;
    error = enqueue(prefill::block_product<DownBlock, Rows::kGrouped, Output::kPlain>,
                    product_grid<DownBlock>(pairs, p.col_tiles),
                    launch,
                    maps,
                    p);
    if (error != cudaSuccess) break;
    const auto chunks = static_cast<unsigned>((cols / 8 + kCombineThreads - 1) / kCombineThreads);
    const Grid grid{.blocks = dim3(static_cast<unsigned>(tokens), chunks),
                    .threads = dim3(kCombineThreads)};
    error = enqueue(
        combine, grid, launch, scratch, cols, lists.pair_row, weights, shared, k, dim, first, out);
  }
  return error;
}

}  // namespace r1d::kernels
