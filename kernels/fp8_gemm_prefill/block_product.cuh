// SPDX-License-Identifier: Apache-2.0
// The kernel behind the FP8 products for many tokens: dense, gathered by expert, grouped by expert.
//
// Problem   C[m, n] = sum over k of X(m, k) W(n, k), e4m3 with one scale per 1 x 128 of X and per
//           128 x 128 of W.
// Layout    layout.h: QuantizedRows for X (any number of rows), TiledMatrix or TiledGateUp for W.
// Bound     flops: 2 M N K at 1.98 PFLOPS (H200 data sheet; the best public kernels reach 1.3 to
//           1.43); for few rows an expert the bytes of W.
//           Shared memory comes next: a step of a warpgroup's 64 x N reads (64 + N) 128 bytes, the
//           copies write each byte once more, 128 bytes a clock: 640 clocks for 128 x 128, 832 for
//           128 x 192, where the tensor cores want 512 and 768.
// Launch    persistent, one block an SM: a producer warpgroup and two consumer warpgroups; shared
//           memory (a ring of stages of 128 columns of K) sets the occupancy. Blocks walk items (a
//           row tile x a column tile) with the grid's stride. In a cluster the blocks take either
//           the same column tile, loading a share of W each and multicasting it, or parts of one
//           group of 128 that they quantize together.
// Numerics  the tensor cores keep few bits over a long K, so the partial product of every 128
//           columns is multiplied by its scales and added in f32 registers. K is summed in order,
//           but for shapes with two K groups.
// Source    DeepSeek-V3 report, section 3.3.2; warp specialisation and promotion as in public
//           Hopper kernels (DeepGEMM).
#pragma once

#include <cstdint>
#include <cuda.h>

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/common/layout.h"
#include "kernels/common/ptx.cuh"
#include "kernels/common/ring.cuh"
#include "kernels/common/tensor_map.h"
#include "kernels/common/wgmma.cuh"

namespace r1d::kernels::prefill {

// A block's tile and how its consumer warpgroups share it.
template <int kRowGroupsOf,  // warpgroups along the rows of X
          int kColGroupsOf,  // along the rows of W
          int kKGroupsOf,    // along K
          int kGroupColsOf,  // columns a warpgroup
          int kStagesOf,
          int kClusterOf,  // blocks on adjacent row tiles that share each W tile by multicast
          int kPartsOf =
              1,  // blocks on adjacent column tiles that quantize a group of 128 together
          bool kEngineStoresOf = false,  // kPlain: C leaves through the copy engine
          int kRowTilesOf = 1>           // products of 64 rows a warpgroup and step
struct BlockShape {
  static constexpr int kRowGroups = kRowGroupsOf;
  static constexpr int kColGroups = kColGroupsOf;
  static constexpr int kKGroups = kKGroupsOf;
  static constexpr int kGroupCols = kGroupColsOf;
  static constexpr int kStages = kStagesOf;
  static constexpr int kCluster = kClusterOf;
  static constexpr int kParts = kPartsOf;
  static constexpr bool kEngineStores = kEngineStoresOf;
  static constexpr int kRowTiles = kRowTilesOf;
  static constexpr int kBlocks = kCluster * kParts;  // in a launch's cluster
  static_assert(kCluster == 1 || kParts == 1);
  static constexpr int kGroupRows = kRowTiles * 64;
  static constexpr int kRows = kRowGroups * kGroupRows;
  static constexpr int kCols = kColGroups * kGroupCols;
  static constexpr int kXBytes = kRows * 128;
  static constexpr int kWBytes = kCols * 128;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kConsumers = kRowGroups * kColGroups * kKGroups;
  // A thread's sums and partial products: two of these, or one beside more sums.
  static constexpr int kSums = kGroupRows * kGroupCols / 128;
  static constexpr int kPartials = kSums <= 64 ? 2 : 1;
  static_assert(kSums + kPartials * kGroupCols / 2 <= 192, "registers");
  static_assert(kPartials == 2 || kKGroups == 1);
  // Whether there may be narrow tiles of 64 columns.
  static constexpr bool kNarrow = kPartials == 1 && kRowTiles == 1 && kColGroups == 1;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static_assert(kConsumers == 2, "the register budget is for two consumer warpgroups");

