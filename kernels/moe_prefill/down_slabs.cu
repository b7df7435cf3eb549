// SPDX-License-Identifier: Apache-2.0
// Problem   out(t, :) = shared(t, :) + sum over slots s of weights(t, s) y(t, s), where y(row) =
//           down_e h(row): moe_down_combine for I = 256 and so many tokens that y (2 T k D bytes)
//           would go through memory twice.
// Layout    moe_prefill.h. y's rows of 64 columns lie as the tensor cores leave them: 16-byte chunk
//           4 i + q of a row holds columns 32 i + 8 j + 2 q + {0, 1} for j = 0 .. 3.
// Bound     R1, one rank of 8, T = 8192: weights (470 MB), h, shared and out (250 MB) through
//           memory, 168 us at 4.3 TB/s; 240 GFLOP, 188 us at 1.28 PFLOPS, and 12 % for padded rows.
// Launch    persistent, one block an SM, all at work at once since they wait for each other.
//           A block keeps its share of h's tiles in shared memory (which sets the occupancy) and
//           walks over slabs of 64 columns of D. Two warpgroups multiply and write y's slab to one
//           of three buffers, which stay in L2; two sum the slab before it for the block's share of
//           the tokens; single warps load W and keep the blocks in step.
// Numerics  the bits of moe_down_combine: K in order, y rounded to bf16, slots in order in f32.
// Source    DeepSeek-V3 report, section 2.1.2.
#include <algorithm>

#include "kernels/common/ring.cuh"
#include "kernels/fp8_gemm_prefill/block_product.cuh"
#include "kernels/moe_prefill/moe_prefill.h"

namespace r1d::kernels {
namespace {

constexpr int64_t kIntermediate = 256;
constexpr int kKBlocks = kIntermediate / 128;
constexpr int kCols = 64;  // of a slab
constexpr int kSlots = 8;
constexpr int kMostSlabs = (kMoeProgress - 1) / 2;
constexpr int kRing = 3;  // buffers of y
static_assert(kRing * kCols <= 256, "the scratch that moe_prefill.h asks for");

constexpr int kTileBytes = kMoeTileRows * kIntermediate;  // of h
constexpr int kWBytes = kCols * kIntermediate;            // of an expert's slab
constexpr int kSharedBytes = 227 * 1024;
constexpr int kMostStages = 8;
constexpr int kMostTiles = 10;                                 // of a block
constexpr int kOtherBytes = 1024;                              // tiles, barriers, counts
constexpr int kRoomBytes = kSharedBytes - 1024 - kOtherBytes;  // aligned, for h and W
static_assert(kRoomBytes >= kMostTiles * kTileBytes + 3 * kWBytes);

// Two warpgroups that multiply, two that sum, one of single warps.
constexpr int kProductGroups = 2;
constexpr int kProductWarps = 4 * kProductGroups;
constexpr int kSumWarps = 8;
constexpr int kThreads = (kProductWarps + kSumWarps + 4) * 32;
constexpr int kMostTokens = 64;  // of a block

struct Slabs {
  const uint8_t* w_tiles;
  const float* w_scale;
  int64_t tiles_stride;
  int64_t scale_stride;
  const float* h_scale;
  int64_t h_scale_stride;
  PairLists lists;
  const float* weights;
  const __nv_bfloat16* shared;
  __nv_bfloat16* y;
  int64_t y_stride;  // elements between buffers
  __nv_bfloat16* out;
  int64_t dim;
  int32_t tokens;
  int32_t k;
  int32_t slabs;
};

#ifdef R1D_SM90

// How far the block and the grid are, in slabs; each written by one thread.
struct Counts {
  int32_t may_write;                         // the buffer is free
  int32_t may_sum;                           // all blocks have written
  int32_t warps[kProductWarps + kSumWarps];  // what each has written, or summed
};

struct Shared {
  uint8_t* h;
  uint8_t* w;
  int4* tiles;
  uint64_t* h_full;
  uint64_t* full;
  uint64_t* empty;
  Counts* counts;
  int32_t num_stages;  // as many as the tiles leave room for
  __device__ __forceinline__ Shared(uint8_t* raw, int32_t num_tiles) {
    h = raw + (1024 - smem_address(raw) % 1024) % 1024;
    w = h + num_tiles * kTileBytes;
    num_stages = min((kRoomBytes - num_tiles * kTileBytes) / kWBytes, kMostStages);
    tiles = reinterpret_cast<int4*>(h + kRoomBytes);
    h_full = reinterpret_cast<uint64_t*>(tiles + kMostTiles);
    full = h_full + 1;
    empty = full + kMostStages;
    counts = reinterpret_cast<Counts*>(empty + kMostStages);
  }
};

__device__ __forceinline__ void add_release(int32_t* global) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(global) : "memory");
}
__device__ __forceinline__ int32_t load_acquire_shared(const int32_t* shared) {
  int32_t value;
  asm volatile("ld.acquire.cta.shared.s32 %0, [%1];"
               : "=r"(value)
               : "r"(smem_address(shared))
               : "memory");
  return value;
}
__device__ __forceinline__ void add_release_shared(int32_t* shared) {
  asm volatile("red.release.cta.shared.add.s32 [%0], 1;" ::"r"(smem_address(shared)) : "memory");
}
// Waits for a count of the grid. One fence at the end, since each empties the L1 cache.
__device__ __forceinline__ void wait_for(const int32_t* global, int32_t count) {
  int32_t value = 0;
  while (value < count)
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// ---- load --------------------------------------------------------------------------------------

__device__ __forceinline__ void load(const Slabs& p,
                                     const CUtensorMap& map,
                                     const Shared& shared,
                                     int32_t tiles) {
  mbarrier_arrive_expect(shared.h_full, tiles * kTileBytes);
  for (int32_t i = 0; i < tiles; ++i) {
    for (int32_t b = 0; b < kKBlocks; ++b) {
      tensor_load_2d(shared.h + i * kTileBytes + b * (kTileBytes / kKBlocks),
                     &map,
                     b * 128,
                     shared.tiles[i].y,
                     shared.h_full);
    }
  }
  Ring ring;
  const uint64_t once = l2_evict_first();
  for (int32_t s = 0; s < p.slabs; ++s) {
    for (int32_t i = 0; i < tiles; ++i) {
      const int32_t expert = shared.tiles[i].x;
      if (i > 0 && expert == shared.tiles[i - 1].x) continue;
      uint64_t* full = &shared.full[ring.stage];
      mbarrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(full, kWBytes);
      const uint8_t* from = p.w_tiles + expert * p.tiles_stride + int64_t{s} * kWBytes;
      bulk_load_hint(shared.w + ring.stage * kWBytes, from, kWBytes, full, once);
      ring.advance(shared.num_stages);
    }
  }
}

// ---- multiply ----------------------------------------------------------------------------------

// 16 bytes that L2 should rather keep than others.
__device__ __forceinline__ void store_keeping(uint4* to, uint4 v, uint64_t policy) {
  asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to),
               "r"(v.x),
               "r"(v.y),
               "r"(v.z),
               "r"(v.w),
               "l"(policy)
               : "memory");
}

