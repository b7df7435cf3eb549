// SPDX-License-Identifier: Apache-2.0
// Problem   out[t, r] = sum over k of x(t, k) w(r, k), 1..64 tokens a pass; w in e4m3 with
//           128x128 scales, x in e4m3 with 1x128 scales, given or made here from bf16. Or
//           silu(gate) * up of two such products.
// Layout    w in 8 KB tiles (layout.h); x row-major; out row-major, bf16 or f32.
// Bound     rows * cols bytes of weight; 2 * rows * cols * tokens flop stay under the memory
//           side up to about 200 tokens.
// Launch    A cluster of `split` CTAs makes 64 rows, each CTA from a slice of k: weight tiles by
//           bulk copies, all that fit requested before the dependency wait, x loaded or quantized
//           once. Two kernels. To 32 tokens, where shared memory holds a CTA's whole slice and
//           all clusters still run at once: one warpgroup in straight code. Else a ring of tiles,
//           a producer warp and one or two warpgroups (half the tokens each). Shared memory sets
//           the occupancy.
// Numerics  Operands swapped: 64 weight rows on wgmma's M side, tokens on N. The tensor cores
//           sum 128 of k, then sum += part * (weight scale * token scale) in f32. The cluster
//           adds slices in order of k, through distributed shared memory.
// Source    DeepSeek-V3 report, section 3.3.2; the swap as in TensorRT-LLM's fp8 products.
#include <algorithm>

#include "kernels/common/layout.h"
#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/fp8_gemm/fp8_gemm.h"
#include "kernels/fp8_gemm/fp8_gemm_plan.h"
#include "kernels/quantize/quantize.cuh"

