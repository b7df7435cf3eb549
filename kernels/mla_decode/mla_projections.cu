// SPDX-License-Identifier: Apache-2.0
// Problem   q_latent[t, h] = W_UK[h]^T q_nope[t, h] beside the rotated rope part, before
//           mla_decode; attention[t, h] = W_UV[h] o_latent[t, h] behind it, where o_latent is
//           merged from its splits: sum_k 2^(lse_k - m) o_k / sum_k 2^(lse_k - m).
// Layout    Both weights as A fragments of mma.m16n8k16 in the order in which lanes load them; rows
//           and columns are permuted so that a lane's share of a token is 16 contiguous bytes, see
//           fragment_source.
// Bound     131 KB of weights a head each: 16 heads 2.1 MB, 0.5 us; the rest is latency.
// Launch    About one block an SM. absorb: a head's latent values in 8, 2 or 1 blocks by 16 or 32
//           tokens; the smallest have so little shared memory and so few registers that they fit
//           beside mla_decode's. expand: clusters of 8, 4 or 2 blocks a head, or single ones with
//           up to 32 tokens. A block of a cluster merges and multiplies its part of the latent
//           values and finishes its part of the tokens, whose sums the others send it: so a token's
//           128 outputs of a head, which are one group of QuantizedRows, meet in one half of a
//           warp. Both load their weights before they wait for the kernel ahead.
// Numerics  bf16 products, f32 sums; merge in f32 in the order of the splits. Codes are those of
//           the outputs rounded to bf16.
// Source    DeepSeek-V2 report, section 2.1; LSE merge as in Flash-Decoding.
#include <algorithm>

#include <cuda_fp8.h>

#include "kernels/common/ptx.cuh"
#include "kernels/mla_decode/plan.cuh"
#include "kernels/quantize/quantize.cuh"

