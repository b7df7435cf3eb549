// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/fp8_gemm_prefill/block_product.cuh"
#include "kernels/fp8_gemm_prefill/fp8_gemm_prefill.h"
#include "kernels/fp8_gemm_prefill/split_product.h"

namespace r1d::kernels {
namespace {

using prefill::BlockShape;
using prefill::Output;
using prefill::Parameters;
using prefill::Rows;

constexpr int32_t kSms = 132;  // of an H100 or H200; another count costs speed alone

//                          groups: rows cols K, columns, stages, cluster, parts, engine stores
// For some hundred tokens and a short K, and for many tokens.
using Block128x128 = BlockShape<2, 1, 1, 128, 5, 1, 1, true>;
using Block128x192 = BlockShape<2, 1, 1, 192, 4, 1, 1, true>;
using Block64x64 = BlockShape<1, 2, 1, 32, 12, 1>;
using Block64x64HalfK = BlockShape<1, 1, 2, 64, 11, 1>;
using Block64x32HalfK = BlockShape<1, 1, 2, 32, 14, 1>;

// Those whose blocks quantize groups of 128 in clusters.
using Block64x64Of256 = BlockShape<1, 2, 1, 32, 12, 1, 4>;
using Block128x128Of256 = BlockShape<2, 1, 1, 128, 6, 1, 2>;

// A tile with its measured times on an H200: of one 128-column step when all SMs work, and of a
// store.
struct TimedTile {
  Fp8PrefillTile tile;
  double step_us;
  double store_us;
};
constexpr TimedTile kTiles[] = {
    {{128, 192, 1}, 0.564, 1.1},
    {{128, 128, 1}, 0.41, 0.87},
    {{64, 64, 1}, 0.19, 0.8},
    {{64, 64, 2}, 0.17, 1.0},
    {{64, 32, 2}, 0.155, 0.8},
};

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Waves of blocks times the time of one.
double expected_us(const TimedTile& t, int64_t tokens, int64_t rows, int64_t cols, int64_t parts) {
  const int64_t units =
      ceil_div(tokens, t.tile.block_rows) * ceil_div(rows, t.tile.block_cols * parts);
  const int64_t waves = ceil_div(units, kSms / parts);
  return static_cast<double>(waves) * (static_cast<double>(cols) / 128 * t.step_us + t.store_us);
}

// Blocks that share K, with measured times: a step of theirs and all else, as far as it is more
// than in the tiles above.
constexpr double kSplitStepUs = 0.24;
constexpr double kSplitUs = 1.5;
constexpr int64_t kSplitMostTokens = 64;  // one tile of them

Fp8PrefillTile split_tile(int32_t split) {
  return {.block_rows = 64, .block_cols = 64, .k_groups = 2, .split = split};
}
// Whether all clusters find a place at once: an SM holds one block, a GPC whole clusters.
bool split_fits(int64_t rows, int64_t cols, int32_t split) {
  constexpr int64_t kGpcs = 8;
  constexpr int64_t kSmsPerGpc = 16;  // at least
  const int64_t clusters = split == 2 ? kSms / 2 : kGpcs * (kSmsPerGpc / split);
  return ceil_div(rows, 64) <= clusters && split <= cols / 128 &&
         ceil_div(cols / 128, split) <= prefill::kSplitMostSteps;
}
double split_us(int64_t cols, int32_t split) {
  return static_cast<double>(ceil_div(cols / 128, split)) * kSplitStepUs + kSplitUs;
}

template <class Shape, Output kOutput>
cudaError_t launch_shape(Parameters p, const QuantizedRows& x, const Launch& launch) {
  prefill::XMaps maps;
  cudaError_t error = prefill::encode_rows(x, p.rows, Shape::kRows, &maps);
  if (error == cudaSuccess && kOutput == Output::kPlain && Shape::kEngineStores)
    error = prefill::encode_out(p, p.rows, &maps);
  if (error != cudaSuccess) return error;
  p.row_tiles = static_cast<int32_t>(ceil_div(p.rows, Shape::kRows));
  p.narrow = Shape::kNarrow && p.w_rows % Shape::kCols == 64;
  p.col_tiles =
      static_cast<int32_t>(ceil_div(p.w_rows, Shape::kCols * Shape::kParts)) - (p.narrow ? 1 : 0);
  const int64_t units = int64_t{p.row_tiles} * (p.col_tiles + (p.narrow ? 1 : 0));
  if (units >= 1 << 30) return cudaErrorInvalidValue;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(units, kSms / Shape::kBlocks) * Shape::kBlocks);
  const Grid grid{.blocks = dim3(blocks),
                  .threads = dim3(Shape::kThreads),
                  .shared_bytes = Shape::kSharedBytes,
                  .cluster = Shape::kBlocks};
  return enqueue(prefill::block_product<Shape, Rows::kDense, kOutput>, grid, launch, maps, p);
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

std::vector<Fp8PrefillTile> fp8_gemm_prefill_tiles() {
  std::vector<Fp8PrefillTile> tiles;
  for (const TimedTile& candidate : kTiles) tiles.push_back(candidate.tile);
  for (int32_t split = 2; split <= 8; ++split) tiles.push_back(split_tile(split));
  return tiles;
}

Fp8PrefillTile fp8_gemm_prefill_tile(int32_t tokens, int64_t rows, int64_t cols, bool fixed_order) {
  Fp8PrefillTile best = kTiles[0].tile;
  double least = 0;
  for (const TimedTile& candidate : kTiles) {
    if (fixed_order && candidate.tile.k_groups > 1) continue;
    const double us = expected_us(candidate, tokens, rows, cols, 1);
    if (least == 0 || us < least) {
      least = us;
      best = candidate.tile;
    }
  }
  if (fixed_order || tokens > kSplitMostTokens) return best;
  for (int32_t split = 2; split <= 8; ++split) {
    const double us = split_us(cols, split);
    if (split_fits(rows, cols, split) && us < least) {
      least = us;
      best = split_tile(split);
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
  if (tile.split > 0) {
    return prefill::split_product(weight, x, tokens, out, out_stride, tile.split, launch);
  }
  p.w_tiles = weight.tiles;
  p.w_scale = weight.scale;
  p.out = out;
  p.out_stride = out_stride;
  const auto is = [&](int32_t rows, int32_t cols, int32_t k_groups) {
    return tile.block_rows == rows && tile.block_cols == cols && tile.k_groups == k_groups;
  };
  if (is(128, 192, 1)) return launch_shape<Block128x192, Output::kPlain>(p, x, launch);
  if (is(128, 128, 1)) return launch_shape<Block128x128, Output::kPlain>(p, x, launch);
  if (is(64, 64, 1)) return launch_shape<Block64x64, Output::kPlain>(p, x, launch);
  if (is(64, 64, 2)) return launch_shape<Block64x64HalfK, Output::kPlain>(p, x, launch);
  if (is(64, 32, 2)) return launch_shape<Block64x32HalfK, Output::kPlain>(p, x, launch);
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
  // Both sum K in one order, so the choice leaves no trace in the bits.
  constexpr TimedTile kMiddle{{128, 128, 1}, 0.40, 2.5};
  constexpr TimedTile kNarrow{{64, 64, 1}, 0.19, 2.0};
  if (expected_us(kNarrow, tokens, p.w_rows, weight.cols, 4) <
      expected_us(kMiddle, tokens, p.w_rows, weight.cols, 2)) {
    return launch_shape<Block64x64Of256, Output::kSwiGluQuantized>(p, x, launch);
  }
  return launch_shape<Block128x128Of256, Output::kSwiGluQuantized>(p, x, launch);
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
  return launch_shape<Block128x128, Output::kSwiGluBf16>(p, x, launch);
}

}  // namespace r1d::kernels