namespace r1d::kernels {
namespace {

constexpr int kTileRows = TiledMatrix::kTileRows;
constexpr int kTileBytes = TiledMatrix::kTileBytes;
constexpr int kBlock = 128;                    // columns of a tile and of a scale
constexpr int kPairBytes = 2 * kTileRows * 4;  // of two tokens' sums over a slice
constexpr int kGroupThreads = 128;
constexpr int kMaxSplit = 8;
constexpr int kMaxSliceBlocks = 20;  // what 64 tokens leave room for
constexpr int kSms = 132;
constexpr int kGpcs = 8;        // a cluster stays inside one
constexpr int kSmsPerGpc = 16;  // at least
constexpr int kSharedPerSm = 228 * 1024;
constexpr int kSharedPerCta = 227 * 1024;
constexpr int kReservedPerCta = 1024;

// Byte offsets in a CTA's shared memory.
struct SharedPlan {
  int x;         // after the weight tiles: [slice blocks][padded tokens][128] e4m3, swizzled
  int x_scale;   // [slice blocks][padded tokens] f32
  int partial;   // [pairs of tokens this CTA adds up][split][32] float4, from the whole cluster
  int barriers;  // full[stages], empty[stages], added
  int bytes;
};

__host__ __device__ constexpr SharedPlan shared_plan(
    int stages, int blocks, int padded_tokens, int tokens, int split) {
  SharedPlan plan{};
  plan.x = stages * kTileBytes;
  plan.x_scale = plan.x + blocks * padded_tokens * kBlock;
  plan.partial = plan.x_scale + blocks * padded_tokens * 4;
  const int pairs = (tokens + 1) / 2;
  plan.barriers = plan.partial + (pairs + split - 1) / split * split * kPairBytes;
  plan.bytes = plan.barriers + (2 * stages + 1) * 8;
  return plan;
}

// Padded tokens of a pass: what the products are built for.
constexpr int padded(int tokens) {
  for (const int size : {8, 16, 24, 32, 48}) {
    if (tokens <= size) return size;
  }
  return kDecodeTokensPerPass;
}

size_t shared_bytes(int stages, int slice, int64_t tokens, int split) {
  const int padded_tokens = padded(static_cast<int>(tokens));
  const int of_pass = std::min(static_cast<int>(tokens), padded_tokens);
  return static_cast<size_t>(shared_plan(stages, slice, padded_tokens, of_pass, split).bytes);
}

#ifdef R1D_SM90

// ---- x

// How a CTA's lanes share the (token, block) groups of x: tokens first, left-over lanes over
// blocks.
struct Spread {
  int token;
  int token_step;
  int block;
  int block_step;
};
template <int kLanes, int kThreads>
__device__ __forceinline__ Spread spread(int thread, int log_tokens) {
  constexpr int kUnits = kThreads / kLanes;
  static_assert(kUnits == 8 || kUnits == 16 || kUnits == 32);
  constexpr int kLogUnits = kUnits == 8 ? 3 : kUnits == 16 ? 4 : 5;
  const int log = min(log_tokens, kLogUnits);
  const int unit = thread / kLanes;
  return {unit & ((1 << log) - 1), 1 << log, unit >> log, kUnits >> log};
}

// The slice of x in shared memory: codes[block][token][128], swizzled, and scale[block][token].
struct Slice {
  int first_token;
  int tokens;
  int first_block;
  int blocks;
  uint8_t* codes;
  float* scale;
};

// From e4m3 rows: 8 lanes a group.
template <int kPadded, int kThreads>
__device__ __forceinline__ void load_codes(const DecodeArguments& a,
                                           const Slice& slice,
                                           int thread) {
  const Spread s = spread<8, kThreads>(thread, a.log_tokens);
  const int chunk = thread % 8;
  const uint8_t* const from =
      a.x_codes + slice.first_token * a.x_stride + slice.first_block * kBlock + chunk * 16;
  const float* const scale_from =
      a.x_scale + slice.first_block * a.x_scale_stride + slice.first_token;
  const uint32_t to = smem_address(slice.codes);
  const uint32_t scale_to = smem_address(slice.scale);
  for (int t = s.token; t < slice.tokens; t += s.token_step) {
    for (int block = s.block; block < slice.blocks; block += s.block_step) {
      const int slot = block * kPadded + t;
      cp_async_16(to + slot * kBlock + ((chunk ^ t) % 8) * 16,
                  from + t * a.x_stride + block * kBlock);
      if (chunk == 0) cp_async_4(scale_to + slot * 4, scale_from + block * a.x_scale_stride + t);
    }
  }
  cp_async_commit();
  cp_async_wait<0>();
}

// From bf16 rows: 16 lanes a group.
template <int kPadded, int kThreads>
__device__ __forceinline__ void quantize_into(const DecodeArguments& a,
                                              const Slice& slice,
                                              int thread) {
  constexpr int kAtOnce = 4;  // groups whose loads are under way together
  const Spread s = spread<16, kThreads>(thread, a.log_tokens);
  const int lane = thread % 16;
  const __nv_bfloat16* const from =
      a.x_rows + slice.first_token * a.x_stride + slice.first_block * kBlock + lane * 8;
  // Both halves of a warp make every turn: the group's maximum is a warp shuffle.
#pragma unroll 1
  for (int t0 = 0; t0 < slice.tokens; t0 += s.token_step) {
    const int t = t0 + s.token;
#pragma unroll 1
    for (int b0 = 0; b0 < slice.blocks; b0 += kAtOnce * s.block_step) {
      uint4 packed[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int block = b0 + u * s.block_step + s.block;
        packed[u] = make_uint4(0, 0, 0, 0);
        if (t < slice.tokens && block < slice.blocks) {
          packed[u] = *reinterpret_cast<const uint4*>(from + t * a.x_stride + block * kBlock);
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (b0 + u * s.block_step >= slice.blocks) break;
        const uint4 one[1] = {packed[u]};
        QuantizedOctet octets[1];
        quantize_octets(one, octets);
        const int block = b0 + u * s.block_step + s.block;
        if (t >= slice.tokens || block >= slice.blocks) continue;
        const int slot = block * kPadded + t;
        *reinterpret_cast<uint2*>(slice.codes + slot * kBlock + ((lane / 2) ^ (t % 8)) * 16 +
                                  lane % 2 * 8) = octets[0].codes;
        if (lane == 0) slice.scale[slot] = octets[0].scale;
      }
    }
  }
}

// ---- products

// sum += the products of a tile times the scales of its rows and tokens. Value 4 j + 2 h + c
// of a thread is row 16 warp + 8 h + lane / 4 of token 8 j + 2 (lane % 4) + c of the group.
template <int kTokens>
__device__ __forceinline__ void add_tile(const float (&part)[kTokens / 2],
                                         const float (&of_row)[2],
                                         const float2 (&of_token)[kTokens / 8],
                                         float (&sum)[kTokens / 2]) {
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const s = &sum[4 * j + 2 * h];
      s[0] = fmaf(part[4 * j + 2 * h], of_row[h] * of_token[j].x, s[0]);
      s[1] = fmaf(part[4 * j + 2 * h + 1], of_row[h] * of_token[j].y, s[1]);
    }
  }
}

// A descriptor `units` of 16 bytes further: shared memory fits the low word.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int units) {
  return (descriptor & 0xFFFFFFFF00000000) | (static_cast<uint32_t>(descriptor) + units);
}

// The same in all lanes, and known to be: uniform registers take what is worked out from it.
__device__ __forceinline__ uint64_t broadcast(uint64_t descriptor) {
  return (descriptor & 0xFFFFFFFF00000000) |
         __shfl_sync(0xFFFFFFFFu, static_cast<uint32_t>(descriptor), 0);
}

template <int kTokens, int kPadded>
__device__ __forceinline__ void multiply_ring(uint64_t weights,
                                              uint64_t x,
                                              uint64_t* full,
                                              uint64_t* empty,
                                              int stages,
                                              int blocks,
                                              const float (&weight_scale)[2],
                                              const float* of_tokens,
                                              float (&sum)[kTokens / 2]) {
  constexpr int kAhead = kTokens <= 16 ? 4 : 2;  // tiles whose products are under way together
  int stage = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int begin = 0; begin < blocks; begin += kAhead) {
    float part[kAhead][kTokens / 2];
    const int first_stage = stage;
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (begin + u < blocks) {
        const uint64_t w_tile = broadcast(advance(weights, stage * (kTileBytes / 16)));
        const uint64_t x_block = broadcast(advance(x, (begin + u) * (kPadded * kBlock / 16)));
        mbarrier_wait(&full[stage], parity);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kBlock / 32; ++k) {
          Wgmma<kTokens>::e4m3(part[u], advance(w_tile, k * 2), advance(x_block, k * 2), k != 0);
        }
        wgmma_commit();
        if (++stage == stages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int u = 0; u < kAhead; ++u) wgmma_fence_registers(part[u]);
    if (blocks > stages && threadIdx.x % kGroupThreads == 0) {
      for (int u = 0, s = first_stage; u < min(kAhead, blocks - begin); ++u) {
        mbarrier_arrive(&empty[s]);
        if (++s == stages) s = 0;
      }
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (begin + u < blocks) {
        const float of_row[2] = {__shfl_sync(0xFFFFFFFFu, weight_scale[0], begin + u),
                                 __shfl_sync(0xFFFFFFFFu, weight_scale[1], begin + u)};
        float2 of_token[kTokens / 8];
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j) {
          of_token[j] = *reinterpret_cast<const float2*>(of_tokens + (begin + u) * kPadded + 8 * j);
        }
        add_tile<kTokens>(part[u], of_row, of_token, sum);
      }
    }
  }
}

