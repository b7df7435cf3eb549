// SPDX-License-Identifier: Apache-2.0
// Problem   out[t, r] = sum over k of x(t, k) w(r, k), e4m3 with one scale per 1 x 128 of x and per
//           128 x 128 of w, for some ten to 64 tokens and few rows of w.
// Layout    layout.h: QuantizedRows for x, TiledMatrix for w; out row-major bf16.
// Bound     bytes of w; behind them the steps of a block, each a wait, four products and a sum.
// Launch    A cluster of `split` blocks makes a tile of 64 tokens x 64 rows of w, each block from a
//           slice of K. In a block one thread streams w, its first stages before the dependency
//           wait; behind it one thread streams x and one warp fetches the slice's scales. Two
//           consumer warpgroups take even and odd steps of the slice. Shared memory sets the
//           occupancy, one block an SM; registers leave room for a kernel beside it.
// Numerics  the partial product of every 128 columns is multiplied by its scales and added in f32;
//           a tile's slices are added in order of K, even steps of a slice before odd ones.
// Source    DeepSeek-V3 report, section 3.3.2; a cluster's sum as in fp8_gemm.
#include <algorithm>
#include <cuda.h>

#include "kernels/common/ptx.cuh"
#include "kernels/common/ring.cuh"
#include "kernels/common/tensor_map.h"
#include "kernels/common/wgmma.cuh"
#include "kernels/fp8_gemm_prefill/split_product.h"

namespace r1d::kernels::prefill {
namespace {

constexpr int kRows = 64;
constexpr int kCols = 64;
constexpr int kTileBytes = 64 * 128;  // of w and of x, a step
constexpr int kKGroups = 2;           // warpgroups, which take turns over the steps
constexpr int kConsumerThreads = kKGroups * 128;
constexpr int kThreads = kConsumerThreads + 3 * 32;
// What is summed over a cluster, in units of 8 columns: 4 values a thread of a warpgroup.
constexpr int kUnits = kCols / 8;
constexpr int kUnitBytes = 128 * 16;
constexpr int kMaxShared = 227 * 1024;
// Tiles of w that a block has under way, no more than its ring has stages: enough for its share of
// the memory's bandwidth. More would only stand before x in the copy engine's queue.
constexpr int kUnderWay = 6;

struct Arguments {
  const uint8_t* w_tiles = nullptr;
  const float* w_scale = nullptr;
  const float* x_scale = nullptr;
  int64_t x_scale_stride = 0;
  int32_t tokens = 0;
  int32_t k_blocks = 0;
  __nv_bfloat16* out = nullptr;
  int64_t out_stride = 0;
  int32_t split = 0;
  int32_t slice = 0;        // steps of 128 columns, a block
  int32_t long_slices = 0;  // the first blocks of a cluster, which take one step more
  int32_t w_stages = 0;
  int32_t x_stages = 0;
  int32_t x_box_rows = 0;
};

// Byte offsets in a block's shared memory.
struct SharedPlan {
  int32_t x;         // behind the tiles of w
  int32_t exchange;  // [units this block adds up][slices][128 threads][4] f32, by the whole cluster
  int32_t x_scale;   // [steps][rows] f32
  int32_t w_scale;   // [steps] f32
  int32_t barriers;  // full and empty of w's stages, of x's, scales, added
  int32_t bytes;
};
__host__ __device__ constexpr SharedPlan shared_plan(int split,
                                                     int steps,
                                                     int w_stages,
                                                     int x_stages) {
  SharedPlan plan{};
  plan.x = w_stages * kTileBytes;
  plan.exchange = plan.x + x_stages * kTileBytes;
  plan.x_scale = plan.exchange + (kUnits + split - 1) / split * split * kKGroups * kUnitBytes;
  plan.w_scale = plan.x_scale + steps * kRows * 4;
  plan.barriers = plan.w_scale + (steps + 1) / 2 * 8;
  plan.bytes = plan.barriers + (2 * w_stages + 2 * x_stages + 2) * 8;
  return plan;
}

#ifdef R1D_SM90

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// What a block has to do, and where in shared memory.
struct Block {
  int32_t rank;
  int32_t first_step;
  int32_t steps;
  int32_t row;
  int32_t rows;  // that exist
  int32_t strip;
  uint8_t* w;
  uint8_t* x;
  float* exchange;
  float* x_scale;
  float* w_scale;
  uint64_t* full_w;
  uint64_t* empty_w;
  uint64_t* full_x;
  uint64_t* empty_x;
  uint64_t* scales;
  uint64_t* added;