// y of one tile and slab.
__device__ __forceinline__ void multiply(const Slabs& p,
                                         const Shared& shared,
                                         int32_t index,
                                         int32_t slab,
                                         int32_t warp,
                                         const uint8_t* w,
                                         __nv_bfloat16* y) {
  const int4 tile = shared.tiles[index];
  const int32_t lane = threadIdx.x % 32;
  float first[kCols / 2];
  float second[kCols / 2];
  const uint32_t a = prefill::descriptor_low(shared.h + index * kTileBytes);
  const uint32_t b = prefill::descriptor_low(w);
  prefill::start<kCols>(first, a, b);
  prefill::start<kCols>(second, a + kTileBytes / 32, b + kCols * kIntermediate / 32);

  const float* w_scale = p.w_scale + tile.x * p.scale_stride + slab * kCols / 128 * kKBlocks;
  const float ws[kKBlocks] = {__ldg(w_scale), __ldg(w_scale + 1)};
  float scale[kKBlocks][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = tile.y + min(warp * 16 + half * 8 + lane / 4, tile.z - 1);
#pragma unroll
    for (int i = 0; i < kKBlocks; ++i) {
      scale[i][half] = __ldg(p.h_scale + i * p.h_scale_stride + row) * ws[i];
    }
  }
  wgmma_wait<1>();
  wgmma_fence_registers(first);
#pragma unroll
  for (int i = 0; i < kCols / 2; ++i) first[i] *= scale[0][i / 2 % 2];
  wgmma_wait<0>();
  wgmma_fence_registers(second);
#pragma unroll
  for (int i = 0; i < kCols / 2; ++i) {
    first[i] = fmaf(scale[1][i / 2 % 2], second[i], first[i]);
  }
  const uint64_t keep = l2_evict_last();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = warp * 16 + half * 8 + lane / 4;
    if (row >= tile.z) continue;
    auto* to = reinterpret_cast<uint4*>(y + int64_t{tile.y + row} * kCols) + lane % 4;
#pragma unroll
    for (int i = 0; i < kCols / 32; ++i) {
      const float* d = &first[16 * i + 2 * half];
      store_keeping(to + 4 * i,
                    make_uint4(prefill::pack_bf16(d[0], d[1]),
                               prefill::pack_bf16(d[4], d[5]),
                               prefill::pack_bf16(d[8], d[9]),
                               prefill::pack_bf16(d[12], d[13])),
                    keep);
    }
  }
}