  // Behind the stages: 2 KB a consumer warp to turn accumulators into rows, as much for all of its
  // columns where the copy engine reads them later, row maxima or the sums of the second K group,
  // and the barriers.
  static constexpr int kWarpStagingBytes = kEngineStores ? kGroupCols / 64 * 2048 : 2048;
  static_assert(!kEngineStores || kGroupCols % 64 == 0);
  static constexpr int kStagingBytes = kWarpStagingBytes * kConsumers * 4;
  static constexpr int kJoinBytes = kKGroups == 2 ? kRows * kCols * 4 : 0;
  static constexpr int kMaxima = kParts * kColGroups * kRows;
  static constexpr int kExchangeBytes = kJoinBytes + 2 * kMaxima * 4;
  // The scales of a stage: one per row, then up to 8 of W.
  static constexpr int kScales = kRows + 8;
  static constexpr int kSharedBytes =
      1024 + kStages * (kStageBytes + kScales * 4 + 16) + kStagingBytes + kExchangeBytes + 16;
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
  int32_t row_tiles = 0;  // kDense
  int32_t col_tiles = 0;
  bool narrow = false;                // behind those, one of up to 64 columns a row tile
  const int4* tiles = nullptr;        // lists: expert, first row, rows
  const int32_t* totals = nullptr;    // lists: [0] tiles
  const int32_t* row_pair = nullptr;  // kGathered
  int32_t slots = 1;                  // kGathered: token = pair / slots
};

// X with boxes of a whole tile's rows and of half; C with boxes of a warp's 16 rows x 64 columns
// (kPlain).
struct XMaps {
  CUtensorMap whole;
  CUtensorMap half;
  CUtensorMap out;
};

// The first `rows` rows of x, for tiles of `tile_rows`.
inline cudaError_t encode_rows(const QuantizedRows& x,
                               int64_t rows,
                               int32_t tile_rows,
                               XMaps* maps) {
  TensorMap2d matrix{.data = x.data,
                     .dtype = DType::kF8E4M3,
                     .rows = rows,
                     .cols = x.cols,
                     .box_rows = tile_rows,
                     .box_cols = 128};
  const cudaError_t error = encode_2d(matrix, &maps->whole);
  if (error != cudaSuccess) return error;
  matrix.box_rows = tile_rows / 2;
  return encode_2d(matrix, &maps->half);
}

// The first `rows` rows of p.out.
inline cudaError_t encode_out(const Parameters& p, int64_t rows, XMaps* maps) {
  const TensorMap2d matrix{.data = p.out,
                           .dtype = DType::kBF16,
                           .rows = rows,
                           .cols = p.w_rows,
                           .stride_bytes = p.out_stride * 2,
                           .box_rows = 16,
                           .box_cols = 64};
  return encode_2d(matrix, &maps->out);
}

#ifdef R1D_SM90

// One tile of work.
struct Item {
  int32_t expert;
  int32_t row;   // first row
  int32_t rows;  // rows of the tile that exist
  int32_t col;   // first row of W
  bool shared;   // the blocks of the cluster take the same rows of W
};

// The items of a block, in order.
template <class Shape, Rows kRowsKind>
class Items {
 public:
  __device__ __forceinline__ Items(const Parameters& p, int32_t rank)
      : p_(p), rank_(rank), index_(blockIdx.x / Shape::kBlocks) {
    tiles_ = kRowsKind == Rows::kDense ? p.row_tiles
                                       : (p.totals[0] + Shape::kCluster - 1) / Shape::kCluster;
    if (kAhead && index_ < tiles_ * p.col_tiles) ahead_ = p.tiles[row_tile()];
  }
  __device__ __forceinline__ bool take(Item& item) {
    if (index_ >= tiles_ * (p_.col_tiles + (Shape::kNarrow && p_.narrow ? 1 : 0))) return false;
    if constexpr (kRowsKind == Rows::kDense) {
      item = dense_item();
    } else {
      const int4 tile = kAhead ? ahead_ : p_.tiles[list_tile(rank_)];
      item = {tile.x, tile.y, tile.z, col_tile() * Shape::kCols, false};
      if constexpr (Shape::kCluster == 2) item.shared = p_.tiles[list_tile(1 - rank_)].x == tile.x;
    }
    index_ += gridDim.x / Shape::kBlocks;
    if (kAhead && index_ < tiles_ * p_.col_tiles) ahead_ = p_.tiles[row_tile()];
    return true;
  }

 private:
  // Items of a short K fetch the next one while one is worked on.
  static constexpr bool kAhead = kRowsKind == Rows::kGrouped;

  // Gathered: column tiles of one row tile side by side, since they gather the same tokens.
  // Grouped: column tiles outermost, so that all experts' row tiles of a column tile are near in
  // time.
  __device__ __forceinline__ int32_t row_tile() const {
    return kRowsKind == Rows::kGathered ? index_ / p_.col_tiles : index_ % tiles_;
  }
  __device__ __forceinline__ int32_t col_tile() const {
    return kRowsKind == Rows::kGathered ? index_ % p_.col_tiles : index_ / tiles_;
  }
  // Neighbours in the list, which mostly belong to one expert; the last one twice where it has
  // none.
  __device__ __forceinline__ int32_t list_tile(int32_t rank) const {
    return Shape::kCluster == 1 ? row_tile()
                                : min(row_tile() * Shape::kCluster + rank, p_.totals[0] - 1);
  }
  // Bands of row tiles, so that the blocks of a wave share both X and W in L2; narrow tiles last,
  // where they make the shortest wave. Consumers come here between two tiles, so that there is a
  // division in the last band alone.
  __device__ __forceinline__ Item dense_item() {
    static_assert(Shape::kCluster == 1);
    constexpr int32_t kBand = 16;
    const int32_t in_band = kBand * p_.col_tiles;
    for (; index_ - band_first_ >= in_band && band_tile_ + kBand < tiles_; band_first_ += in_band)
      band_tile_ += kBand;
    const int32_t inside = index_ - band_first_;
    const int32_t height = min(kBand, tiles_ - band_tile_);
    int32_t across = inside / kBand;
    if (height < kBand) across = inside / height;
    int32_t tile = band_tile_ + inside - across * height;
    if (Shape::kNarrow && index_ >= tiles_ * p_.col_tiles) {
      across = p_.col_tiles;
      tile = index_ - tiles_ * p_.col_tiles;
    }
    const int32_t row = tile * Shape::kRows;
    const int32_t col_tile = across * Shape::kParts + (Shape::kParts > 1 ? rank_ : 0);
    return {0, row, min(Shape::kRows, p_.rows - row), col_tile * Shape::kCols, false};
  }

