// SPDX-License-Identifier: Apache-2.0
// The kernel behind the FP8 products for many tokens: dense, gathered by expert, and grouped by
// expert.
//
// Problem   C[m, n] = sum over k of X(m, k) W(n, k), e4m3 with one scale per 1 x 128 of X and per
// 128 x 128 of W. Layout    layout.h: QuantizedRows for X (any number of rows), TiledMatrix or
// TiledGateUp for W. Bound     flops: 2 M N K at 1.98 PFLOPS (H200 data sheet; the best kernels
// reach 1.3 to 1.4); for few rows an expert the
//           bytes of W.
// Launch    persistent, one block an SM: a producer warpgroup and two consumer warpgroups; shared
// memory (a ring of stages of
//           128 columns of K) sets the occupancy. Blocks walk items (a row tile x a column tile)
//           with the grid's stride. In a cluster of two, both blocks take the same column tile;
//           each loads half of the W tile and multicasts it.
// Numerics  the tensor cores keep few bits over a long K, so the partial product of every 128
// columns is multiplied by its
//           scales and added in f32 registers. K is summed in order (k_groups 1).
// Source    DeepSeek-V3 report, section 3.3.2; warp specialisation and promotion as in public
// Hopper kernels (DeepGEMM).
#pragma once

#include <cstdint>
#include <cuda.h>

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/common/layout.h"
#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma.cuh"

namespace r1d::kernels::prefill {

// A block's tile and how its consumer warpgroups share it.
template <int kRowGroupsOf,  // warpgroups along the rows of X
          int kColGroupsOf,  // along the rows of W
          int kKGroupsOf,    // along K
          int kRowBlocksOf,  // 64-row products a warpgroup
          int kGroupColsOf,  // columns a warpgroup
          int kStagesOf,
          int kClusterOf>
struct BlockShape {
  static constexpr int kRowGroups = kRowGroupsOf;
  static constexpr int kColGroups = kColGroupsOf;
  static constexpr int kKGroups = kKGroupsOf;
  static constexpr int kRowBlocks = kRowBlocksOf;
  static constexpr int kGroupCols = kGroupColsOf;
  static constexpr int kStages = kStagesOf;
  static constexpr int kCluster = kClusterOf;
  static constexpr int kRows = kRowGroups * kRowBlocks * 64;
  static constexpr int kCols = kColGroups * kGroupCols;
  static constexpr int kXBytes = kRows * 128;
  static constexpr int kWBytes = kCols * 128;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kConsumers = kRowGroups * kColGroups * kKGroups;
  // With registers for two partial products a warpgroup starts the next before it promotes the
  // last. Otherwise the two warpgroups take turns on the tensor cores, one promoting while the
  // other multiplies; left alone they fall into step, and the tensor cores wait for both
  // promotions.
  static constexpr bool kOverlapped = kRowBlocks == 1 && kGroupCols <= 128;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static_assert(kConsumers == 2, "the register budget is for two consumer warpgroups");

