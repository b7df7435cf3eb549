// SPDX-License-Identifier: Apache-2.0
// Problem   moe_decode() for 9 to 256 tokens.
// Layout    moe_decode.h; h between the launches as moe_decode.cu describes it.
// Bound     each active expert's 3 I D bytes once. R1 on 8 ranks: 5.5 MB an expert; 256 tokens
//           activate all 256: 1.41 GB with the shared one, 336 us at 4.21 TB/s. Tokens of an
//           expert, 8 on average, are padded to groups of 8 (1.41 each): 35 Gflop, 27 us.
// Launch    gate_up: 132 blocks of two product warpgroups, two weight and two gather warps, each an
//           equal run of work items; down: a block per 64 columns, likewise with two h warps.
//           Shared memory allows one block on an SM: rings of 96 to 192 KB of weights.
// Numerics  as moe_decode.cu: the same sums in the same order.
// Source    DeepSeek-V3 report, sections 2.1.2 and 3.3.
//
// gate_up. An item is (token block, 128 columns of h, chunk of 8 column blocks): four strips of 64
// weight rows, two for each warpgroup. A thread block that has all chunks of a unit, (token block,
// 128 columns), keeps their sums in registers and completes it there; only units that a run's ends
// cut leave partial sums. To 32 tokens each thread block makes the lists for itself, and block 0
// leaves them in memory for down.
//
// down. A thread block owns 64 output columns for all tokens and walks the token blocks, so the sum
// over experts stays in shared memory. A token block takes a warpgroup longer than its weights take
// to arrive, so two take token blocks in turns, and add to the sums in the same turns: the order of
// sums is fixed.
#include <algorithm>
#include <type_traits>

#include <cuda_fp8.h>

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/moe_decode/own_lists.cuh"
#include "kernels/moe_decode/problem.cuh"

namespace r1d::kernels::moe {
namespace {

constexpr int kTokens = 32;                  // of a token block
constexpr int kGateUpBlocks = 132;           // an H200's SMs; any number is correct
constexpr int kStageBytes = 2 * kTileBytes;  // a ring stage holds two tiles, neighbours along K
constexpr int kChunkBlocks = 8;              // column blocks of 128 to a chunk
constexpr int kConsumers = 256;
constexpr int kGateUpThreads = kConsumers + 128;  // + two weight and two gather warps
constexpr int kMaxStages = 16;
constexpr int kPrefetchTiles = 8;  // of the shared expert and thread block, brought to L2 early
constexpr size_t kMaxSharedBytes = 226 * 1024;

// ---- shared memory -----------------------------------------------------------------------------

// Behind the two rings of weight tiles, one a warpgroup; behind it the table of blocks.
struct GateUpShared {
  struct XStage {
    alignas(1024) uint8_t rows[kChunkBlocks * kTokens * kColumns];  // [column block][group] tiles
  };
  struct Scales {
    float gate[kChunkBlocks][kTokens];  // token scale times weight scale
    float up[kChunkBlocks][kTokens];
    float weight[kTokens];  // the router's; 1 for the shared expert
  };
  static constexpr int kXStages = 2;
  XStage x[kXStages];
  Scales scales[kXStages];
  uint32_t most[2][kConsumers / 32][kTokens];  // a warp's largest |h|, as bits
  uint64_t full[2][kMaxStages];
  uint64_t empty[2][kMaxStages];
  uint64_t x_full[kXStages];
  uint64_t x_empty[kXStages];
  uint32_t arrived[kXStages];  // Problem::arrivals as read before a cut unit's last chunk here
  int complete;
};

#ifdef R1D_SM90

// wgmma_descriptor_k128(address) + 2 k in arithmetic of 32 bits.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, int k) {
  const uint64_t fixed = wgmma_descriptor_k128(0);
  return (fixed >> 32 << 32) | ((static_cast<uint32_t>(fixed) | address >> 4) + 2 * k);
}

// d0, d1 = two neighbouring tiles times their token tiles; b_step = bytes between the latter.
template <int N>
__device__ __forceinline__ void multiply_stage(
    float (&d0)[N / 2], float (&d1)[N / 2], uint32_t tiles, uint32_t tokens, uint32_t b_step) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    Wgmma<N>::e4m3(d0, descriptor(tiles, k), descriptor(tokens, k), k > 0);
    Wgmma<N>::e4m3(d1, descriptor(tiles + kTileBytes, k), descriptor(tokens + b_step, k), k > 0);
  }
  wgmma_commit();
}

// Calls run(std::integral_constant<int, N>) with the width of product that holds `count` tokens.
template <typename Run>
__device__ __forceinline__ void for_width(int count, Run&& run) {
  if (count <= 8) {
    run(std::integral_constant<int, 8>{});
  } else if (count <= 16) {
    run(std::integral_constant<int, 16>{});
  } else if (count <= 24) {
    run(std::integral_constant<int, 24>{});
  } else {
    run(std::integral_constant<int, 32>{});
  }
}

// Weights that one token block reads leave L2 first.
__device__ __forceinline__ void load_weights(
    void* to, const void* from, uint32_t bytes, uint64_t* barrier, bool again, uint64_t once) {
  if (again) {
    bulk_load(to, from, bytes, barrier);
  } else {
    bulk_load_hint(to, from, bytes, barrier, once);
  }
}