  __device__ __forceinline__ Block(const Arguments& a, uint8_t* shared)
      : rank(static_cast<int32_t>(blockIdx.x)),
        first_step(rank * a.slice + min(rank, a.long_slices)),
        steps(a.slice + (rank < a.long_slices ? 1 : 0)),
        row(static_cast<int32_t>(blockIdx.z) * kRows),
        rows(min(kRows, a.tokens - row)),
        strip(static_cast<int32_t>(blockIdx.y)),
        w(shared) {
    const SharedPlan plan =
        shared_plan(a.split, a.slice + (a.long_slices > 0 ? 1 : 0), a.w_stages, a.x_stages);
    x = shared + plan.x;
    exchange = reinterpret_cast<float*>(shared + plan.exchange);
    x_scale = reinterpret_cast<float*>(shared + plan.x_scale);
    w_scale = reinterpret_cast<float*>(shared + plan.w_scale);
    full_w = reinterpret_cast<uint64_t*>(shared + plan.barriers);
    empty_w = full_w + a.w_stages;
    full_x = empty_w + a.w_stages;
    empty_x = full_x + a.x_stages;
    scales = empty_x + a.x_stages;
    added = scales + 1;
  }
  // Warps of a warpgroup whose 16 tokens exist.
  __device__ __forceinline__ int32_t warps() const { return (rows + 15) / 16; }
  // Unit u is added up by block u % split, as its unit u / split. Every block has one.
  __device__ __forceinline__ int32_t owned_units(int32_t split) const {
    return (kUnits - rank + split - 1) / split;
  }
};

// ---- load --------------------------------------------------------------------------------------

__device__ __forceinline__ void init_barriers(const Arguments& a,
                                              const Block& block,
                                              int32_t lane) {
  constexpr int kReaders = 4;  // warps: a stage is one warpgroup's
  for (int32_t i = lane; i < a.w_stages; i += 32) {
    mbarrier_init(&block.full_w[i], 1);
    mbarrier_init(&block.empty_w[i], kReaders);
  }
  for (int32_t i = lane; i < a.x_stages; i += 32) {
    mbarrier_init(&block.full_x[i], 1);
    mbarrier_init(&block.empty_x[i], kReaders);
  }
  if (lane == 0) {
    mbarrier_init(block.scales, 32);
    mbarrier_init(block.added, 1);
  }
  mbarrier_init_fence();
  if (lane == 0) {
    mbarrier_arrive_expect(
        block.added, block.owned_units(a.split) * a.split * kKGroups * block.warps() * 32 * 16);
  }
}

__device__ __forceinline__ void load_w(const Arguments& a, const Block& block) {
  const uint8_t* from =
      a.w_tiles + (static_cast<int64_t>(block.strip) * a.k_blocks + block.first_step) * kTileBytes;
  Ring ring;
  Ring landed;
#pragma unroll 1
  for (int32_t i = 0; i < block.steps; ++i, from += kTileBytes, ring.advance(a.w_stages)) {
    if (i >= kUnderWay) {
      mbarrier_wait(&block.full_w[landed.stage], landed.phase);
      landed.advance(a.w_stages);
    }
    uint64_t* full = &block.full_w[ring.stage];
    mbarrier_wait(&block.empty_w[ring.stage], ring.phase ^ 1);
    mbarrier_arrive_expect(full, kTileBytes);
    bulk_load(block.w + ring.stage * kTileBytes, from, kTileBytes, full);
  }
}

__device__ __forceinline__ void load_x(const Arguments& a,
                                       const CUtensorMap& map,
                                       const Block& block) {
  Ring ring;
#pragma unroll 1
  for (int32_t i = 0; i < block.steps; ++i, ring.advance(a.x_stages)) {
    uint64_t* full = &block.full_x[ring.stage];
    mbarrier_wait(&block.empty_x[ring.stage], ring.phase ^ 1);
    mbarrier_arrive_expect(full, a.x_box_rows * 128);
    tensor_load_2d(
        block.x + ring.stage * kTileBytes, &map, (block.first_step + i) * 128, block.row, full);
  }
}

// The scales of the whole slice, w's ahead of the dependency wait. One warp.
__device__ __forceinline__ void load_scales(const Arguments& a, const Block& block, int32_t lane) {
  const float* of_w =
      a.w_scale + static_cast<int64_t>(block.strip / 2) * a.k_blocks + block.first_step;
  for (int32_t i = lane; i < block.steps; i += 32)
    cp_async_4(smem_address(block.w_scale + i), of_w + i);
  grid_dependency_wait();
  // 16 bytes are 4 tokens; the stride holds whole ones.
  constexpr int32_t kChunks = kRows / 4;
  const int32_t token = lane % kChunks * 4;
  const float* from = a.x_scale + block.first_step * a.x_scale_stride + block.row + token;
  if (token < block.rows) {
#pragma unroll 4
    for (int32_t i = lane / kChunks; i < block.steps; i += 32 / kChunks)
      cp_async_16(smem_address(block.x_scale + i * kRows + token), from + i * a.x_scale_stride);
  }
  mbarrier_arrive_cp_async(block.scales);
}

// ---- compute -----------------------------------------------------------------------------------

// sum += the block's product over the steps of warpgroup kGroup; d[4 j + 2 h + c] as wgmma.cuh
// says. The group is a constant, so that stages and descriptors are uniform registers.
template <int kGroup>
__device__ __forceinline__ void multiply(const Arguments& a,
                                         const Block& block,
                                         float (&sum)[kCols / 2]) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const float* of_x = block.x_scale + static_cast<int32_t>(threadIdx.x) / 32 % 4 * 16 + lane / 4;
  const uint64_t x = wgmma_descriptor_k128(smem_address(block.x));
  const uint64_t w = wgmma_descriptor_k128(smem_address(block.w));
  Ring of_w_tile;
  Ring of_x_tile;
  if (kGroup == 1) {
    of_w_tile.advance(a.w_stages);
    of_x_tile.advance(a.x_stages);
  }
#pragma unroll 1
  for (int32_t step = kGroup; step < block.steps; step += kKGroups) {
    float part[kCols / 2];
    mbarrier_wait(&block.full_w[of_w_tile.stage], of_w_tile.phase);
    mbarrier_wait(&block.full_x[of_x_tile.stage], of_x_tile.phase);
    const uint64_t from_x = x + of_x_tile.stage * (kTileBytes / 16);
    const uint64_t from_w = w + of_w_tile.stage * (kTileBytes / 16);
    wgmma_fence_registers(part);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) Wgmma<kCols>::e4m3(part, from_x + 2 * i, from_w + 2 * i, i != 0);
    wgmma_commit();
    mbarrier_wait(block.scales, 0);
    const float of_w = block.w_scale[step];
    const float scale[2] = {of_x[step * kRows] * of_w, of_x[step * kRows + 8] * of_w};
    wgmma_wait<0>();
    wgmma_fence_registers(part);
    if (lane == 0) {
      if (step + a.w_stages < block.steps) mbarrier_arrive(&block.empty_w[of_w_tile.stage]);
      if (step + a.x_stages < block.steps) mbarrier_arrive(&block.empty_x[of_x_tile.stage]);
    }
#pragma unroll
    for (int i = 0; i < kCols / 2; ++i) sum[i] = fmaf(scale[i / 2 % 2], part[i], sum[i]);
#pragma unroll
    for (int i = 0; i < kKGroups; ++i) {
      of_w_tile.advance(a.w_stages);
      of_x_tile.advance(a.x_stages);
    }
  }
}

