// SPDX-License-Identifier: Apache-2.0
// Problem   out[T,D] = sum over a token's local experts of weight * mlp(x) + mlp_shared(x). Here up
//           to 8 tokens of large shares; few.cu has the form for small ones, many.cu for 9 to 256.
// Layout    x QuantizedRows [T,D]; per expert gate_up tiles [2 I, D], down tiles [D, I]; layout.h.
//           Between the launches h as operand tiles: for a block of tokens (ExpertBlock) with g
//           groups of 8, 1024-byte tiles [I / 128][g] of 8 rows x 128 columns e4m3, swizzled, and
//           its scales, times the routing weight, [I / 128][8 g] f32.
// Bound     each active expert's 3 I D bytes once. R1 on 8 ranks: 5.5 MB an expert, so 1 token
//           49.5 MB with the shared expert (11.6 us at 4.3 TB/s), 64 tokens 1.2 GB (285 us). Math
//           is 2 n flop a weight byte for n tokens of an expert.
// Launch    gate_up: 132 blocks, each an equal run of work items; down: a block per 64 columns.
//           To 8 tokens one block of each fits on an SM; shared memory sets that.
// Numerics  e4m3 products summed by the tensor cores over 128 columns, then f32 with both scales;
//           gate_up sums 8 column blocks to a chunk, then chunks; the output sums experts in
//           ascending order, the shared one last. All orders are fixed.
// Source    DeepSeek-V3 report, sections 2.1.2 and 3.3.
//
// gate_up. A work item is (token block, 128 columns of h, chunk of 8 column blocks, strip of 64
// weight rows); a (token block, 128 columns) is a unit. Items are ordered so, and each thread block
// takes equal contiguous runs: at 1 token 504 items over 132 blocks. Items leave partial sums in
// L2; whoever completes a unit adds them in order, applies SwiGLU and quantizes. So the sums do not
// depend on how the run was cut. Two warps stream weight tiles, one gathers rows of x (swizzling as
// it copies), two warpgroups multiply alternate strips.
//
// down. A thread block owns 64 output columns for all tokens and walks the token blocks, so the sum
// over experts stays in shared memory: no atomics, no further pass. It starts while gate_up runs,
// and fills its ring with weights (and L2 with some more) before it waits for h.
#include <algorithm>

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/moe_decode/moe_decode.h"
#include "kernels/moe_decode/problem.cuh"