// ---- gate_up -----------------------------------------------------------------------------------

// The items, (unit, chunk) in this order, are dealt out in equal runs. No division stands between
// the lists and the first request.
struct Deal {
  int items;
  int chunks;            // of a unit
  uint32_t shared_step;  // shared units to a unit, in 2^-31, rounded up
  __device__ __forceinline__ Deal(const Problem& p, int num_blocks) : chunks(p.by_chunks.n) {
    const int shared = p.shared_blocks * p.shared_columns;
    const int units = shared + num_blocks * p.routed_columns;
    items = units * chunks;
    // The quotient is off by less than 2^-20; units are fewer than 2^19.
    constexpr float kUnit = 2147483648.0F;
    shared_step = static_cast<uint32_t>(
                      __fdividef(static_cast<float>(shared), static_cast<float>(units)) * kUnit) +
                  2048;
  }
  __device__ __forceinline__ int begin_of(int block) const { return block * items / kGateUpBlocks; }
  __device__ __forceinline__ int shared_before(int unit) const {
    return static_cast<int>(static_cast<uint64_t>(unit) * shared_step >> 31);
  }
  // The thread block that has a unit's first item, and the end of its chunks of that unit.
  __device__ __forceinline__ int leader_of(int unit) const {
    return ((unit * chunks + 1) * kGateUpBlocks - 1) / items;
  }
  __device__ __forceinline__ int led_chunks(int leader, int unit) const {
    return min(chunks, begin_of(leader + 1) - unit * chunks);
  }
};

// Shared units are spread evenly among the routed ones: many tokens make them dearer.
__device__ __forceinline__ Unit unit_at(const Problem& p,
                                        const int4* blocks,
                                        int unit,
                                        const Deal& deal) {
  const int shared_before = deal.shared_before(unit);
  Unit u;
  u.shared = deal.shared_before(unit + 1) > shared_before;
  if (u.shared) {
    const int block = p.by_shared_columns(shared_before);
    u.columns = shared_before - block * p.shared_columns;
    u.begin = block * kTokens;
    u.count = min(p.num_tokens - u.begin, kTokens);
    u.expert = 0;
    u.group = u.begin / 8;
  } else {
    unit -= shared_before;
    const int block = p.by_routed_columns(unit);
    u.columns = unit - block * p.routed_columns;
    const int4 b = blocks[block];
    u.expert = b.x;
    u.begin = b.y;
    u.count = b.z;
    u.group = b.w;
  }
  return u;
}

// Calls visit(unit, first chunk, one behind the last) for the thread block's part of each unit.
template <typename Visit>
__device__ __forceinline__ void for_segments(const Problem& p, const Deal& deal, Visit&& visit) {
  const int block = static_cast<int>(blockIdx.x);
  const int hi = deal.begin_of(block + 1);
  int i = deal.begin_of(block);
  for (int unit = p.by_chunks(i); i < hi; ++unit) {
    const int first = i - unit * deal.chunks;
    const int end = min(deal.chunks, first + hi - i);
    visit(unit, first, end);
    i += end - first;
  }
}

// acc += d, scaled; d as wgmma leaves it.
template <int N>
__device__ __forceinline__ void promote(float (&acc)[N / 2],
                                        const float (&d)[N / 2],
                                        const float2 (&gate)[N / 8],
                                        const float2 (&up)[N / 8]) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    acc[4 * j] = fmaf(d[4 * j], gate[j].x, acc[4 * j]);
    acc[4 * j + 1] = fmaf(d[4 * j + 1], gate[j].y, acc[4 * j + 1]);
    acc[4 * j + 2] = fmaf(d[4 * j + 2], up[j].x, acc[4 * j + 2]);
    acc[4 * j + 3] = fmaf(d[4 * j + 3], up[j].y, acc[4 * j + 3]);
  }
}

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t word;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}

// Where a warpgroup stands in the rings.
struct Consumer {
  const uint8_t* tiles;
  uint64_t* full;
  uint64_t* empty;
  int stages;
  Ring ring;
  Ring x;
  int finished = 0;  // units
};

// acc = one strip and chunk: the thread's rows and tokens, (gate, up) as d[4 j + c], d[4 j + 2 +
// c].
template <int N>
__device__ __forceinline__ void multiply_chunk(const GateUpShared& s,
                                               Consumer& at,
                                               int blocks,
                                               float (&acc)[N / 2]) {
  const int lane = threadIdx.x % 32;
  const int pair = lane % 4 * 2;
  const uint32_t x_rows = smem_address(s.x[at.x.stage].rows);
  const GateUpShared::Scales& scales = s.scales[at.x.stage];
#pragma unroll 1
  for (int b = 0; b < blocks; b += 2) {
    mbarrier_wait(&at.full[at.ring.stage], at.ring.phase);
    float d0[N / 2];
    float d1[N / 2];
    multiply_stage<N>(d0,
                      d1,
                      smem_address(at.tiles + at.ring.stage * kStageBytes),
                      x_rows + b * N * kColumns,
                      N * kColumns);
    const bool two = b + 1 < blocks;  // an odd chunk's last stage holds one tile
    float2 gate[2][N / 8];
    float2 up[2][N / 8];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int block = i == 1 && !two ? b : b + i;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        gate[i][j] = *reinterpret_cast<const float2*>(&scales.gate[block][8 * j + pair]);
        up[i][j] = *reinterpret_cast<const float2*>(&scales.up[block][8 * j + pair]);
      }
    }
    wgmma_wait<0>();
    wgmma_fence_registers(d0);
    wgmma_fence_registers(d1);
    if (lane == 0) mbarrier_arrive(&at.empty[at.ring.stage]);
    at.ring.advance(at.stages);
    promote<N>(acc, d0, gate[0], up[0]);
    if (two) promote<N>(acc, d1, gate[1], up[1]);
  }
}

