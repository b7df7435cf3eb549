// SPDX-License-Identifier: Apache-2.0
// Problem   Permute the 16-byte chunks of row-major e4m3 weights into 8 KB tiles (layout.h).
// Layout    in [rows, cols] row-major; out TiledMatrix or TiledGateUp. Chunk p of row r of a tile
// holds columns
//           16 (p ^ (r % 8)) .. of the tile's row.
// Bound     2 * rows * cols bytes, no arithmetic.
// Launch    one thread a chunk, 256 a block; a warp writes 512 contiguous bytes and reads four
// whole 128-byte lines. Numerics  none: bytes move. Source    the 128-byte swizzle of wgmma
// operands, PTX ISA 9.0, section 9.7.15.5.
#include "kernels/common/layout.h"
#include "kernels/common/ptx.cuh"
#include "kernels/tile_weights/tile_weights.h"

namespace r1d::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kChunksPerTile = TiledMatrix::kTileBytes / 16;

// `up` null: plain rows. Otherwise rows of 8 alternate between the two sources.
__global__ void __launch_bounds__(kThreads) tile_weight_kernel(
    const uint8_t* source, const uint8_t* up, int64_t cols, int64_t chunks, uint8_t* tiles) {
#ifdef R1D_SM90
  grid_dependency_wait();
  grid_launch_dependents();
#endif
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (chunk >= chunks) return;
  const int64_t tile = chunk / kChunksPerTile;
  const int row = static_cast<int>(chunk % kChunksPerTile) / 8;
  const int column = 16 * (static_cast<int>(chunk % 8) ^ (row % 8));
  const int64_t tiles_per_strip = cols / TiledMatrix::kTileCols;
  const int64_t strip = tile / tiles_per_strip;
  const int64_t first_column = tile % tiles_per_strip * TiledMatrix::kTileCols;

  const uint8_t* matrix = source;
  int64_t source_row = strip * TiledMatrix::kTileRows + row;
  if (up != nullptr) {
    if (row % 16 >= 8) matrix = up;
    source_row = strip * (TiledMatrix::kTileRows / 2) + row / 16 * 8 + row % 8;
  }
  const uint4 value =
      __ldcs(reinterpret_cast<const uint4*>(matrix + source_row * cols + first_column + column));
  __stcs(reinterpret_cast<uint4*>(tiles) + chunk, value);
}

cudaError_t enqueue_tiling(const uint8_t* source,
                           const uint8_t* up,
                           int64_t rows,
                           int64_t cols,
                           uint8_t* tiles,
                           const Launch& launch) {
  if (rows % TiledMatrix::kTileRows != 0 || cols % TiledMatrix::kTileCols != 0 || rows < 0 ||
      cols < 0) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0 || cols == 0) return cudaSuccess;
  const int64_t chunks = rows * cols / 16;
  const auto blocks = static_cast<unsigned>((chunks + kThreads - 1) / kThreads);
  return enqueue(tile_weight_kernel, {blocks, kThreads}, launch, source, up, cols, chunks, tiles);
}

}  // namespace

cudaError_t tile_weight(
    const uint8_t* row_major, int64_t rows, int64_t cols, uint8_t* tiles, const Launch& launch) {
  return enqueue_tiling(row_major, nullptr, rows, cols, tiles, launch);
}

cudaError_t tile_gate_up(const uint8_t* gate,
                         const uint8_t* up,
                         int64_t intermediate,
                         int64_t cols,
                         uint8_t* tiles,
                         const Launch& launch) {
  if (up == nullptr) return cudaErrorInvalidValue;
  return enqueue_tiling(gate, up, 2 * intermediate, cols, tiles, launch);
}

}  // namespace r1d::kernels