namespace r1d::kernels {
namespace {

using namespace moe;

constexpr int kGateUpBlocks = 132;           // an H200's SMs; any number is correct
constexpr int kStageBytes = 2 * kTileBytes;  // a ring stage holds two tiles, neighbours along K
constexpr int kChunkBlocks = 8;              // column blocks of 128 to a chunk
constexpr int kStripColumns = 32;
constexpr int kMaxStages = 16;
constexpr int kConsumers = 256;
constexpr int kGateUpThreads = kConsumers + 96;  // + two weight and one gather warp
constexpr int kDownThreads = 128 + 64;           // + the weight warp + the h warp
constexpr int kPrefetchTiles = 8;   // of the shared expert and thread block, brought to L2 early
constexpr int kPrefetchStages = 8;  // of down, behind its ring, brought to L2 meanwhile
constexpr int kAccPitch = 68;       // floats; 8 tokens' rows start in different banks
constexpr int kMaxLocal = 512;
constexpr int kTokens = kFewTokens;  // of a block; more are many.cu's

// ---- shared memory -----------------------------------------------------------------------------

// Shared memory: the ring of weight tiles, then this, then the table of blocks.
struct GateUpShared {
  struct XStage {
    alignas(1024) uint8_t rows[kChunkBlocks * kTokens * kColumns];  // [column block][group] tiles
  };
  struct Scales {
    float gate[kChunkBlocks][kTokens];  // token scale times weight scale
    float up[kChunkBlocks][kTokens];
  };
  static constexpr int kXStages = 2;
  XStage x[kXStages];
  Scales scales[kXStages];
  uint64_t full[2][kMaxStages];  // a ring of weight tiles per warpgroup
  uint64_t empty[2][kMaxStages];
  uint64_t x_full[kXStages];
  uint64_t x_empty[kXStages];
  int complete;
};

// Shared memory: the ring of these, then the tables.
struct DownStage {
  alignas(1024) uint8_t tiles[kStageBytes];
  uint8_t h[2 * kTokens * kColumns];  // [column block][group] tiles
};

// Sizes of a block's tables behind the ring; shared by kernel and launcher.
struct DownTables {
  int blocks, scales, tokens, bytes;
};
__host__ __device__ constexpr DownTables down_tables(
    int num_tokens, int top_k, int max_blocks, int routed_columns, int shared_columns) {
  DownTables t{};
  t.blocks = num_tokens * kAccPitch * 4;
  t.scales = t.blocks + max_blocks * 16;
  t.tokens = t.scales + (max_blocks * routed_columns + shared_columns) * 4;
  t.bytes = t.tokens + num_tokens * top_k * 2;
  return t;
}

#ifdef R1D_SM90

// d0, d1 = two neighbouring tiles times their token tiles; b_step = bytes between the latter.
template <int N>
__device__ __forceinline__ void multiply_stage(
    float (&d0)[N / 2], float (&d1)[N / 2], uint32_t tiles, uint32_t tokens, uint32_t b_step) {
  const uint64_t a0 = wgmma_descriptor_k128(tiles);
  const uint64_t a1 = wgmma_descriptor_k128(tiles + kTileBytes);
  const uint64_t b0 = wgmma_descriptor_k128(tokens);
  const uint64_t b1 = wgmma_descriptor_k128(tokens + b_step);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) Wgmma<N>::e4m3(d0, a0 + 2 * k, b0 + 2 * k, k > 0);
#pragma unroll
  for (int k = 0; k < 4; ++k) Wgmma<N>::e4m3(d1, a1 + 2 * k, b1 + 2 * k, k > 0);
  wgmma_commit();
}

// ---- gate_up -----------------------------------------------------------------------------------

// Items are dealt out in equal contiguous runs, those of the shared expert first.
struct Run {
  int lo, hi;
  __device__ __forceinline__ Run(int items, int block)
      : lo(block * items / kGateUpBlocks), hi((block + 1) * items / kGateUpBlocks) {}
};
__device__ __forceinline__ int block_of(int item, int items) {
  return ((item + 1) * kGateUpBlocks - 1) / items;
}

__device__ __forceinline__ Unit unit_at(const Problem& p,
                                        const int4* blocks,
                                        int unit,
                                        int block_tokens) {
  const int shared_units = p.shared_blocks * p.shared_columns;
  Unit u;
  u.shared = unit < shared_units;
  if (u.shared) {
    const int block = unit / p.shared_columns;
    u.columns = unit - block * p.shared_columns;
    u.begin = block * block_tokens;
    u.count = min(p.num_tokens - u.begin, block_tokens);
    u.expert = 0;
    u.group = u.begin / 8;
  } else {
    unit -= shared_units;
    const int block = unit / p.routed_columns;
    u.columns = unit - block * p.routed_columns;
    const int4 b = blocks[block];
    u.expert = b.x;
    u.begin = b.y;
    u.count = b.z;
    u.group = b.w;
  }
  return u;
}

// One strip and chunk: acc = sums of (gate, up) of the thread's rows and tokens, written to
// `partial` [token][32].
template <int N>
__device__ __forceinline__ void gate_up_item(const GateUpShared& s,
                                             uint64_t* full,
                                             uint64_t* empty,
                                             const uint8_t* tiles,
                                             int stages,
                                             Ring& ring,
                                             int x_stage,
                                             int blocks,
                                             int count,
                                             float2* partial) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
  const int pair = lane % 4 * 2;
  const uint32_t x_rows = smem_address(s.x[x_stage].rows);
  float acc[N / 2] = {};
  for (int b = 0; b < blocks; b += 2) {
    mbarrier_wait(&full[ring.stage], ring.phase);
    float d0[N / 2];
    float d1[N / 2];
    multiply_stage<N>(d0,
                      d1,
                      smem_address(tiles + ring.stage * kStageBytes),
                      x_rows + b * N * kColumns,
                      N * kColumns);
    wgmma_wait<0>();
    wgmma_fence_registers(d0);
    wgmma_fence_registers(d1);
    if (lane == 0) mbarrier_arrive(&empty[ring.stage]);
    ring.advance(stages);
    const auto promote = [&](const float(&d)[N / 2], int block) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        const float2 gate =
            *reinterpret_cast<const float2*>(&s.scales[x_stage].gate[block][8 * j + pair]);
        const float2 up =
            *reinterpret_cast<const float2*>(&s.scales[x_stage].up[block][8 * j + pair]);
        acc[4 * j] = fmaf(d[4 * j], gate.x, acc[4 * j]);
        acc[4 * j + 1] = fmaf(d[4 * j + 1], gate.y, acc[4 * j + 1]);
        acc[4 * j + 2] = fmaf(d[4 * j + 2], up.x, acc[4 * j + 2]);
        acc[4 * j + 3] = fmaf(d[4 * j + 3], up.y, acc[4 * j + 3]);
      }
    };
    promote(d0, b);
    if (b + 1 < blocks) promote(d1, b + 1);  // an odd chunk's last stage holds one tile
  }
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int token = 8 * j + pair + c;
      if (token < count) {
        partial[token * kStripColumns + warp * 8 + lane / 4] =
            make_float2(acc[4 * j + c], acc[4 * j + 2 + c]);
      }
    }
  }
}