  const Parameters& p_;
  int32_t rank_;
  int32_t index_;
  int32_t tiles_;
  int32_t band_first_ = 0;  // item
  int32_t band_tile_ = 0;   // its first row tile
  int4 ahead_;
};

template <class Shape>
struct Shared {
  uint8_t* stages;
  uint8_t* staging;
  float* exchange;
  float* scale;
  uint64_t* full;
  uint64_t* empty;
  uint64_t* peaks;  // two: the maxima of all parts are here
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
    peaks = empty + Shape::kStages;
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

// This block's share of the W tile of one 128-column step, for all blocks of the cluster; or the
// whole tile for this one.
template <class Shape, bool kMulticast>
__device__ __forceinline__ void load_w(const Parameters& p,
                                       const Item& item,
                                       int32_t k_block,
                                       uint8_t* to,
                                       uint64_t* full,
                                       int32_t rank) {
  constexpr int kShare = Shape::kCols / (kMulticast ? Shape::kCluster : 1);
  constexpr int kPiece = kShare < 64 ? kShare : kShare % 64 == 0 ? 64 : 32;
  const uint8_t* tiles = p.w_tiles + item.expert * p.expert_tiles_stride;
#pragma unroll
  for (int i = 0; i < kShare / kPiece; ++i) {
    const int32_t in_tile = (kMulticast ? rank * kShare : 0) + i * kPiece;
    const int32_t row = item.col + in_tile;
    if (row >= p.w_rows) break;
    const uint8_t* from =
        tiles + (static_cast<int64_t>(row / 64) * p.k_blocks + k_block) * 8192 + row % 64 * 128;
    if constexpr (!kMulticast) {
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
  static constexpr int kUnit = Shape::kCols <= 128 || Shape::kGroupCols % 128 == 0 ? 128
                               : Shape::kGroupCols % 64 == 0                       ? 64
                                                                                   : 32;
  static constexpr int kCount = kGateUp ? 2 : (Shape::kCols + kUnit - 1) / kUnit;
  static_assert(kCount <= 8);
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

// The producer of W and, but for gathered rows, of X: one thread.
template <class Shape, Rows kRowsKind>
__device__ __forceinline__ void produce_tiles(const Parameters& p,
                                              const XMaps& maps,
                                              const Shared<Shape>& shared,
                                              int32_t rank) {
  Ring ring;
  Items<Shape, kRowsKind> items(p, rank);
  Item item;
  while (items.take(item)) {
    // A box that lies mostly beyond the last row costs more time than one half its size.
    const bool half = item.rows <= Shape::kRows / 2;
    const CUtensorMap& map = half ? maps.half : maps.whole;
    const bool no_rows = kRowsKind == Rows::kGathered;
    const int32_t x_bytes = no_rows ? 0 : half ? Shape::kXBytes / 2 : Shape::kXBytes;
    const uint32_t bytes = x_bytes + w_bytes<Shape>(p, item);
#pragma unroll 1
    for (int32_t k = 0; k < p.k_blocks; ++k, ring.advance(Shape::kStages)) {
      uint64_t* full = &shared.full[ring.stage];
      mbarrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(full, bytes);
      if (x_bytes > 0) tensor_load_2d(shared.x(ring.stage), &map, k * 128, item.row, full);
      if (Shape::kCluster > 1 && item.shared) {
        load_w<Shape, true>(p, item, k, shared.w(ring.stage), full, rank);
      } else {
        load_w<Shape, false>(p, item, k, shared.w(ring.stage), full, rank);
      }
    }
  }
}

// The scales of both: one warp.
template <class Shape, Rows kRowsKind, bool kGateUp>
__device__ __forceinline__ void produce_scales(const Parameters& p,
                                               const Shared<Shape>& shared,
                                               int32_t rank,
                                               int32_t lane) {
  using W = WScales<Shape, kGateUp>;
  constexpr int kRowsEach = Shape::kRows / 32;
  Ring ring;
  Items<Shape, kRowsKind> items(p, rank);
  Item item;
  while (items.take(item)) {
    int32_t row[kRowsEach];
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) row[j] = x_row<kRowsKind>(p, item, lane + 32 * j);
    const float* x = p.x_scale;
    const float* w = W::row(p, item, min(lane, W::kCount - 1));
#pragma unroll 1
    for (int32_t k = 0; k < p.k_blocks;
         ++k, ring.advance(Shape::kStages), x += p.x_scale_stride, ++w) {
      mbarrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
      float* to = shared.scales(ring.stage);
#pragma unroll
      for (int j = 0; j < kRowsEach; ++j) cp_async_4(to + lane + 32 * j, x + row[j]);
      if (lane < W::kCount) cp_async_4(to + Shape::kRows + lane, w);
      mbarrier_arrive_cp_async(&shared.full[ring.stage]);
    }
  }
}

// Waits for the oldest of a thread's `count` (1 to 3) groups under way.
__device__ __forceinline__ void cp_async_wait_oldest(int32_t count) {
  if (count == 1) return cp_async_wait<0>();
  if (count == 2) return cp_async_wait<1>();
  cp_async_wait<2>();
}

// The producer of gathered rows: two warps copy X by 16 bytes, a thread its chunk of every 8th row.
// A warp announces a stage by one lane (arrivals on a barrier pass one by one) when its copies have
// landed. It does so before it waits for a stage to be given back: waiting first would tie each
// step of the consumers to the end of one before. What a step costs here is instructions, so that
// addresses are kept and W and the scales left to other warps. Rows beyond the last repeat it.
template <class Shape, Rows kRowsKind>
__device__ __forceinline__ void produce_gathered(const Parameters& p,
                                                 const Shared<Shape>& shared,
                                                 int32_t rank,
                                                 int32_t thread) {
  constexpr int kUnroll = 4;
  constexpr int kMostInFlight = 3;
  constexpr int kRowsEach = Shape::kRows / 8;
  const int32_t chunk = thread % 8;
  const uint32_t to =
      smem_address(shared.x(0)) + thread / 8 * 128 + ((chunk ^ (thread / 8 % 8)) * 16);
  Ring ring;
  Ring landed;
  int32_t in_flight = 0;
  const auto announce_oldest = [&] {
    cp_async_wait_oldest(in_flight--);
    __syncwarp();
    if (thread % 32 == 0) mbarrier_arrive(&shared.full[landed.stage]);
    landed.advance(Shape::kStages);
  };
  Items<Shape, kRowsKind> items(p, rank);
  Item item;
  while (items.take(item)) {
    // The second half of a tile's rows may not be wanted.
    const bool whole = item.rows > 64;
    const uint8_t* from[kRowsEach];
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i)
      from[i] = p.x + x_row<kRowsKind>(p, item, thread / 8 + 8 * i) * p.x_cols + chunk * 16;
#pragma unroll 1
    for (int32_t begin = 0; begin < p.k_blocks; begin += kUnroll) {
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) {
        if (begin + j >= p.k_blocks) break;
        uint64_t* empty = &shared.empty[ring.stage];
        while (in_flight > 0 && !__all_sync(~0U, mbarrier_test(empty, ring.phase ^ 1)))
          announce_oldest();
        mbarrier_wait(empty, ring.phase ^ 1);
        const uint32_t row = to + ring.stage * Shape::kStageBytes;
#pragma unroll
        for (int i = 0; i < kRowsEach; ++i) {
          if (i < 8 || whole) cp_async_16(row + i * 1024, from[i] + j * 128);
        }
        cp_async_commit();
        if (++in_flight == kMostInFlight) announce_oldest();
        ring.advance(Shape::kStages);
      }
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) from[i] += kUnroll * 128;
    }
  }
  while (in_flight > 0) announce_oldest();
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
  __device__ __forceinline__ Place(int32_t warp_in_block, int32_t lane_in_warp) {
    const int32_t group = warp_in_block / 4;
    row_group = Shape::kRowGroups == 2 ? group : 0;
    col_group = Shape::kColGroups == 2 ? group : 0;
    k_group = Shape::kKGroups == 2 ? group : 0;
    warp = warp_in_block % 4;
    lane = lane_in_warp;
  }
  // Row in the block's tile of the warp's 16-row strip of a row tile.
  __device__ __forceinline__ int32_t strip_row(int row_tile = 0) const {
    return row_group * Shape::kGroupRows + row_tile * 64 + warp * 16;
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
  __device__ __forceinline__ void read(const float* from,
                                       const Place<Shape>& place,
                                       int row_tile = 0) {
    const float* rows = from + place.strip_row(row_tile) + place.lane / 4;
    x[0] = rows[0];
    x[1] = rows[8];
    const float* cols = from + Shape::kRows + W::first(place.col_group);
#pragma unroll
    for (int i = 0; i < W::kLocal; ++i) w[i] = cols[i];
  }
  // sum += scales * part, for as many columns as part has
  template <int kValues>
  __device__ __forceinline__ void promote(const float (&part)[kValues],
                                          float (&sum)[Shape::kGroupCols / 2]) const {
#pragma unroll
    for (int j = 0; j < kValues / 4; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float f = x[h] * w[W::of(j)];
        sum[4 * j + 2 * h] = fmaf(f, part[4 * j + 2 * h], sum[4 * j + 2 * h]);
        sum[4 * j + 2 * h + 1] = fmaf(f, part[4 * j + 2 * h + 1], sum[4 * j + 2 * h + 1]);
      }
    }
  }
};

// The low half of an operand's descriptor, which alone depends on the address, and the whole.
__device__ __forceinline__ uint32_t descriptor_low(const uint8_t* operand) {
  return static_cast<uint32_t>(wgmma_descriptor_k128(smem_address(operand)));
}
__device__ __forceinline__ uint64_t descriptor(uint32_t low) {
  return (wgmma_descriptor_k128(0) & ~uint64_t{0xFFFFFFFF}) | low;
}

// Starts part = X W^T over one 128-column step, as one group of four products; a and b are low
// halves.
template <int kCols>
__device__ __forceinline__ void start(float (&part)[kCols / 2], uint32_t a, uint32_t b) {
  wgmma_fence_registers(part);
  wgmma_fence();
  Wgmma<kCols>::e4m3(part, descriptor(a), descriptor(b), 0);
  Wgmma<kCols>::e4m3(part, descriptor(a + 2), descriptor(b + 2), 1);
  Wgmma<kCols>::e4m3(part, descriptor(a + 4), descriptor(b + 4), 1);
  Wgmma<kCols>::e4m3(part, descriptor(a + 6), descriptor(b + 6), 1);
  wgmma_commit();
}

// sum += the item's product; d[4 j + 2 h + c] as wgmma.cuh says. The next step's product starts
// before the last one's is promoted, so that the tensor cores do not wait for the promotion.
template <class Shape, bool kGathers, bool kGateUp>
__device__ __forceinline__ void multiply(const Parameters& p,
                                         const Place<Shape>& place,
                                         const Shared<Shape>& shared,
                                         Ring& ring,
                                         float (&sum)[Shape::kGroupCols / 2]) {
  constexpr int kCols = Shape::kGroupCols;
  const uint32_t a = descriptor_low(shared.x(0) + place.row_group * 64 * 128);
  const uint32_t b = descriptor_low(shared.w(0) + place.col_group * kCols * 128);
  struct Product {
    int32_t stage;
    Scales<Shape, kGateUp> scales;
  };
  Product even;
  Product odd;
  float even_part[kCols / 2];
  float odd_part[kCols / 2];
  int32_t k = 0;  // the next step
  const auto pass = [&] {
    ++k;
    ring.advance(Shape::kStages);
  };
  const auto begin = [&](Product& product, float(&part)[kCols / 2]) {
    mbarrier_wait(&shared.full[ring.stage], ring.phase);
    // cp.async writes through another proxy than wgmma reads.
    if constexpr (kGathers) fence_async_shared();
    product.stage = ring.stage;
    const uint32_t at = ring.stage * (Shape::kStageBytes / 16);
    start<kCols>(part, a + at, b + at);
    product.scales.read(shared.scales(ring.stage), place);
    pass();
    if (Shape::kKGroups == 2 && k < p.k_blocks) pass();  // the other group's step
  };
  const auto end = [&](const Product& product, float(&part)[kCols / 2]) {
    wgmma_fence_registers(part);
    release<Shape>(shared, product.stage, place.lane);
    product.scales.promote(part, sum);
  };
  if (place.k_group == 1) pass();
  if (k >= p.k_blocks) return;
  begin(even, even_part);
#pragma unroll 1
  while (true) {
    if (k >= p.k_blocks) {
      wgmma_wait<0>();
      end(even, even_part);
      break;
    }
    begin(odd, odd_part);
    wgmma_wait<1>();
    end(even, even_part);
    if (k >= p.k_blocks) {
      wgmma_wait<0>();
      end(odd, odd_part);
      break;
    }
    begin(even, even_part);
    wgmma_wait<1>();
    end(odd, odd_part);
  }
}

// The same with one partial product, for more sums: a warpgroup promotes while the other one
// multiplies. They fall into turns by themselves as long as each issues its four products in one
// go: where they wait between two, the other's slip in, both end at once, and the tensor cores wait
// for both promotions.
template <class Shape, bool kGathers, bool kGateUp, int kCols>
__device__ __forceinline__ void multiply_large(
    const Parameters& p,
    const Item& item,
    const Place<Shape>& place,
    const Shared<Shape>& shared,
    Ring& ring,
    float (&sum)[Shape::kRowTiles][Shape::kGroupCols / 2]) {
  const uint32_t a = descriptor_low(shared.x(0) + place.row_group * Shape::kGroupRows * 128);
  const uint32_t b = descriptor_low(shared.w(0) + place.col_group * Shape::kGroupCols * 128);
  const int32_t last =
      item.rows > place.row_group * Shape::kGroupRows + 64 ? Shape::kRowTiles - 1 : 0;
  Scales<Shape, kGateUp> scales;
  float part[kCols / 2];
  bool ready = false;
#pragma unroll 1
  for (int32_t k = 0; k < p.k_blocks; ++k) {
    if (!ready) mbarrier_wait(&shared.full[ring.stage], ring.phase);
    // cp.async writes through another proxy than wgmma reads.
    if constexpr (kGathers) fence_async_shared();
    const int32_t stage = ring.stage;
    const uint32_t at = stage * (Shape::kStageBytes / 16);
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i) {
      scales.read(shared.scales(stage), place, i);
      start<kCols>(part, a + at + i * (64 * 128 / 16), b + at);
      wgmma_wait<0>();
      wgmma_fence_registers(part);
      if (i == last) {
        release<Shape>(shared, stage, place.lane);
        ring.advance(Shape::kStages);
        ready = mbarrier_test(&shared.full[ring.stage], ring.phase);
      }
      scales.promote(part, sum[i]);
      if (i == last) break;
    }
  }
}

