// SPDX-License-Identifier: Apache-2.0
// Problem   moe_decode of up to 8 tokens and a rank's share of up to 512 columns of h.
// Layout    as in moe_decode.cu, but h between the launches is [entry][I / 128][128] e4m3, its
//           scales, times the routing weight, [entry][I / 128]; entries as in ExpertLists, those of
//           the shared expert are tokens.
// Bound     bytes: 5.5 MB an expert for R1 on 8 ranks, so 1 token 49.5 MB, 11.6 us at 4.3 TB/s.
// Launch    gate_up: a cluster per (expert, 128 columns of h), a block of it per share of D (R1: 8
//           blocks x 18 units = 144 at 1 token), two blocks to an SM by shared memory. down: a
//           block per 64 output columns, one beside one of gate_up.
// Numerics  e4m3 products on the tensor cores over 128 columns, then f32 with both scales. gate_up
//           sums its share of D, then shares; down sums experts ascending, the shared one last,
//           even and odd column blocks apart. All orders are fixed by the sizes alone.
// Source    DeepSeek-V3 report, sections 2.1.2 and 3.3.
//
// With bytes for 12 us everything that is serial counts, and it is arranged so that little is: x,
// the shared expert's weights and the scales of all experts come before the lists are known, and
// the shared expert's products too; one warp reads the lists; the products take every token as a
// column, so no rows are gathered; sums travel to the block that completes an entry through its
// shared memory; down has its first weights in shared memory when h is ready and takes all of h in
// one copy.
#include <cstddef>

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/moe_decode/problem.cuh"