// A unit's partial sums are complete: a warp per token adds them in order.
__device__ __forceinline__ void finish_unit(const Problem& p,
                                            const Unit& u,
                                            const float2* partial,
                                            int chunks) {
  const int lane = threadIdx.x % 32;
  const int groups = (u.count + 7) / 8;
  const int columns = u.shared ? p.shared_columns : p.routed_columns;
  uint8_t* h = (u.shared ? p.shared_h : p.h) +
               (static_cast<int64_t>(u.group) * columns + u.columns * groups) * kAtomBytes;
  float* h_scale = (u.shared ? p.shared_h_scale : p.h_scale) +
                   (static_cast<int64_t>(u.group) * columns + u.columns * groups) * 8;
  for (int token = threadIdx.x / 32; token < u.count; token += kConsumers / 32) {
    const auto* from = reinterpret_cast<const float4*>(
        partial + (lane / 8 * kTokens + token) * kStripColumns + lane % 8 * 4);
    constexpr int kChunkStride = kStrips * kTokens * kStripColumns / 2;  // in float4
    float4 a = make_float4(0, 0, 0, 0);
    float4 b = a;
#pragma unroll 8
    for (int c = 0; c < chunks; ++c) {
      const float4 va = __ldcg(from + c * kChunkStride);
      const float4 vb = __ldcg(from + c * kChunkStride + 1);
      a.x += va.x, a.y += va.y, a.z += va.z, a.w += va.w;
      b.x += vb.x, b.y += vb.y, b.z += vb.z, b.w += vb.w;
    }
    const Quantized q = quantized_h(a, b);
    const int row = token % 8;
    *reinterpret_cast<uint32_t*>(h + token / 8 * kAtomBytes + row * kColumns +
                                 ((lane / 4 ^ row) * 16) + lane % 4 * 4) = q.codes;
    if (lane == 0) {
      h_scale[token] = u.shared ? q.scale : q.scale * p.weights[p.lists.entries[u.begin + token]];
    }
  }
}

#endif  // R1D_SM90