// ---- reduce ------------------------------------------------------------------------------------

// The second K group hands its sums to the first, which alone stores.
template <class Shape>
__device__ __forceinline__ void join_k_groups(const Place<Shape>& place,
                                              const Shared<Shape>& shared,
                                              float (&sum)[Shape::kGroupCols / 2]) {
  float* cells = shared.exchange + 2 * Shape::kMaxima + place.warp * 32 + place.lane;
  if (place.k_group == 1) {
#pragma unroll
    for (int i = 0; i < Shape::kGroupCols / 2; ++i) cells[i * 128] = sum[i];
  }
  named_barrier(1, 256);
  if (place.k_group == 0) {
#pragma unroll
    for (int i = 0; i < Shape::kGroupCols / 2; ++i) sum[i] += cells[i * 128];
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

// Turns a warp's 16 rows x kBlocks 8-column blocks into rows of bf16 in its staging, 16-byte chunks
// swizzled: `value(j, h)` is the thread's packed pair of columns of block j.
template <int kBlocks, typename Value>
__device__ __forceinline__ void stage_rows(uint32_t staging, int32_t lane, Value value) {
#pragma unroll
  for (int j = 0; j < kBlocks; j += 2) {
    const uint32_t four[4] = {value(j, 0), value(j, 1), value(j + 1, 0), value(j + 1, 1)};
    const int32_t row = lane % 16;
    const int32_t chunk = j + lane / 16;
    stmatrix_x4(staging + row * kBlocks * 16 + ((chunk ^ (row & (kBlocks - 1))) * 16), four);
  }
}

// Writes a warp's rows through its staging; `rows` of the strip exist; 16-byte stores of whole
// 128-byte row pieces.
template <int kBlocks, typename Value>
__device__ __forceinline__ void store_rows(
    uint8_t* staging, int32_t lane, int32_t rows, __nv_bfloat16* out, int64_t stride, Value value) {
  constexpr int kRowBytes = kBlocks * 16;
  constexpr int kChunkMask = kBlocks - 1;
  __syncwarp();
  stage_rows<kBlocks>(smem_address(staging), lane, value);
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

// The copy engine takes a warp's strip from its staging, 64 columns from every 2 KB, and the warp
// goes on to its next item meanwhile.
template <int kParts, typename Value>
__device__ __forceinline__ void store_by_engine(const CUtensorMap& map,
                                                int32_t cols,
                                                int32_t lane,
                                                uint8_t* staging,
                                                int32_t col,
                                                int32_t row,
                                                Value value) {
  if (lane == 0) bulk_store_wait_read<0>();
  __syncwarp();
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    stage_rows<8>(smem_address(staging + part * 2048), lane, [&](int j, int h) {
      return value(part * 8 + j, h);
    });
  }
  fence_async_shared();
  __syncwarp();
  if (lane == 0) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (part * 64 < cols) tensor_store_2d(&map, staging + part * 2048, col + part * 64, row);
    }
    bulk_store_commit();
  }
}

