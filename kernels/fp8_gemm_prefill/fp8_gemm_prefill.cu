// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/common/tensor_map.h"
#include "kernels/fp8_gemm_prefill/block_product.cuh"
#include "kernels/fp8_gemm_prefill/fp8_gemm_prefill.h"

namespace r1d::kernels {
namespace {

using prefill::BlockShape;
using prefill::Output;
using prefill::Parameters;
using prefill::Rows;

constexpr int32_t kSms = 132;  // of an H100 or H200; another count costs speed alone

//                            groups: rows cols K, row blocks, columns, stages, cluster
template <int kCluster>
using Block128x256 = BlockShape<1, 2, 1, 2, 128, 4, kCluster>;
template <int kCluster>
using Block128x192 = BlockShape<2, 1, 1, 1, 192, 5, kCluster>;
template <int kCluster>
using Block128x128 = BlockShape<2, 1, 1, 1, 128, 6, kCluster>;
using Block64x64 = BlockShape<1, 2, 1, 1, 32, 12, 1>;
using Block64x64HalfK = BlockShape<1, 1, 2, 1, 64, 11, 1>;
using Block64x32HalfK = BlockShape<1, 1, 2, 1, 32, 14, 1>;

constexpr Fp8PrefillTile kTiles[] = {
    {128, 256, 2, 1},
    {128, 256, 1, 1},
    {128, 192, 2, 1},
    {128, 192, 1, 1},
    {128, 128, 2, 1},
    {128, 128, 1, 1},
    {64, 64, 1, 1},
    {64, 64, 1, 2},
    {64, 32, 1, 2},
};

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class Shape, Output kOutput>
cudaError_t launch_shape(Parameters p, const QuantizedRows& x, const Launch& launch) {
  CUtensorMap map;
  const cudaError_t error = encode_2d({.data = x.data,
                                       .dtype = DType::kF8E4M3,
                                       .rows = p.rows,
                                       .cols = x.cols,
                                       .box_rows = Shape::kRows,
                                       .box_cols = 128},
                                      &map);
  if (error != cudaSuccess) return error;
  p.row_units = static_cast<int32_t>(ceil_div(p.rows, Shape::kRows * Shape::kCluster));
  p.col_tiles = static_cast<int32_t>(ceil_div(p.w_rows, Shape::kCols));
  const int64_t units = int64_t{p.row_units} * p.col_tiles;
  if (units >= 1 << 30) return cudaErrorInvalidValue;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(units, kSms / Shape::kCluster) * Shape::kCluster);
  const Grid grid{.blocks = dim3(blocks),
                  .threads = dim3(Shape::kThreads),
                  .shared_bytes = Shape::kSharedBytes,
                  .cluster = Shape::kCluster};
  return enqueue(prefill::block_product<Shape, Rows::kDense, kOutput>, grid, launch, map, p);
}

cudaError_t common_parameters(
    const QuantizedRows& x, int32_t tokens, int64_t rows, int64_t cols, Parameters* p) {
  constexpr int64_t kMost = 1 << 20;
  const bool served = tokens <= kMost && rows > 0 && rows <= kMost && rows % 64 == 0 && cols > 0 &&
                      cols % 128 == 0 && cols <= kMost && x.cols == cols &&
                      x.scale_stride >= tokens;
  if (!served) return cudaErrorInvalidValue;
  p->x_scale = x.scale;
  p->x_scale_stride = x.scale_stride;
  p->rows = tokens;
  p->w_rows = static_cast<int32_t>(rows);
  p->k_blocks = static_cast<int32_t>(cols / 128);
  return cudaSuccess;
}

cudaError_t gate_up_parameters(const TiledGateUp& weight,
                               const QuantizedRows& x,
                               int32_t tokens,
                               Parameters* p) {
  p->w_tiles = weight.tiles;
  p->w_scale = weight.gate_scale;
  p->up_scale = weight.up_scale;
  return common_parameters(x, tokens, 2 * weight.intermediate, weight.cols, p);
}

}  // namespace

std::span<const Fp8PrefillTile> fp8_gemm_prefill_tiles() {
  return kTiles;
}

Fp8PrefillTile fp8_gemm_prefill_tile(int32_t tokens, int64_t rows, int64_t cols, bool fixed_order) {
  // Waves of blocks times the time of one, in cycles of a 128-column step: the tensor cores' share
  // and what a step costs anyway (a wait, the promotion), then the store.
  Fp8PrefillTile best = kTiles[0];
  double least = 1e30;
  for (const Fp8PrefillTile& tile : kTiles) {
    if (fixed_order && tile.k_groups > 1) continue;
    const int64_t units =
        ceil_div(tokens, tile.block_rows * tile.cluster) * ceil_div(rows, tile.block_cols);
    const int64_t waves = ceil_div(units, kSms / tile.cluster);
    const double area = tile.block_rows * tile.block_cols;
    const double step =
        std::max(area / 24, 250.0 / tile.k_groups) + (tile.cluster == 1 ? area / 400 : 0);
    const double cost =
        static_cast<double>(waves) * (step * (static_cast<double>(cols) / 128) + area / 16 + 500);
    if (cost < least) {
      least = cost;
      best = tile;
    }
  }
  return best;
}