namespace r1d::kernels {
namespace mla {
namespace {

constexpr float kLog2e = 1.4426950408889634F;
constexpr int kTokens = 8;  // of one mma

// ---- weights -----------------------------------------------------------------------------------

// W_UK of a head: tiles of 16 latent values x 16 of 128 nope values, W_UV: 16 of 128 outputs x 16
// of 512 latent values. Fragment (tile, k step, lane) is 16 bytes: registers a0 .. a3 of two values
// each. Value `e` (0..7) of lane l in step k:
//   k index  32 (k / 2) + 8 (l % 4) + 4 (k % 2) + 2 (e / 4) + e % 2: two steps take eight
//            contiguous values of the token from each lane;
//   m index  row r = l / 4 + 8 (e / 2 % 2) of the tile; for W_UK r stands for latent value 2 (r %
//   8) + r / 8,
//            so that a lane holds neighbouring values of a token.
struct FragmentSource {
  int m;
  int k;
};
__device__ FragmentSource fragment_source(int step, int lane, int e) {
  return {lane / 4 + 8 * (e / 2 % 2),
          32 * (step / 2) + 8 * (lane % 4) + 4 * (step % 2) + 2 * (e / 4) + e % 2};
}

__device__ float kv_b_value(const ops::Matrix& kv_b, int64_t row, int64_t col) {
  if (kv_b.dtype == DType::kBF16) {
    return __bfloat162float(static_cast<const __nv_bfloat16*>(kv_b.data)[row * kLatent + col]);
  }
  __nv_fp8_e4m3 code;
  code.__x = static_cast<const uint8_t*>(kv_b.data)[row * kLatent + col];
  constexpr int kBlock = ops::Matrix::kScaleBlock;
  return static_cast<float>(code) * kv_b.scale[row / kBlock * kv_b.scale_cols + col / kBlock];
}

// One thread a fragment; block (h, which): which 0 W_UK, 1 W_UV.
__global__ void __launch_bounds__(256)
    absorb_weights_kernel(ops::Matrix kv_b, uint4* uk, uint4* uv) {
#ifdef R1D_SM90
  grid_dependency_wait();
  grid_launch_dependents();
  constexpr int kFragments = kNope * kLatent / 8;
  const int head = blockIdx.x;
  const bool value = blockIdx.y == 1;
  const int steps = (value ? kLatent : kNope) / 16;
  uint4* to = (value ? uv : uk) + static_cast<int64_t>(head) * kFragments;
  for (int i = threadIdx.x; i < kFragments; i += 256) {
    const int lane = i % 32;
    const int step = i / 32 % steps;
    const int tile = i / 32 / steps;
    __nv_bfloat16 values[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const FragmentSource at = fragment_source(step, lane, e);
      const int64_t row = static_cast<int64_t>(head) * (kNope + kValue);
      const float w = value ? kv_b_value(kv_b, row + kNope + 16 * tile + at.m, at.k)
                            : kv_b_value(kv_b, row + at.k, 16 * tile + 2 * (at.m % 8) + at.m / 8);
      values[e] = __float2bfloat16(w);
    }
    to[i] = *reinterpret_cast<const uint4*>(values);
  }
#endif
}

#ifdef R1D_SM90

// A load that stays ahead of grid_dependency_wait().
__device__ __forceinline__ void load_weights(uint32_t (&r)[4], const uint4* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "l"(from));
}

// d += (two k steps of weights) (a lane's eight contiguous values of its token).
__device__ __forceinline__ void mma_pair(float (&d)[4],
                                         const uint32_t (&a0)[4],
                                         const uint32_t (&a1)[4],
                                         const uint4& token) {
  mma_bf16_16x8x16(d, a0, {token.x, token.y});
  mma_bf16_16x8x16(d, a1, {token.z, token.w});
}

#endif

// ---- absorb ------------------------------------------------------------------------------------

constexpr int kAbsorbSteps = kNope / 16;
constexpr int kQueryBytes = kNope * 2 + 64;  // of a token in shared memory; +64: no bank conflicts

#ifdef R1D_SM90

// Pairs `first` .. of the rope part of tokens [begin, end), by `threads` threads.
template <int kPairs>
__device__ __forceinline__ void rotate(const __nv_bfloat16* q,
                                       const MlaRope& rope,
                                       float scale,
                                       int heads,
                                       int head,
                                       int first,
                                       int begin,
                                       int end,
                                       int thread,
                                       int threads,
                                       __nv_bfloat16* q_latent) {
  constexpr int kHalf = kRope / 2;
  const int pair = first + thread % kPairs;
  const int low = rope.interleave ? 2 * pair : pair;
  const int high = rope.interleave ? 2 * pair + 1 : pair + kHalf;
#pragma unroll 8
  for (int t = begin + thread / kPairs; t < end; t += threads / kPairs) {
    const int64_t row = static_cast<int64_t>(t) * heads + head;
    const __nv_bfloat16* from = q + row * (kNope + kRope) + kNope;
    __nv_bfloat16* to = q_latent + row * kRow + kLatent;
    const float a = __bfloat162float(from[low]);
    const float b = __bfloat162float(from[high]);
    const float cos = rope.table[static_cast<int64_t>(t) * kRope + pair];
    const float sin = rope.table[static_cast<int64_t>(t) * kRope + kHalf + pair];
    to[low] = __float2bfloat16((a * cos - b * sin) * scale);
    to[high] = __float2bfloat16((a * sin + b * cos) * scale);
  }
}

#endif

// How many warps multiply, and by how many tiles of 16 latent values each; a quarter as many
// rotate.
template <int kWarps, int kRowTiles>
struct AbsorbForm {
  static constexpr int kThreads = 32 * (kWarps + kWarps / 4);
  static constexpr int kSlices = kLatent / 16 / kWarps / kRowTiles;  // blocks of a head
  static constexpr int kGroupTokens = kRowTiles > 1 ? 32 : 16;       // of a block
  // For the compiler: the smallest form is held to 64 registers, so that two blocks fit on an SM
  // beside mla_decode.
  static constexpr int kBoundThreads = kWarps == 4 ? 1024 : kThreads;
};

// Block (kSlices head + slice, token group).
template <int kWarps, int kRowTiles>
__global__ void __launch_bounds__(AbsorbForm<kWarps, kRowTiles>::kBoundThreads, 1)
    absorb_kernel(const __nv_bfloat16* q,
                  MlaWeights weights,
                  MlaRope rope,
                  float scale,
                  int heads,
                  int num_tokens,
                  __nv_bfloat16* q_latent) {
#ifdef R1D_SM90
  using Form = AbsorbForm<kWarps, kRowTiles>;
  constexpr int kSlices = Form::kSlices;
  const int head = static_cast<int>(blockIdx.x) / kSlices;
  const int slice = static_cast<int>(blockIdx.x) % kSlices;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int begin = static_cast<int>(blockIdx.y) * Form::kGroupTokens;
  const int end = min(begin + Form::kGroupTokens, num_tokens);
  if (warp >= kWarps) {
    if (threadIdx.x == 32 * kWarps && blockIdx.y == 0) {  // for mla_expand_values
      constexpr int kBytes = kValue * kLatent * 2 / kSlices;
      bulk_prefetch_l2(
          static_cast<const uint8_t*>(weights.uv) + static_cast<int64_t>(blockIdx.x) * kBytes,
          kBytes);
    }
    grid_launch_dependents();
    grid_dependency_wait();
    constexpr int kPairs = kRope / 2 / kSlices;
    rotate<kPairs>(q,
                   rope,
                   scale,
                   heads,
                   head,
                   slice * kPairs,
                   begin,
                   end,
                   static_cast<int>(threadIdx.x) - 32 * kWarps,
                   32 * (kWarps / 4),
                   q_latent);
    return;
  }
  const int tile = (slice * kWarps + warp) * kRowTiles;
  uint32_t a[kRowTiles][kAbsorbSteps][4];
  const uint4* fragments = static_cast<const uint4*>(weights.uk) +
                           (static_cast<int64_t>(head) * (kLatent / 16) + tile) * kAbsorbSteps * 32;
#pragma unroll
  for (int i = 0; i < kRowTiles * kAbsorbSteps; ++i) {
    load_weights(a[i / kAbsorbSteps][i % kAbsorbSteps], fragments + i * 32 + lane);
  }
  grid_launch_dependents();  // mla_decode may begin to load the cache
  grid_dependency_wait();

  __shared__ __align__(128) uint8_t rows[Form::kGroupTokens * kQueryBytes];
  for (int i = threadIdx.x; i < (end - begin) * (kNope / 8); i += 32 * kWarps) {
    const int64_t row = static_cast<int64_t>(begin + i / (kNope / 8)) * heads + head;
    cp_async_16(smem_address(rows + i / (kNope / 8) * kQueryBytes + i % (kNope / 8) * 16),
                q + row * (kNope + kRope) + i % (kNope / 8) * 8);
  }
  cp_async_commit();
  cp_async_wait<0>();
  named_barrier(1, 32 * kWarps);
#pragma unroll 1
  for (int first = begin; first < end; first += kTokens) {
    // Rows past the last token hold anything: each token is a column of its own.
    const uint8_t* row = rows + (first - begin + lane / 4) * kQueryBytes + lane % 4 * 16;
    uint4 token[kAbsorbSteps / 2];
#pragma unroll
    for (int pair = 0; pair < kAbsorbSteps / 2; ++pair) {
      token[pair] = *reinterpret_cast<const uint4*>(row + pair * 64);
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      float d[4] = {};
#pragma unroll
      for (int pair = 0; pair < kAbsorbSteps / 2; ++pair) {
        mma_pair(d, a[i][2 * pair], a[i][2 * pair + 1], token[pair]);
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int to = first + 2 * (lane % 4) + c;
        if (to >= end) continue;
        __nv_bfloat16* out =
            q_latent + (static_cast<int64_t>(to) * heads + head) * kRow + 16 * (tile + i);
        reinterpret_cast<__nv_bfloat162*>(out)[lane / 4] =
            __floats2bfloat162_rn(d[c] * scale, d[2 + c] * scale);
      }
    }
  }
#endif
}

// ---- expand ------------------------------------------------------------------------------------

constexpr int kPairs = kLatent / 32;  // of k steps
constexpr int kChunk = 64;            // latent values that 16 lanes merge, four each
constexpr int kChunks = kLatent / kChunk;
constexpr int kMaxTiles = 4;      // of 8 tokens, of a block
constexpr int kMergedBytes = 32;  // Merged
constexpr int kRowTiles = kValue / 16;

struct ExpandArguments {
  WorkspaceView in;
  const TokenSplits* plan;
  const uint4* uv;
  int32_t heads;
  int32_t num_tokens;
  int32_t tiles;         // of 8 tokens, of a block
  int32_t slot_columns;  // of the workspace
  int32_t max_splits;
  bool deterministic;
  MlaOutput out;
};

// How kSplit blocks share a head: each has a part of K, and a part of the tokens to finish.
template <int kSplit>
struct ExpandForm {
  // Large clusters of which an SM holds only one would not all find a place.
  static constexpr int kThreads = kSplit >= 4 ? 256 : 512;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWarpParts = kWarps / kRowTiles;  // of the block's K: a warp each
  static constexpr int kParts = kSplit * kWarpParts;     // of K
  static constexpr int kOwnPairs = kPairs / kParts;      // of a warp
  static constexpr int kOwnChunks = kChunks / kSplit;    // that a block merges and multiplies
  // Chunks and splits whose loads are under way together: as many as registers allow.
  static constexpr int kAtOnce = kSplit == 1 ? 2 : 1;
  static constexpr int kSplitsAtOnce = kSplit == 1 ? 2 : kSplit == 2 ? 8 : 12;
  // Of a token's merged values in shared memory, and of its sums (floats); no bank conflicts.
  static constexpr int kRowBytes = kOwnChunks * kChunk * 2 + 64;
  static constexpr int kSumsPitch = kParts * kValue + 4;
  static constexpr int kSharesBytes = kWarps * 16 * kMergedBytes;