__global__ void __launch_bounds__(kGateUpThreads)
    moe_gate_up_f8(const __grid_constant__ Problem p) {
#ifdef R1D_SM90
  extern __shared__ __align__(1024) uint8_t memory[];
  uint8_t* tiles = memory;
  auto& s = *reinterpret_cast<GateUpShared*>(memory + 2 * p.stages * kStageBytes);
  auto* blocks = reinterpret_cast<int4*>(&s + 1);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;

  // ---- start: barriers, shared expert into L2, lists ----
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      for (int g = 0; g < 2; ++g) {
        mbarrier_init(&s.full[g][i], 1);
        mbarrier_init(&s.empty[g][i], 4);
      }
    }
    for (int i = 0; i < s.kXStages; ++i) {
      mbarrier_init(&s.x_full[i], 32);
      mbarrier_init(&s.x_empty[i], kConsumers / 32);
    }
    mbarrier_init_fence();
    const auto prefetch = [](const uint8_t* weight, int num_tiles) {
      for (int i = 0; i < kPrefetchTiles; ++i) {
        const int tile = i * kGateUpBlocks + blockIdx.x;
        if (tile < num_tiles) {
          bulk_prefetch_l2(weight + static_cast<int64_t>(tile) * kTileBytes, kTileBytes);
        }
      }
    };
    prefetch(p.shared.gate_up.tiles, p.shared_columns * kStrips * p.hidden_blocks);
    prefetch(p.shared.down.tiles, p.shared_columns * 2 * p.hidden_blocks);
  }
  grid_dependency_wait();
  for (int i = threadIdx.x; i < p.max_blocks; i += kGateUpThreads) {
    blocks[i] = __ldcg(reinterpret_cast<const int4*>(p.lists.blocks) + i);
  }
  const int num_blocks = __ldcg(p.lists.num_blocks);
  grid_launch_dependents();  // after the wait: down reads the lists before its own
  __syncthreads();

  const int chunks = (p.hidden_blocks + kChunkBlocks - 1) / kChunkBlocks;
  const int unit_items = chunks * kStrips;
  const int shared_items = p.shared_blocks * p.shared_columns * unit_items;
  const int items = shared_items + num_blocks * p.routed_columns * unit_items;
  const Run run(items, static_cast<int>(blockIdx.x));

  constexpr int kCopyWarp = kConsumers / 32;
  if (warp == kCopyWarp || warp == kCopyWarp + 1) {
    // ---- weight tiles, a warp for each warpgroup's strips ----
    if (lane != 0) return;
    const int group = warp - kCopyWarp;
    const uint64_t once = l2_evict_first();
    tiles += group * p.stages * kStageBytes;
    Ring ring;
    for (int i = run.lo + ((run.lo ^ group) & 1); i < run.hi; i += 2) {
      const int unit = i / unit_items;
      const int item = i - unit * unit_items;
      const Unit u = unit_at(p, blocks, unit, kTokens);
      const int first = item / kStrips * kChunkBlocks;
      const int count = min(p.hidden_blocks - first, kChunkBlocks);
      const int64_t tile =
          static_cast<int64_t>(u.columns * kStrips + item % kStrips) * p.hidden_blocks + first;
      const uint8_t* from =
          (u.shared ? p.shared.gate_up.tiles
                    : p.routed.gate_up_tiles + u.expert * p.routed.gate_up_stride) +
          tile * kTileBytes;
      for (int b = 0; b < count; b += 2) {
        const uint32_t bytes = min(count - b, 2) * kTileBytes;
        mbarrier_wait(&s.empty[group][ring.stage], ring.phase ^ 1);
        mbarrier_arrive_expect(&s.full[group][ring.stage], bytes);
        bulk_load_hint(tiles + ring.stage * kStageBytes,
                       from + b * kTileBytes,
                       bytes,
                       &s.full[group][ring.stage],
                       once);
        ring.advance(p.stages);
      }
    }
    return;
  }

  if (warp == kCopyWarp + 2) {
    // ---- rows of x and scales, a stage per (unit, chunk) ----
    Ring ring;
    int known_unit = -1;
    Unit u{};
    int token = 0;
    const int my_row = lane % kTokens;
    for (int i = run.lo; i < run.hi; i = i / kStrips * kStrips + kStrips) {
      const int unit = i / unit_items;
      if (unit != known_unit) {
        known_unit = unit;
        u = unit_at(p, blocks, unit, kTokens);
        token = u.begin + my_row;
        if (!u.shared) token = my_row < u.count ? __ldcg(p.lists.entries + token) / p.top_k : 0;
      }
      const int first = (i - unit * unit_items) / kStrips * kChunkBlocks;
      const int count = min(p.hidden_blocks - first, kChunkBlocks);
      const int64_t scale_at = static_cast<int64_t>(u.columns) * p.hidden_blocks + first;
      const float* gate_scale =
          (u.shared ? p.shared.gate_up.gate_scale
                    : p.routed.gate_scale + u.expert * p.routed.gate_up_scale_stride) +
          scale_at;
      const float* up_scale =
          (u.shared ? p.shared.gate_up.up_scale
                    : p.routed.up_scale + u.expert * p.routed.gate_up_scale_stride) +
          scale_at;
      const int groups = (u.count + 7) / 8;
      const int stage = ring.stage;
      mbarrier_wait(&s.x_empty[stage], ring.phase ^ 1);
      for (int row = 0; row < u.count; ++row) {
        const uint8_t* from = p.x.data + __shfl_sync(~0U, token, row) * p.x.cols +
                              static_cast<int64_t>(first) * kColumns;
        uint8_t* to = s.x[stage].rows + row / 8 * kAtomBytes + row % 8 * kColumns;
        for (int piece = lane; piece < count * 8; piece += 32) {
          cp_async_16(smem_address(to + piece / 8 * groups * kAtomBytes + ((piece ^ row) % 8) * 16),
                      from + piece * 16);
        }
      }
      cp_async_commit();
      // All loads before all stores: one trip to memory.
      constexpr int kPerLane = kChunkBlocks * kTokens / 32;
      float scale[kPerLane];
      float gate[kPerLane];
      float up[kPerLane];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int b = j * (32 / kTokens) + lane / kTokens;
        if (b >= count || my_row >= u.count) continue;
        scale[j] = p.x.scale[(first + b) * p.x.scale_stride + token];
        gate[j] = gate_scale[b];
        up[j] = up_scale[b];
      }
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int b = j * (32 / kTokens) + lane / kTokens;
        if (b >= count || my_row >= u.count) continue;
        s.scales[stage].gate[b][my_row] = scale[j] * gate[j];
        s.scales[stage].up[b][my_row] = scale[j] * up[j];
      }
      cp_async_wait<0>();
      fence_async_shared();
      mbarrier_arrive(&s.x_full[stage]);
      ring.advance(s.kXStages);
    }
    return;
  }

  // A run's part of a unit is a segment. Calls visit(first item, one behind its last, partial sums'
  // place, unit's count of arrivals or null when the unit is all ours).
  const auto for_segments = [&](auto&& visit) {
    for (int i = run.lo; i < run.hi;) {
      const int first = i / unit_items * unit_items;
      const int end = min(run.hi, first + unit_items);
      const bool whole = i == first && end == first + unit_items;
      // A block has a place for whole units and one for the unit that it begins and leaves
      // unfinished.
      const int owner = block_of(first, items);
      visit(
          i,
          end,
          p.partial + (2 * owner + (whole ? 0 : 1)) * int64_t{unit_items} * kTokens * kStripColumns,
          whole ? nullptr : p.arrivals + owner);
      i = end;
    }
  };

  // ---- products ----
  const int group = warp / 4;
  tiles += group * p.stages * kStageBytes;
  Ring ring;
  Ring x_ring;
  for_segments([&](int begin, int end, float2* slot, uint32_t* arrivals) {
    const Unit u = unit_at(p, blocks, begin / unit_items, kTokens);
    for (int i = begin; i < end; ++i) {
      const int item = i % unit_items;
      if (i == begin || item % kStrips == 0) mbarrier_wait(&s.x_full[x_ring.stage], x_ring.phase);
      if (item % 2 == group) {
        const int count = min(p.hidden_blocks - item / kStrips * kChunkBlocks, kChunkBlocks);
        float2* to = slot + static_cast<int64_t>(item) * kTokens * kStripColumns;
        gate_up_item<kTokens>(s,
                              s.full[group],
                              s.empty[group],
                              tiles,
                              p.stages,
                              ring,
                              x_ring.stage,
                              count,
                              u.count,
                              to);
      }
      if (i + 1 == end || item % kStrips == kStrips - 1) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&s.x_empty[x_ring.stage]);
        x_ring.advance(s.kXStages);
      }
    }
    // Whoever brings a unit's last items completes it.
    named_barrier(1, kConsumers);
    bool complete = true;
    if (arrivals != nullptr) {
      if (threadIdx.x == 0) {
        const uint32_t mine = end - begin;
        __threadfence();
        const bool done = atomicAdd(arrivals, mine) + mine == static_cast<uint32_t>(unit_items);
        if (done) *arrivals = 0;
        __threadfence();
        s.complete = done;
      }
      named_barrier(1, kConsumers);
      complete = s.complete;
    }
    if (complete) finish_unit(p, u, slot, chunks);
    named_barrier(1, kConsumers);  // before the place and the flag are used again
  });