__device__ __forceinline__ void write_slabs(const Slabs& p,
                                            const Shared& shared,
                                            int32_t tiles,
                                            int32_t warp) {
  const int32_t group = warp / 4;
  const int32_t lane = threadIdx.x % 32;
  Ring ring;
  const auto give_back = [&] {
    if (lane == 0) mbarrier_arrive(&shared.empty[ring.stage]);
    ring.advance(shared.num_stages);
  };
  mbarrier_wait(shared.h_full, 0);
#pragma unroll 1
  for (int32_t s = 0; s < p.slabs; ++s) {
    while (load_acquire_shared(&shared.counts->may_write) <= s) {
    }
    __nv_bfloat16* y = p.y + s % kRing * p.y_stride;
    int32_t expert = -1;
#pragma unroll 1
    for (int32_t i = 0; i < tiles; ++i) {
      const int32_t its = __shfl_sync(~0U, shared.tiles[i].x, 0);  // uniform, and known to be
      if (its != expert) {
        if (expert >= 0) give_back();
        expert = its;
        mbarrier_wait(&shared.full[ring.stage], ring.phase);
      }
      if ((i + s) % kProductGroups != group) continue;  // in turns, also over slabs
      multiply(p, shared, i, s, warp % 4, shared.w + ring.stage * kWBytes, y);
    }
    if (expert >= 0) give_back();
    __syncwarp();
    if (lane == 0) add_release_shared(&shared.counts->warps[warp]);
  }
}

// ---- sum ---------------------------------------------------------------------------------------

// 16 bytes past L1; volatile, so that the compiler keeps many of them under way.
__device__ __forceinline__ uint4 load_16(const __nv_bfloat16* from) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// A 4 x 4 transposition among 4 neighbouring lanes.
__device__ __forceinline__ void transpose(uint32_t (&v)[4], int32_t lane) {
  const auto exchange = [&](uint32_t& low, uint32_t& high, int distance) {
    const bool upper = (lane & distance) != 0;
    const uint32_t other = __shfl_xor_sync(~0U, upper ? low : high, distance);
    low = upper ? other : low;
    high = upper ? high : other;
  };
  exchange(v[0], v[1], 1);
  exchange(v[2], v[3], 1);
  exchange(v[0], v[2], 2);
  exchange(v[1], v[3], 2);
}

// A thread's two tokens, kLanes lanes a token, 16 bytes of a row a lane. Lane s of them knows the
// token's row and weight of slot s.
class Tokens {
  static constexpr int kLanes = kCols / 8;
  static_assert(kLanes >= kSlots);
  static constexpr int kTogether = kSumWarps * 32 / kLanes;

  static constexpr int kTurns = kMostTokens / kTogether;
  static_assert(kTurns == 2);

 public:
  __device__ __forceinline__ explicit Tokens(const Slabs& p) : p_(p) {
    const int32_t blocks = gridDim.x;
    const auto share = [&](int64_t block) {
      return static_cast<int32_t>(p.tokens * block / blocks);
    };
    first_ = share(blockIdx.x) + threadIdx.x % (kSumWarps * 32) / kLanes;
    end_ = share(blockIdx.x + 1);
    const int32_t slot = lane();
#pragma unroll
    for (int j = 0; j < kTurns; ++j) {
      const int64_t pair = int64_t{token(j)} * p.k + slot;
      row_[j] = token(j) < end_ && slot < p.k ? p.lists.pair_row[pair] : -1;
      weight_[j] = row_[j] >= 0 ? p.weights[pair] : 0;
    }
  }
  // Whether there are any for the warp.
  __device__ __forceinline__ bool any() const {
    return __any_sync(~0U, token(0) < end_);
  }