// h = silu(gate) * up of a whole unit, quantized. A thread has row 8 warp + lane / 4 of its
// warpgroup's two strips and tokens 8 j + lane % 4 * 2 + c.
template <int N>
__device__ __forceinline__ void finish_unit(const Problem& p,
                                            const Unit& u,
                                            GateUpShared& s,
                                            const float (&total)[2][N / 2],
                                            float weight,
                                            int buffer) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int pair = lane % 4 * 2;
  float h[2][N / 4];
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    uint32_t most[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float gate = total[half][4 * j + c];
        h[half][2 * j + c] = gate / (1.0F + expf(-gate)) * total[half][4 * j + 2 + c];
      }
      // Magnitudes order as their bits do, NaN above all.
      most[c] =
          max(__float_as_uint(fabsf(h[0][2 * j + c])), __float_as_uint(fabsf(h[1][2 * j + c])));
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        most[c] = max(most[c], __shfl_xor_sync(~0U, most[c], lanes));
      }
    }
    if (lane < 4) {
      *reinterpret_cast<uint2*>(&s.most[buffer][warp][8 * j + pair]) = make_uint2(most[0], most[1]);
    }
  }
  named_barrier(1, kConsumers);

  const auto scale_of = [](uint32_t most) {
    return most == 0 ? 1.0F : __uint_as_float(most) / 448.0F;
  };
  const int groups = (u.count + 7) / 8;
  const int columns = u.shared ? p.shared_columns : p.routed_columns;
  const int64_t atom = static_cast<int64_t>(u.group) * columns + u.columns * groups;
  uint8_t* rows = (u.shared ? p.shared_h : p.h) + atom * kAtomBytes;
  const int piece = warp / 4 * 2 + warp % 4 / 2;  // of 16 columns; the other strip's is 4 further
  const int in_piece = warp % 2 * 8 + lane / 4;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    uint2 most = make_uint2(0, 0);
#pragma unroll
    for (int w = 0; w < kConsumers / 32; ++w) {
      const uint2 other = *reinterpret_cast<const uint2*>(&s.most[buffer][w][8 * j + pair]);
      most = make_uint2(max(most.x, other.x), max(most.y, other.y));
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int row = pair + c;
      if (8 * j + row >= u.count) continue;
      const float scale = scale_of(c == 0 ? most.x : most.y);
      const uint32_t both = __nv_cvt_float2_to_fp8x2(
          make_float2(h[0][2 * j + c] / scale, h[1][2 * j + c] / scale), __NV_SATFINITE, __NV_E4M3);
      uint8_t* to = rows + j * kAtomBytes + row * kColumns + in_piece;
      to[(piece ^ row) * 16] = static_cast<uint8_t>(both);
      to[((piece + 4) ^ row) * 16] = static_cast<uint8_t>(both >> 8);
    }
  }
  if (threadIdx.x < u.count) {
    uint32_t most = 0;
#pragma unroll
    for (int w = 0; w < kConsumers / 32; ++w) most = max(most, s.most[buffer][w][threadIdx.x]);
    float* h_scale = (u.shared ? p.shared_h_scale : p.h_scale) + atom * 8;
    h_scale[threadIdx.x] = scale_of(most) * weight;
  }
}