// ---- sums over k
//
// The cluster's CTA p % split adds up tokens 2 p and 2 p + 1: every CTA sends it its slice's sums.
// float4 [slot of the pair][slice][8 warp + lane / 4]: rows r = 16 warp + lane / 4 and r + 8 of the
// first token, then of the second.

constexpr int kPairRows = kTileRows / 2;

// Places in a cluster of `split`; the product is i / split for i < 64.
struct Owners {
  int split;
  int rank;
  __device__ __forceinline__ int slot(int i) const { return i * (65536 / split + 1) >> 16; }
  // Pairs of tokens that this CTA adds up.
  __device__ __forceinline__ int owned(int tokens) const {
    return slot((tokens + 1) / 2 - rank + split - 1);
  }
};

// Where a thread's sums of one pair go: addresses in the cluster, without one in a CTA alone.
struct Destination {
  uint32_t sums;
  uint32_t added;
};
__device__ __forceinline__ Destination
destination(const Owners& owners, int pair, int row, const float4* partial, const uint64_t* added) {
  const int slot = owners.slot(pair);
  const uint32_t sums =
      smem_address(partial + (slot * owners.split + owners.rank) * kPairRows + row);
  if (owners.split == 1) return {sums, 0};
  const int owner = pair - slot * owners.split;
  return {cluster_address(sums, owner), cluster_address(smem_address(added), owner)};
}

__device__ __forceinline__ void send(const Destination& to, const float* sum, int split) {
  const float4 v = make_float4(sum[0], sum[2], sum[1], sum[3]);
  if (split > 1) {
    cluster_store_async(to.sums, v, to.added);
  } else {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to.sums),
                 "f"(v.x),
                 "f"(v.y),
                 "f"(v.z),
                 "f"(v.w)
                 : "memory");
  }
}

__device__ __forceinline__ float4 sum_slices(const float4* partial, int split) {
  float4 v[kMaxSplit];
#pragma unroll
  for (int s = 0; s < kMaxSplit; ++s) {
    if (s < split) v[s] = partial[s * kPairRows];
  }
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int s = 0; s < kMaxSplit; ++s) {
    if (s < split) {
      sum.x += v[s].x;
      sum.y += v[s].y;
      sum.z += v[s].z;
      sum.w += v[s].w;
    }
  }
  return sum;
}

// ---- out

__device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

// Where a thread writes and what it adds up for that. A warp takes a pair of tokens, a lane one of
// them (neighbouring lanes swap): rows r and r + 1 and, 8 behind, two more; gate and up, with silu.
struct Rows {
  const float4* partial;
  uint8_t* out;
  int64_t out_step;  // bytes, to the warp's next pair
  int token;
  DecodeOutput output;
};
template <int kThreads>
__device__ __forceinline__ Rows rows_of(const DecodeArguments& a,
                                        const Owners& owners,
                                        const float4* partial,
                                        int first_token,
                                        int strip,
                                        int thread) {
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int token = 2 * (owners.rank + warp * owners.split) + lane % 2;
  const int row = a.output == DecodeOutput::kSiluTimesUp
                      ? strip * (kTileRows / 2) + lane / 2 * 2
                      : strip * kTileRows + lane / 8 * 16 + lane % 8 / 2 * 2;
  const int bytes = a.output == DecodeOutput::kF32 ? 4 : 2;
  return {partial + warp * owners.split * kPairRows + lane,
          static_cast<uint8_t*>(a.out) + ((first_token + token) * a.out_stride + row) * bytes,
          2 * owners.split * (kThreads / 32) * a.out_stride * bytes,
          token,
          a.output};
}

__device__ __forceinline__ void write_rows(const Rows& rows, float2 low, float2 high) {
  if (rows.output == DecodeOutput::kF32) {
    auto* const out = reinterpret_cast<float2*>(rows.out);
    out[0] = low;
    out[4] = high;
    return;
  }
  auto* const out = reinterpret_cast<__nv_bfloat162*>(rows.out);
  if (rows.output == DecodeOutput::kBf16) {
    out[0] = __floats2bfloat162_rn(low.x, low.y);
    out[4] = __floats2bfloat162_rn(high.x, high.y);
  } else {
    out[0] = __floats2bfloat162_rn(silu_times(low.x, high.x), silu_times(low.y, high.y));
  }
}