  struct Rows {
    uint4 slots[kSlots];
    uint4 shared;
  };
  __device__ __forceinline__ void load(const __nv_bfloat16* y,
                                       int32_t slab,
                                       int j,
                                       Rows& rows) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int32_t row = max(__shfl_sync(~0U, row_[j], s, kLanes), 0);
      rows.slots[s] = load_16(y + int64_t{row} * kCols + lane() * 8);
    }
    if (p_.shared != nullptr) rows.shared = load_16(p_.shared + place(slab, j));
  }
  __device__ __forceinline__ void store(int32_t slab, int j, const Rows& rows) const {
    float sum[8] = {};
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const float w = __shfl_sync(~0U, weight_[j], s, kLanes);
      // What was read for other ranks' experts means nothing.
      const auto keep = [&](uint32_t bits) { return w != 0 ? bits : 0; };
      const uint4& row = rows.slots[s];
      const uint32_t words[4] = {keep(row.x), keep(row.y), keep(row.z), keep(row.w)};
      const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(words);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 value = __bfloat1622float2(pairs[c]);
        sum[2 * c] = fmaf(w, value.x, sum[2 * c]);
        sum[2 * c + 1] = fmaf(w, value.y, sum[2 * c + 1]);
      }
    }
    const bool adds = p_.shared != nullptr;
    uint32_t bits[4] = {adds ? rows.shared.x : 0,
                        adds ? rows.shared.y : 0,
                        adds ? rows.shared.z : 0,
                        adds ? rows.shared.w : 0};
    transpose(bits, lane());
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float2 value = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits[c]));
      bits[c] = prefill::pack_bf16(value.x + sum[2 * c], value.y + sum[2 * c + 1]);
    }
    transpose(bits, lane());
    if (token(j) < end_) {
      __stcs(reinterpret_cast<uint4*>(p_.out + place(slab, j)),
             make_uint4(bits[0], bits[1], bits[2], bits[3]));
    }
  }

 private:
  __device__ __forceinline__ static int32_t lane() {
    return threadIdx.x % kLanes;
  }
  __device__ __forceinline__ int32_t token(int j) const {
    return first_ + j * kTogether;
  }
  __device__ __forceinline__ int64_t place(int32_t slab, int j) const {
    return int64_t{min(token(j), p_.tokens - 1)} * p_.dim + slab * kCols + lane() * 8;
  }

  const Slabs& p_;
  int32_t first_;
  int32_t end_;
  int32_t row_[kTurns];
  float weight_[kTurns];
};

__device__ __forceinline__ void sum_slabs(const Slabs& p, Counts* counts) {
  const Tokens tokens(p);
#pragma unroll 1
  for (int32_t s = 0; s < p.slabs; ++s) {
    while (load_acquire_shared(&counts->may_sum) <= s) {
    }
    const __nv_bfloat16* y = p.y + s % kRing * p.y_stride;
    if (tokens.any()) {
      Tokens::Rows a;
      Tokens::Rows b;
      tokens.load(y, s, 0, a);
      tokens.load(y, s, 1, b);
      tokens.store(s, 0, a);
      tokens.store(s, 1, b);
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) add_release_shared(&counts->warps[threadIdx.x / 32]);
  }
}

// ---- between blocks ----------------------------------------------------------------------------

// Tells the grid how far this block is. The whole warp looks, a lane at a warp's count.
__device__ __forceinline__ void tell(int32_t slabs, Counts* counts, int32_t* done, int32_t* freed) {
  static_assert(kProductWarps + kSumWarps <= 32);
  constexpr uint32_t kProducts = (1U << kProductWarps) - 1;
  constexpr uint32_t kSums = ((1U << kSumWarps) - 1) << kProductWarps;
  const int32_t lane = threadIdx.x % 32;
  int32_t written = 0;
  int32_t summed = 0;
  while (summed < slabs || written < slabs) {
    const int32_t mine = lane < kProductWarps ? written : summed;
    const int32_t count = load_acquire_shared(&counts->warps[lane % (kProductWarps + kSumWarps)]);
    const uint32_t beyond = __ballot_sync(~0U, count > mine);
    __syncwarp();  // what the counts say is done comes before what the first lanes say
    const bool writes = written < slabs && (beyond & kProducts) == kProducts;
    const bool sums = summed < slabs && (beyond & kSums) == kSums;
    if (lane == 0 && writes) add_release(done + written);
    if (lane == 1 && sums) add_release(freed + summed);
    written += writes;
    summed += sums;
  }
}

#endif  // R1D_SM90