  // Shared memory: merged values, bf16 [tokens][kRowBytes]; sums of the tokens that the block
  // finishes [tokens / kSplit][kParts][128], written by the cluster; what is passed on between
  // those who share a token's splits; the splits' weights [tokens][max_splits].
  static size_t shared_bytes(const ExpandArguments& args) {
    const auto tokens = static_cast<size_t>(args.tiles) * kTokens;
    return tokens *
               (kRowBytes + kSumsPitch * 4 / kSplit + static_cast<size_t>(args.max_splits) * 4) +
           kSharesBytes;
  }
};

#ifdef R1D_SM90

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Loads without branches, which would keep them apart; zeros (or -inf) when !valid.
__device__ __forceinline__ float4 load_sums(const float* from, bool valid) {
  float4 v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@p ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&f"(v.x), "=&f"(v.y), "=&f"(v.z), "=&f"(v.w)
      : "l"(from), "r"(static_cast<int>(valid))
      : "memory");
  return v;
}
__device__ __forceinline__ float load_lse(const float* from, bool valid) {
  float v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n"
      "mov.b32 %0, 0fFF800000;\n@p ld.global.cg.f32 %0, [%1];\n}"
      : "=&f"(v)
      : "l"(from), "r"(static_cast<int>(valid))
      : "memory");
  return v;
}
__device__ __forceinline__ uint2 pack_bf16x4(const float4& v) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
  return make_uint2(reinterpret_cast<const uint32_t&>(low),
                    reinterpret_cast<const uint32_t&>(high));
}
__device__ __forceinline__ void add(float4& to, const float4& v) {
  to.x += v.x;
  to.y += v.y;
  to.z += v.z;
  to.w += v.w;
}
__device__ __forceinline__ void add_scaled(float4& to, const float4& v, float factor) {
  to.x = fmaf(v.x, factor, to.x);
  to.y = fmaf(v.y, factor, to.y);
  to.z = fmaf(v.z, factor, to.z);
  to.w = fmaf(v.w, factor, to.w);
}
// Where a token's splits stand in the workspace, for one head; splits past `count` are not there.
struct SplitRows {
  int first;  // row of split 0
  int next;   // next + k * step: row of split k, k > 0
  int step;
  int count;  // 0 where nothing is to be merged
  __device__ __forceinline__ SplitRows(const TokenSplits& splits,
                                       const ExpandArguments& args,
                                       int head)
      : step(splits.step * args.slot_columns), count(splits.count > 1 ? splits.count : 0) {
    const int column = splits.query * args.heads + head;
    first = splits.first * args.slot_columns + column;
    next = splits.next * args.slot_columns + column - step;
  }
  __device__ __forceinline__ int operator[](int k) const {
    return k == 0 ? first : next + k * step;
  }
};