// Adds up the pairs of tokens that this CTA owns, and writes them.
template <int kThreads>
__device__ __forceinline__ void add_and_write(
    Rows rows, const Owners& owners, int owned, int tokens, int thread) {
  const bool odd = thread % 2 != 0;
#pragma unroll 1
  for (int slot = thread / 32; slot < owned; slot += kThreads / 32) {
    const float4 v = sum_slices(rows.partial, owners.split);
    const float2 mine = odd ? make_float2(v.z, v.w) : make_float2(v.x, v.y);
    const float2 other = make_float2(__shfl_xor_sync(0xFFFFFFFFu, odd ? v.x : v.z, 1),
                                     __shfl_xor_sync(0xFFFFFFFFu, odd ? v.y : v.w, 1));
    if (rows.token < tokens) {
      write_rows(rows,
                 odd ? make_float2(other.x, mine.x) : make_float2(mine.x, other.x),
                 odd ? make_float2(other.y, mine.y) : make_float2(mine.y, other.y));
    }
    rows.partial += owners.split * (kThreads / 32) * kPairRows;
    rows.out += rows.out_step;
    rows.token += 2 * owners.split * (kThreads / 32);
  }
}

#endif  // R1D_SM90

// kGroups warpgroups of kTokens tokens each, and a producer warp. blockIdx: slice of k (the
// cluster), strip, pass.
template <int kTokens, int kGroups>
__global__ void __launch_bounds__(kGroups* kGroupThreads + 32)
    fp8_gemm_decode_kernel(const __grid_constant__ DecodeArguments a) {
#ifdef R1D_SM90
  constexpr int kPadded = kTokens * kGroups;
  constexpr int kThreads = kGroups * kGroupThreads;
  constexpr int kValues = kTokens / 2;  // of a tile, a thread

  extern __shared__ __align__(1024) uint8_t shared[];
  const int split = a.plan.split;
  const int stages = a.plan.stages;
  const int rank = static_cast<int>(blockIdx.x);
  const int strip = static_cast<int>(blockIdx.y);
  const int first_block = rank * a.slice_blocks + min(rank, a.long_slices);
  const int blocks = a.slice_blocks + (rank < a.long_slices ? 1 : 0);
  const int first_token = static_cast<int>(blockIdx.z) * kDecodeTokensPerPass;
  const int tokens = min(a.tokens - first_token, kPadded);
  const Owners owners{split, rank};
  const int owned = owners.owned(tokens);
  const SharedPlan plan = shared_plan(
      stages, a.slice_blocks + (a.long_slices > 0 ? 1 : 0), kPadded, min(a.tokens, kPadded), split);
  auto* const full = reinterpret_cast<uint64_t*>(shared + plan.barriers);
  uint64_t* const empty = full + stages;
  uint64_t* const added = empty + stages;
  auto* const partial = reinterpret_cast<float4*>(shared + plan.partial);
  const int thread = static_cast<int>(threadIdx.x);
  const uint8_t* const tiles =
      a.tiles + (static_cast<int64_t>(strip) * a.k_blocks + first_block) * kTileBytes;

  // Weights do not depend on the kernel before: request all that fits.
  if (thread == kThreads) {
    for (int s = 0; s < stages; ++s) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], kGroups);
    }
    mbarrier_init(added, 1);
    mbarrier_init_fence();
    const uint64_t policy = l2_evict_first();