  // Behind the stages: 2 KB a consumer warp to turn accumulators into rows, row maxima or the sums
  // of the second K group, and the barriers.
  static constexpr int kStagingBytes = 2048 * kConsumers * 4;
  static constexpr int kExchangeBytes =
      kKGroups == 2 ? kRows * kCols * 4 : 2 * kColGroups * kRows * 4;
  // The scales of a stage: one per row, then up to 4 of W.
  static constexpr int kScales = kRows + 4;
  static constexpr int kSharedBytes =
      1024 + kStages * (kStageBytes + kScales * 4 + 16) + kStagingBytes + kExchangeBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

enum class Rows {
  kDense,     // X rows 0 .. rows - 1
  kGathered,  // item rows name tokens of X through a list
  kGrouped,   // X rows in list order
};
enum class Output {
  kPlain,            // C as bf16
  kSwiGluBf16,       // silu(gate) up as bf16; W is a TiledGateUp
  kSwiGluQuantized,  // the same as QuantizedRows
};

struct Parameters {
  // X
  const uint8_t* x = nullptr;  // kGathered alone; the others read through the tensor map
  int64_t x_cols = 0;
  const float* x_scale = nullptr;
  int64_t x_scale_stride = 0;
  int32_t rows = 0;  // kDense: tokens
  // W
  const uint8_t* w_tiles = nullptr;
  const float* w_scale = nullptr;  // of the gate for a gate_up
  const float* up_scale = nullptr;
  int64_t expert_tiles_stride = 0;
  int64_t expert_scale_stride = 0;
  int32_t w_rows = 0;
  int32_t k_blocks = 0;
  // Output
  __nv_bfloat16* out = nullptr;
  int64_t out_stride = 0;
  uint8_t* out_data = nullptr;
  float* out_scale = nullptr;
  int64_t out_scale_stride = 0;
  // Items
  int32_t row_units = 0;  // kDense: row tiles / cluster, rounded up
  int32_t col_tiles = 0;
  const int4* tiles = nullptr;        // lists: expert, first row, rows
  const int32_t* totals = nullptr;    // lists: [0] tiles
  const int32_t* row_pair = nullptr;  // kGathered
  int32_t slots = 1;                  // kGathered: token = pair / slots
};

#ifdef R1D_SM90

// One tile of work.
struct Item {
  int32_t expert;
  int32_t row;   // first row
  int32_t rows;  // rows of the tile that exist; at most 0 in the second block of an odd last pair
  int32_t col;   // first row of W
};

template <class Shape, Rows kRowsKind>
__device__ __forceinline__ int32_t item_count(const Parameters& p) {
  return (kRowsKind == Rows::kDense ? p.row_units : p.totals[0]) * p.col_tiles;
}

template <class Shape, Rows kRowsKind>
__device__ __forceinline__ Item item_at(const Parameters& p, int32_t index, int32_t rank) {
  if constexpr (kRowsKind == Rows::kDense) {
    // Bands of row tiles, so that the blocks of a wave share both X and W in L2.
    constexpr int32_t kBand = 16 / Shape::kCluster;
    const int32_t band = index / (kBand * p.col_tiles);
    const int32_t inside = index - band * kBand * p.col_tiles;
    const int32_t height = min(kBand, p.row_units - band * kBand);
    const int32_t unit = band * kBand + inside % height;
    const int32_t row = (unit * Shape::kCluster + rank) * Shape::kRows;
    return {0, row, min(Shape::kRows, p.rows - row), inside / height * Shape::kCols};
  } else if constexpr (kRowsKind == Rows::kGathered) {
    // Column tiles of one row tile side by side: they gather the same tokens.
    const int4 tile = p.tiles[index / p.col_tiles];
    return {tile.x, tile.y, tile.z, index % p.col_tiles * Shape::kCols};
  } else {
    // Column tiles outermost: all experts' row tiles of a column tile are near in time.
    const int32_t tiles = p.totals[0];
    const int4 tile = p.tiles[index % tiles];
    return {tile.x, tile.y, tile.z, index / tiles * Shape::kCols};
  }
}

// Where a warp stands in the ring of stages.
template <int kStages>
struct Ring {
  int32_t stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <class Shape>
struct Shared {
  uint8_t* stages;
  uint8_t* staging;
  float* exchange;
  float* scale;
  uint64_t* full;
  uint64_t* empty;
  __device__ __forceinline__ explicit Shared(uint8_t* raw) {
    // Hidden from the compiler, which would compute it anew in every step.
    uint32_t address = (smem_address(raw) + 1023) / 1024 * 1024;
    asm volatile("" : "+r"(address));
    stages = static_cast<uint8_t*>(__cvta_shared_to_generic(address));
    staging = stages + Shape::kStages * Shape::kStageBytes;
    exchange = reinterpret_cast<float*>(staging + Shape::kStagingBytes);
    scale = exchange + Shape::kExchangeBytes / 4;
    full = reinterpret_cast<uint64_t*>(scale + Shape::kStages * Shape::kScales);
    empty = full + Shape::kStages;
  }
  __device__ __forceinline__ uint8_t* x(int32_t stage) const {
    return stages + stage * Shape::kStageBytes;
  }
  __device__ __forceinline__ uint8_t* w(int32_t stage) const { return x(stage) + Shape::kXBytes; }
  __device__ __forceinline__ float* scales(int32_t stage) const {
    return scale + stage * Shape::kScales;
  }
};

// ---- load --------------------------------------------------------------------------------------

__device__ __forceinline__ void bulk_load_multicast(
    void* to, const void* from, uint32_t bytes, uint64_t* barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1], %2, [%3], %4;" ::"r"(smem_address(to)),
      "l"(from),
      "r"(bytes),
      "r"(smem_address(barrier)),
      "h"(mask)
      : "memory");
}

// This block's share of the W tile of one 128-column step.
template <class Shape>
__device__ __forceinline__ void load_w(const Parameters& p,
                                       const Item& item,
                                       int32_t k_block,
                                       uint8_t* to,
                                       uint64_t* full,
                                       int32_t rank) {
  constexpr int kShare = Shape::kCols / Shape::kCluster;
  constexpr int kPiece = kShare < 64 ? kShare : kShare % 64 == 0 ? 64 : 32;
  const uint8_t* tiles = p.w_tiles + item.expert * p.expert_tiles_stride;
#pragma unroll
  for (int i = 0; i < kShare / kPiece; ++i) {
    const int32_t in_tile = rank * kShare + i * kPiece;
    const int32_t row = item.col + in_tile;
    if (row >= p.w_rows) break;
    const uint8_t* from =
        tiles + (static_cast<int64_t>(row / 64) * p.k_blocks + k_block) * 8192 + row % 64 * 128;
    if constexpr (Shape::kCluster == 1) {
      bulk_load(to + in_tile * 128, from, kPiece * 128, full);
    } else {
      bulk_load_multicast(to + in_tile * 128, from, kPiece * 128, full, (1 << Shape::kCluster) - 1);
    }
  }
}

template <class Shape>
__device__ __forceinline__ uint32_t w_bytes(const Parameters& p, const Item& item) {
  return min(Shape::kCols, p.w_rows - item.col) * 128;
}

// The scales of W that a tile needs: gate and up, or one per 128 rows (per 64 where tiles are not
// aligned to 128).
template <class Shape, bool kGateUp>
struct WScales {
  static constexpr int kUnit = Shape::kCols > 128 && Shape::kCols % 128 != 0 ? 64 : 128;
  static constexpr int kCount = kGateUp ? 2 : (Shape::kCols + kUnit - 1) / kUnit;
  static_assert(kCount <= 4);
  // Of these, a warpgroup needs kLocal from first(); its 8-column block j takes number of(j) of
  // them.
  static constexpr int kLocal = kGateUp ? 2 : (Shape::kGroupCols + kUnit - 1) / kUnit;
  __device__ __forceinline__ static int32_t first(int32_t col_group) {
    return kGateUp ? 0 : col_group * Shape::kGroupCols / kUnit;
  }
  __device__ __forceinline__ static constexpr int of(int j) {
    return kGateUp ? j % 2 : j * 8 / kUnit;
  }
  // Scale `s` of the item's first 128 columns of K; the others follow.
  __device__ __forceinline__ static const float* row(const Parameters& p,
                                                     const Item& item,
                                                     int32_t s) {
    const int64_t expert = item.expert * p.expert_scale_stride;
    if constexpr (kGateUp) {
      const int64_t row = item.col / 256;
      return (s == 0 ? p.w_scale : p.up_scale) + expert + row * p.k_blocks;
    } else {
      const int64_t row = min(item.col + s * kUnit, p.w_rows - 1) / 128;
      return p.w_scale + expert + row * p.k_blocks;
    }
  }
};

// The row of X (in global memory) of row `in_tile` of a tile; rows beyond the last give one that is
// safe to read.
template <Rows kRowsKind>
__device__ __forceinline__ int32_t x_row(const Parameters& p, const Item& item, int32_t in_tile) {
  if constexpr (kRowsKind == Rows::kDense) return min(item.row + in_tile, p.rows - 1);
  const int32_t row = item.row + min(in_tile, item.rows - 1);
  return kRowsKind == Rows::kGathered ? p.row_pair[row] / p.slots : row;
}

__device__ __forceinline__ void cp_async_4(float* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem_address(to)), "l"(from)
               : "memory");
}