#endif  // R1D_SM90
}

#ifdef R1D_SM90

// ---- down --------------------------------------------------------------------------------------

// One stage of down's ring: up to two tiles of a token block.
struct DownPart {
  const uint8_t* weight;
  const uint8_t* h;
  const float* h_scale;
  int two;  // tiles
  int groups;
};

__device__ __forceinline__ int down_parts(const Problem& p, int num_blocks) {
  return num_blocks * ((p.routed_columns + 1) / 2) + p.shared_blocks * ((p.shared_columns + 1) / 2);
}

// The parts in order: routed token blocks, then shared ones.
__device__ __forceinline__ DownPart down_part(const Problem& p,
                                              const int4* blocks,
                                              int num_blocks,
                                              int index) {
  const int routed_parts = num_blocks * ((p.routed_columns + 1) / 2);
  const bool shared = index >= routed_parts;
  if (shared) index -= routed_parts;
  const int columns = shared ? p.shared_columns : p.routed_columns;
  const int per_block = (columns + 1) / 2;
  const int b = index / per_block;
  const int c = (index - b * per_block) * 2;
  const int begin = b * kTokens;
  const int4 block =
      shared ? make_int4(0, begin, min(p.num_tokens - begin, kTokens), begin / 8) : blocks[b];
  DownPart part;
  part.groups = (block.z + 7) / 8;
  const int64_t h_group = static_cast<int64_t>(block.w) * columns + c * part.groups;
  part.weight =
      (shared ? p.shared.down.tiles : p.routed.down_tiles + block.x * p.routed.down_stride) +
      (static_cast<int64_t>(blockIdx.x) * columns + c) * kTileBytes;
  part.h = (shared ? p.shared_h : p.h) + h_group * kAtomBytes;
  part.h_scale = (shared ? p.shared_h_scale : p.h_scale) + h_group * 8;
  part.two = min(columns - c, 2);
  return part;
}

template <int N>
__device__ __forceinline__ void promote_down(float (&acc)[N / 2],
                                             const float (&d)[N / 2],
                                             const float* token_scale,
                                             float weight_scale) {
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const float2 scale = *reinterpret_cast<const float2*>(token_scale + 8 * j + pair);
    acc[4 * j] = fmaf(d[4 * j], scale.x * weight_scale, acc[4 * j]);
    acc[4 * j + 1] = fmaf(d[4 * j + 1], scale.y * weight_scale, acc[4 * j + 1]);
    acc[4 * j + 2] = fmaf(d[4 * j + 2], scale.x * weight_scale, acc[4 * j + 2]);
    acc[4 * j + 3] = fmaf(d[4 * j + 3], scale.y * weight_scale, acc[4 * j + 3]);
  }
}