#pragma unroll 1
    for (int i = 0; i < min(stages, blocks); ++i) {
      mbarrier_arrive_expect(&full[i], kTileBytes);
      bulk_load_hint(shared + i * kTileBytes, tiles + i * kTileBytes, kTileBytes, &full[i], policy);
    }
    grid_launch_dependents();
    if (owned > 0) mbarrier_arrive_expect(added, owned * split * kPairBytes);
  }
  __syncthreads();
  if (split > 1) cluster_arrive_relaxed();  // after everyone's wait, everyone's barriers stand

  if (thread >= kThreads) {
    // ---- the rest of the weights
    if (thread == kThreads) {
      const uint64_t policy = l2_evict_first();
      int stage = 0;
      uint32_t parity = 0;
#pragma unroll 1
      for (int i = stages; i < blocks; ++i) {
        mbarrier_wait(&empty[stage], parity);
        mbarrier_arrive_expect(&full[stage], kTileBytes);
        bulk_load_hint(
            shared + stage * kTileBytes, tiles + i * kTileBytes, kTileBytes, &full[stage], policy);
        if (++stage == stages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    __syncwarp();
    if (split > 1) cluster_wait();
    return;
  }

  // ---- x
  const int group =
      __shfl_sync(0xFFFFFFFFu, thread / kGroupThreads, 0);  // uniform, and known to be
  const int lane = thread % 32;
  const int warp = thread / 32 % 4;
  float weight_scale[2] = {};
  if (lane < blocks) {
    const int64_t at =
        static_cast<int64_t>(strip / a.strips_per_scale) * a.k_blocks + first_block + lane;
    weight_scale[0] = a.scale[0][at];
    weight_scale[1] = a.scale[1][at];
  }
  auto* const x_scale = reinterpret_cast<float*>(shared + plan.x_scale);
  const Slice slice{first_token, tokens, first_block, blocks, shared + plan.x, x_scale};
  grid_dependency_wait();
  if (a.x_codes != nullptr) {
    load_codes<kPadded, kThreads>(a, slice, thread);
  } else {
    quantize_into<kPadded, kThreads>(a, slice, thread);
  }
  fence_async_shared();
  named_barrier(1, kThreads);

  // ---- products
  float sum[kValues] = {};
  const uint64_t weights = wgmma_descriptor_k128(smem_address(shared));
  const uint64_t x =
      wgmma_descriptor_k128(smem_address(shared + plan.x) + group * kTokens * kBlock);
  const float* const of_tokens = x_scale + group * kTokens + 2 * (lane % 4);
  multiply_ring<kTokens, kPadded>(
      weights, x, full, empty, stages, blocks, weight_scale, of_tokens, sum);

  // ---- the slice's sums to their owners
  if (split > 1) cluster_wait();
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const int pair = group * (kTokens / 2) + 4 * j + lane % 4;
    if (2 * pair < tokens) {
      send(destination(owners, pair, 8 * warp + lane / 4, partial, added), &sum[4 * j], split);
    }
  }

  // ---- out
  if (owned == 0) return;
  if (split > 1) {
    mbarrier_wait(added, 0);
  } else {
    named_barrier(1, kThreads);
  }
  add_and_write<kThreads>(rows_of<kThreads>(a, owners, partial, first_token, strip, thread),
                          owners,
                          owned,
                          tokens,
                          thread);
#endif
}

#ifdef R1D_SM90

// ---- slices that shared memory holds as a whole

// A thread's share in loading codes (8 lanes a group of 128) and scales (one a thread).
template <int kTokens>
struct CodeLoad {
  static constexpr int kGroups = kGroupThreads / 8;             // of codes that are loaded at once
  static constexpr int kStep = std::max(1, kGroups / kTokens);  // blocks of them
  static constexpr int kScaleStep = kGroupThreads / kTokens;

  __device__ __forceinline__
  CodeLoad(const DecodeArguments& a, int first_block, uint8_t* codes, float* scale, int thread)
      : token(thread / 8 % kTokens),
        block(thread / 8 / kTokens),
        scale_block(thread % kTokens < a.tokens ? thread / kTokens : kScaleStep),
        codes_from(a.x_codes + token * a.x_stride + (first_block + block) * kBlock +
                   thread % 8 * 16),
        codes_to(smem_address(codes) + (block * kTokens + token) * kBlock +
                 ((thread ^ token) % 8) * 16),
        scale_from(a.x_scale + thread % kTokens +
                   (first_block + thread / kTokens) * a.x_scale_stride),
        scale_to(smem_address(scale + thread)) {
    // Ahead of the dependency wait: it puts nothing into this SM, but the compiler has to work the
    // addresses out here, and they are translated.
    if (token < a.tokens) prefetch_l2(codes_from);
    if (scale_block < kScaleStep) prefetch_l2(scale_from);
  }
  // Two groups of copies: all scales and the first kPart blocks of codes; the rest.
  template <int kTiles, int kPart>
  __device__ __forceinline__ void start(const DecodeArguments& a) const {
#pragma unroll
    for (int b = 0; b < kTiles; b += kScaleStep) {
      if (scale_block < min(kScaleStep, kTiles - b)) {
        cp_async_4(scale_to + b * kTokens * 4, scale_from + b * a.x_scale_stride);
      }
    }
#pragma unroll
    for (int b = 0; b < kTiles; b += kStep) {
#pragma unroll
      for (int t = 0; t < kTokens; t += kGroups) {
        if (token + t < a.tokens && block + b < kTiles) {
          cp_async_16(codes_to + (b * kTokens + t) * kBlock,
                      codes_from + b * kBlock + t * a.x_stride);
        }
      }
      if (b < kPart && b + kStep >= kPart) cp_async_commit();
    }
    cp_async_commit();
  }

  int token;
  int block;
  int scale_block;
  const uint8_t* codes_from;
  uint32_t codes_to;
  const float* scale_from;
  uint32_t scale_to;
};

// wgmma_wait, for a number that is constant once loops are unrolled.
__device__ __forceinline__ void wait_for_products(int pending) {
  switch (pending) {
    case 0:
      return wgmma_wait<0>();
    case 1:
      return wgmma_wait<1>();
    case 2:
      return wgmma_wait<2>();
    case 3:
      return wgmma_wait<3>();
    case 4:
      return wgmma_wait<4>();
    case 5:
      return wgmma_wait<5>();
    case 6:
      return wgmma_wait<6>();
    case 7:
      return wgmma_wait<7>();
    default:
      return wgmma_wait<8>();
  }
}

#endif  // R1D_SM90

// To 32 tokens: one warpgroup, straight code. In a step the weights lie in shared memory before x
// is there, and what counts is the way from the dependency wait to the last store: what does not
// hang on x is done ahead of the wait. blockIdx: slice of k (the cluster), strip.
template <int kTokens, int kTiles, bool kCodes>
__global__ void __launch_bounds__(kGroupThreads, kTokens <= 16 && kTiles <= 7 ? 3 : 2)
    fp8_gemm_resident_kernel(const __grid_constant__ DecodeArguments a) {
#ifdef R1D_SM90
  // All comes in two parts, so that the first products run while the second is under way.
  constexpr int kPart = (kTiles + 1) / 2;
  extern __shared__ __align__(1024) uint8_t shared[];
  const int split = a.plan.split;
  const int tokens = a.tokens;
  const int rank = static_cast<int>(blockIdx.x);
  const int strip = static_cast<int>(blockIdx.y);
  const int first_block = rank * kTiles;
  const Owners owners{split, rank};
  const int owned = owners.owned(tokens);
  const SharedPlan plan = shared_plan(kTiles, kTiles, kTokens, tokens, split);
  auto* const full = reinterpret_cast<uint64_t*>(shared + plan.barriers);
  uint64_t* const added = full + 2;
  auto* const partial = reinterpret_cast<float4*>(shared + plan.partial);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;

  if (thread == 0) {
    mbarrier_init(&full[0], 1);
    mbarrier_init(&full[1], 1);
    mbarrier_init(added, 1);
    mbarrier_init_fence();
    const uint8_t* const tiles =
        a.tiles + (static_cast<int64_t>(strip) * a.k_blocks + first_block) * kTileBytes;
    const uint64_t policy = l2_evict_first();
    mbarrier_arrive_expect(&full[0], kPart * kTileBytes);
    mbarrier_arrive_expect(&full[1], (kTiles - kPart) * kTileBytes);
#pragma unroll 1
    for (int i = 0; i < kTiles; ++i) {
      bulk_load_hint(shared + i * kTileBytes,
                     tiles + i * kTileBytes,
                     kTileBytes,
                     &full[i < kPart ? 0 : 1],
                     policy);
    }
    grid_launch_dependents();
    if (owned > 0) mbarrier_arrive_expect(added, owned * split * kPairBytes);
  }
  __syncthreads();
  if (split > 1) cluster_arrive_relaxed();

  // ---- what does not hang on x
  float of_lane[2] = {};
  if (lane < kTiles) {
    const int64_t at =
        static_cast<int64_t>(strip / a.strips_per_scale) * a.k_blocks + first_block + lane;
    of_lane[0] = a.scale[0][at];
    of_lane[1] = a.scale[1][at];
  }
  float of_row[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    of_row[i][0] = __shfl_sync(0xFFFFFFFFu, of_lane[0], i);
    of_row[i][1] = __shfl_sync(0xFFFFFFFFu, of_lane[1], i);
  }
  const uint64_t weights = wgmma_descriptor_k128(smem_address(shared));
  const uint64_t x = wgmma_descriptor_k128(smem_address(shared + plan.x));
  auto* const x_scale = reinterpret_cast<float*>(shared + plan.x_scale);
  const float* const of_tokens = x_scale + 2 * (lane % 4);
  Destination to[kTokens / 8];
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    to[j] = destination(owners, 4 * j + lane % 4, 8 * warp + lane / 4, partial, added);
  }
  if (split > 1) cluster_wait();  // everyone's barriers stand
  Rows rows = rows_of<kGroupThreads>(a, owners, partial, 0, strip, thread);
  if (rows.token < tokens && warp < owned) prefetch_l2(rows.out);

  // ---- x
  if constexpr (kCodes) {
    const CodeLoad<kTokens> load(a, first_block, shared + plan.x, x_scale, thread);
    grid_dependency_wait();
    load.template start<kTiles, kPart>(a);
  } else {
    grid_dependency_wait();
    quantize_into<kTokens, kGroupThreads>(
        a, {0, tokens, first_block, kTiles, shared + plan.x, x_scale}, thread);
  }

  // ---- products
  constexpr int kAhead = kTokens <= 16 ? kTiles : std::min(kTiles, 4);  // tiles under way together
  float part[kTiles][kTokens / 2];
  float sum[kTokens / 2] = {};
#pragma unroll
  for (int i = 0; i < kTiles + kAhead - 1; ++i) {
    if (i == 0 || i == kPart) {
      mbarrier_wait(&full[i == 0 ? 0 : 1], 0);
      if (i == 0) {
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      fence_async_shared();
      __syncthreads();
    }
    if (i < kTiles) {
      if (i == 0 || i == kPart || kAhead < kTiles) wgmma_fence();
#pragma unroll
      for (int k = 0; k < kBlock / 32; ++k) {
        Wgmma<kTokens>::e4m3(part[i],
                             advance(weights, i * (kTileBytes / 16) + k * 2),
                             advance(x, i * (kTokens * kBlock / 16) + k * 2),
                             k != 0);
      }
      wgmma_commit();
    }
    const int done = i - (kAhead - 1);
    if (done >= 0) {
      float2 of_token[kTokens / 8];
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        of_token[j] = *reinterpret_cast<const float2*>(of_tokens + done * kTokens + 8 * j);
      }
      wait_for_products(std::min(i, kTiles - 1) - done);
      wgmma_fence_registers(part[done]);
      add_tile<kTokens>(part[done], of_row[done], of_token, sum);
    }
  }

  // ---- the slice's sums to their owners
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    if (8 * j + 2 * (lane % 4) < tokens) send(to[j], &sum[4 * j], split);
  }

  // ---- out
  if (owned == 0) return;
  if (split > 1) {
    mbarrier_wait(added, 0);
  } else {
    __syncthreads();
  }
  add_and_write<kGroupThreads>(rows, owners, owned, tokens, thread);