template <class Shape, Rows kRowsKind>
__device__ __forceinline__ void store_plain(const Parameters& p,
                                            const CUtensorMap& map,
                                            const Item& item,
                                            const Place<Shape>& place,
                                            uint8_t* staging,
                                            int row_tile,
                                            const float (&sum)[Shape::kGroupCols / 2]) {
  constexpr int kBlocks = Shape::kGroupCols % 64 == 0 ? 8 : 4;  // 8-column blocks at a time
  const int32_t rows = item.rows - place.strip_row(row_tile);
  const int32_t row = item.row + place.strip_row(row_tile);
  const int32_t first_col = item.col + place.col_group * Shape::kGroupCols;
  if (rows <= 0 || first_col >= p.w_rows) return;
  const auto value = [&](int j, int h) {
    return pack_bf16(sum[4 * j + 2 * h], sum[4 * j + 2 * h + 1]);
  };
  if constexpr (Shape::kEngineStores) {
    // The engine stops at the last row of the matrix, but not at an expert's.
    if (kRowsKind == Rows::kDense || rows >= 16) {
      return store_by_engine<Shape::kGroupCols / 64>(
          map, p.w_rows - first_col, place.lane, staging, first_col, row, value);
    }
    if (place.lane == 0) bulk_store_wait_read<0>();
  }
#pragma unroll
  for (int part = 0; part < Shape::kGroupCols / 8 / kBlocks; ++part) {
    const int32_t col = first_col + part * kBlocks * 8;
    if (col >= p.w_rows) break;
    store_rows<kBlocks>(staging,
                        place.lane,
                        rows,
                        p.out + row * p.out_stride + col,
                        p.out_stride,
                        [&](int j, int h) { return value(part * kBlocks + j, h); });
  }
}

