// SPDX-License-Identifier: Apache-2.0
// Problem   out[t, r] = sum over k of x(t, k) w(r, k), 1..64 tokens a pass; w in e4m3 with
//           128x128 scales, x in e4m3 with 1x128 scales, given or made here from bf16. Or
//           silu(gate) * up of two such products.
// Layout    w in 8 KB tiles (layout.h); x row-major; out row-major, bf16 or f32.
// Bound     rows * cols bytes of weight; 2 * rows * cols * tokens flop stay under the memory
//           side up to about 200 tokens.
// Launch    A cluster of `split` CTAs makes 64 rows, each CTA from a slice of k. A producer
//           thread streams weight tiles by bulk copies, the first of them before the dependency
//           wait. One or two warpgroups (half the tokens each) load or quantize x for the slice
//           once, then multiply. Shared memory sets the occupancy; to 16 tokens it holds a CTA's
//           whole slice where all clusters still run at once.
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
constexpr int kBlock = 128;  // columns of a tile and of a scale
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
  int partial;   // [tokens this CTA adds up][split][64] f32, written by the whole cluster
  int barriers;  // full[stages], empty[stages], added
  int bytes;
};

__host__ __device__ constexpr SharedPlan shared_plan(
    int stages, int blocks, int padded_tokens, int tokens, int split) {
  SharedPlan plan{};
  plan.x = stages * kTileBytes;
  plan.x_scale = plan.x + blocks * padded_tokens * kBlock;
  plan.partial = plan.x_scale + blocks * padded_tokens * 4;
  plan.barriers = plan.partial + (tokens + split - 1) / split * split * kTileRows * 4;
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

// ---- instructions this kernel alone needs

// Execution only: nothing written before it needs to be seen after the wait.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cp_async_4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
// Two floats to shared memory of the cluster, announced to the barrier beside them. Illegal outside
// of a cluster of two or more.
__device__ __forceinline__ void store_async(uint32_t to,
                                            float first,
                                            float second,
                                            uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::
          "r"(to),
      "f"(first),
      "f"(second),
      "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void shared_store(uint32_t to, float first, float second) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(first), "f"(second) : "memory");
}

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

constexpr int kResidentTiles = 8;       // of a slice whose products are all under way together
constexpr int kMaxResidentTokens = 16;  // more would take too many registers for that

// sum += the products of a tile times the scales of its rows and tokens. Value 4 j + 2 h + c
// of a thread is row 16 warp + 8 h + lane / 4 of token 8 j + 2 (lane % 4) + c of the group.
template <int kTokens>
__device__ __forceinline__ void add_tile(const float (&part)[kTokens / 2],
                                         int block,
                                         const float (&weight_scale)[2],
                                         const float* of_tokens,
                                         float (&sum)[kTokens / 2]) {
  const float of_row[2] = {__shfl_sync(0xFFFFFFFFu, weight_scale[0], block),
                           __shfl_sync(0xFFFFFFFFu, weight_scale[1], block)};
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const float2 of_token = *reinterpret_cast<const float2*>(of_tokens + 8 * j);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const s = &sum[4 * j + 2 * h];
      s[0] = fmaf(part[4 * j + 2 * h], of_row[h] * of_token.x, s[0]);
      s[1] = fmaf(part[4 * j + 2 * h + 1], of_row[h] * of_token.y, s[1]);
    }
  }
}

// A slice that shared memory holds as a whole. Places are constants, so descriptors are uniform
// registers plus a number: working them out for a ring takes longer than the products.
template <int kTokens, int kPadded>
__device__ __forceinline__ void multiply_resident(uint64_t weights,
                                                  uint64_t x,
                                                  uint64_t* full,
                                                  int blocks,
                                                  const float (&weight_scale)[2],
                                                  const float* of_tokens,
                                                  float (&sum)[kTokens / 2]) {
  float part[kResidentTiles][kTokens / 2];
#pragma unroll
  for (int i = 0; i < kResidentTiles; ++i) {
    if (i < blocks) {
      mbarrier_wait(&full[i], 0);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kBlock / 32; ++k) {
        Wgmma<kTokens>::e4m3(part[i],
                             weights + i * (kTileBytes / 16) + k * 2,
                             x + i * (kPadded * kBlock / 16) + k * 2,
                             k != 0);
      }
      wgmma_commit();
    }
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kResidentTiles; ++i) wgmma_fence_registers(part[i]);
#pragma unroll
  for (int i = 0; i < kResidentTiles; ++i) {
    if (i < blocks) add_tile<kTokens>(part[i], i, weight_scale, of_tokens + i * kPadded, sum);
  }
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
        mbarrier_wait(&full[stage], parity);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kBlock / 32; ++k) {
          Wgmma<kTokens>::e4m3(part[u],
                               weights + stage * (kTileBytes / 16) + k * 2,
                               x + (begin + u) * (kPadded * kBlock / 16) + k * 2,
                               k != 0);
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
        add_tile<kTokens>(part[u], begin + u, weight_scale, of_tokens + (begin + u) * kPadded, sum);
      }
    }
  }
}

// ---- out