#endif
}

template <int kTokens, int kGroups>
cudaError_t enqueue_for(const DecodeArguments& a, const Launch& launch) {
  const auto passes =
      static_cast<unsigned>((a.tokens + kDecodeTokensPerPass - 1) / kDecodeTokensPerPass);
  const Grid grid{
      dim3(static_cast<unsigned>(a.plan.split), static_cast<unsigned>(a.strips), passes),
      dim3(kGroups * kGroupThreads + 32),
      decode_shared_bytes(a.k_blocks, a.tokens, a.plan),
      a.plan.split};
  return enqueue(fp8_gemm_decode_kernel<kTokens, kGroups>, grid, launch, a);
}

// Whether the whole slice stays in shared memory, and a kernel is built for its length.
bool is_resident(const DecodeArguments& a) {
  const int tiles = a.slice_blocks;
  return a.tokens <= (a.x_codes != nullptr ? 32 : 16) && a.long_slices == 0 &&
         a.plan.stages == tiles && (tiles == 2 || tiles == 4 || (tiles >= 7 && tiles <= 9));
}
template <int kTokens, int kTiles>
cudaError_t enqueue_resident(const DecodeArguments& a, const Launch& launch) {
  const Grid grid{dim3(static_cast<unsigned>(a.plan.split), static_cast<unsigned>(a.strips)),
                  dim3(kGroupThreads),
                  decode_shared_bytes(a.k_blocks, a.tokens, a.plan),
                  a.plan.split};
  if (a.x_codes != nullptr) {
    return enqueue(fp8_gemm_resident_kernel<kTokens, kTiles, true>, grid, launch, a);
  }
  return enqueue(fp8_gemm_resident_kernel<std::min(kTokens, 16), kTiles, false>, grid, launch, a);
}
template <int kTokens>
cudaError_t enqueue_resident(const DecodeArguments& a, const Launch& launch) {
  switch (a.slice_blocks) {
    case 2:
      return enqueue_resident<kTokens, 2>(a, launch);
    case 4:
      return enqueue_resident<kTokens, 4>(a, launch);
    case 7:
      return enqueue_resident<kTokens, 7>(a, launch);
    case 8:
      return enqueue_resident<kTokens, 8>(a, launch);
    default:
      return enqueue_resident<kTokens, 9>(a, launch);
  }
}