// Chunks first .. end - 1 of a unit. Where other thread blocks have the rest, sums meet in
// `partial`, [chunk][strip of the warpgroup][group of tokens][thread]: the unit's leader, which has
// its first chunk, leaves its chunks' sum at chunk 0, others each chunk's own at that chunk, and
// whoever arrives last adds them in order, as a thread block with the whole unit does in registers.
// A leader comes to the unit at the end of its run, others at the beginning of theirs: mostly they
// have arrived long before, and the leader completes the unit without a word to them.
template <int N>
__device__ __forceinline__ void gate_up_segment(const Problem& p,
                                                const Unit& u,
                                                GateUpShared& s,
                                                Consumer& at,
                                                int first,
                                                int end,
                                                int unit,
                                                const Deal& deal) {
  constexpr int kStripStride = kTokens / 8 * kConsumers;
  const bool leads = first == 0;
  const int leader = leads ? static_cast<int>(blockIdx.x) : deal.leader_of(unit);
  float4* partial = reinterpret_cast<float4*>(p.partial) +
                    static_cast<int64_t>(leader) * deal.chunks * 2 * kStripStride + threadIdx.x;
  uint32_t* arrivals = p.arrivals + leader;
  uint32_t arrived = 0;
  float total[2][N / 2] = {};
  float weight = 0;
  for (int chunk = first; chunk < end; ++chunk) {
    mbarrier_wait(&s.x_full[at.x.stage], at.x.phase);
    const int blocks = min(p.hidden_blocks - chunk * kChunkBlocks, kChunkBlocks);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float acc[N / 2] = {};
      multiply_chunk<N>(s, at, blocks, acc);
      if (leads) {
#pragma unroll
        for (int i = 0; i < N / 2; ++i) total[half][i] += acc[i];
      } else {
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          partial[(chunk * 2 + half) * kStripStride + j * kConsumers] =
              make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
        }
      }
    }
    if (threadIdx.x < kTokens) weight = s.scales[at.x.stage].weight[threadIdx.x];
    arrived = s.arrived[at.x.stage];
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&s.x_empty[at.x.stage]);
    at.x.advance(s.kXStages);
  }
  if (end - first < deal.chunks) {
    const auto all = static_cast<uint32_t>(deal.chunks);
    const uint32_t mine = end - first;
    const auto add_chunk = [&](int chunk) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          const float4 v = __ldcg(partial + (chunk * 2 + half) * kStripStride + j * kConsumers);
          total[half][4 * j] += v.x;
          total[half][4 * j + 1] += v.y;
          total[half][4 * j + 2] += v.z;
          total[half][4 * j + 3] += v.w;
        }
      }
    };
    if (leads && arrived + mine == all) {
      if (threadIdx.x == 0) *arrivals = 0;
    } else {
      if (leads) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < N / 8; ++j) {
            const float* sum = total[half] + 4 * j;
            partial[half * kStripStride + j * kConsumers] =
                make_float4(sum[0], sum[1], sum[2], sum[3]);
          }
        }
      }
      named_barrier(1, kConsumers);
      if (threadIdx.x == 0) {
        __threadfence();
        const bool done = atomicAdd(arrivals, mine) + mine == all;
        if (done) *arrivals = 0;
        __threadfence();
        s.complete = done;
      }
      named_barrier(1, kConsumers);
      if (!s.complete) return;
      if (!leads) add_chunk(0);
    }
    constexpr int kAtOnce = N == 8 ? 6 : N == 16 ? 2 : 1;
#pragma unroll kAtOnce
    for (int chunk = deal.led_chunks(leader, unit); chunk < deal.chunks; ++chunk) add_chunk(chunk);
  }
  finish_unit<N>(p, u, s, total, weight, at.finished & 1);
  ++at.finished;
}

// Rows of x and scales of one chunk to shared memory; a warp. `token` and `weight`: of row `lane`.
__device__ __forceinline__ void gather_chunk(const Problem& p,
                                             const Unit& u,
                                             int chunk,
                                             int token,
                                             float weight,
                                             uint8_t* rows,
                                             GateUpShared::Scales& scales) {
  const int lane = threadIdx.x % 32;
  const int first = chunk * kChunkBlocks;
  const int count = min(p.hidden_blocks - first, kChunkBlocks);
  const int groups = (u.count + 7) / 8;
  for (int row = 0; row < u.count; ++row) {
    const uint8_t* from =
        p.x.data + __shfl_sync(~0U, token, row) * p.x.cols + static_cast<int64_t>(first) * kColumns;
    uint8_t* to = rows + row / 8 * kAtomBytes + row % 8 * kColumns;
    for (int piece = lane; piece < count * 8; piece += 32) {
      cp_async_16(smem_address(to + piece / 8 * groups * kAtomBytes + ((piece ^ row) % 8) * 16),
                  from + piece * 16);
    }
  }
  cp_async_commit();
  const int64_t scale_at = static_cast<int64_t>(u.columns) * p.hidden_blocks + first;
  const int64_t expert_at = u.expert * p.routed.gate_up_scale_stride;
  const float* gate_scale =
      (u.shared ? p.shared.gate_up.gate_scale : p.routed.gate_scale + expert_at) + scale_at;
  const float* up_scale =
      (u.shared ? p.shared.gate_up.up_scale : p.routed.up_scale + expert_at) + scale_at;
  // All loads before all stores: one trip to memory.
  float scale[kChunkBlocks];
  float gate[kChunkBlocks];
  float up[kChunkBlocks];
#pragma unroll
  for (int b = 0; b < kChunkBlocks; ++b) {
    if (b >= count || lane >= u.count) continue;
    scale[b] = p.x.scale[(first + b) * p.x.scale_stride + token];
    gate[b] = gate_scale[b];
    up[b] = up_scale[b];
  }
#pragma unroll
  for (int b = 0; b < kChunkBlocks; ++b) {
    if (b >= count || lane >= u.count) continue;
    scales.gate[b][lane] = scale[b] * gate[b];
    scales.up[b][lane] = scale[b] * up[b];
  }
  scales.weight[lane] = weight;
  cp_async_wait<0>();
}

#endif  // R1D_SM90