namespace r1d::kernels::moe {
namespace {

// Shares of D, blocks of a cluster. A token alone is spread over more SMs: R1's 56 column blocks in
// 8 shares take 1.8 us less, in 7 they take 0.8 us less at 2 tokens and more.
constexpr int kSplitsAlone = 8;
constexpr int kSplitsOfFew = 7;
constexpr int kGateUpStages = 2;  // 64 KB: two blocks fit on an SM, or one and one of down
constexpr int kTrigger = 4;       // the column block of a share whose copy lets down start
constexpr int kDownStages = 9;    // all that a block of down reads for one token of R1's shard
constexpr int kConsumers = 256;   // of either kernel
constexpr int kThreads = kConsumers + 32;          // + the warp that copies weights
constexpr int kStageBytes = kStrips * kTileBytes;  // of gate_up's ring: a column block of a unit
constexpr int kRows = 64;                          // output columns of a block of down
constexpr int kPartBytes = 2 * kTileBytes;         // of down's ring: two tiles, neighbours along K
constexpr int kSumPitch = 68;
constexpr int kGateUpBarriers = 4;  // besides the ring's
constexpr size_t kMostSharedBytes = 226 * 1024;

// Bytes of shared memory behind the ring, taken piece by piece.
struct Layout {
  int bytes;
  int take(size_t size) {
    const int at = bytes;
    bytes += static_cast<int>((size + 15) / 16 * 16);
    return at;
  }
};

struct GateUpPlan {
  int per_split;  // column blocks of a share
  int pitch;      // bytes from 16 columns of x to the next, of all tokens
  int barriers, block, tokens, weights, partial, x_scales, scales, rows, bytes;
};

int splits_of(const Problem& p) {
  return p.num_tokens == 1 ? kSplitsAlone : kSplitsOfFew;
}

GateUpPlan plan_gate_up(const Problem& p) {
  const int splits = splits_of(p);
  GateUpPlan a{};
  a.per_split = (p.hidden_blocks + splits - 1) / splits;
  a.pitch = p.num_tokens == 1 ? 16 : kFewTokens * 16;
  const int rounds = (p.num_tokens + splits - 1) / splits;
  Layout layout{kGateUpStages * kStageBytes};
  a.barriers = layout.take((kGateUpBarriers + 2 * kGateUpStages) * sizeof(uint64_t));
  a.block = layout.take(sizeof(int4));
  a.tokens = layout.take(kFewTokens * sizeof(int));
  a.weights = layout.take(kFewTokens * sizeof(float));
  a.partial = layout.take(rounds * splits * kColumns * sizeof(float2));
  a.x_scales = layout.take(a.per_split * kFewTokens * sizeof(float));
  a.scales = layout.take(a.per_split * sizeof(float2));
  a.rows = layout.take(a.per_split * (kColumns / 16) * a.pitch + kFewTokens * 16);
  a.bytes = layout.bytes;
  return a;
}

struct DownPlan {
  int barriers, sum, blocks, tokens, scales, h, shared_h, h_scales, shared_h_scales, bytes;
};

DownPlan plan_down(const Problem& p) {
  DownPlan a{};
  const int entries = p.num_tokens * p.top_k;
  Layout layout{kDownStages * kPartBytes};
  a.barriers = layout.take((1 + 2 * kDownStages) * sizeof(uint64_t));
  a.sum = layout.take(kFewTokens * kSumPitch * sizeof(float));
  a.blocks = layout.take(p.max_blocks * sizeof(int4));
  a.tokens = layout.take((entries + 1) * sizeof(int));
  a.scales = layout.take((p.max_blocks * p.routed_columns + p.shared_columns) * sizeof(float));
  a.h = layout.take(entries * p.routed_columns * kColumns);
  a.shared_h = layout.take(p.num_tokens * p.shared_columns * kColumns);
  a.h_scales = layout.take(entries * p.routed_columns * sizeof(float));
  a.shared_h_scales = layout.take(p.num_tokens * p.shared_columns * sizeof(float));
  layout.take(kFewTokens * 16);  // read behind the last row of h, as tokens_descriptor() says
  a.bytes = layout.bytes;
  return a;
}

#ifdef R1D_SM90

// Tokens' columns as an operand of wgmma without a swizzle: 16 columns of eight tokens, 16 bytes a
// token, then the next 16 columns `pitch` bytes on. A token alone needs no room for the others
// (pitch 16: a row as it stands in memory): what is in their places only gives columns of the
// result that nobody reads.
__device__ __forceinline__ uint64_t tokens_descriptor(const void* at, int pitch) {
  return wgmma_descriptor(smem_address(at), pitch, pitch, 0);
}
// d = a tile of 64 rows times 8 tokens, for a warpgroup.
__device__ __forceinline__ void multiply_tile(float (&d)[4],
                                              uint32_t tile,
                                              uint64_t tokens,
                                              int pitch) {
  const uint64_t a = wgmma_descriptor_k128(tile);
#pragma unroll
  for (int k = 0; k < 4; ++k) Wgmma<8>::e4m3(d, a + 2 * k, tokens + k * (2 * pitch / 16), k > 0);
}

// As quantized_h(), with quick divisions: off by some units in the last place, of which e4m3 keeps
// few, and a token alone waits for all of them.
__device__ __forceinline__ Quantized quickly_quantized_h(float4 a, float4 b) {
  const auto swiglu = [](float gate, float up) {
    return __fdividef(gate, 1.0F + __expf(-gate)) * up;
  };
  const float h[4] = {swiglu(a.x, a.y), swiglu(a.z, a.w), swiglu(b.x, b.y), swiglu(b.z, b.w)};
  uint32_t largest = 0;  // magnitudes order as their bits do, NaN above all
#pragma unroll
  for (const float v : h) largest = max(largest, __float_as_uint(fabsf(v)));
  largest = __reduce_max_sync(~0U, largest);
  // Smaller ones, whose quotients might overflow, become zeros.
  const float scale =
      largest < __float_as_uint(1e-30F) ? 1.0F : __uint_as_float(largest) * (1.0F / 448.0F);
  const float inverse = __fdividef(1.0F, scale);
  const uint32_t low = __nv_cvt_float2_to_fp8x2(
      make_float2(h[0] * inverse, h[1] * inverse), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(
      make_float2(h[2] * inverse, h[3] * inverse), __NV_SATFINITE, __NV_E4M3);
  return {low | high << 16, scale};
}

// What will be read for certain, or may be and is small, into L2: down's part of the shared expert
// and the scales of all experts. Later they would queue behind megabytes of weights.
__device__ __forceinline__ void prefetch(const Problem& p) {
  const int num_tiles = p.shared_columns * 2 * p.hidden_blocks;
  for (int tile = blockIdx.x; threadIdx.x == 0 && tile < num_tiles; tile += gridDim.x) {
    bulk_prefetch_l2(p.shared.down.tiles + static_cast<int64_t>(tile) * kTileBytes, kTileBytes);
  }
  prefetch_scales(p,
                  static_cast<int>(blockIdx.x * kConsumers + threadIdx.x),
                  static_cast<int>(gridDim.x * kConsumers));
}

#endif  // R1D_SM90

// ---- gate_up -----------------------------------------------------------------------------------

template <int kSplits>
__global__ void __launch_bounds__(kThreads, 2)
    moe_gate_up_few_f8(const __grid_constant__ Problem p, const __grid_constant__ GateUpPlan plan) {
#ifdef R1D_SM90
  extern __shared__ __align__(1024) uint8_t memory[];
  auto* known = reinterpret_cast<uint64_t*>(memory + plan.barriers);  // block
  uint64_t* scales_full = known + 1;
  uint64_t* entries_full = known + 2;  // tokens, weights
  uint64_t* sums_full = known + 3;
  uint64_t* full = known + kGateUpBarriers;
  uint64_t* empty = full + kGateUpStages;
  auto* given = reinterpret_cast<int4*>(memory + plan.block);         // .z 0: no such block
  auto* tokens = reinterpret_cast<int*>(memory + plan.tokens);        // of the block's entries
  auto* weights = reinterpret_cast<float*>(memory + plan.weights);    // likewise
  auto* partial = reinterpret_cast<float2*>(memory + plan.partial);   // [round][split][128]
  auto* x_scales = reinterpret_cast<float*>(memory + plan.x_scales);  // [column block][token]
  auto* scales = reinterpret_cast<float2*>(memory + plan.scales);     // [column block] (gate, up)
  uint8_t* rows = memory + plan.rows;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int rank = static_cast<int>(cluster_rank());
  const int unit = static_cast<int>(blockIdx.x) / kSplits;
  const bool shared = unit < p.shared_columns;
  const int index = shared ? 0 : (unit - p.shared_columns) / p.routed_columns;
  const int columns = shared ? unit : (unit - p.shared_columns) - index * p.routed_columns;
  const int first = min(rank * plan.per_split, p.hidden_blocks);
  const int count = min(plan.per_split, p.hidden_blocks - first);
  const int h_columns = shared ? p.shared_columns : p.routed_columns;
  const auto h_at = [&](int entry) { return static_cast<int64_t>(entry) * h_columns + columns; };
  uint8_t* h = shared ? p.shared_h : p.h;
  float* h_scale = shared ? p.shared_h_scale : p.h_scale;

  // ---- start ----
  if (threadIdx.x == 0) {
    mbarrier_init(known, 1);
    mbarrier_init(scales_full, 32);
    mbarrier_init(entries_full, 1);
    mbarrier_init(sums_full, 1);
    for (int i = 0; i < kGateUpStages; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], kConsumers / 32);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  cluster_arrive();

  if (warp == kConsumers / 32) {
    // ---- weights, and all that is known by the lists ----
    int4 block = make_int4(0, 0, p.num_tokens, 0);
    if (!shared) {
      grid_dependency_wait();
      block = __ldcg(reinterpret_cast<const int4*>(p.lists.blocks) + index);
      if (index >= __ldcg(p.lists.num_blocks)) block.z = 0;
    }
    if (lane == 0) {
      *given = block;
      mbarrier_arrive(known);
    }
    if (block.z == 0) {
      cluster_wait();
      return;
    }
    // Small loads first: behind the weights they would wait for these.
    const int64_t at =
        (shared ? 0 : block.x * p.routed.gate_up_scale_stride) + columns * p.hidden_blocks + first;
    const float* gate = (shared ? p.shared.gate_up.gate_scale : p.routed.gate_scale) + at;
    const float* up = (shared ? p.shared.gate_up.up_scale : p.routed.up_scale) + at;
    for (int i = lane; i < count; i += 32) {
      cp_async_4(smem_address(&scales[i].x), gate + i);
      cp_async_4(smem_address(&scales[i].y), up + i);
    }
    mbarrier_arrive_cp_async(scales_full);
    int entry = lane;
    if (lane < block.z && !shared) entry = __ldcg(p.lists.entries + block.y + lane);

    const uint64_t once = l2_evict_first();
    const uint8_t* from =
        (shared ? p.shared.gate_up.tiles
                : p.routed.gate_up_tiles + block.x * p.routed.gate_up_stride) +
        (static_cast<int64_t>(columns) * kStrips * p.hidden_blocks + first) * kTileBytes;
    Ring ring;
    const auto load = [&](int b) {
      mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(&full[ring.stage], kStageBytes);
#pragma unroll
      for (int i = 0; i < kStrips; ++i) {
        bulk_load_hint(memory + ring.stage * kStageBytes + i * kTileBytes,
                       from + (static_cast<int64_t>(i) * p.hidden_blocks + b) * kTileBytes,
                       kTileBytes,
                       &full[ring.stage],
                       once);
      }
      ring.advance(kGateUpStages);
    };
    const int early = min(count, shared ? count : kGateUpStages);
    if (lane == 0) {
      for (int b = 0; b < early; ++b) load(b);
    }
    __syncwarp();
    float weight = 1;
    if (lane < block.z && !shared) weight = __ldcg(p.weights + entry);
    if (lane < block.z) {
      tokens[lane] = shared ? lane : entry / p.top_k;
      weights[lane] = weight;
    }
    __syncwarp();
    if (shared) grid_dependency_wait();  // h may still be read until then
    if (lane == 0) {
      mbarrier_arrive(entries_full);
      for (int b = early; b < count; ++b) {
        if (b == kTrigger) grid_launch_dependents();
        load(b);
      }
      grid_launch_dependents();
    }
    __syncwarp();
    cluster_wait();
    return;
  }

  // ---- rows of x: complete before this kernel may start, as moe_decode() demands ----
  for (int row = warp; row < p.num_tokens; row += kConsumers / 32) {
    const uint8_t* from = p.x.data + row * p.x.cols + static_cast<int64_t>(first) * kColumns;
    for (int piece = lane; piece < count * 8; piece += 32) {
      cp_async_16(smem_address(rows + piece * plan.pitch + row * 16), from + piece * 16);
    }
  }
  for (int i = threadIdx.x; i < 2 * count; i += kConsumers) {
    const int token = i % 2 * 4;
    if (token >= p.num_tokens) continue;
    cp_async_16(smem_address(x_scales + i / 2 * kFewTokens + token),
                p.x.scale + (first + i / 2) * p.x.scale_stride + token);
  }
  prefetch(p);
  cp_async_wait_all();
  fence_async_shared();
  named_barrier(1, kConsumers);
  mbarrier_wait(known, 0);
  const int4 block = *given;
  if (block.z == 0) {
    cluster_wait();
    return;
  }

  // ---- products: a column of the result per token, of which the expert's own are used ----
  const int half = warp / 4;  // a warpgroup takes two strips
  float acc[2][4] = {};
  Ring ring;
  for (int b = 0; b < count; ++b) {
    const float2 x_scale =
        *reinterpret_cast<const float2*>(x_scales + b * kFewTokens + lane % 4 * 2);
    const uint64_t x = tokens_descriptor(rows + b * (kColumns / 16) * plan.pitch, plan.pitch);
    mbarrier_wait(&full[ring.stage], ring.phase);
    float d[2][4];
    wgmma_fence();
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const uint32_t strip = ring.stage * kStageBytes + (2 * half + g) * kTileBytes;
      multiply_tile(d[g], smem_address(memory) + strip, x, plan.pitch);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_registers(d[0]);
    wgmma_fence_registers(d[1]);
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&empty[ring.stage]);
    ring.advance(kGateUpStages);
    if (b == 0) mbarrier_wait(scales_full, 0);
    const float2 scale = scales[b];
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      acc[g][0] = fmaf(d[g][0], x_scale.x * scale.x, acc[g][0]);
      acc[g][1] = fmaf(d[g][1], x_scale.y * scale.x, acc[g][1]);
      acc[g][2] = fmaf(d[g][2], x_scale.x * scale.y, acc[g][2]);
      acc[g][3] = fmaf(d[g][3], x_scale.y * scale.y, acc[g][3]);
    }
  }