// A warp's share of the log2-sum-exps of a token: splits lane, lane + 32 ...
constexpr int kLseRounds = kMaxParts / 32;
__device__ __forceinline__ void load_lses(const ExpandArguments& args,
                                          const SplitRows& rows,
                                          float (&lse)[kLseRounds]) {
#pragma unroll
  for (int i = 0; i < kLseRounds; ++i) {
    const int k = static_cast<int>(threadIdx.x) % 32 + 32 * i;
    lse[i] = load_lse(args.in.lse + rows[k], k < rows.count);
  }
}

// Over the lanes of a warp. In the order of two's complement, which one instruction compares.
__device__ __forceinline__ float warp_max(float x) {
  const auto order = [](int bits) { return bits < 0 ? bits ^ 0x7FFFFFFF : bits; };
  return __int_as_float(order(__reduce_max_sync(~0U, order(__float_as_int(x)))));
}

// A warp: what a token's splits weigh, up to a factor: 2^(lse - most).
__device__ __forceinline__ void weigh_splits(const float (&lse)[kLseRounds],
                                             int count,
                                             float* weights) {
  float most = lse[0];
#pragma unroll
  for (int i = 1; i < kLseRounds; ++i) most = fmaxf(most, lse[i]);
  most = warp_max(most);
  const float base = most == -INFINITY ? 0.0F : most;
#pragma unroll
  for (int i = 0; i < kLseRounds; ++i) {
    const int k = static_cast<int>(threadIdx.x) % 32 + 32 * i;
    if (k < count) weights[k] = exp2_fast(lse[i] - base);
  }
}

// A weighted sum of splits, still to be divided by the sum of their weights.
struct Merged {
  float4 sum;
  float weight;
};
__device__ __forceinline__ void add(Merged& to, const Merged& other) {
  add(to.sum, other.sum);
  to.weight += other.weight;
}
__device__ __forceinline__ Merged of_lane_xor(const Merged& own, int lane) {
  const auto other = [=](float x) { return __shfl_xor_sync(~0U, x, lane); };
  return {make_float4(other(own.sum.x), other(own.sum.y), other(own.sum.z), other(own.sum.w)),
          other(own.weight)};
}
__device__ __forceinline__ uint2 divided(const Merged& merged) {
  const float scale = merged.weight > 0 ? __fdividef(1.0F, merged.weight) : 0.0F;
  const float4& v = merged.sum;
  return pack_bf16x4(make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale));
}
static_assert(sizeof(Merged) == kMergedBytes);