__global__ void __launch_bounds__(kGateUpThreads)
    moe_gate_up_many_f8(const __grid_constant__ Problem p) {
#ifdef R1D_SM90
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& s = *reinterpret_cast<GateUpShared*>(memory + 2 * p.stages * kStageBytes);
  auto* blocks = reinterpret_cast<int4*>(&s + 1);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;

  // ---- start: barriers, shared expert and scales into L2, lists ----
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
  prefetch_scales(p,
                  static_cast<int>(blockIdx.x * kGateUpThreads + threadIdx.x),
                  kGateUpBlocks * kGateUpThreads);
  const bool listed = makes_lists(p.num_tokens);
  OwnLists<kGateUpThreads, kConsumers> own(p, blocks + p.max_blocks);
  int num_blocks;
  if (listed) {
    grid_dependency_wait();
    for (int i = threadIdx.x; i < p.max_blocks; i += kGateUpThreads) {
      blocks[i] = __ldcg(reinterpret_cast<const int4*>(p.lists.blocks) + i);
    }
    num_blocks = __ldcg(p.lists.num_blocks);
    __syncthreads();
  } else {
    num_blocks = own.make_blocks(p, blocks);
  }

  const Deal deal(p, num_blocks);

  constexpr int kCopyWarp = kConsumers / 32;
  if (warp == kCopyWarp || warp == kCopyWarp + 1) {
    // ---- weight tiles, a warp for each warpgroup's strips ----
    if (lane != 0) return;
    const int group = warp - kCopyWarp;
    const uint64_t once = l2_evict_first();
    uint8_t* tiles = memory + group * p.stages * kStageBytes;
    Ring ring;
    for_segments(p, deal, [&](int unit, int begin, int end) {
      const Unit u = unit_at(p, blocks, unit, deal);
      const uint8_t* from =
          (u.shared ? p.shared.gate_up.tiles
                    : p.routed.gate_up_tiles + u.expert * p.routed.gate_up_stride) +
          static_cast<int64_t>(u.columns) * kStrips * p.hidden_blocks * kTileBytes;
      const bool again = u.shared && p.shared_blocks > 1;
      for (int chunk = begin; chunk < end; ++chunk) {
        const int first = chunk * kChunkBlocks;
        const int last = min(p.hidden_blocks, first + kChunkBlocks);
        for (int strip = group; strip < kStrips; strip += 2) {
          for (int b = first; b < last; b += 2) {
            const uint32_t bytes = min(last - b, 2) * kTileBytes;
            mbarrier_wait(&s.empty[group][ring.stage], ring.phase ^ 1);
            mbarrier_arrive_expect(&s.full[group][ring.stage], bytes);
            load_weights(tiles + ring.stage * kStageBytes,
                         from + static_cast<int64_t>(strip * p.hidden_blocks + b) * kTileBytes,
                         bytes,
                         &s.full[group][ring.stage],
                         again,
                         once);
            ring.advance(p.stages);
          }
        }
      }
    });
    return;
  }

  // The weights do not wait for the entries.
  if (!listed) {
    if (warp < kCopyWarp) own.make_entries();
    named_barrier(2, kGateUpThreads - 64);
    if (blockIdx.x == 0 && warp < kCopyWarp) {
      own.publish(p, blocks, num_blocks);
      named_barrier(1, kConsumers);
    }
  }
  // down reads the lists ahead of its own wait, so they must be complete by now.
  if (warp < kCopyWarp) grid_launch_dependents();
  const int32_t* entries = listed ? p.lists.entries : own.entries();

  if (warp >= kCopyWarp + 2) {
    // ---- rows of x and scales, a stage for each item; a warp fills each other one ----
    const int stage = warp - kCopyWarp - 2;
    int item = 0;
    uint32_t phase = 0;
    for_segments(p, deal, [&](int unit, int begin, int end) {
      const Unit u = unit_at(p, blocks, unit, deal);
      int token = u.begin + lane;
      float weight = 1;
      if (!u.shared) {
        const int entry = lane < u.count ? entries[token] : 0;
        token = p.by_top_k(entry);
        weight = __ldcg(p.weights + entry);
      }
      for (int chunk = begin; chunk < end; ++chunk) {
        if (item++ % s.kXStages != stage) continue;
        mbarrier_wait(&s.x_empty[stage], phase ^ 1);
        gather_chunk(p, u, chunk, token, weight, s.x[stage].rows, s.scales[stage]);
        if (lane == 0 && begin == 0 && chunk == end - 1 && end < deal.chunks) {
          s.arrived[stage] = load_acquire(p.arrivals + blockIdx.x);
        }
        fence_async_shared();
        mbarrier_arrive(&s.x_full[stage]);
        phase ^= 1;
      }
    });
    return;
  }

  // ---- products ----
  const int group = warp / 4;
  Consumer at{memory + group * p.stages * kStageBytes, s.full[group], s.empty[group], p.stages};
  for_segments(p, deal, [&](int unit, int first, int end) {
    const Unit u = unit_at(p, blocks, unit, deal);
    for_width(u.count, [&](auto n) {
      gate_up_segment<decltype(n)::value>(p, u, s, at, first, end, unit, deal);
    });
  });
#endif  // R1D_SM90
}

// ---- down --------------------------------------------------------------------------------------

constexpr int kDownThreads = kConsumers + 128;  // + two weight and two h warps
constexpr int kDownStages = 8;                  // most of a warpgroup's ring
constexpr int kSumPitch = 68;                   // floats; 8 tokens' rows start in different banks
constexpr int kHiddenBytes = 16 * 1024;  // a ring of h; a part takes 1 KB for 8 tokens and tile

// Sizes of a block's tables behind the rings; shared by kernel and launcher. tokens: of each entry,
// then all tokens for the shared expert.
struct DownTables {
  int blocks, scales, tokens, bytes;
};
__host__ __device__ constexpr DownTables down_tables(
    int num_tokens, int top_k, int max_blocks, int routed_columns, int shared_columns) {
  DownTables t{};
  t.blocks = num_tokens * kSumPitch * 4;
  t.scales = t.blocks + max_blocks * 16;
  t.tokens = t.scales + (max_blocks * routed_columns + shared_columns) * 4;
  t.bytes = t.tokens + num_tokens * (top_k + 1) * 2;
  return t;
}