// One token block: sum [token][64] += its product. tokens: entry index -> token; null for the
// shared expert.
template <int N>
__device__ __forceinline__ void down_block(DownStage* ring_stages,
                                           float (*h_scales)[2 * kTokens],
                                           uint64_t* full,
                                           uint64_t* empty,
                                           int stages,
                                           Ring& ring,
                                           int columns,
                                           const float* weight_scale,
                                           const uint16_t* tokens,
                                           int begin,
                                           int count,
                                           float* sum) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  float acc[N / 2] = {};
  for (int b = 0; b < columns; b += 2) {
    mbarrier_wait(&full[ring.stage], ring.phase);
    const DownStage& stage = ring_stages[ring.stage];
    float d0[N / 2];
    float d1[N / 2];
    multiply_stage<N>(d0, d1, smem_address(stage.tiles), smem_address(stage.h), N * kColumns);
    wgmma_wait<0>();
    wgmma_fence_registers(d0);
    wgmma_fence_registers(d1);
    promote_down<N>(acc, d0, h_scales[ring.stage], weight_scale[b]);
    if (b + 1 < columns) promote_down<N>(acc, d1, h_scales[ring.stage] + N, weight_scale[b + 1]);
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&empty[ring.stage]);
    ring.advance(stages);
  }
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int column = 8 * j + lane % 4 * 2 + c;
      if (column < count) {
        const int token = tokens != nullptr ? tokens[begin + column] : begin + column;
        float* to = sum + token * kAccPitch + warp * 16 + lane / 4;
        to[0] += acc[4 * j + c];
        to[8] += acc[4 * j + 2 + c];
      }
    }
  }
  __syncwarp();  // the next block's same token may be another lane's
}

#endif  // R1D_SM90

__global__ void __launch_bounds__(kDownThreads) moe_down_f8(const __grid_constant__ Problem p) {
#ifdef R1D_SM90
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ uint64_t full[kMaxStages];
  __shared__ uint64_t empty[kMaxStages];
  __shared__ alignas(16) float h_scales[kMaxStages][2 * kTokens];
  auto* ring_stages = reinterpret_cast<DownStage*>(memory);
  uint8_t* tables = memory + p.stages * sizeof(DownStage);
  const DownTables at =
      down_tables(p.num_tokens, p.top_k, p.max_blocks, p.routed_columns, p.shared_columns);
  auto* sum = reinterpret_cast<float*>(tables);
  auto* blocks = reinterpret_cast<int4*>(tables + at.blocks);
  auto* scales = reinterpret_cast<float*>(tables + at.scales);
  auto* tokens = reinterpret_cast<uint16_t*>(tables + at.tokens);
  const int warp = threadIdx.x / 32;
  const int strip = blockIdx.x;

  grid_launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], 4);
    }
    mbarrier_init_fence();
  }
  // The lists are older than gate_up, which had waited for them when it let this kernel start.
  for (int i = threadIdx.x; i < p.max_blocks; i += kDownThreads) {
    blocks[i] = __ldcg(reinterpret_cast<const int4*>(p.lists.blocks) + i);
  }
  const int num_blocks = __ldcg(p.lists.num_blocks);
  __syncthreads();

  const int parts = down_parts(p, num_blocks);
  if (warp == 4) {
    // ---- weight tiles: a ring's worth and some more to L2 while gate_up runs ----
    if (threadIdx.x % 32 != 0) return;
    const uint64_t once = l2_evict_first();
    for (int i = p.stages; i < min(parts, p.stages + kPrefetchStages); ++i) {
      const DownPart part = down_part(p, blocks, num_blocks, i);
      bulk_prefetch_l2(part.weight, part.two * kTileBytes);
    }
    Ring ring;
    for (int i = 0; i < parts; ++i) {
      const DownPart part = down_part(p, blocks, num_blocks, i);
      mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(&full[ring.stage],
                             part.two * (kTileBytes + part.groups * (kAtomBytes + 32)));
      bulk_load_hint(ring_stages[ring.stage].tiles,
                     part.weight,
                     part.two * kTileBytes,
                     &full[ring.stage],
                     once);
      ring.advance(p.stages);
    }
    return;
  }
  if (warp == 5) {
    // ---- h, once gate_up is over ----
    grid_dependency_wait();
    if (threadIdx.x % 32 != 0) return;
    Ring ring;
    for (int i = 0; i < parts; ++i) {
      const DownPart part = down_part(p, blocks, num_blocks, i);
      mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
      bulk_load(ring_stages[ring.stage].h,
                part.h,
                part.two * part.groups * kAtomBytes,
                &full[ring.stage]);
      bulk_load(h_scales[ring.stage], part.h_scale, part.two * part.groups * 32, &full[ring.stage]);
      ring.advance(p.stages);
    }
    return;
  }

  // ---- tables ----
  for (int i = threadIdx.x; i < p.num_tokens * kAccPitch; i += 128) sum[i] = 0;
  for (int i = threadIdx.x; i < num_blocks * p.routed_columns; i += 128) {
    const int block = i / p.routed_columns;
    scales[i] = p.routed.down_scale[blocks[block].x * p.routed.down_scale_stride +
                                    strip / 2 * p.routed_columns + i - block * p.routed_columns];
  }
  float* shared_scales = scales + p.max_blocks * p.routed_columns;
  for (int i = threadIdx.x; i < p.shared_columns; i += 128) {
    shared_scales[i] = p.shared.down.scale[strip / 2 * p.shared_columns + i];
  }
  const int num_entries = num_blocks > 0 ? blocks[num_blocks - 1].y + blocks[num_blocks - 1].z : 0;
  for (int i = threadIdx.x; i < num_entries; i += 128) {
    tokens[i] = static_cast<uint16_t>(__ldcg(p.lists.entries + i) / p.top_k);
  }
  named_barrier(1, 128);
  grid_dependency_wait();

  // ---- products ----
  Ring ring;
  for (int b = 0; b < num_blocks + p.shared_blocks; ++b) {
    const bool shared = b >= num_blocks;
    const int columns = shared ? p.shared_columns : p.routed_columns;
    const int begin = shared ? (b - num_blocks) * kTokens : blocks[b].y;
    const int count = shared ? min(p.num_tokens - begin, kTokens) : blocks[b].z;
    const float* weight_scale = shared ? shared_scales : scales + b * p.routed_columns;
    const uint16_t* token_of = shared ? nullptr : tokens;
    down_block<kTokens>(ring_stages,
                        h_scales,
                        full,
                        empty,
                        p.stages,
                        ring,
                        columns,
                        weight_scale,
                        token_of,
                        begin,
                        count,
                        sum);
  }

  // ---- store ----
  named_barrier(1, 128);
  for (int i = threadIdx.x; i < p.num_tokens * 8; i += 128) {
    const int token = i / 8;
    const float* from = sum + token * kAccPitch + i % 8 * 8;
    uint4 packed;
    auto* pairs = reinterpret_cast<__nv_bfloat162*>(&packed);
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs[j] = __floats2bfloat162_rn(from[2 * j], from[2 * j + 1]);
    *reinterpret_cast<uint4*>(p.out + token * p.x.cols + strip * 64 + i % 8 * 8) = packed;
  }