cudaError_t fp8_gemm_prefill(const TiledMatrix& weight,
                             const QuantizedRows& x,
                             int32_t tokens,
                             __nv_bfloat16* out,
                             int64_t out_stride,
                             const Fp8PrefillTile& tile,
                             const Launch& launch) {
  if (tokens <= 0) return cudaSuccess;
  Parameters p;
  const cudaError_t error = common_parameters(x, tokens, weight.rows, weight.cols, &p);
  if (error != cudaSuccess) return error;
  if (out_stride < weight.rows || out_stride % 8 != 0) return cudaErrorInvalidValue;
  p.w_tiles = weight.tiles;
  p.w_scale = weight.scale;
  p.out = out;
  p.out_stride = out_stride;
  const auto is = [&](int32_t rows, int32_t cols, int32_t cluster, int32_t k_groups) {
    return tile.block_rows == rows && tile.block_cols == cols && tile.cluster == cluster &&
           tile.k_groups == k_groups;
  };
  if (is(128, 256, 2, 1)) return launch_shape<Block128x256<2>, Output::kPlain>(p, x, launch);
  if (is(128, 256, 1, 1)) return launch_shape<Block128x256<1>, Output::kPlain>(p, x, launch);
  if (is(128, 192, 2, 1)) return launch_shape<Block128x192<2>, Output::kPlain>(p, x, launch);
  if (is(128, 192, 1, 1)) return launch_shape<Block128x192<1>, Output::kPlain>(p, x, launch);
  if (is(128, 128, 2, 1)) return launch_shape<Block128x128<2>, Output::kPlain>(p, x, launch);
  if (is(128, 128, 1, 1)) return launch_shape<Block128x128<1>, Output::kPlain>(p, x, launch);
  if (is(64, 64, 1, 1)) return launch_shape<Block64x64, Output::kPlain>(p, x, launch);
  if (is(64, 64, 1, 2)) return launch_shape<Block64x64HalfK, Output::kPlain>(p, x, launch);
  if (is(64, 32, 1, 2)) return launch_shape<Block64x32HalfK, Output::kPlain>(p, x, launch);
  return cudaErrorInvalidValue;
}

cudaError_t fp8_gemm_prefill(const TiledMatrix& weight,
                             const QuantizedRows& x,
                             int32_t tokens,
                             __nv_bfloat16* out,
                             int64_t out_stride,
                             bool fixed_order,
                             const Launch& launch) {
  const Fp8PrefillTile tile = fp8_gemm_prefill_tile(tokens, weight.rows, weight.cols, fixed_order);
  return fp8_gemm_prefill(weight, x, tokens, out, out_stride, tile, launch);
}

cudaError_t fp8_gate_up_prefill(const TiledGateUp& weight,
                                const QuantizedRows& x,
                                int32_t tokens,
                                const QuantizedRows& out,
                                const Launch& launch) {
  if (tokens <= 0) return cudaSuccess;
  Parameters p;
  const cudaError_t error = gate_up_parameters(weight, x, tokens, &p);
  if (error != cudaSuccess) return error;
  if (weight.intermediate % 128 != 0 || out.cols != weight.intermediate ||
      out.scale_stride < tokens) {
    return cudaErrorInvalidValue;
  }
  p.out_data = out.data;
  p.out_scale = out.scale;
  p.out_scale_stride = out.scale_stride;
  if (tokens <= 128) return launch_shape<Block128x256<1>, Output::kSwiGluQuantized>(p, x, launch);
  return launch_shape<Block128x256<2>, Output::kSwiGluQuantized>(p, x, launch);
}

cudaError_t fp8_gate_up_prefill_bf16(const TiledGateUp& weight,
                                     const QuantizedRows& x,
                                     int32_t tokens,
                                     __nv_bfloat16* out,
                                     int64_t out_stride,
                                     const Launch& launch) {
  if (tokens <= 0) return cudaSuccess;
  Parameters p;
  const cudaError_t error = gate_up_parameters(weight, x, tokens, &p);
  if (error != cudaSuccess) return error;
  if (out_stride < weight.intermediate || out_stride % 8 != 0) return cudaErrorInvalidValue;
  p.out = out;
  p.out_stride = out_stride;
  return launch_shape<Block128x256<1>, Output::kSwiGluBf16>(p, x, launch);
}

}  // namespace r1d::kernels