#ifdef R1D_SM90

// A token block; it has a part for each two tiles of the thread block's strip.
struct DownBlock {
  const uint8_t* weight;
  const uint8_t* h;
  const float* h_scale;
  int columns;
  int groups;
  bool again;  // other token blocks read the same weights
};

// The routed token blocks, then the shared ones.
__device__ __forceinline__ DownBlock down_block_at(const Problem& p,
                                                   const int4* blocks,
                                                   int num_blocks,
                                                   int index) {
  DownBlock b;
  const bool shared = index >= num_blocks;
  b.columns = shared ? p.shared_columns : p.routed_columns;
  int group;
  int count;
  if (shared) {
    const int begin = (index - num_blocks) * kTokens;
    group = begin / 8;
    count = min(p.num_tokens - begin, kTokens);
    b.weight = p.shared.down.tiles;
  } else {
    const int4 block = blocks[index];
    count = block.z;
    group = block.w;
    b.weight = p.routed.down_tiles + block.x * p.routed.down_stride;
  }
  b.groups = (count + 7) / 8;
  b.weight += static_cast<int64_t>(blockIdx.x) * b.columns * kTileBytes;
  const int64_t atom = static_cast<int64_t>(group) * b.columns;
  b.h = (shared ? p.shared_h : p.h) + atom * kAtomBytes;
  b.h_scale = (shared ? p.shared_h_scale : p.h_scale) + atom * 8;
  b.again = shared && p.shared_blocks > 1;
  return b;
}

// Calls visit(block, first column block, tiles) for each part of a warpgroup in order.
template <typename Visit>
__device__ __forceinline__ void for_parts(
    const Problem& p, const int4* blocks, int num_blocks, int group, Visit&& visit) {
  for (int i = group; i < num_blocks + p.shared_blocks; i += 2) {
    const DownBlock b = down_block_at(p, blocks, num_blocks, i);
    for (int column = 0; column < b.columns; column += 2) {
      visit(b, column, min(b.columns - column, 2));
    }
  }
}

// Places in the ring of h; parts are not wrapped around its end.
struct HiddenRing {
  int at = 0;
  uint32_t taken = 0;  // bytes so far, those left out at the end included
  // The next part's place.
  __device__ __forceinline__ int take(int bytes) {
    if (at + bytes > kHiddenBytes) {
      taken += kHiddenBytes - at;
      at = 0;
    }
    const int from = at;
    at += bytes;
    taken += bytes;
    return from;
  }
};

// A warpgroup's rings. The warpgroups take token blocks in turns and add to the sums in turns.
struct DownRings {
  uint8_t* tiles;  // stages of two
  uint8_t* hidden;
  float (*h_scales)[2 * kTokens];
  uint64_t* full;
  uint64_t* empty;
  int stages;
};

// One token block: sum [token][64] += its product. tokens: of its `count` entries. What the tensor
// cores do not need is loaded while they work.
template <int N>
__device__ __forceinline__ void multiply_block(const DownRings& rings,
                                               Ring& ring,
                                               HiddenRing& hidden,
                                               int columns,
                                               int count,
                                               const float* weight_scale,
                                               const uint16_t* tokens,
                                               float* sum,
                                               uint64_t* my_turn,
                                               uint32_t parity,
                                               uint64_t* their_turn) {
  const int lane = threadIdx.x % 32;
  const int pair = lane % 4 * 2;
  sum += threadIdx.x / 32 % 4 * 16 + lane / 4;
  float acc[N / 2] = {};
  int to[N / 4] = {};
  for (int column = 0; column < columns; column += 2) {
    const int two = min(columns - column, 2);
    const int at = hidden.take(two * N * kColumns);
    mbarrier_wait(&rings.full[ring.stage], ring.phase);
    float d0[N / 2];
    float d1[N / 2];
    // An odd block's last part has one tile; the second product then counts for nothing.
    multiply_stage<N>(d0,
                      d1,
                      smem_address(rings.tiles + ring.stage * kStageBytes),
                      smem_address(rings.hidden + at),
                      (two - 1) * N * kColumns);
    const float* token_scale = rings.h_scales[ring.stage] + pair;
    float2 scale0[N / 8];
    float2 scale1[N / 8];
    const float weight0 = weight_scale[column];
    const float weight1 = weight_scale[column + two - 1];
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const float2 v0 = *reinterpret_cast<const float2*>(token_scale + 8 * j);
      const float2 v1 = *reinterpret_cast<const float2*>(token_scale + 8 * j + (two - 1) * N);
      scale0[j] = make_float2(v0.x * weight0, v0.y * weight0);
      scale1[j] = make_float2(v1.x * weight1, v1.y * weight1);
    }
    if (column + 2 >= columns) {
#pragma unroll
      for (int i = 0; i < N / 4; ++i) {
        to[i] = tokens[min(i / 2 * 8 + pair + i % 2, count - 1)] * kSumPitch;
      }
    }
    wgmma_wait<0>();
    wgmma_fence_registers(d0);
    wgmma_fence_registers(d1);
    if (lane == 0) mbarrier_arrive(&rings.empty[ring.stage]);
    ring.advance(rings.stages);
    promote<N>(acc, d0, scale0, scale0);
    if (two == 2) promote<N>(acc, d1, scale1, scale1);
  }
  // Loads before stores: the tokens of a block differ.
  float before[N / 2];
  mbarrier_wait(my_turn, parity);
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    before[2 * i] = sum[to[i]];
    before[2 * i + 1] = sum[to[i] + 8];
  }
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    if (i / 2 * 8 + pair + i % 2 < count) {
      sum[to[i]] = before[2 * i] + acc[i / 2 * 4 + i % 2];
      sum[to[i] + 8] = before[2 * i + 1] + acc[i / 2 * 4 + 2 + i % 2];
    }
  }
  __syncwarp();
  if (lane == 0) mbarrier_arrive(their_turn);
}