bool on_grid(int64_t rows, int64_t cols, int64_t tokens) {
  return rows >= 0 && rows % kTileRows == 0 && cols > 0 && cols % kBlock == 0 &&
         cols <= int64_t{kMaxSplit} * kMaxSliceBlocks * kBlock && tokens >= 0 &&
         tokens <= kFp8DecodeMaxTokens;
}

// The arguments that depend on the matrix alone.
DecodeArguments weight_arguments(
    int64_t strips, int64_t cols, int64_t tokens, int64_t out_stride, void* out) {
  DecodeArguments a;
  a.strips = static_cast<int>(strips);
  a.k_blocks = static_cast<int>(cols / kBlock);
  a.tokens = static_cast<int>(tokens);
  a.out = out;
  a.out_stride = out_stride;
  a.plan.split = decode_split(a.strips, a.k_blocks);
  a.plan.stages = decode_stages(a.strips, a.k_blocks, tokens, a.plan.split);
  return a;
}

bool set_input(DecodeArguments& a, const QuantizedRows& x) {
  a.x_codes = x.data;
  a.x_stride = x.cols;
  a.x_scale = x.scale;
  a.x_scale_stride = x.scale_stride;
  return x.cols == int64_t{a.k_blocks} * kBlock && x.scale_stride >= a.tokens;
}
bool set_input(DecodeArguments& a, const Bf16Rows& x) {
  a.x_rows = x.data;
  a.x_stride = x.stride;
  return x.stride % 8 == 0 && x.stride >= int64_t{a.k_blocks} * kBlock;
}

template <typename Input>
cudaError_t gemm(const TiledMatrix& w,
                 const Input& x,
                 int64_t tokens,
                 void* out,
                 int64_t out_stride,
                 DecodeOutput output,
                 const Launch& launch) {
  if (!on_grid(w.rows, w.cols, tokens) || out_stride % 4 != 0 || out_stride < w.rows) {
    return cudaErrorInvalidValue;
  }
  if (w.rows == 0 || tokens == 0) return cudaSuccess;
  DecodeArguments a = weight_arguments(w.rows / kTileRows, w.cols, tokens, out_stride, out);
  a.tiles = w.tiles;
  a.scale[0] = a.scale[1] = w.scale;
  a.strips_per_scale = 2;
  a.output = output;
  return set_input(a, x) ? enqueue_decode(a, launch) : cudaErrorInvalidValue;
}

template <typename Input>
cudaError_t gate_up(const TiledGateUp& w,
                    const Input& x,
                    int64_t tokens,
                    __nv_bfloat16* out,
                    int64_t out_stride,
                    const Launch& launch) {
  if (!on_grid(2 * w.intermediate, w.cols, tokens) || out_stride % 4 != 0 ||
      out_stride < w.intermediate) {
    return cudaErrorInvalidValue;
  }
  if (w.intermediate == 0 || tokens == 0) return cudaSuccess;
  DecodeArguments a =
      weight_arguments(2 * w.intermediate / kTileRows, w.cols, tokens, out_stride, out);
  a.tiles = w.tiles;
  a.scale[0] = w.gate_scale;
  a.scale[1] = w.up_scale;
  a.strips_per_scale = 4;
  a.output = DecodeOutput::kSiluTimesUp;
  return set_input(a, x) ? enqueue_decode(a, launch) : cudaErrorInvalidValue;
}

}  // namespace