__device__ __forceinline__ float swiglu(float gate, float up) {
  return __fdividef(gate, 1.0F + __expf(-gate)) * up;
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
__device__ __forceinline__ void store_swiglu_bf16(const Parameters& p,
                                                  const Item& item,
                                                  const Place<Shape>& place,
                                                  uint8_t* staging,
                                                  float (&sum)[Shape::kGroupCols / 2]) {
  static_assert(Shape::kGroupCols == 128);
  const int32_t col = (item.col + place.col_group * 128) / 2;  // of h
  const int32_t rows = item.rows - place.strip_row();
  if (rows <= 0) return;
  apply_swiglu(sum);
  __nv_bfloat16* out = p.out + (item.row + place.strip_row()) * p.out_stride + col;
  // Two halves of 32 columns, since I is a multiple of 32 alone.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (col + half * 32 >= p.w_rows / 2) break;
    store_rows<4>(staging, place.lane, rows, out + half * 32, p.out_stride, [&](int j, int h) {
      const float* d = &sum[8 * (half * 4 + j) + 2 * h];
      return pack_bf16(d[0], d[1]);
    });
  }
}

// Stores to shared memory of another block of the cluster and counts the bytes on that block's
// barrier.
__device__ __forceinline__ void remote_store(uint32_t address, float value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
          address),
      "r"(__float_as_uint(value)),
      "r"(barrier)
      : "memory");
}