#endif  // R1D_SM90

__global__ void __launch_bounds__(kDownThreads)
    moe_down_many_f8(const __grid_constant__ Problem p) {
#ifdef R1D_SM90
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ uint64_t full[2][kDownStages];
  __shared__ uint64_t empty[2][kDownStages];
  __shared__ uint64_t turn[2];
  __shared__ alignas(16) float h_scales[2][kDownStages][2 * kTokens];
  __shared__ uint32_t begins[2][kDownStages];  // of parts in the ring of h, the h warps'
  const int warp = threadIdx.x / 32;
  const int group = warp < 8 ? warp / 4 : warp % 2;
  const DownRings rings{memory + 2 * kHiddenBytes + group * p.stages * kStageBytes,
                        memory + group * kHiddenBytes,
                        h_scales[group],
                        full[group],
                        empty[group],
                        p.stages};
  uint8_t* tables = memory + 2 * (kHiddenBytes + p.stages * kStageBytes);
  const DownTables at =
      down_tables(p.num_tokens, p.top_k, p.max_blocks, p.routed_columns, p.shared_columns);
  auto* sum = reinterpret_cast<float*>(tables);
  auto* blocks = reinterpret_cast<int4*>(tables + at.blocks);
  auto* scales = reinterpret_cast<float*>(tables + at.scales);
  auto* tokens = reinterpret_cast<uint16_t*>(tables + at.tokens);
  const int strip = blockIdx.x;

  grid_launch_dependents();
  if (threadIdx.x == 0) {
    for (int g = 0; g < 2; ++g) {
      for (int i = 0; i < p.stages; ++i) {
        mbarrier_init(&full[g][i], 1);
        mbarrier_init(&empty[g][i], 4);
      }
      mbarrier_init(&turn[g], 4);
    }
    mbarrier_init_fence();
  }
  // gate_up had waited for the lists, or written them, when it let this kernel start.
  for (int i = threadIdx.x; i < p.max_blocks; i += kDownThreads) {
    blocks[i] = __ldcg(reinterpret_cast<const int4*>(p.lists.blocks) + i);
  }
  const int num_blocks = __ldcg(p.lists.num_blocks);
  __syncthreads();

  if (warp == 8 || warp == 9) {
    // ---- weight tiles; the ring fills while gate_up ends ----
    if (threadIdx.x % 32 != 0) return;
    const uint64_t once = l2_evict_first();
    Ring ring;
    for_parts(p, blocks, num_blocks, group, [&](const DownBlock& b, int column, int two) {
      mbarrier_wait(&rings.empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(&rings.full[ring.stage],
                             two * (kTileBytes + b.groups * (kAtomBytes + 32)));
      load_weights(rings.tiles + ring.stage * kStageBytes,
                   b.weight + column * kTileBytes,
                   two * kTileBytes,
                   &rings.full[ring.stage],
                   b.again,
                   once);
      ring.advance(p.stages);
    });
    return;
  }
  if (warp > 9) {
    // ---- h, once gate_up is over ----
    grid_dependency_wait();
    if (threadIdx.x % 32 != 0) return;
    Ring ring;
    Ring oldest;   // part whose place may not be free yet
    int held = 0;  // parts from it on
    HiddenRing hidden;
    for_parts(p, blocks, num_blocks, group, [&](const DownBlock& b, int column, int two) {
      const int bytes = two * b.groups * kAtomBytes;
      const int to = hidden.take(bytes);
      while (held == p.stages ||
             (held > 0 && hidden.taken - begins[group][oldest.stage] > kHiddenBytes)) {
        mbarrier_wait(&rings.empty[oldest.stage], oldest.phase);
        oldest.advance(p.stages);
        --held;
      }
      begins[group][ring.stage] = hidden.taken - bytes;
      ++held;
      const int64_t atom = static_cast<int64_t>(column) * b.groups;
      bulk_load(rings.hidden + to, b.h + atom * kAtomBytes, bytes, &rings.full[ring.stage]);
      bulk_load(rings.h_scales[ring.stage],
                b.h_scale + atom * 8,
                two * b.groups * 32,
                &rings.full[ring.stage]);
      ring.advance(p.stages);
    });
    return;
  }

  // ---- tables ----
  for (int i = threadIdx.x; i < p.num_tokens * kSumPitch; i += kConsumers) sum[i] = 0;
  for (int i = threadIdx.x; i < num_blocks * p.routed_columns; i += kConsumers) {
    const int block = i / p.routed_columns;
    scales[i] = p.routed.down_scale[blocks[block].x * p.routed.down_scale_stride +
                                    strip / 2 * p.routed_columns + i - block * p.routed_columns];
  }
  for (int i = threadIdx.x; i < p.shared_columns; i += kConsumers) {
    scales[p.max_blocks * p.routed_columns + i] =
        p.shared.down.scale[strip / 2 * p.shared_columns + i];
  }
  const int num_entries = num_blocks > 0 ? blocks[num_blocks - 1].y + blocks[num_blocks - 1].z : 0;
  for (int i = threadIdx.x; i < num_entries; i += kConsumers) {
    tokens[i] = static_cast<uint16_t>(p.by_top_k(__ldcg(p.lists.entries + i)));
  }
  uint16_t* all_tokens = tokens + p.num_tokens * p.top_k;
  for (int i = threadIdx.x; i < p.num_tokens; i += kConsumers)
    all_tokens[i] = static_cast<uint16_t>(i);
  named_barrier(1, kConsumers);
  grid_dependency_wait();

  // ---- products ----
  Ring ring;
  HiddenRing hidden;
  // First entry and number of a token block's; the shared ones' follow the routed.
  const auto entries_at = [&](int i) {
    if (i < num_blocks) return make_int2(blocks[i].y, blocks[i].z);
    const int begin = (i - num_blocks) * kTokens;
    return make_int2(p.num_tokens * p.top_k + begin, min(p.num_tokens - begin, kTokens));
  };
  int2 next = entries_at(group);
  uint32_t turns = 1 - group;  // the first warpgroup begins
  for (int i = group; i < num_blocks + p.shared_blocks; i += 2, ++turns) {
    const int2 entries = next;
    next = entries_at(i + 2);
    const bool shared = i >= num_blocks;
    for_width(entries.y, [&](auto n) {
      multiply_block<decltype(n)::value>(rings,
                                         ring,
                                         hidden,
                                         shared ? p.shared_columns : p.routed_columns,
                                         entries.y,
                                         scales + (shared ? p.max_blocks : i) * p.routed_columns,
                                         tokens + entries.x,
                                         sum,
                                         &turn[group],
                                         turns & 1,
                                         &turn[1 - group]);
    });
  }

  // ---- store ----
  named_barrier(1, kConsumers);
  for (int i = threadIdx.x; i < p.num_tokens * 8; i += kConsumers) {
    const int token = i / 8;
    const float* from = sum + token * kSumPitch + i % 8 * 8;
    uint4 packed;
    auto* pairs = reinterpret_cast<__nv_bfloat162*>(&packed);
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs[j] = __floats2bfloat162_rn(from[2 * j], from[2 * j + 1]);
    *reinterpret_cast<uint4*>(p.out + token * p.x.cols + strip * 64 + i % 8 * 8) = packed;
  }
#endif  // R1D_SM90
}

}  // namespace