// Merges the block's kOwnChunks chunks of its tokens' latent values. 16 lanes take some chunks of
// one token; where tokens are few they share its splits as well.
template <int kSplit>
__device__ __forceinline__ void merge_splits(const ExpandArguments& args,
                                             int head,
                                             int rank,
                                             int begin,
                                             int count,
                                             uint8_t* tokens,
                                             Merged* shares,
                                             float* weights) {
  using Form = ExpandForm<kSplit>;
  constexpr int kOwn = Form::kOwnChunks;
  constexpr int kWarps = Form::kWarps;
  constexpr int kMergers = 2 * kWarps;
  constexpr int kAtOnce = Form::kAtOnce;
  constexpr int kSplits = Form::kSplitsAtOnce;
  const int lane = static_cast<int>(threadIdx.x) % 16;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int merger = static_cast<int>(threadIdx.x) / 16;
  const int per_token = kMergers >> (count > 1 ? 32 - __clz(count - 1) : 0);
  // Shared sums associate otherwise, so not where bits must not depend on the batch.
  const int sharers = args.deterministic ? 1 : max(per_token / kOwn, 1);
  const int token = merger / per_token;
  const int share = merger % per_token % sharers;
  const int first = merger % per_token / sharers;  // chunk
  const int stride = per_token / sharers;
  const auto own_value = [&](int chunk) { return chunk * kChunk + lane * 4; };
  const int first_value = rank * kOwn * kChunk;
  // The plan is older than the kernel ahead.
  const TokenSplits splits = token < count ? args.plan[begin + token] : TokenSplits{};
  const SplitRows rows(splits, args, head);
  SplitRows weighed(warp < count ? args.plan[begin + warp] : TokenSplits{}, args, head);
  const float* partial = args.in.partial + first_value;
  grid_dependency_wait();
  if constexpr (kSplit > 1) grid_launch_dependents();

  // What the weights need comes first: they take longest.
  float lse[kLseRounds];
  load_lses(args, weighed, lse);
  float4 sums[kAtOnce][kSplits];
  const auto load = [&](int chunk, int k) {
#pragma unroll
    for (int j = 0; j < kSplits; ++j) {
      const int split = k + j * sharers;
      const float* row = partial + int64_t{rows[split]} * kLatent;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = chunk + i * stride;
        sums[i][j] = load_sums(row + own_value(at), at < kOwn && split < rows.count);
      }
    }
  };
  const auto store = [&](int chunk, uint2 packed) {
    *reinterpret_cast<uint2*>(tokens + token * Form::kRowBytes + own_value(chunk) * 2) = packed;
  };
  load(first, share);
  for (int t = warp; t < count; t += kWarps) {
    if (t != warp) {
      weighed = SplitRows(args.plan[begin + t], args, head);
      load_lses(args, weighed, lse);
    }
    if (weighed.count > 1) weigh_splits(lse, weighed.count, weights + t * args.max_splits);
  }
  if constexpr (kSplit > 1) cluster_wait();
  __syncthreads();

  const float* own_weights = weights + token * args.max_splits;
  float4 merged[kAtOnce];
  float weight_sum = 0;
  for (int chunk = first; chunk < kOwn; chunk += kAtOnce * stride) {
#pragma unroll
    for (float4& sum : merged) sum = make_float4(0, 0, 0, 0);
    weight_sum = 0;
    for (int k = share; k < rows.count; k += kSplits * sharers) {
      if (chunk != first || k != share) load(chunk, k);
#pragma unroll
      for (int j = 0; j < kSplits; ++j) {
        const int split = k + j * sharers;
        const float weight = split < rows.count ? own_weights[split] : 0.0F;
        weight_sum += weight;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) add_scaled(merged[i], sums[i][j], weight);
      }
    }
    if (sharers > 1 || token >= count || splits.count == 1) continue;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (chunk + i * stride < kOwn) store(chunk + i * stride, divided({merged[i], weight_sum}));
    }
  }
  if (sharers > 1) {  // one chunk each; lanes 0 .. 15 of a warp and the others share one
    Merged all{merged[0], weight_sum};
    add(all, of_lane_xor(all, 16));
    if (merger % 2 == 0) shares[merger / 2 * 16 + lane] = all;
    __syncthreads();
    if (share == 0 && token < count && splits.count != 1) {
      for (int i = 1; i < sharers / 2; ++i) add(all, shares[(merger / 2 + i) * 16 + lane]);
      store(first, divided(all));
    }
  }
  if (splits.count == 1 && share == 0) {
    const auto* row = static_cast<const __nv_bfloat16*>(args.in.latent) +
                      (static_cast<int64_t>(begin + token) * args.heads + head) * kLatent +
                      first_value;
    uint2 whole[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int chunk = first + i * stride;
      if (chunk < kOwn) whole[i] = __ldcg(reinterpret_cast<const uint2*>(row + own_value(chunk)));
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (first + i * stride < kOwn) store(first + i * stride, whole[i]);
    }
  }
}