// 256 rows of W make one group of 128 of h. It may lie in two column groups and several blocks:
// each tells all the largest magnitude of its part of every row. `turn` counts the block's items:
// its parity picks one of two sets of maxima, so that a reader is never overtaken.
template <class Shape>
struct Maxima {
  float* cells;
  uint64_t* peaks;
  int32_t rank;
  uint32_t phase;

  __device__ __forceinline__ Maxima(const Shared<Shape>& shared,
                                    int32_t turn,
                                    int32_t rank_in_cluster)
      : cells(shared.exchange + turn % 2 * Shape::kMaxima),
        peaks(&shared.peaks[turn % 2]),
        rank(rank_in_cluster),
        phase(turn / 2 % 2) {}
  // One announcement per item, by a thread that writes after it.
  __device__ __forceinline__ void open() const {
    if (Shape::kParts > 1 && threadIdx.x == 0) mbarrier_arrive_expect(peaks, Shape::kMaxima * 4);
  }
  // `value` of row `row`, the same in the 4 lanes of a quad.
  __device__ __forceinline__ void write(const Place<Shape>& place, int32_t row, float value) const {
    if constexpr (Shape::kParts == 1) {
      if (place.lane % 4 == 0) cells[place.col_group * Shape::kRows + row] = value;
    } else {
      const uint32_t cell =
          smem_address(cells + (rank * Shape::kColGroups + place.col_group) * Shape::kRows + row);
      for (int32_t part = place.lane % 4; part < Shape::kParts; part += 4) {
        remote_store(
            cluster_address(cell, part), value, cluster_address(smem_address(peaks), part));
      }
    }
  }
  __device__ __forceinline__ void wait() const {
    if constexpr (Shape::kParts > 1) {
      mbarrier_wait(peaks, phase);
    } else if constexpr (Shape::kColGroups == 2) {
      named_barrier(1, 256);
    } else {
      __syncwarp();
    }
  }
  __device__ __forceinline__ float read(int32_t row) const {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < Shape::kParts * Shape::kColGroups; ++i)
      largest = fmaxf(largest, cells[i * Shape::kRows + row]);
    return largest;
  }
};

// Turns the sums into h and tells the largest magnitude of its part of every row.
template <class Shape>
__device__ __forceinline__ void write_maxima(const Place<Shape>& place,
                                             const Maxima<Shape>& maxima,
                                             int row_tile,
                                             float (&sum)[Shape::kGroupCols / 2]) {
  apply_swiglu(sum);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float m = 0;
#pragma unroll
    for (int b = 0; b < Shape::kGroupCols / 16; ++b) {
      m = fmaxf(m, fmaxf(fabsf(sum[8 * b + 2 * h]), fabsf(sum[8 * b + 2 * h + 1])));
    }
    m = fmaxf(m, __shfl_xor_sync(~0U, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0U, m, 2));
    maxima.write(place, place.strip_row(row_tile) + 8 * h + place.lane / 4, m);
  }
}

template <class Shape>
__device__ __forceinline__ void store_quantized(const Parameters& p,
                                                const Item& item,
                                                const Place<Shape>& place,
                                                const Maxima<Shape>& maxima,
                                                uint8_t* staging,
                                                int row_tile,
                                                const float (&sum)[Shape::kGroupCols / 2]) {
  constexpr int kBlocks = Shape::kGroupCols / 16;  // 8-column blocks of h
  constexpr int kRowBytes = kBlocks * 8;
  const int32_t strip = place.strip_row(row_tile);
  const int32_t group = item.col / 256;
  const int32_t col = (item.col + place.col_group * Shape::kGroupCols) / 2;  // of h
  const int32_t rows = item.rows - strip;
  if (rows <= 0) return;
  __syncwarp();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int32_t row = 8 * h + place.lane / 4;
    const float m = maxima.read(strip + row);
    const float scale = m > 0 ? m / 448.0F : 1.0F;
    const float inverse = 1.0F / scale;
    if (col % 128 == 0 && place.lane % 4 == 0 && row < rows) {
      p.out_scale[group * p.out_scale_stride + item.row + strip + row] = scale;
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const float2 pair =
          make_float2(sum[8 * b + 2 * h] * inverse, sum[8 * b + 2 * h + 1] * inverse);
      *reinterpret_cast<__nv_fp8x2_storage_t*>(staging + row * kRowBytes + b * 8 +
                                               place.lane % 4 * 2) =
          __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
    }
  }
  __syncwarp();
  constexpr int kChunks = kRowBytes / 16;