// ---- reduce and store --------------------------------------------------------------------------

// Hands a warpgroup's sums to the blocks that add them up, each thread's to the same thread there.
__device__ __forceinline__ void send(const Arguments& a,
                                     const Block& block,
                                     const float (&sum)[kCols / 2]) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x) % 128;
  if (thread / 32 >= block.warps()) return;
  const int32_t slices = a.split * kKGroups;
  const int32_t slice = block.rank * kKGroups + static_cast<int32_t>(threadIdx.x) / 128;
  const uint32_t to = smem_address(block.exchange) + slice * kUnitBytes + thread * 16;
  const uint32_t added = smem_address(block.added);
  int32_t owner = 0;
  int32_t local = 0;
#pragma unroll
  for (int j = 0; j < kUnits; ++j) {
    cluster_store_async(cluster_address(to + local * slices * kUnitBytes, owner),
                        make_float4(sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]),
                        cluster_address(added, owner));
    if (++owner == a.split) {
      owner = 0;
      ++local;
    }
  }
}

// Adds up the block's units in order of the slices and stores them; warpgroups take turns.
__device__ __forceinline__ void store(const Arguments& a, const Block& block) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x) % 128;
  const int32_t lane = thread % 32;
  const int32_t row = thread / 32 * 16 + lane / 4;
  if (row >= block.rows) return;
  const int32_t slices = a.split * kKGroups;
  const float* from = block.exchange + thread * 4;
  __nv_bfloat16* to = a.out + (block.row + row) * a.out_stride + block.strip * kCols + lane % 4 * 2;