// ---- launcher ----------------------------------------------------------------------------------

size_t many_partial_bytes(int64_t hidden) {
  const int64_t chunks = (hidden / kColumns + kChunkBlocks - 1) / kChunkBlocks;
  return static_cast<size_t>(kGateUpBlocks * chunks * 2 * (kTokens / 8) * kConsumers) *
         sizeof(float4);
}

cudaError_t enqueue_many(Problem p, const Launch& launch) {
  const auto stages = [](size_t fixed, size_t stage) {
    return fixed > kMaxSharedBytes
               ? 0
               : static_cast<int>(std::min<size_t>((kMaxSharedBytes - fixed) / stage, kMaxStages));
  };
  const size_t gate_up_fixed =
      sizeof(GateUpShared) + p.max_blocks * sizeof(int4) + own_list_bytes(p);
  const int gate_up_stages = stages(gate_up_fixed, 2 * kStageBytes);  // of each ring
  const size_t down_fixed =
      2 * kHiddenBytes +
      down_tables(p.num_tokens, p.top_k, p.max_blocks, p.routed_columns, p.shared_columns).bytes;
  constexpr size_t kDownStatic = 1024 + 2 * kDownStages * 2 * kTokens * sizeof(float);
  const int down_stages =
      std::min(stages(kDownStatic + down_fixed, 2 * kStageBytes), kDownStages);  // of each ring
  if (gate_up_stages < 1 || down_stages < 1) return cudaErrorInvalidValue;

  p.stages = gate_up_stages;
  p.by_chunks = Quotient((p.hidden_blocks + kChunkBlocks - 1) / kChunkBlocks);
  Grid grid;
  grid.blocks = dim3(kGateUpBlocks);
  grid.threads = dim3(kGateUpThreads);
  grid.shared_bytes = 2 * gate_up_stages * kStageBytes + gate_up_fixed;
  const cudaError_t error = enqueue(moe_gate_up_many_f8, grid, launch, p);
  if (error != cudaSuccess) return error;

  p.stages = down_stages;
  grid.blocks = dim3(static_cast<unsigned>(p.x.cols / TiledMatrix::kTileRows));
  grid.threads = dim3(kDownThreads);
  grid.shared_bytes = 2 * down_stages * kStageBytes + down_fixed;
  return enqueue(moe_down_many_f8, grid, launch, p);
}

}  // namespace r1d::kernels::moe