// The producer of dense and grouped tiles: one thread.
template <class Shape, Rows kRowsKind>
__device__ __forceinline__ void produce_tiles(const Parameters& p,
                                              const CUtensorMap& x_map,
                                              const Shared<Shape>& shared,
                                              int32_t rank) {
  Ring<Shape::kStages> ring;
  const int32_t count = item_count<Shape, kRowsKind>(p);
  for (int32_t i = blockIdx.x / Shape::kCluster; i < count; i += gridDim.x / Shape::kCluster) {
    const Item item = item_at<Shape, kRowsKind>(p, i, rank);
    const uint32_t bytes = Shape::kXBytes + w_bytes<Shape>(p, item);
#pragma unroll 1
    for (int32_t k = 0; k < p.k_blocks; ++k, ring.advance()) {
      uint64_t* full = &shared.full[ring.stage];
      mbarrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(full, bytes);
      tensor_load_2d(shared.x(ring.stage), &x_map, k * 128, item.row, full);
      load_w<Shape>(p, item, k, shared.w(ring.stage), full, rank);
    }
  }
}

// Their scales: one warp.
template <class Shape, Rows kRowsKind, bool kGateUp>
__device__ __forceinline__ void produce_scales(const Parameters& p,
                                               const Shared<Shape>& shared,
                                               int32_t rank,
                                               int32_t lane) {
  using W = WScales<Shape, kGateUp>;
  constexpr int kRowsEach = Shape::kRows / 32;
  Ring<Shape::kStages> ring;
  const int32_t count = item_count<Shape, kRowsKind>(p);
  for (int32_t i = blockIdx.x / Shape::kCluster; i < count; i += gridDim.x / Shape::kCluster) {
    const Item item = item_at<Shape, kRowsKind>(p, i, rank);
    int32_t row[kRowsEach];
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) row[j] = x_row<kRowsKind>(p, item, lane + 32 * j);
    const float* x = p.x_scale;
    const float* w = W::row(p, item, min(lane, W::kCount - 1));
#pragma unroll 1
    for (int32_t k = 0; k < p.k_blocks; ++k, ring.advance(), x += p.x_scale_stride, ++w) {
      mbarrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
      float* to = shared.scales(ring.stage);
#pragma unroll
      for (int j = 0; j < kRowsEach; ++j) cp_async_4(to + lane + 32 * j, x + row[j]);
      if (lane < W::kCount) cp_async_4(to + Shape::kRows + lane, w);
      mbarrier_arrive_cp_async(&shared.full[ring.stage]);
    }
  }
}