// A warp: its row tile times its pairs of K for eight tokens. Pairs add up as a binary tree over
// all of K, here and in expand_kernel, so that the bits do not depend on kSplit.
template <int kOwnPairs>
__device__ __forceinline__ void multiply(const uint32_t (&a)[kOwnPairs][2][4],
                                         const uint8_t* row,  // of this lane's token, own pairs
                                         float (&out)[4]) {
  float d[kOwnPairs][4] = {};
#pragma unroll
  for (int pair = 0; pair < kOwnPairs; ++pair) {
    const uint4 token = *reinterpret_cast<const uint4*>(row + pair * 64);
    mma_pair(d[pair], a[pair][0], a[pair][1], token);
  }
#pragma unroll
  for (int step = 1; step < kOwnPairs; step *= 2) {
#pragma unroll
    for (int pair = 0; pair < kOwnPairs; pair += 2 * step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d[pair][i] += d[pair + step][i];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = d[0][i];
}

// The sums over all of K of the block's tokens, and their store. 16 lanes a token: lane l has
// outputs 16 (l / 2) + 4 (l % 2) .. + 3, and those 8 further on.
template <int kSplit>
__device__ __forceinline__ void finish_tokens(
    const ExpandArguments& args, const float* sums, int head, int rank, int begin, int owned) {
  using Form = ExpandForm<kSplit>;
  const int lane = static_cast<int>(threadIdx.x) % 16;
  const int64_t cols = static_cast<int64_t>(args.heads) * kValue;
  const int64_t column = static_cast<int64_t>(head) * kValue + lane / 2 * 16 + lane % 2 * 4;
  // Whole warps: the group's maximum is a shuffle.
  for (int i = static_cast<int>(threadIdx.x) / 32 * 2; i < owned; i += 2 * Form::kWarps) {
    const int slot = i + static_cast<int>(threadIdx.x) / 16 % 2;
    const bool real = slot < owned;
    const float* from = sums + (real ? slot : i) * Form::kSumsPitch + lane * 8;
    float4 d[Form::kParts][2];
#pragma unroll
    for (int p = 0; p < Form::kParts; ++p) {
      d[p][0] = *reinterpret_cast<const float4*>(from + p * kValue);
      d[p][1] = *reinterpret_cast<const float4*>(from + p * kValue + 4);
    }
#pragma unroll
    for (int step = 1; step < Form::kParts; step *= 2) {
#pragma unroll
      for (int p = 0; p < Form::kParts; p += 2 * step) {
        add(d[p][0], d[p + step][0]);
        add(d[p][1], d[p + step][1]);
      }
    }
    const float4 a = d[0][0];
    const float4 b = d[0][1];
    const uint2 low = pack_bf16x4(make_float4(a.x, a.z, b.x, b.z));
    const uint2 high = pack_bf16x4(make_float4(a.y, a.w, b.y, b.w));
    const int64_t token = begin + slot * kSplit + rank;
    if (args.out.bf16 != nullptr && real) {
      __nv_bfloat16* to = args.out.bf16 + token * cols + column;
      *reinterpret_cast<uint2*>(to) = low;
      *reinterpret_cast<uint2*>(to + 8) = high;
    }
    if (args.out.quantized.data == nullptr) continue;
    const uint4 packed[1] = {make_uint4(low.x, low.y, high.x, high.y)};
    QuantizedOctet octet[1];
    quantize_octets(packed, octet);
    if (!real) continue;
    uint8_t* codes = args.out.quantized.data + token * cols + column;
    *reinterpret_cast<uint32_t*>(codes) = octet[0].codes.x;
    *reinterpret_cast<uint32_t*>(codes + 8) = octet[0].codes.y;
    if (lane == 0) {
      args.out.quantized.scale[head * args.out.quantized.scale_stride + token] = octet[0].scale;
    }
  }
}

#endif

// Cluster (head, 8 args.tiles tokens) of kSplit blocks: block `rank` merges a kSplit-th of the
// latent values, multiplies them, and finishes tokens rank, rank + kSplit ...
template <int kSplit>
__global__ void __launch_bounds__(ExpandForm<kSplit>::kThreads,
                                  ExpandForm<kSplit>::kThreads == 512 ? 1 : 2)
    expand_kernel(const __grid_constant__ ExpandArguments args) {
#ifdef R1D_SM90
  using Form = ExpandForm<kSplit>;
  extern __shared__ __align__(128) uint8_t tokens[];
  auto* sums = reinterpret_cast<float*>(tokens + args.tiles * kTokens * Form::kRowBytes);
  float* shares = sums + args.tiles * kTokens / kSplit * Form::kSumsPitch;
  float* weights = shares + Form::kSharesBytes / 4;
  const int head = static_cast<int>(blockIdx.x) / kSplit;
  const int rank = static_cast<int>(blockIdx.x) % kSplit;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int tile = warp % kRowTiles;
  const int part = warp / kRowTiles;
  uint32_t a[Form::kOwnPairs][2][4];
  const uint4* fragments = args.uv + ((static_cast<int64_t>(head) * kRowTiles + tile) * kPairs +
                                      (rank * Form::kWarpParts + part) * Form::kOwnPairs) *
                                         64;
#pragma unroll
  for (int i = 0; i < Form::kOwnPairs * 2; ++i) {
    load_weights(a[i / 2][i % 2], fragments + i * 32 + lane);
  }
  const int begin = static_cast<int>(blockIdx.y) * args.tiles * kTokens;
  const int count = min(args.tiles * kTokens, args.num_tokens - begin);
  const int owned = (count - rank + kSplit - 1) / kSplit;
  // Stores that count themselves: a barrier of the cluster that releases them takes 1 to 2 us
  // beside the next kernel's loads.
  __shared__ uint64_t added;
  if constexpr (kSplit > 1) {
    if (threadIdx.x == 0) {
      mbarrier_init(&added, 1);
      mbarrier_init_fence();
      mbarrier_arrive_expect(&added, static_cast<uint32_t>(owned) * Form::kParts * kValue * 4);
    }
    cluster_arrive_relaxed();  // after everyone's wait, everyone's barriers stand
  }
  if constexpr (kSplit == 1) grid_launch_dependents();
  merge_splits<kSplit>(
      args, head, rank, begin, count, tokens, reinterpret_cast<Merged*>(shares), weights);
  __syncthreads();

  // Rows of `tokens` past `count` hold anything: each token is a column of its own. A sum's outputs
  // r and r + 8 of a tile stand side by side.
  float* to = sums + (rank * Form::kWarpParts + part) * kValue + tile * 16 + lane / 4 * 2;
#pragma unroll 1
  for (int n = 0; n * kTokens < count; ++n) {
    float d[4];
    multiply<Form::kOwnPairs>(a,
                              tokens + (n * kTokens + lane / 4) * Form::kRowBytes +
                                  part * Form::kOwnPairs * 64 + lane % 4 * 16,
                              d);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int token = n * kTokens + 2 * (lane % 4) + c;
      if (token >= count) continue;
      float* at = to + token / kSplit * Form::kSumsPitch;
      const float2 pair = make_float2(d[c], d[2 + c]);
      if constexpr (kSplit == 1) {
        *reinterpret_cast<float2*>(at) = pair;
      } else {
        const auto owner = static_cast<uint32_t>(token % kSplit);
        cluster_store_async(cluster_address(smem_address(at), owner),
                            pair,
                            cluster_address(smem_address(&added), owner));
      }
    }
  }
  if constexpr (kSplit == 1) {
    __syncthreads();
  } else {
    if (owned == 0) return;
    mbarrier_wait(&added, 0);
  }
  finish_tokens<kSplit>(args, sums, head, rank, begin, owned);
#endif
}

template <int kWarps, int kRowTiles>
cudaError_t launch_absorb(const void* q,
                          const MlaWeights& weights,
                          const MlaRope& rope,
                          float scale,
                          const MlaShape& shape,
                          void* q_latent,
                          const Launch& launch) {
  using Form = AbsorbForm<kWarps, kRowTiles>;
  const auto kernel = absorb_kernel<kWarps, kRowTiles>;
  const cudaError_t error = leave_shared_memory(kernel);
  if (error != cudaSuccess) return error;
  const int groups = (shape.num_tokens + Form::kGroupTokens - 1) / Form::kGroupTokens;
  return enqueue(kernel,
                 Grid{.blocks = dim3(static_cast<unsigned>(shape.heads * Form::kSlices),
                                     static_cast<unsigned>(groups)),
                      .threads = dim3(Form::kThreads)},
                 launch,
                 static_cast<const __nv_bfloat16*>(q),
                 weights,
                 rope,
                 scale,
                 shape.heads,
                 shape.num_tokens,
                 static_cast<__nv_bfloat16*>(q_latent));
}

template <int kSplit>
cudaError_t launch_expand(const ExpandArguments& args, const Launch& launch) {
  const auto kernel = expand_kernel<kSplit>;
  const cudaError_t error = leave_shared_memory(kernel);
  if (error != cudaSuccess) return error;
  const int tile = args.tiles * kTokens;
  return enqueue(kernel,
                 Grid{.blocks = dim3(static_cast<unsigned>(args.heads * kSplit),
                                     static_cast<unsigned>((args.num_tokens + tile - 1) / tile)),
                      .threads = dim3(ExpandForm<kSplit>::kThreads),
                      .shared_bytes = ExpandForm<kSplit>::shared_bytes(args),
                      .cluster = kSplit},
                 launch,
                 args);
}

}  // namespace
}  // namespace mla