#pragma unroll 1
  for (int32_t local = static_cast<int32_t>(threadIdx.x) / 128;
       local * a.split + block.rank < kUnits;
       local += kKGroups) {
    const float* unit = from + local * slices * (kUnitBytes / 4);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 2
    for (int32_t s = 0; s < slices; ++s) {
      const float4 part = *reinterpret_cast<const float4*>(unit + s * (kUnitBytes / 4));
      sum.x += part.x;
      sum.y += part.y;
      sum.z += part.z;
      sum.w += part.w;
    }
    __nv_bfloat16* out = to + (local * a.split + block.rank) * 8;
    *reinterpret_cast<uint32_t*>(out) = pack_bf16(sum.x, sum.y);
    if (row + 8 < block.rows)
      *reinterpret_cast<uint32_t*>(out + 8 * a.out_stride) = pack_bf16(sum.z, sum.w);
  }
}

#endif  // R1D_SM90

// ---- the kernel --------------------------------------------------------------------------------

// blockIdx: slice of K (the cluster), strip of w, tile of tokens.
__global__ void __launch_bounds__(kThreads, 1)
    split_product_kernel(const __grid_constant__ CUtensorMap map,
                         const __grid_constant__ Arguments a) {
#ifdef R1D_SM90
  extern __shared__ __align__(1024) uint8_t shared[];
  const Block block(a, shared);
  const int32_t warp = __shfl_sync(~0U, static_cast<int32_t>(threadIdx.x) / 32, 0);
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  constexpr int32_t kProducer = kConsumerThreads / 32;
  if (warp == kProducer) init_barriers(a, block, lane);
  __syncthreads();
  grid_launch_dependents();
  cluster_arrive_relaxed();  // after everyone's wait, everyone's barriers stand

  if (warp >= kProducer) {
    if (warp == kProducer) {
      if (lane == 0) load_w(a, block);
    } else if (warp == kProducer + 1) {
      if (lane == 0) {
        tensor_prefetch_map(&map);
        grid_dependency_wait();
        load_x(a, map, block);
      }
    } else {
      load_scales(a, block, lane);
    }
    __syncwarp();
    cluster_wait();
    return;
  }

  float sum[kCols / 2] = {};
  if (warp < 4) {
    multiply<0>(a, block, sum);
  } else {
    multiply<1>(a, block, sum);
  }
  cluster_wait();
  send(a, block, sum);
  mbarrier_wait(block.added, 0);
  store(a, block);
#endif
}