// The producer of gathered products: 128 threads copy X by 16 bytes, each its chunk of every 16th
// row, and the scales. cp.async writes through another proxy than wgmma reads: the consumers fence.
template <class Shape, Rows kRowsKind, bool kGateUp>
__device__ __forceinline__ void produce_gathered(const Parameters& p,
                                                 const Shared<Shape>& shared,
                                                 int32_t thread) {
  using W = WScales<Shape, kGateUp>;
  constexpr int kRowsEach = Shape::kRows / 16;
  const int32_t chunk = thread % 8;
  const uint32_t offset = thread / 8 * 128 + ((chunk ^ (thread / 8 % 8)) * 16);
  Ring<Shape::kStages> ring;
  const int32_t count = item_count<Shape, kRowsKind>(p);
  for (int32_t i = blockIdx.x; i < count; i += gridDim.x) {
    const Item item = item_at<Shape, kRowsKind>(p, i, 0);
    int32_t token[kRowsEach];
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) {
      const int32_t row = thread / 8 + 16 * j;
      token[j] = row < item.rows ? x_row<kRowsKind>(p, item, row) : -1;
    }
    const uint8_t* x = p.x + chunk * 16;
    const float* x_scale = p.x_scale + x_row<kRowsKind>(p, item, thread);
    const float* w_scale = W::row(p, item, min(thread, W::kCount - 1));
#pragma unroll 1
    for (int32_t k = 0; k < p.k_blocks; ++k, ring.advance()) {
      mbarrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
      uint64_t* full = &shared.full[ring.stage];
      if (thread == 0) {
        mbarrier_arrive_expect(full, w_bytes<Shape>(p, item));
        load_w<Shape>(p, item, k, shared.w(ring.stage), full, 0);
      }
      const uint32_t to = smem_address(shared.x(ring.stage)) + offset;
#pragma unroll
      for (int j = 0; j < kRowsEach; ++j) {
        if (token[j] >= 0) cp_async_16(to + j * 2048, x + token[j] * p.x_cols + k * 128);
      }
      float* scales = shared.scales(ring.stage);
      if (thread < Shape::kRows) cp_async_4(scales + thread, x_scale + k * p.x_scale_stride);
      if (thread < W::kCount) cp_async_4(scales + Shape::kRows + thread, w_scale + k);
      mbarrier_arrive_cp_async(full);
    }
  }
}

// ---- compute -----------------------------------------------------------------------------------

// A consumer thread's place in the block.
template <class Shape>
struct Place {
  int32_t row_group;
  int32_t col_group;
  int32_t k_group;
  int32_t warp;  // in its warpgroup
  int32_t lane;
  __device__ __forceinline__ explicit Place(int32_t thread) {
    const int32_t group = thread / 128;
    row_group = Shape::kRowGroups == 2 ? group : 0;
    col_group = Shape::kColGroups == 2 ? group : 0;
    k_group = Shape::kKGroups == 2 ? group : 0;
    warp = thread / 32 % 4;
    lane = thread % 32;
  }
  // Row in the tile of the warp's 16-row strip of row block r.
  __device__ __forceinline__ int32_t strip_row(int32_t r) const {
    return (row_group * Shape::kRowBlocks + r) * 64 + warp * 16;
  }
};

// Gives a stage back, to every block that copies into it. A cluster-wide release would cost a fence
// of the whole device; the default scope is enough, since what the arrival orders are wgmma's
// reads, and those are complete.
template <class Shape>
__device__ __forceinline__ void release(const Shared<Shape>& shared, int32_t stage, int32_t lane) {
  if constexpr (Shape::kCluster == 1) {
    if (lane == 0) mbarrier_arrive(&shared.empty[stage]);
  } else if (lane < Shape::kCluster) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(
                     cluster_address(smem_address(&shared.empty[stage]), lane))
                 : "memory");
  }
}