  // ---- sums meet in the block that completes the entry ----
  cluster_wait();
  mbarrier_wait(entries_full, 0);
  for (int i = 0; i < block.z; ++i) {
    const int t = tokens[i];
    if (lane % 4 != t / 2) continue;
    const int round = i / kSplits;
    const int to = i - round * kSplits;
    const uint32_t barrier = cluster_address(smem_address(sums_full), to);
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const float2* at = partial + (round * kSplits + rank) * kColumns +
                         ((2 * half + g) * 4 + warp % 4) * 8 + lane / 4;
      const float2 sum =
          t % 2 == 0 ? make_float2(acc[g][0], acc[g][2]) : make_float2(acc[g][1], acc[g][3]);
      cluster_store_async(cluster_address(smem_address(at), to), sum, barrier);
    }
  }
  const int mine = rank + warp * kSplits;
  if (mine >= block.z) return;
  if (threadIdx.x == 0) {
    const int completed = (block.z - rank + kSplits - 1) / kSplits;
    mbarrier_arrive_expect(sums_full,
                           completed * kSplits * kColumns * static_cast<int>(sizeof(float2)));
  }
  mbarrier_wait(sums_full, 0);
  float4 a = make_float4(0, 0, 0, 0);
  float4 b = a;
  for (int c = 0; c < kSplits; ++c) {
    const auto* from =
        reinterpret_cast<const float4*>(partial + (warp * kSplits + c) * kColumns + lane * 4);
    a.x += from[0].x, a.y += from[0].y, a.z += from[0].z, a.w += from[0].w;
    b.x += from[1].x, b.y += from[1].y, b.z += from[1].z, b.w += from[1].w;
  }
  const Quantized q = quickly_quantized_h(a, b);
  const int64_t to = h_at(block.y + mine);
  reinterpret_cast<uint32_t*>(h + to * kColumns)[lane] = q.codes;
  if (lane == 0) h_scale[to] = q.scale * weights[mine];
#endif  // R1D_SM90
}