#endif  // R1D_SM90
}

// ---- launcher ----------------------------------------------------------------------------------

constexpr size_t round_up(size_t bytes) {
  return (bytes + 1023) / 1024 * 1024;
}

// Offsets into the workspace; `bytes` is its size.
struct Workspace {
  size_t partial, h, h_scale, shared_h, shared_h_scale, bytes;
};
Workspace plan_workspace(const MoeDecodeSizes& z) {
  const size_t chunks = (z.hidden / kColumns + kChunkBlocks - 1) / kChunkBlocks;
  const size_t groups = max_expert_groups(z.num_tokens, z.top_k, z.num_local);
  const size_t shared_groups = (z.num_tokens + 7) / 8;
  Workspace w{};
  w.partial = round_up(kGateUpBlocks * sizeof(uint32_t));
  const size_t partial =
      z.num_tokens > kFewTokens
          ? many_partial_bytes(z.hidden)
          : 2 * kGateUpBlocks * chunks * kStrips * kFewTokens * kStripColumns * sizeof(float2);
  w.h = w.partial + round_up(partial);
  w.h_scale = w.h + round_up(groups * 8 * z.intermediate);
  w.shared_h = w.h_scale + round_up(groups * 8 * (z.intermediate / kColumns) * sizeof(float));
  w.shared_h_scale = w.shared_h + round_up(shared_groups * 8 * z.shared_intermediate);
  w.bytes = w.shared_h_scale +
            round_up(shared_groups * 8 * (z.shared_intermediate / kColumns) * sizeof(float));
  return w;
}