// ---- launch ------------------------------------------------------------------------------------

int32_t ceil_div(int64_t a, int64_t b) {
  return static_cast<int32_t>((a + b - 1) / b);
}

static_assert(shared_plan(7, kSplitMostSteps, kUnderWay, 8).bytes <= kMaxShared);

// Stages of both rings: x's as deep as its way from L2 asks for, the rest to w, which starts early.
struct Stages {
  int32_t w = 0;
  int32_t x = 0;
  int32_t bytes = 0;
};
Stages stages_of(int32_t split, int32_t steps) {
  constexpr int32_t kLeast = 2;  // one for each warpgroup
  constexpr int32_t kXUnderWay = 8;
  Stages stages{.w = std::max(steps, kLeast), .x = std::clamp(steps, kLeast, kXUnderWay)};
  const auto bytes = [&] { return shared_plan(split, steps, stages.w, stages.x).bytes; };
  while (stages.w > kUnderWay && bytes() > kMaxShared) --stages.w;
  stages.bytes = bytes();
  return stages;
}

}  // namespace

cudaError_t split_product(const TiledMatrix& weight,
                          const QuantizedRows& x,
                          int32_t tokens,
                          __nv_bfloat16* out,
                          int64_t out_stride,
                          int32_t split,
                          const Launch& launch) {
  constexpr int32_t kMostSplit = 8;
  constexpr int64_t kMostBlocks = 65535;  // along y and z
  Arguments a;
  a.k_blocks = static_cast<int32_t>(weight.cols / 128);
  const int64_t strips = weight.rows / kCols;
  const int32_t row_tiles = ceil_div(tokens, kRows);
  const bool served = split >= 2 && split <= std::min(kMostSplit, a.k_blocks) &&
                      ceil_div(a.k_blocks, split) <= kSplitMostSteps && x.scale_stride % 4 == 0 &&
                      strips <= kMostBlocks && row_tiles <= kMostBlocks;
  if (!served) return cudaErrorInvalidValue;
  a.w_tiles = weight.tiles;
  a.w_scale = weight.scale;
  a.x_scale = x.scale;
  a.x_scale_stride = x.scale_stride;
  a.tokens = tokens;
  a.out = out;
  a.out_stride = out_stride;
  a.split = split;
  a.slice = a.k_blocks / split;
  a.long_slices = a.k_blocks % split;
  const Stages stages = stages_of(split, ceil_div(a.k_blocks, split));
  a.w_stages = stages.w;
  a.x_stages = stages.x;
  a.x_box_rows = std::min(kRows, ceil_div(tokens, 8) * 8);
  CUtensorMap map;
  const cudaError_t error = encode_2d({.data = x.data,
                                       .dtype = DType::kF8E4M3,
                                       .rows = tokens,
                                       .cols = x.cols,
                                       .box_rows = a.x_box_rows,
                                       .box_cols = 128},
                                      &map);
  if (error != cudaSuccess) return error;
  const Grid grid{.blocks = dim3(static_cast<unsigned>(split),
                                 static_cast<unsigned>(strips),
                                 static_cast<unsigned>(row_tiles)),
                  .threads = dim3(kThreads),
                  .shared_bytes = static_cast<size_t>(stages.bytes),
                  .cluster = split};
  return enqueue(split_product_kernel, grid, launch, map, a);
}

}  // namespace r1d::kernels::prefill