// The scales of one 64-row product of a thread: its two rows', and its warpgroup's of W.
template <class Shape, bool kGateUp>
struct Scales {
  using W = WScales<Shape, kGateUp>;
  float x[2];
  float w[W::kLocal];
  __device__ __forceinline__ void read(const float* from, const Place<Shape>& place, int32_t r) {
    const float* rows = from + place.strip_row(r) + place.lane / 4;
    x[0] = rows[0];
    x[1] = rows[8];
    const float* cols = from + Shape::kRows + W::first(place.col_group);
#pragma unroll
    for (int i = 0; i < W::kLocal; ++i) w[i] = cols[i];
  }
  // sum += scales * part
  __device__ __forceinline__ void promote(const float (&part)[Shape::kGroupCols / 2],
                                          float (&sum)[Shape::kGroupCols / 2]) const {
#pragma unroll
    for (int j = 0; j < Shape::kGroupCols / 8; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float f = x[h] * w[W::of(j)];
        sum[4 * j + 2 * h] = fmaf(f, part[4 * j + 2 * h], sum[4 * j + 2 * h]);
        sum[4 * j + 2 * h + 1] = fmaf(f, part[4 * j + 2 * h + 1], sum[4 * j + 2 * h + 1]);
      }
    }
  }
};

// Starts part = X W^T over one 128-column step, as two groups of two products.
template <int kCols>
__device__ __forceinline__ void start(float (&part)[kCols / 2], uint64_t a, uint64_t b) {
  wgmma_fence_registers(part);
  wgmma_fence();
  Wgmma<kCols>::e4m3(part, a, b, 0);
  Wgmma<kCols>::e4m3(part, a + 2, b + 2, 1);
  wgmma_commit();
  Wgmma<kCols>::e4m3(part, a + 4, b + 4, 1);
  Wgmma<kCols>::e4m3(part, a + 6, b + 6, 1);
  wgmma_commit();
}

__device__ __forceinline__ void named_barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Named barriers: 1 and 2 in the epilogues, kTurn + g when warpgroup g may multiply.
constexpr uint32_t kTurn = 3;

// sum += the item's product; d[4 j + 2 h + c] of each row block as wgmma.cuh says. Row blocks
// without a row are skipped.
template <class Shape, bool kGateUp, bool kFence>
__device__ __forceinline__ void multiply_in_turns(
    const Parameters& p,
    const Item& item,
    const Place<Shape>& place,
    const Shared<Shape>& shared,
    Ring<Shape::kStages>& ring,
    float (&sum)[Shape::kRowBlocks][Shape::kGroupCols / 2]) {
  constexpr int kCols = Shape::kGroupCols;
  static_assert(Shape::kKGroups == 1);
  const int32_t group = place.row_group + place.col_group;
  const int32_t first = place.row_group * Shape::kRowBlocks;
  // Both warpgroups take every turn, also one without rows.
  const int32_t turns = min(Shape::kRowBlocks, (item.rows + 63) / 64);
  const uint64_t a = wgmma_descriptor_k128(smem_address(shared.x(0)) + first * 64 * 128);
  const uint64_t b =
      wgmma_descriptor_k128(smem_address(shared.w(0)) + place.col_group * kCols * 128);
#pragma unroll 1
  for (int32_t k = 0; k < p.k_blocks; ++k, ring.advance()) {
    const int32_t stage = ring.stage;
    mbarrier_wait(&shared.full[stage], ring.phase);
    if constexpr (kFence) fence_async_shared();
    const uint64_t at = stage * (Shape::kStageBytes / 16);
#pragma unroll
    for (int r = 0; r < Shape::kRowBlocks; ++r) {
      if (r >= turns) break;
      const bool rows = Shape::kRowGroups == 1 || (first + r) * 64 < item.rows;
      Scales<Shape, kGateUp> scales;
      scales.read(shared.scales(stage), place, r);
      float part[kCols / 2];
      named_barrier(kTurn + group, 256);
      if (rows) {
        start<kCols>(part, a + at + r * (64 * 128 / 16), b + at);
        wgmma_wait<1>();
      }
      named_barrier_arrive(kTurn + 1 - group, 256);
      wgmma_wait<0>();
      wgmma_fence_registers(part);
      if (r == turns - 1) release<Shape>(shared, stage, place.lane);
      if (rows) scales.promote(part, sum[r]);
    }
    if (turns <= 0) release<Shape>(shared, stage, place.lane);
  }
}