// ---- down --------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads, 2)
    moe_down_few_f8(const __grid_constant__ Problem p, const __grid_constant__ DownPlan plan) {
#ifdef R1D_SM90
  extern __shared__ __align__(1024) uint8_t memory[];
  auto* h_full = reinterpret_cast<uint64_t*>(memory + plan.barriers);
  uint64_t* full = h_full + 1;
  uint64_t* empty = full + kDownStages;
  auto* sums = reinterpret_cast<float*>(memory + plan.sum);  // [token][64 rows]
  auto* blocks = reinterpret_cast<int4*>(memory + plan.blocks);
  auto* tokens = reinterpret_cast<int*>(memory + plan.tokens);  // [entry]
  int* list_length = tokens + p.num_tokens * p.top_k;
  auto* scales = reinterpret_cast<float*>(memory + plan.scales);  // [block][column block]
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int strip = blockIdx.x;

  // ---- start ----
  grid_launch_dependents();
  if (threadIdx.x == 0) {
    mbarrier_init(h_full, 1);
    for (int i = 0; i < kDownStages; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], kConsumers / 32);
    }
    mbarrier_init_fence();
    *list_length = __ldcg(p.lists.num_blocks);
  }
  // The lists are older than gate_up, which had waited for them when it let this kernel start. All
  // of them in one trip to L2; what lies past their ends is not used.
  for (int i = threadIdx.x; i < p.max_blocks; i += kThreads) {
    blocks[i] = __ldcg(reinterpret_cast<const int4*>(p.lists.blocks) + i);
  }
  for (int i = threadIdx.x; i < p.num_tokens * p.top_k; i += kThreads) {
    tokens[i] = __ldcg(p.lists.entries + i) / p.top_k;
  }
  __syncthreads();
  const int num_blocks = *list_length;

  if (warp == kConsumers / 32) {
    // ---- weights ----
    if (lane != 0) return;
    const uint64_t once = l2_evict_first();
    Ring ring;
    for (int b = 0; b <= num_blocks; ++b) {
      const bool routed = b < num_blocks;
      const int columns = routed ? p.routed_columns : p.shared_columns;
      const uint8_t* tiles = (routed ? p.routed.down_tiles + blocks[b].x * p.routed.down_stride
                                     : p.shared.down.tiles) +
                             static_cast<int64_t>(strip) * columns * kTileBytes;
      for (int c = 0; c < columns; c += 2) {
        const uint32_t bytes = min(columns - c, 2) * kTileBytes;
        mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
        mbarrier_arrive_expect(&full[ring.stage], bytes);
        bulk_load_hint(memory + ring.stage * kPartBytes,
                       tiles + c * kTileBytes,
                       bytes,
                       &full[ring.stage],
                       once);
        ring.advance(kDownStages);
      }
    }
    return;
  }

  // ---- scales ----
  for (int i = threadIdx.x; i < num_blocks * p.routed_columns; i += kConsumers) {
    const int b = i / p.routed_columns;
    scales[i] = p.routed.down_scale[blocks[b].x * p.routed.down_scale_stride +
                                    (strip / 2 - b) * p.routed_columns + i];
  }
  float* shared_scales = scales + num_blocks * p.routed_columns;
  for (int i = threadIdx.x; i < p.shared_columns; i += kConsumers) {
    shared_scales[i] = p.shared.down.scale[strip / 2 * p.shared_columns + i];
  }

  named_barrier(1, kConsumers);

  // ---- h at once ----
  grid_dependency_wait();
  if (threadIdx.x == 0) {
    const int num_entries =
        num_blocks > 0 ? blocks[num_blocks - 1].y + blocks[num_blocks - 1].z : 0;
    const auto bytes = [](int rows, int columns, int of) {
      return static_cast<uint32_t>(rows * columns * of + 15) / 16 * 16;
    };
    const uint32_t routed = bytes(num_entries, p.routed_columns, kColumns);
    const uint32_t routed_scales = bytes(num_entries, p.routed_columns, sizeof(float));
    const uint32_t shared = bytes(p.num_tokens, p.shared_columns, kColumns);
    const uint32_t of_shared = bytes(p.num_tokens, p.shared_columns, sizeof(float));
    mbarrier_arrive_expect(h_full, routed + routed_scales + shared + of_shared);
    if (routed > 0) {
      bulk_load(memory + plan.h, p.h, routed, h_full);
      bulk_load(memory + plan.h_scales, p.h_scale, routed_scales, h_full);
    }
    if (shared > 0) {
      bulk_load(memory + plan.shared_h, p.shared_h, shared, h_full);
      bulk_load(memory + plan.shared_h_scales, p.shared_h_scale, of_shared, h_full);
    }
  }
  mbarrier_wait(h_full, 0);

  // ---- products: a warpgroup takes every second column block, one entry after another; column 0
  // of each product counts. Several are under way together. ----
  constexpr int kBatch = 3;
  const int half = warp / 4;
  float acc[4] = {};  // rows lane / 4 and 8 on, of tokens lane % 4 * 2 and the next
  Ring ring;
  int b = 0;  // the next product's block, column block and entry of the block
  int c = half;
  int i = 0;
  const auto columns_of = [&](int b) {
    return b < num_blocks ? p.routed_columns : p.shared_columns;
  };
  const auto more = [&] { return b <= num_blocks && c - half < columns_of(b); };
  while (more()) {
    float scale[kBatch];
    int token[kBatch];  // -1: none
    uint64_t h[kBatch] = {};
    uint32_t tile[kBatch] = {};
    const Ring first = ring;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      token[j] = -1;
      scale[j] = 0;
      h[j] = h[j > 0 ? j - 1 : 0];  // past the end: the one before again
      tile[j] = tile[j > 0 ? j - 1 : 0];
      if (!more()) continue;
      const bool routed = b < num_blocks;
      const int columns = columns_of(b);
      const int entry = (routed ? blocks[b].y : 0) + i;
      const int column = min(c, columns - 1);
      const int at = entry * columns + column;
      const auto* h_scale =
          reinterpret_cast<const float*>(memory + (routed ? plan.h_scales : plan.shared_h_scales));
      if (c < columns) token[j] = routed ? tokens[entry] : entry;
      scale[j] = h_scale[at] * scales[b * p.routed_columns + column];
      h[j] = tokens_descriptor(memory + (routed ? plan.h : plan.shared_h) + at * kColumns, 16);
      tile[j] = smem_address(memory) + ring.stage * kPartBytes + half * kTileBytes;
      mbarrier_wait(&full[ring.stage], ring.phase);
      if (++i < (routed ? blocks[b].z : p.num_tokens)) continue;
      i = 0;
      ring.advance(kDownStages);
      c += 2;
      if (c - half < columns) continue;
      c = half;
      ++b;
    }
    float d[kBatch][4];
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kBatch; ++j) multiply_tile(d[j], tile[j], h[j], 16);
    wgmma_commit();
    wgmma_wait<0>();
    __syncwarp();
    for (Ring done = first; lane == 0 && done.stage != ring.stage; done.advance(kDownStages)) {
      mbarrier_arrive(&empty[done.stage]);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      wgmma_fence_registers(d[j]);
      const float low = __shfl_sync(~0U, d[j][0], lane & ~3);
      const float high = __shfl_sync(~0U, d[j][2], lane & ~3);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const bool mine = token[j] == lane % 4 * 2 + t;
        acc[t] = mine ? fmaf(low, scale[j], acc[t]) : acc[t];
        acc[2 + t] = mine ? fmaf(high, scale[j], acc[2 + t]) : acc[2 + t];
      }
    }
  }

  // ---- store ----
  float* sum = sums + lane % 4 * 2 * kSumPitch + warp % 4 * 16 + lane / 4;
  if (half == 1) {
    sum[0] = acc[0];
    sum[kSumPitch] = acc[1];
    sum[8] = acc[2];
    sum[kSumPitch + 8] = acc[3];
  }
  named_barrier(1, kConsumers);
  if (half == 1) return;
  sum[0] += acc[0];
  sum[kSumPitch] += acc[1];
  sum[8] += acc[2];
  sum[kSumPitch + 8] += acc[3];
  named_barrier(1, kConsumers / 2);
  for (int i = threadIdx.x; i < p.num_tokens * 8; i += kConsumers / 2) {
    const float* from = sums + i / 8 * kSumPitch + i % 8 * 8;
    uint4 packed;
    auto* pairs = reinterpret_cast<__nv_bfloat162*>(&packed);
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs[j] = __floats2bfloat162_rn(from[2 * j], from[2 * j + 1]);
    *reinterpret_cast<uint4*>(p.out + i / 8 * p.x.cols + strip * kRows + i % 8 * 8) = packed;
  }