size_t mla_absorbed_bytes(int32_t heads) {
  return static_cast<size_t>(heads) * (mla::kNope + mla::kValue) * mla::kLatent * 2;
}

MlaWeights mla_weights(const void* absorbed, int32_t heads) {
  return {absorbed,
          static_cast<const uint8_t*>(absorbed) +
              static_cast<size_t>(heads) * mla::kNope * mla::kLatent * 2};
}

cudaError_t mla_absorb_weights(const ops::Matrix& kv_b,
                               int32_t heads,
                               void* to,
                               const Launch& launch) {
  if (kv_b.rows != int64_t{heads} * (mla::kNope + mla::kValue) || kv_b.cols != mla::kLatent ||
      kv_b.dtype == DType::kF32 || kv_b.scale_row_offset != 0 || kv_b.scale_col_offset != 0) {
    return cudaErrorInvalidValue;
  }
  const MlaWeights weights = mla_weights(to, heads);
  return enqueue(mla::absorb_weights_kernel,
                 Grid{.blocks = dim3(static_cast<unsigned>(heads), 2), .threads = dim3(256)},
                 launch,
                 kv_b,
                 static_cast<uint4*>(const_cast<void*>(weights.uk)),
                 static_cast<uint4*>(const_cast<void*>(weights.uv)));
}