template <class Shape, bool kGateUp, bool kFence>
__device__ __forceinline__ void multiply_overlapped(const Parameters& p,
                                                    const Place<Shape>& place,
                                                    const Shared<Shape>& shared,
                                                    Ring<Shape::kStages>& ring,
                                                    float (&sum)[1][Shape::kGroupCols / 2]) {
  constexpr int kCols = Shape::kGroupCols;
  const uint64_t a = wgmma_descriptor_k128(smem_address(shared.x(0)) + place.row_group * 64 * 128);
  const uint64_t b =
      wgmma_descriptor_k128(smem_address(shared.w(0)) + place.col_group * kCols * 128);
  struct Step {
    int32_t stage;
    Scales<Shape, kGateUp> scales;
  };
  int32_t k = 0;  // the next step; the other K group's are passed over
  const auto pass = [&] {
    ++k;
    ring.advance();
  };
  const auto begin = [&](Step& step, float(&part)[kCols / 2]) {
    step.stage = ring.stage;
    mbarrier_wait(&shared.full[ring.stage], ring.phase);
    if constexpr (kFence) fence_async_shared();
    const uint64_t at = ring.stage * (Shape::kStageBytes / 16);
    start<kCols>(part, a + at, b + at);
    step.scales.read(shared.scales(ring.stage), place, 0);
    pass();
    if (Shape::kKGroups == 2 && k < p.k_blocks) pass();
  };
  const auto end = [&](const Step& step, float(&part)[kCols / 2]) {
    wgmma_fence_registers(part);
    release<Shape>(shared, step.stage, place.lane);
    step.scales.promote(part, sum[0]);
  };
  if (place.k_group == 1) pass();
  if (k < p.k_blocks) {
    Step even;
    Step odd;
    float even_part[kCols / 2];
    float odd_part[kCols / 2];
    begin(even, even_part);
#pragma unroll 1
    while (true) {
      if (k >= p.k_blocks) {
        wgmma_wait<0>();
        end(even, even_part);
        break;
      }
      begin(odd, odd_part);
      wgmma_wait<2>();
      end(even, even_part);
      if (k >= p.k_blocks) {
        wgmma_wait<0>();
        end(odd, odd_part);
        break;
      }
      begin(even, even_part);
      wgmma_wait<2>();
      end(odd, odd_part);
    }
  }
}

// ---- reduce ------------------------------------------------------------------------------------

// The second K group hands its sums to the first, which alone stores.
template <class Shape>
__device__ __forceinline__ void join_k_groups(
    const Place<Shape>& place,
    const Shared<Shape>& shared,
    float (&sum)[Shape::kRowBlocks][Shape::kGroupCols / 2]) {
  static_assert(Shape::kRowBlocks == 1);
  float* cells = shared.exchange + place.warp * 32 + place.lane;
  if (place.k_group == 1) {
#pragma unroll
    for (int i = 0; i < Shape::kGroupCols / 2; ++i) cells[i * 128] = sum[0][i];
  }
  named_barrier(1, 256);
  if (place.k_group == 0) {
#pragma unroll
    for (int i = 0; i < Shape::kGroupCols / 2; ++i) sum[0][i] += cells[i * 128];
  }
  named_barrier(2, 256);
}

// ---- store -------------------------------------------------------------------------------------

__device__ __forceinline__ void stmatrix_x4(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(r[0]),
               "r"(r[1]),
               "r"(r[2]),
               "r"(r[3])
               : "memory");
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Writes a warp's 16 rows x kBlocks 8-column blocks as bf16 through its 2 KB of staging: `value(j,
// h)` is the thread's packed pair of columns of block j. `rows` of the strip exist; 16-byte stores
// of whole 128-byte row pieces.
template <int kBlocks, typename Value>
__device__ __forceinline__ void store_rows(
    uint8_t* staging, int32_t lane, int32_t rows, __nv_bfloat16* out, int64_t stride, Value value) {
  constexpr int kRowBytes = kBlocks * 16;
  constexpr int kChunkMask = kBlocks - 1;
  const uint32_t base = smem_address(staging);
  __syncwarp();
#pragma unroll
  for (int j = 0; j < kBlocks; j += 2) {
    const uint32_t four[4] = {value(j, 0), value(j, 1), value(j + 1, 0), value(j + 1, 1)};
    const int32_t row = lane % 16;
    const int32_t chunk = j + lane / 16;
    stmatrix_x4(base + row * kRowBytes + ((chunk ^ (row & kChunkMask)) * 16), four);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kBlocks / 2; ++i) {
    const int32_t row = i * (32 / kBlocks) + lane / kBlocks;
    const int32_t chunk = lane % kBlocks;
    const uint4 bytes = *reinterpret_cast<const uint4*>(staging + row * kRowBytes +
                                                        ((chunk ^ (row & kChunkMask)) * 16));
    if (row < rows) *reinterpret_cast<uint4*>(out + row * stride + chunk * 8) = bytes;
  }
}