__global__ void __launch_bounds__(kThreads, 1)
    down_slabs(const __grid_constant__ CUtensorMap map, const __grid_constant__ Slabs p) {
#ifdef R1D_SM90
  extern __shared__ uint8_t raw[];
  grid_dependency_wait();
  grid_launch_dependents();
  const int64_t all = p.lists.totals[0];
  const int64_t blocks = gridDim.x;
  const auto begin = static_cast<int32_t>(all * blockIdx.x / blocks);
  const auto tiles = static_cast<int32_t>(all * (blockIdx.x + 1) / blocks) - begin;
  const Shared shared(raw, tiles);
  if (threadIdx.x == 0) {
    mbarrier_init(shared.h_full, 1);
    for (int s = 0; s < shared.num_stages; ++s) {
      mbarrier_init(&shared.full[s], 1);
      mbarrier_init(&shared.empty[s], kProductWarps);
    }
    mbarrier_init_fence();
    *shared.counts = {};
  }
  if (threadIdx.x < tiles) {
    shared.tiles[threadIdx.x] = reinterpret_cast<const int4*>(p.lists.tiles)[begin + threadIdx.x];
  }
  __syncthreads();

  int32_t* const done = p.lists.progress;
  int32_t* const freed = done + kMostSlabs;
  const int32_t warp = __shfl_sync(~0U, threadIdx.x / 32, 0);  // known to be uniform
  if (warp < kProductWarps) {
    registers_raise<112>();
    write_slabs(p, shared, tiles, warp);
  } else if (warp < kProductWarps + kSumWarps) {
    registers_raise<112>();
    sum_slabs(p, shared.counts);
  } else {
    registers_lower<32>();
    const int32_t role = warp - kProductWarps - kSumWarps;
    if (role == 0) tell(p.slabs, shared.counts, done, freed);
    if (threadIdx.x % 32 == 0) {
      if (role == 1) load(p, map, shared, tiles);
      for (int32_t s = 0; role == 2 && s < p.slabs; ++s) {
        if (s >= kRing) wait_for(freed + s - kRing, blocks);
        add_release_shared(&shared.counts->may_write);
      }
      for (int32_t s = 0; role == 3 && s < p.slabs; ++s) {
        wait_for(done + s, blocks);
        add_release_shared(&shared.counts->may_sum);
      }
    }
  }
  // The last block to come here leaves the counts as it found them.
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* const exits = done + 2 * kMostSlabs;
    if (atomicAdd(exits, 1) == blocks - 1) {
      for (int32_t s = 0; s < p.slabs; ++s) done[s] = freed[s] = 0;
      *exits = 0;
    }
  }
#endif
}

// Tiles a block gets at most.
int64_t most_tiles(int64_t tokens, int32_t k, int32_t num_local, int64_t blocks) {
  return (moe_max_tiles(tokens, k, num_local) + blocks - 1) / blocks;
}

}  // namespace

bool moe_down_slabs_serves(int64_t tokens,
                           int32_t k,
                           int32_t num_local,
                           int64_t dim,
                           int64_t intermediate,
                           int32_t num_sms) {
  return intermediate == kIntermediate && k > 0 && k <= kSlots && dim % 128 == 0 &&
         dim / kCols <= kMostSlabs && num_sms > 0 && tokens <= int64_t{num_sms} * kMostTokens &&
         most_tiles(tokens, k, num_local, num_sms) <= kMostTiles;
}

cudaError_t moe_down_slabs(const ExpertDown& weight,
                           const QuantizedRows& h,
                           const PairLists& lists,
                           int32_t num_local,
                           const float* weights,
                           const __nv_bfloat16* shared,
                           int32_t tokens,
                           int32_t k,
                           int32_t num_sms,
                           __nv_bfloat16* scratch,
                           __nv_bfloat16* out,
                           const Launch& launch) {
  if (tokens <= 0) return cudaSuccess;
  const int64_t pairs = int64_t{tokens} * k;
  const int64_t dim = weight.first.rows;
  if (!moe_down_slabs_serves(tokens, k, num_local, dim, h.cols, num_sms) ||
      h.cols != weight.first.cols || h.scale_stride < pairs) {
    return cudaErrorInvalidValue;
  }
  prefill::XMaps maps;
  const cudaError_t error = prefill::encode_rows(h, pairs, kMoeTileRows, &maps);
  if (error != cudaSuccess) return error;
  const Slabs p{.w_tiles = weight.first.tiles,
                .w_scale = weight.first.scale,
                .tiles_stride = weight.tiles_stride,
                .scale_stride = weight.scale_stride,
                .h_scale = h.scale,
                .h_scale_stride = h.scale_stride,
                .lists = lists,
                .weights = weights,
                .shared = shared,
                .y = scratch,
                .y_stride = pairs * kCols,
                .out = out,
                .dim = dim,
                .tokens = tokens,
                .k = k,
                .slabs = static_cast<int32_t>(dim / kCols)};
  const Grid grid{.blocks = dim3(static_cast<unsigned>(num_sms)),
                  .threads = dim3(kThreads),
                  .shared_bytes = kSharedBytes};
  return enqueue(down_slabs, grid, launch, maps.whole, p);
}

}  // namespace r1d::kernels