#endif  // R1D_SM90
}

}  // namespace

bool few_serves(const Problem& p) {
  constexpr int kMostColumns = 4;  // with more, the other form streams faster
  return p.num_tokens <= kFewTokens && p.routed_columns <= kMostColumns &&
         p.shared_columns <= kMostColumns &&
         static_cast<size_t>(plan_down(p).bytes) <= kMostSharedBytes &&
         static_cast<size_t>(plan_gate_up(p).bytes) <= kMostSharedBytes;
}

cudaError_t enqueue_few(const Problem& p, const Launch& launch) {
  const GateUpPlan gate_up = plan_gate_up(p);
  const int units = p.shared_columns + p.max_blocks * p.routed_columns;
  Grid grid;
  const int splits = splits_of(p);
  grid.blocks = dim3(static_cast<unsigned>(units * splits));
  grid.threads = dim3(kThreads);
  grid.cluster = splits;
  grid.shared_bytes = gate_up.bytes;
  const auto kernel = splits == kSplitsAlone ? &moe_gate_up_few_f8<kSplitsAlone>
                                             : &moe_gate_up_few_f8<kSplitsOfFew>;
  const cudaError_t error = enqueue(kernel, grid, launch, p, gate_up);
  if (error != cudaSuccess) return error;

  const DownPlan down = plan_down(p);
  grid.blocks = dim3(static_cast<unsigned>(p.x.cols / kRows));
  grid.cluster = 1;
  grid.shared_bytes = down.bytes;
  return enqueue(moe_down_few_f8, grid, launch, p, down);
}

}  // namespace r1d::kernels::moe