template <class Shape>
__device__ __forceinline__ void store_plain(
    const Parameters& p,
    const Item& item,
    const Place<Shape>& place,
    uint8_t* staging,
    const float (&sum)[Shape::kRowBlocks][Shape::kGroupCols / 2]) {
  constexpr int kBlocks = Shape::kGroupCols < 64 ? Shape::kGroupCols / 8 : 8;
#pragma unroll
  for (int r = 0; r < Shape::kRowBlocks; ++r) {
    const int32_t rows = item.rows - place.strip_row(r);
    if (rows <= 0) break;
#pragma unroll
    for (int part = 0; part < Shape::kGroupCols / 8 / kBlocks; ++part) {
      const int32_t col = item.col + place.col_group * Shape::kGroupCols + part * kBlocks * 8;
      if (col >= p.w_rows) break;
      store_rows<kBlocks>(staging,
                          place.lane,
                          rows,
                          p.out + (item.row + place.strip_row(r)) * p.out_stride + col,
                          p.out_stride,
                          [&](int j, int h) {
                            const float* d = &sum[r][4 * (part * kBlocks + j) + 2 * h];
                            return pack_bf16(d[0], d[1]);
                          });
    }
  }
}

__device__ __forceinline__ float swiglu(float gate, float up) {
  return gate / (1.0F + __expf(-gate)) * up;
}

// Turns the thread's gate values (8-column blocks 2 p) into h in place; the up values stay behind.
template <int kCount>
__device__ __forceinline__ void apply_swiglu(float (&d)[kCount]) {
#pragma unroll
  for (int p = 0; p < kCount / 8; ++p) {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[8 * p + i] = swiglu(d[8 * p + i], d[8 * p + 4 + i]);
  }
}

template <class Shape>
__device__ __forceinline__ void store_swiglu_bf16(
    const Parameters& p,
    const Item& item,
    const Place<Shape>& place,
    uint8_t* staging,
    float (&sum)[Shape::kRowBlocks][Shape::kGroupCols / 2]) {
  static_assert(Shape::kGroupCols == 128);
  const int32_t col = (item.col + place.col_group * 128) / 2;  // of h
#pragma unroll
  for (int r = 0; r < Shape::kRowBlocks; ++r) {
    const int32_t rows = item.rows - place.strip_row(r);
    if (rows <= 0) break;
    apply_swiglu(sum[r]);
    __nv_bfloat16* out = p.out + (item.row + place.strip_row(r)) * p.out_stride + col;
    // Two halves of 32 columns, since I is a multiple of 32 alone.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (col + half * 32 >= p.w_rows / 2) break;
      store_rows<4>(staging, place.lane, rows, out + half * 32, p.out_stride, [&](int j, int h) {
        const float* d = &sum[r][8 * (half * 4 + j) + 2 * h];
        return pack_bf16(d[0], d[1]);
      });
    }
  }
}

// A 256-row tile of W is one group of 128 of h: each column group has half of it, and the row
// maxima meet in shared memory. `parity` alternates, so that a warpgroup one item ahead does not
// overwrite maxima that are still read.
template <class Shape>
__device__ __forceinline__ void store_swiglu_quantized(
    const Parameters& p,
    const Item& item,
    const Place<Shape>& place,
    const Shared<Shape>& shared,
    uint8_t* staging,
    int32_t parity,
    float (&sum)[Shape::kRowBlocks][Shape::kGroupCols / 2]) {
  static_assert(Shape::kGroupCols == 128 && Shape::kColGroups == 2);
  float* maxima = shared.exchange + parity * 2 * Shape::kRows;
  float largest[Shape::kRowBlocks][2];
#pragma unroll
  for (int r = 0; r < Shape::kRowBlocks; ++r) {
    apply_swiglu(sum[r]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = 0;
#pragma unroll
      for (int b = 0; b < 8; ++b)
        m = fmaxf(m, fmaxf(fabsf(sum[r][8 * b + 2 * h]), fabsf(sum[r][8 * b + 2 * h + 1])));
      m = fmaxf(m, __shfl_xor_sync(~0U, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0U, m, 2));
      largest[r][h] = m;
      if (place.lane % 4 == 0) {
        maxima[place.col_group * Shape::kRows + place.strip_row(r) + 8 * h + place.lane / 4] = m;
      }
    }
  }
  named_barrier(1, 256);
  const int32_t group = item.col / 256;
#pragma unroll
  for (int r = 0; r < Shape::kRowBlocks; ++r) {
    const int32_t rows = item.rows - place.strip_row(r);
    if (rows <= 0) break;
    __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t row = 8 * h + place.lane / 4;
      const float other = maxima[(1 - place.col_group) * Shape::kRows + place.strip_row(r) + row];
      const float m = fmaxf(largest[r][h], other);
      const float scale = m > 0 ? m / 448.0F : 1.0F;
      if (place.col_group == 0 && place.lane % 4 == 0 && row < rows) {
        p.out_scale[group * p.out_scale_stride + item.row + place.strip_row(r) + row] = scale;
      }
#pragma unroll
      for (int b = 0; b < 8; ++b) {
        const float2 pair =
            make_float2(sum[r][8 * b + 2 * h] / scale, sum[r][8 * b + 2 * h + 1] / scale);
        *reinterpret_cast<__nv_fp8x2_storage_t*>(staging + row * 64 + b * 8 + place.lane % 4 * 2) =
            __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t row = i * 8 + place.lane / 4;
      const int32_t chunk = place.lane % 4;
      const uint4 bytes = *reinterpret_cast<const uint4*>(staging + row * 64 + chunk * 16);
      uint8_t* to = p.out_data +
                    (item.row + place.strip_row(r) + row) * static_cast<int64_t>(p.w_rows / 2) +
                    group * 128 + place.col_group * 64 + chunk * 16;
      if (row < rows) *reinterpret_cast<uint4*>(to) = bytes;
    }
  }
}