// About two CTAs an SM. Clusters of 8 pack badly into the GPU's 16 or 18 SMs a group: 8 only where
// that makes slices equal and SMs as full as they get, else 7 where it suffices.
int decode_split(int64_t strips, int64_t k_blocks) {
  constexpr int64_t kCtas = 300;
  const int64_t least = (k_blocks + kMaxSliceBlocks - 1) / kMaxSliceBlocks;
  const int64_t most = std::max(least, std::min<int64_t>({7, kCtas / strips, k_blocks}));
  if (k_blocks > kMaxSplit && k_blocks % kMaxSplit == 0 && kMaxSplit * strips <= 2 * kSms)
    return kMaxSplit;
  for (int64_t split = most; split >= least; --split) {
    if (k_blocks % split == 0) return static_cast<int>(split);
  }
  return static_cast<int>(most);
}

int decode_stages(int64_t strips, int64_t k_blocks, int64_t tokens, int split) {
  const auto slice = static_cast<int>((k_blocks + split - 1) / split);
  const auto fixed = static_cast<int>(shared_bytes(0, slice, tokens, split));
  constexpr int kLeastStages = 4;
  constexpr int kStageBytes = kTileBytes + 16;
  const auto stages_of = [&](int ctas) {
    return std::min(slice, (kSharedPerSm / ctas - kReservedPerCta - fixed) / kStageBytes);
  };
  const auto needed = static_cast<int>(std::min<int64_t>((strips * split + kSms - 1) / kSms, 3));
  const int ctas_per_sm = std::min(needed + 1, 3);
  // A whole slice, as long as all clusters still find a place at once.
  const bool whole_fits = kGpcs * (kSmsPerGpc * needed / split) >= strips;
  if (needed > 1 && whole_fits && stages_of(needed) == slice) return slice;
  for (int ctas = ctas_per_sm; ctas > 1; --ctas) {
    if (stages_of(ctas) >= std::min(slice, kLeastStages)) return stages_of(ctas);
  }
  return std::min(slice, (kSharedPerCta - fixed) / kStageBytes);
}

size_t decode_shared_bytes(int64_t k_blocks, int64_t tokens, const DecodePlan& plan) {
  const auto slice = static_cast<int>((k_blocks + plan.split - 1) / plan.split);
  return shared_bytes(plan.stages, slice, tokens, plan.split);
}

cudaError_t enqueue_decode(DecodeArguments a, const Launch& launch) {
  if (a.plan.stages < 1) return cudaErrorInvalidValue;
  a.slice_blocks = a.k_blocks / a.plan.split;
  a.long_slices = a.k_blocks % a.plan.split;
  a.log_tokens = 0;
  while ((1 << a.log_tokens) < std::min(a.tokens, kDecodeTokensPerPass)) ++a.log_tokens;
  if (is_resident(a)) {
    switch (padded(a.tokens)) {
      case 8:
        return enqueue_resident<8>(a, launch);
      case 16:
        return enqueue_resident<16>(a, launch);
      case 24:
        return enqueue_resident<24>(a, launch);
      default:
        return enqueue_resident<32>(a, launch);
    }
  }
  switch (padded(a.tokens)) {
    case 8:
      return enqueue_for<8, 1>(a, launch);
    case 16:
      return enqueue_for<16, 1>(a, launch);
    case 24:
      return enqueue_for<24, 1>(a, launch);
    case 32:
      return enqueue_for<32, 1>(a, launch);
    case 48:
      return enqueue_for<24, 2>(a, launch);
    default:
      return enqueue_for<32, 2>(a, launch);
  }
}

cudaError_t fp8_gemm_decode(const TiledMatrix& w,
                            const QuantizedRows& x,
                            int64_t tokens,
                            __nv_bfloat16* out,
                            int64_t out_stride,
                            const Launch& launch) {
  return gemm(w, x, tokens, out, out_stride, DecodeOutput::kBf16, launch);
}
cudaError_t fp8_gemm_decode(const TiledMatrix& w,
                            const QuantizedRows& x,
                            int64_t tokens,
                            float* out,
                            int64_t out_stride,
                            const Launch& launch) {
  return gemm(w, x, tokens, out, out_stride, DecodeOutput::kF32, launch);
}
cudaError_t fp8_gemm_decode(const TiledMatrix& w,
                            const Bf16Rows& x,
                            int64_t tokens,
                            __nv_bfloat16* out,
                            int64_t out_stride,
                            const Launch& launch) {
  return gemm(w, x, tokens, out, out_stride, DecodeOutput::kBf16, launch);
}
cudaError_t fp8_gemm_decode(const TiledMatrix& w,
                            const Bf16Rows& x,
                            int64_t tokens,
                            float* out,
                            int64_t out_stride,
                            const Launch& launch) {
  return gemm(w, x, tokens, out, out_stride, DecodeOutput::kF32, launch);
}
cudaError_t fp8_gate_up_decode(const TiledGateUp& w,
                               const QuantizedRows& x,
                               int64_t tokens,
                               __nv_bfloat16* out,
                               int64_t out_stride,
                               const Launch& launch) {
  return gate_up(w, x, tokens, out, out_stride, launch);
}
cudaError_t fp8_gate_up_decode(const TiledGateUp& w,
                               const Bf16Rows& x,
                               int64_t tokens,
                               __nv_bfloat16* out,
                               int64_t out_stride,
                               const Launch& launch) {
  return gate_up(w, x, tokens, out, out_stride, launch);
}

}  // namespace r1d::kernels