__device__ __forceinline__ uint2 pack_bf16(const float (&v)[4]) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v[0], v[1]);
  const __nv_bfloat162 high = __floats2bfloat162_rn(v[2], v[3]);
  return make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                    *reinterpret_cast<const uint32_t*>(&high));
}

__device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

// Rows r .. r + 3 (low) and r + 8 .. r + 11 (high) of a strip, r = 16 i + {0, 4}, of one token.
struct EightRows {
  float low[4];
  float high[4];
};

__device__ __forceinline__ EightRows sum_slices(const float* partial, int split) {
  EightRows sum = {};
  for (int s = 0; s < split; ++s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 v = *reinterpret_cast<const float4*>(partial + s * kTileRows + 4 * i);
      sum.low[2 * i] += v.x;
      sum.high[2 * i] += v.y;
      sum.low[2 * i + 1] += v.z;
      sum.high[2 * i + 1] += v.w;
    }
  }
  return sum;
}

__device__ __forceinline__ void write_eight(
    const DecodeArguments& a, const EightRows& rows, int64_t token, int strip, int eighth) {
  const int row = eighth / 2 * 16 + eighth % 2 * 4;
  if (a.output == DecodeOutput::kSiluTimesUp) {
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = silu_times(rows.low[i], rows.high[i]);
    auto* const out = static_cast<__nv_bfloat16*>(a.out) + token * a.out_stride +
                      strip * (kTileRows / 2) + eighth * 4;
    *reinterpret_cast<uint2*>(out) = pack_bf16(value);
  } else if (a.output == DecodeOutput::kBf16) {
    auto* const out =
        static_cast<__nv_bfloat16*>(a.out) + token * a.out_stride + strip * kTileRows + row;
    *reinterpret_cast<uint2*>(out) = pack_bf16(rows.low);
    *reinterpret_cast<uint2*>(out + 8) = pack_bf16(rows.high);
  } else {
    auto* const out = static_cast<float*>(a.out) + token * a.out_stride + strip * kTileRows + row;
    *reinterpret_cast<float4*>(out) =
        make_float4(rows.low[0], rows.low[1], rows.low[2], rows.low[3]);
    *reinterpret_cast<float4*>(out + 8) =
        make_float4(rows.high[0], rows.high[1], rows.high[2], rows.high[3]);
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
  // Token t is added up by CTA t % split. The product is t / split for t < 64.
  const auto slot_of = [scale = 65536 / split + 1](int t) { return t * scale >> 16; };
  const int owned = slot_of(tokens - rank + split - 1);
  const SharedPlan plan = shared_plan(
      stages, a.slice_blocks + (a.long_slices > 0 ? 1 : 0), kPadded, min(a.tokens, kPadded), split);
  auto* const full = reinterpret_cast<uint64_t*>(shared + plan.barriers);
  uint64_t* const empty = full + stages;
  uint64_t* const added = empty + stages;
  auto* const partial = reinterpret_cast<float*>(shared + plan.partial);
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
    if (owned > 0) mbarrier_arrive_expect(added, owned * split * kTileRows * 4);
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
  if (kPadded <= kMaxResidentTokens && blocks <= min(stages, kResidentTiles)) {
    multiply_resident<kTokens, kPadded>(weights, x, full, blocks, weight_scale, of_tokens, sum);
  } else {
    multiply_ring<kTokens, kPadded>(
        weights, x, full, empty, stages, blocks, weight_scale, of_tokens, sum);
  }

  // ---- the slice's sums to their owners: [slot][slice][16 warp + 2 (lane / 4) + h]
  if (split > 1) cluster_wait();
  const uint32_t to = smem_address(partial) + (rank * kTileRows + 16 * warp + lane / 4 * 2) * 4;
  const uint32_t barrier = smem_address(added);
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int t = group * kTokens + 8 * j + 2 * (lane % 4) + c;
      if (t < tokens) {
        const int slot = slot_of(t);
        const int owner = t - slot * split;
        const uint32_t at = to + slot * split * kTileRows * 4;
        if (split > 1) {
          store_async(cluster_address(at, owner),
                      sum[4 * j + c],
                      sum[4 * j + 2 + c],
                      cluster_address(barrier, owner));
        } else {
          shared_store(at, sum[4 * j + c], sum[4 * j + 2 + c]);
        }
      }
    }
  }

  // ---- out
  if (owned == 0) return;
  if (split > 1) {
    mbarrier_wait(added, 0);
  } else {
    named_barrier(1, kThreads);
  }
#pragma unroll 1
  for (int i = thread; i < owned * 8; i += kThreads) {
    const int slot = i / 8;
    const EightRows rows = sum_slices(partial + slot * split * kTileRows + i % 8 * 8, split);
    write_eight(a, rows, first_token + rank + slot * split, strip, i % 8);
  }
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

// About two CTAs an SM; clusters of 8 pack badly into the GPU's 16 or 18 SMs a group, so 7 is the
// most where it suffices. Slices of equal length where there is such a split.
int decode_split(int64_t strips, int64_t k_blocks) {
  constexpr int64_t kCtas = 300;
  const int64_t least = (k_blocks + kMaxSliceBlocks - 1) / kMaxSliceBlocks;
  const int64_t most = std::max(least, std::min<int64_t>({7, kCtas / strips, k_blocks}));
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