#endif  // R1D_SM90

// ---- the kernel --------------------------------------------------------------------------------

template <class Shape, Rows kRowsKind, Output kOutput>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    block_product(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ Parameters p) {
#ifdef R1D_SM90
  extern __shared__ uint8_t raw[];
  const Shared<Shape> shared(raw);
  constexpr int kConsumerThreads = Shape::kConsumers * 128;
  constexpr bool kGathers = kRowsKind == Rows::kGathered;
  constexpr bool kGateUp = kOutput != Output::kPlain;
  static_assert(!kGathers || Shape::kCluster == 1);
  const int32_t rank = Shape::kCluster > 1 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Shape::kStages; ++s) {
      mbarrier_init(&shared.full[s], kGathers ? 129 : 33);
      mbarrier_init(&shared.empty[s], Shape::kConsumers / Shape::kKGroups * 4 * Shape::kCluster);
    }
    mbarrier_init_fence();
  }
  if constexpr (Shape::kCluster > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  grid_dependency_wait();
  grid_launch_dependents();

  if (threadIdx.x >= kConsumerThreads) {
    registers_lower<40>();
    const int32_t thread = threadIdx.x - kConsumerThreads;
    if constexpr (kGathers) {
      produce_gathered<Shape, kRowsKind, kGateUp>(p, shared, thread);
    } else if (thread == 0) {
      produce_tiles<Shape, kRowsKind>(p, x_map, shared, rank);
    } else if (thread / 32 == 1) {
      produce_scales<Shape, kRowsKind, kGateUp>(p, shared, rank, thread % 32);
    }
    __syncwarp();
  } else {
    registers_raise<232>();
    const Place<Shape> place(threadIdx.x);
    uint8_t* staging = shared.staging + threadIdx.x / 32 * 2048;
    Ring<Shape::kStages> ring;
    int32_t parity = 0;
    if (!Shape::kOverlapped && threadIdx.x >= 128) named_barrier_arrive(kTurn, 256);
    const int32_t count = item_count<Shape, kRowsKind>(p);
    for (int32_t i = blockIdx.x / Shape::kCluster; i < count; i += gridDim.x / Shape::kCluster) {
      const Item item = item_at<Shape, kRowsKind>(p, i, rank);
      float sum[Shape::kRowBlocks][Shape::kGroupCols / 2] = {};
      if constexpr (Shape::kOverlapped) {
        multiply_overlapped<Shape, kGateUp, kGathers>(p, place, shared, ring, sum);
      } else {
        multiply_in_turns<Shape, kGateUp, kGathers>(p, item, place, shared, ring, sum);
      }
      if constexpr (Shape::kKGroups == 2) {
        join_k_groups<Shape>(place, shared, sum);
        if (place.k_group == 1) continue;
      }
      if constexpr (kOutput == Output::kPlain) {
        store_plain<Shape>(p, item, place, staging, sum);
      } else if constexpr (kOutput == Output::kSwiGluBf16) {
        store_swiglu_bf16<Shape>(p, item, place, staging, sum);
      } else {
        store_swiglu_quantized<Shape>(p, item, place, shared, staging, parity, sum);
        parity ^= 1;
      }
    }
    // Its last turn was offered to the first warpgroup and not taken.
    if (!Shape::kOverlapped && threadIdx.x < 128) named_barrier(kTurn, 256);
  }
  if constexpr (Shape::kCluster > 1) {
    // A block leaves when no other of its cluster may still copy to it or arrive on its barriers.
    cluster_arrive();
    cluster_wait();
  }
#endif
}

}  // namespace r1d::kernels::prefill