#pragma unroll
  for (int i = place.lane; i < 16 * kChunks; i += 32) {
    const int32_t row = i / kChunks;
    const int32_t chunk = i % kChunks;
    uint8_t* to = p.out_data + (item.row + strip + row) * static_cast<int64_t>(p.w_rows / 2) + col +
                  chunk * 16;
    if (row < rows)
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(staging + i * 16);
  }
}

template <class Shape>
__device__ __forceinline__ void store_swiglu_quantized(
    const Parameters& p,
    const Item& item,
    const Place<Shape>& place,
    const Maxima<Shape>& maxima,
    uint8_t* staging,
    float (&sum)[Shape::kRowTiles][Shape::kGroupCols / 2]) {
  static_assert(Shape::kCols * Shape::kParts == 256);
  maxima.open();
#pragma unroll
  for (int i = 0; i < Shape::kRowTiles; ++i) write_maxima<Shape>(place, maxima, i, sum[i]);
  maxima.wait();
#pragma unroll
  for (int i = 0; i < Shape::kRowTiles; ++i)
    store_quantized<Shape>(p, item, place, maxima, staging, i, sum[i]);
}

#endif  // R1D_SM90

// ---- the kernel --------------------------------------------------------------------------------

template <class Shape, Rows kRowsKind, Output kOutput>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    block_product(const __grid_constant__ XMaps maps, const __grid_constant__ Parameters p) {
#ifdef R1D_SM90
  extern __shared__ uint8_t raw[];
  const Shared<Shape> shared(raw);
  constexpr int kConsumerThreads = Shape::kConsumers * 128;
  constexpr bool kGathers = kRowsKind == Rows::kGathered;
  constexpr bool kGateUp = kOutput != Output::kPlain;
  const int32_t rank = Shape::kBlocks > 1 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Shape::kStages; ++s) {
      mbarrier_init(&shared.full[s], kGathers ? 35 : 33);
      mbarrier_init(&shared.empty[s], Shape::kConsumers / Shape::kKGroups * 4 * Shape::kCluster);
    }
    for (int i = 0; i < 2; ++i) mbarrier_init(&shared.peaks[i], 1);
    mbarrier_init_fence();
  }
  if constexpr (Shape::kBlocks > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  grid_dependency_wait();
  grid_launch_dependents();

  // Uniform, and known to be: only then does the compiler keep descriptors in uniform registers.
  // Elsewhere each product waits for four moves there.
  const int32_t warp = __shfl_sync(~0U, threadIdx.x / 32, 0);
  if (warp >= Shape::kConsumers * 4) {
    registers_lower<kGathers ? 56 : 40>();
    const int32_t thread = threadIdx.x - kConsumerThreads;
    if (thread == 0) {
      produce_tiles<Shape, kRowsKind>(p, maps, shared, rank);
    } else if (thread / 32 == 1) {
      produce_scales<Shape, kRowsKind, kGateUp>(p, shared, rank, thread % 32);
    } else if (kGathers && thread >= 64) {
      produce_gathered<Shape, kRowsKind>(p, shared, rank, thread - 64);
    }
    __syncwarp();
  } else {
    registers_raise<kGathers ? 224 : 232>();
    const Place<Shape> place(warp, threadIdx.x % 32);
    uint8_t* staging = shared.staging + warp * Shape::kWarpStagingBytes;
    Ring ring;
    int32_t turn = 0;
    Items<Shape, kRowsKind> items(p, rank);
    Item item;
    while (items.take(item)) {
      float sum[Shape::kRowTiles][Shape::kGroupCols / 2] = {};
      if constexpr (Shape::kPartials == 1) {
        if (Shape::kNarrow && p.w_rows - item.col <= 64) {
          multiply_large<Shape, kGathers, kGateUp, 64>(p, item, place, shared, ring, sum);
        } else {
          multiply_large<Shape, kGathers, kGateUp, Shape::kGroupCols>(
              p, item, place, shared, ring, sum);
        }
      } else {
        multiply<Shape, kGathers, kGateUp>(p, place, shared, ring, sum[0]);
      }
      if constexpr (Shape::kKGroups == 2) {
        join_k_groups<Shape>(place, shared, sum[0]);
        if (place.k_group == 1) continue;
      }
      if constexpr (kOutput == Output::kPlain) {
#pragma unroll
        for (int i = 0; i < Shape::kRowTiles; ++i)
          store_plain<Shape, kRowsKind>(p, maps.out, item, place, staging, i, sum[i]);
      } else if constexpr (kOutput == Output::kSwiGluBf16) {
        store_swiglu_bf16<Shape>(p, item, place, staging, sum[0]);
      } else {
        store_swiglu_quantized<Shape>(
            p, item, place, Maxima<Shape>(shared, turn++, rank), staging, sum);
      }
    }
    // Staging lives until the copy engine has read it.
    if constexpr (kOutput == Output::kPlain && Shape::kEngineStores) bulk_store_wait_read<0>();
  }
  if constexpr (Shape::kBlocks > 1) {
    // A block leaves when no other of its cluster may still copy to it or arrive on its barriers.
    cluster_arrive();
    cluster_wait();
  }
#endif
}

}  // namespace r1d::kernels::prefill