cudaError_t mla_absorb_queries(const void* q,
                               const MlaWeights& weights,
                               const MlaRope& rope,
                               float softmax_scale,
                               const MlaShape& shape,
                               void* q_latent,
                               const Launch& launch) {
  if (shape.num_tokens == 0) return cudaSuccess;
  // Enough blocks for a GPU, each with as much of a head's weights as leaves that many.
  const float scale = softmax_scale * mla::kLog2e;
  const int blocks = shape.heads * ((shape.num_tokens + 15) / 16);
  if (blocks * 8 <= shape.num_sms) {
    return mla::launch_absorb<4, 1>(q, weights, rope, scale, shape, q_latent, launch);
  }
  if (blocks * 2 <= shape.num_sms) {
    return mla::launch_absorb<16, 1>(q, weights, rope, scale, shape, q_latent, launch);
  }
  return mla::launch_absorb<8, 4>(q, weights, rope, scale, shape, q_latent, launch);
}

cudaError_t mla_expand_values(const void* workspace,
                              const MlaWeights& weights,
                              const MlaShape& shape,
                              const void* plan,
                              const MlaOutput& out,
                              const Launch& launch) {
  const QuantizedRows& quantized = out.quantized;
  if (quantized.data != nullptr && (quantized.cols != int64_t{shape.heads} * mla::kValue ||
                                    quantized.scale_stride < shape.num_tokens)) {
    return cudaErrorInvalidValue;
  }
  if (shape.num_tokens == 0) return cudaSuccess;
  const mla::Tiling tiling = mla::tiling(shape);
  mla::ExpandArguments args{.in = mla::workspace_view(workspace, shape),
                            .plan = mla::plan_view(plan, shape).tokens,
                            .uv = static_cast<const uint4*>(weights.uv),
                            .heads = shape.heads,
                            .num_tokens = shape.num_tokens,
                            .tiles = 1,
                            .slot_columns = tiling.groups * tiling.columns,
                            .max_splits = shape.deterministic ? mla::kMaxSplits : tiling.parts,
                            .deterministic = shape.deterministic,
                            .out = out};
  // As many blocks as SMs: few tokens share out a head, many share a block.
  const int blocks = shape.heads * ((shape.num_tokens + mla::kTokens - 1) / mla::kTokens);
  if (blocks * 8 <= shape.num_sms) return mla::launch_expand<8>(args, launch);
  if (blocks * 4 <= shape.num_sms) return mla::launch_expand<4>(args, launch);
  if (blocks * 2 <= shape.num_sms) return mla::launch_expand<2>(args, launch);
  args.tiles = std::min((blocks + shape.num_sms - 1) / shape.num_sms, mla::kMaxTiles);
  return mla::launch_expand<1>(args, launch);
}

}  // namespace r1d::kernels