cudaError_t enqueue_both(Problem p, const Launch& launch) {
  // To 8 tokens both kernels fit on an SM together, so that down loads weights while gate_up runs.
  constexpr size_t kGateUpLimit = 116 * 1024;
  constexpr size_t kDownLimit = 100 * 1024;
  const size_t gate_up_fixed = sizeof(GateUpShared) + p.max_blocks * sizeof(int4);
  const size_t down_fixed =
      down_tables(p.num_tokens, p.top_k, p.max_blocks, p.routed_columns, p.shared_columns).bytes;
  constexpr size_t kDownStatic = kMaxStages * (2 * sizeof(uint64_t) + 2 * kTokens * sizeof(float));
  const auto stages = [](size_t limit, size_t fixed, size_t stage) {
    return fixed > limit ? 0
                         : static_cast<int>(std::min<size_t>((limit - fixed) / stage, kMaxStages));
  };
  const int gate_up_stages = stages(kGateUpLimit, gate_up_fixed, 2 * kStageBytes);  // of each ring
  const int down_stages = stages(kDownLimit - kDownStatic, down_fixed, sizeof(DownStage));
  if (gate_up_stages < 1 || down_stages < 1) return cudaErrorInvalidValue;

  p.stages = gate_up_stages;
  Grid grid;
  grid.blocks = dim3(kGateUpBlocks);
  grid.threads = dim3(kGateUpThreads);
  grid.shared_bytes = 2 * gate_up_stages * kStageBytes + gate_up_fixed;
  const cudaError_t error = enqueue(moe_gate_up_f8, grid, launch, p);
  if (error != cudaSuccess) return error;

  p.stages = down_stages;
  grid.blocks = dim3(static_cast<unsigned>(p.x.cols / TiledMatrix::kTileRows));
  grid.threads = dim3(kDownThreads);
  grid.shared_bytes = down_stages * sizeof(DownStage) + down_fixed;
  return enqueue(moe_down_f8, grid, launch, p);
}

}  // namespace

size_t moe_decode_workspace(const MoeDecodeSizes& sizes) {
  return plan_workspace(sizes).bytes;
}

cudaError_t moe_decode(const QuantizedRows& x,
                       int32_t num_tokens,
                       const Routing& routing,
                       int32_t top_k,
                       const ListOptions& options,
                       const ExpertLists& lists,
                       const RoutedExperts& routed,
                       const SharedExpert& shared,
                       __nv_bfloat16* out,
                       void* workspace,
                       const Launch& launch) {
  if (num_tokens == 0) return cudaSuccess;
  const int64_t shared_intermediate =
      shared.gate_up.tiles != nullptr ? shared.gate_up.intermediate : 0;
  if (num_tokens < 0 || num_tokens > kMoeDecodeTokens || top_k < 1 || top_k > kMaxTopK ||
      routed.num_local < 1 || routed.num_local > kMaxLocal ||
      options.num_local != routed.num_local || x.cols < kColumns || x.cols % kColumns != 0 ||
      routed.intermediate < kColumns || routed.intermediate % kColumns != 0 ||
      shared_intermediate % kColumns != 0) {
    return cudaErrorInvalidValue;
  }
  const Workspace at = plan_workspace(
      {num_tokens, top_k, routed.num_local, x.cols, routed.intermediate, shared_intermediate});
  auto* base = static_cast<uint8_t*>(workspace);
  Problem p{};
  p.x = x;
  p.experts = routing.experts;
  p.weights = routing.weights;
  p.options = options;
  p.lists = lists;
  p.routed = routed;
  p.shared = shared;
  p.out = out;
  p.arrivals = reinterpret_cast<uint32_t*>(base);
  p.partial = reinterpret_cast<float2*>(base + at.partial);
  p.h = base + at.h;
  p.h_scale = reinterpret_cast<float*>(base + at.h_scale);
  p.shared_h = base + at.shared_h;
  p.shared_h_scale = reinterpret_cast<float*>(base + at.shared_h_scale);
  p.num_tokens = num_tokens;
  p.top_k = top_k;
  p.max_blocks = max_expert_blocks(num_tokens, top_k, routed.num_local);
  p.hidden_blocks = static_cast<int>(x.cols / kColumns);
  p.routed_columns = static_cast<int>(routed.intermediate / kColumns);
  p.shared_columns = static_cast<int>(shared_intermediate / kColumns);
  p.by_top_k = Quotient(top_k);
  p.by_routed_columns = Quotient(p.routed_columns);
  p.by_shared_columns = Quotient(std::max(p.shared_columns, 1));
  const int block_tokens = token_block_size(num_tokens);
  p.shared_blocks = shared_intermediate > 0 ? (num_tokens + block_tokens - 1) / block_tokens : 0;
  const int64_t unit_items = (p.hidden_blocks + kChunkBlocks - 1) / kChunkBlocks * kStrips;
  const int64_t shared_units = static_cast<int64_t>(p.shared_blocks) * p.shared_columns;
  const int64_t units = shared_units + static_cast<int64_t>(p.max_blocks) * p.routed_columns;
  if (shared_units * unit_items * units * unit_items > UINT32_MAX ||
      units * unit_items * kGateUpBlocks > INT32_MAX) {
    return cudaErrorInvalidValue;
  }
  if (few_serves(p)) return enqueue_few(p, launch);
  return num_tokens > kFewTokens ? enqueue_many(p, launch) : enqueue_both(p, launch);
}

}  // namespace r1d::kernels
