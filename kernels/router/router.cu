// SPDX-License-Identifier: Apache-2.0
// Problem   logits[T,E] = x . W^T, then per token the choice of router.h, then the lists of experts
//           in use.
// Layout    W [E,D] bf16 or f32, x [T,D] bf16, both K-major; partial logits [T][partials][E] f32 in
//           the workspace.
// Bound     2 E D bytes of bf16 weights (R1: 3.7 MB, 0.9 us at 4.3 TB/s), so latency: one launch
//           and three trips to L2 (x, partial logits, chosen experts).
// Launch    To 16 tokens a block per (16 experts, 896 columns), a warp per 224 of them and eight
//           tokens, operands straight into registers. Above, a block per (64 experts, 64 tokens, 1,
//           2 or 4 chunks), operands through the copy engine. R1: 128 blocks always. Weights are
//           requested before the dependency wait. Blocks then become choosers of tokens and the
//           last one the builder of the lists, if any; where blocks could not all run at once, a
//           second launch does it.
// Hand-over A word of the workspace is 0 until its value is there; who waits for it reads it until
//           it is not, then puts the 0 back. So a hand-over costs one store and one load, no
//           barrier and no counter.
// Numerics  bf16 products exact, f32 sums in one order whatever the launch: the even and the odd
//           products of a chunk of 224 columns, chunks in pairs, pairs in groups of four, groups
//           ascending. A token's bits depend neither on the batch nor on timing.
// Source    DeepSeek-V3 report, section 2.1.2; rules of src/ops/cpu/router.cc.
#include "kernels/common/ptx.cuh"
#include "kernels/common/tensor_map.h"
#include "kernels/router/lists.cuh"
#include "kernels/router/router.h"

namespace r1d::kernels {
namespace router {
namespace {

constexpr int kChunk = 224;     // columns; 7168 / 224 = 32
constexpr int kSteps = 7;       // of 32 columns in a chunk
constexpr int kGroup = 4;       // chunks
constexpr int kRowTokens = 16;  // tokens of the form without shared memory
constexpr int kRowExperts = 16;
constexpr int kThreads = kListThreads;          // of a block
constexpr int kTile = 64;                       // experts, tokens
constexpr int kTileBytes = kTile * kChunk * 2;  // of one operand
constexpr int kF32Threads = 128;
constexpr int kTokensAlone = 4;  // up to here one block chooses for all and builds the lists
constexpr int kRoundTokens = 4;

constexpr int64_t num_chunks(int64_t hidden) {
  return (hidden + kChunk - 1) / kChunk;
}

// What happens to the partial logits.
struct Finish {
  float* partial;       // [T][num_partials][pitch]
  uint32_t* published;  // [T * k]: expert + 1
  const float* bias;
  ChoicePlan plan;
  Divisor top_k;
  ListOptions options;
  Routing routing;
  ExpertLists lists;
  int num_tokens;
  int num_partials;
  int pitch;  // experts, rounded up to four
  int round;  // tokens that a block takes at a time, up to kRoundTokens
  bool here;  // in the launch that computes them
};

// Shared memory of a block that finishes: the experts of all entries, then the choices of `round`
// tokens, whose place the lists' part takes.
__host__ __device__ constexpr int slots_of(int num_tokens, int top_k) {
  return (num_tokens * top_k + 3) / 4 * 4;
}

#ifdef R1D_SM90

// ---- hand-over ---------------------------------------------------------------------------------

__device__ __forceinline__ void hand_over(uint32_t* to, uint32_t word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
__device__ __forceinline__ uint32_t read_word(const uint32_t* from) {
  uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}
// +0 would read as "not there yet"; sums do not tell it from -0.
__device__ __forceinline__ void hand_over(float* to, float value) {
  const uint32_t bits = __float_as_uint(value);
  hand_over(reinterpret_cast<uint32_t*>(to), bits == 0 ? 0x80000000U : bits);
}
__device__ __forceinline__ float* partial_of(const Finish& args, int token, int part) {
  return args.partial + (token * args.num_partials + part) * args.pitch;
}

// ---- choice and lists --------------------------------------------------------------------------

// The biases into L2, where they lie when the choice needs them.
__device__ __forceinline__ void prefetch_bias(const Finish& args) {
  constexpr int kLine = 32;  // floats
  const int at = static_cast<int>(threadIdx.x) * kLine;
  if (args.bias != nullptr && at < args.plan.rules.num_experts) prefetch_l2(args.bias + at);
}

// Waits for the partial logits of tokens t0, t0 + stride, .. (`count` of them) and enters each
// token's experts. A thread takes the same places of all tokens. kPer: partials a group.
template <int kPer>
__device__ __forceinline__ void take_logits(
    const Finish& args, int t0, int stride, int count, uint32_t* tokens) {
  constexpr int kGroups = 8;         // at a time
  constexpr int kAtOnce = 4 / kPer;  // tokens: 32 loads in all
  const int words_of_token = args.plan.words();
  const int groups = (args.num_partials + kPer - 1) / kPer;
  for (int place = threadIdx.x; place < args.plan.places(); place += kThreads) {
    const int expert = expert_at(args.plan, place);
    const float bias = expert >= 0 && args.bias != nullptr ? __ldg(args.bias + expert) : 0.0F;
    for (int c0 = 0; c0 < count; c0 += kAtOnce) {
      float logit[kAtOnce] = {};
      for (int g0 = 0; expert >= 0 && g0 < groups; g0 += kGroups) {
        uint32_t words[kAtOnce][kGroups * kPer];
        bool there;
        do {
          there = true;
#pragma unroll
          for (int c = 0; c < kAtOnce; ++c) {
            if (c0 + c >= count) break;
            const float* from = partial_of(args, t0 + (c0 + c) * stride, g0 * kPer) + expert;
#pragma unroll
            for (int p = 0; p < kGroups * kPer; ++p) {
              words[c][p] = 0;
              if (g0 * kPer + p < args.num_partials) {
                words[c][p] = read_word(reinterpret_cast<const uint32_t*>(from) + p * args.pitch);
              }
            }
          }
#pragma unroll
          for (int c = 0; c < kAtOnce; ++c) {
            if (c0 + c >= count) break;
#pragma unroll
            for (int p = 0; p < kGroups * kPer; ++p) {
              there = there & (words[c][p] != 0 || g0 * kPer + p >= args.num_partials);
            }
          }
        } while (!there);
#pragma unroll
        for (int c = 0; c < kAtOnce; ++c) {
          if (c0 + c >= count) break;
          float* from = partial_of(args, t0 + (c0 + c) * stride, g0 * kPer) + expert;
          float parts[kGroups * kPer];
#pragma unroll
          for (int p = 0; p < kGroups * kPer; ++p) {
            if (g0 * kPer + p < args.num_partials) from[p * args.pitch] = 0;
            parts[p] = __uint_as_float(words[c][p]);
          }
#pragma unroll
          for (int step = 1; step < kPer; step *= 2) {
#pragma unroll
            for (int p = 0; p < kGroups * kPer; p += 2 * step) parts[p] += parts[p + step];
          }
#pragma unroll
          for (int g = 0; g < kGroups; ++g) logit[c] += parts[g * kPer];
        }
      }
#pragma unroll
      for (int c = 0; c < kAtOnce; ++c) {
        if (c0 + c >= count) break;
        const Choice token(args.plan, tokens + (c0 + c) * words_of_token);
        enter(token, place, expert, logit[c], bias);
      }
    }
  }
}

// The chosen experts of all tokens, as their choosers hand them over, into `slots`.
__device__ __forceinline__ void take_choices(const Finish& args, uint32_t* slots) {
  constexpr int kBatch = 8;
  const int entries = args.num_tokens * args.plan.rules.top_k;
  for (int first = threadIdx.x; first < entries; first += kBatch * kThreads) {
    uint32_t words[kBatch];
    bool there;
    do {
      there = true;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        words[i] = 1;
        if (first + i * kThreads < entries) {
          words[i] = read_word(args.published + first + i * kThreads);
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) there = there && words[i] != 0;
    } while (!there);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i * kThreads < entries) {
        args.published[first + i * kThreads] = 0;
        slots[first + i * kThreads] = words[i] - 1;
      }
    }
  }
}

// Block `block` of `num_blocks` that all come here. `raw`: finish_bytes() of shared memory that
// nobody uses any more.
template <int kPer>
__device__ __forceinline__ void finish(const Finish& args,
                                       int block,
                                       int num_blocks,
                                       uint8_t* raw) {
  const ChoicePlan& plan = args.plan;
  const int top_k = plan.rules.top_k;
  auto* slots = reinterpret_cast<uint32_t*>(raw);
  uint32_t* behind = slots + slots_of(args.num_tokens, top_k);
  const bool listed = makes_lists(args.num_tokens);
  const bool alone = args.num_tokens <= kTokensAlone;
  const bool builds = listed && block == num_blocks - 1;
  if (alone && !builds) return;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // Read early: they arrive while the others compute.
  const int entries = builds ? live_entries(args.options, args.num_tokens, top_k) : 0;
  const bool short_lists = args.num_tokens * top_k <= 32;
  const int stride = alone ? 1 : num_blocks;
  for (int t0 = alone ? 0 : block; t0 < args.num_tokens; t0 += args.round * stride) {
    const int count = min((args.num_tokens - t0 + stride - 1) / stride, args.round);
    take_logits<kPer>(args, t0, stride, count, behind);
    __syncthreads();
    for (int c = 0; c < count; ++c) {
      const Choice token(plan, behind + c * plan.words());
      for (int place = threadIdx.x; place < plan.places(); place += kThreads) {
        sort_place(plan, token, place);
      }
    }
    __syncthreads();
    const Choice token(plan, behind + min(warp, count - 1) * plan.words());
    const int t = t0 + warp * stride;
    int mine = 0;
    if (warp < count) {
      mine = choose(plan, token);
      if (lane < top_k) {
        if (alone) {
          slots[t * top_k + lane] = mine;
        } else if (listed) {
          hand_over(args.published + t * top_k + lane, mine + 1);
        }
      }
    }
    if (alone && short_lists) {
      // One warp more builds the lists beside those that weigh.
      __syncthreads();
      if (warp == kTokensAlone) {
        const int expert = lane < entries ? static_cast<int>(slots[lane]) : -1;
        build_short_lists(expert, args.num_tokens, entries, args.options, args.lists);
      }
    }
    if (warp < count) weigh(plan.rules, token, mine, t, args.routing);
    if (t0 + args.round * stride < args.num_tokens) __syncthreads();  // its memory is used again
  }
  if (!builds || (alone && short_lists)) return;
  if (!alone) take_choices(args, slots);
  __syncthreads();
  if (short_lists) {
    if (warp == 0) {
      const int expert = lane < entries ? static_cast<int>(slots[lane]) : -1;
      build_short_lists(expert, args.num_tokens, entries, args.options, args.lists);
    }
    return;
  }
  build_lists(slots,
              args.num_tokens,
              args.top_k,
              entries,
              args.options,
              args.lists,
              *reinterpret_cast<ListShared*>(behind));
}

// ---- logits ------------------------------------------------------------------------------------

// 16 bytes of a row, zeros when !valid; a load that stays ahead of grid_dependency_wait().
__device__ __forceinline__ uint4 load_weights(const __nv_bfloat16* from, bool valid) {
  uint4 v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<int>(valid)));
  return v;
}

// Lanes hold eight contiguous columns of their rows: column 32 s + 8 (lane % 4) + i. The even
// product of step s takes i = 0 .. 3, the odd one 4 .. 7; both operands in the same order.
__device__ __forceinline__ void mma_even(float (&d)[4],
                                         const uint4& low,   // weights: row lane / 4,
                                         const uint4& high,  // row lane / 4 + 8
                                         const uint4& x) {
  mma_bf16_16x8x16(d, {low.x, high.x, low.y, high.y}, {x.x, x.y});
}
__device__ __forceinline__ void mma_odd(float (&d)[4],
                                        const uint4& low,
                                        const uint4& high,
                                        const uint4& x) {
  mma_bf16_16x8x16(d, {low.z, high.z, low.w, high.w}, {x.z, x.w});
}

#endif  // R1D_SM90

// Few tokens. Block (group, 16 experts): warp w multiplies chunk w % 4 by eight tokens.
__global__ void __launch_bounds__(kThreads, 1)
    logits_rows_bf16(const __nv_bfloat16* weight,
                     const __nv_bfloat16* x,
                     int hidden,
                     const __grid_constant__ Finish args) {
#ifdef R1D_SM90
  extern __shared__ __align__(128) uint8_t raw[];
  constexpr int kPitch = kRowExperts + 4;  // no bank conflicts
  __shared__ float sums[kGroup][kRowTokens][kPitch];
  const int chunk = threadIdx.x / 32 % kGroup;
  const int t0 = threadIdx.x / 32 / kGroup * 8;
  const int lane = threadIdx.x % 32;
  const int group = blockIdx.x;
  const int e0 = blockIdx.y * kRowExperts;
  const int row = lane / 4;
  const int column = (group * kGroup + chunk) * kChunk + 8 * (lane % 4);
  uint4 low[kSteps];
  uint4 high[kSteps];
  const __nv_bfloat16* w = weight + static_cast<int64_t>(e0 + row) * hidden + column;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const bool inside = column + 32 * s < hidden && t0 < args.num_tokens;
    low[s] = load_weights(w + 32 * s, inside && e0 + row < args.plan.rules.num_experts);
    high[s] = load_weights(w + 8 * static_cast<int64_t>(hidden) + 32 * s,
                           inside && e0 + row + 8 < args.plan.rules.num_experts);
  }
  prefetch_bias(args);
  grid_dependency_wait();
  grid_launch_dependents();
  if (t0 < args.num_tokens) {
    uint4 b[kSteps];
    const auto* from = x + static_cast<int64_t>(t0 + row) * hidden + column;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      b[s] = make_uint4(0, 0, 0, 0);
      if (t0 + row < args.num_tokens && column + 32 * s < hidden) {
        b[s] = __ldcg(reinterpret_cast<const uint4*>(from + 32 * s));
      }
    }
    float even[4] = {};
    float odd[4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      mma_even(even, low[s], high[s], b[s]);
      mma_odd(odd, low[s], high[s], b[s]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[chunk][t0 + 2 * (lane % 4) + i % 2][row + 8 * (i / 2)] = even[i] + odd[i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < args.num_tokens * kRowExperts; i += kThreads) {
    const int t = i / kRowExperts;
    const int e = i % kRowExperts;
    if (e0 + e >= args.plan.rules.num_experts) continue;
    hand_over(partial_of(args, t, group) + e0 + e,
              (sums[0][t][e] + sums[1][t][e]) + (sums[2][t][e] + sums[3][t][e]));
  }
  if (!args.here) return;
  finish<1>(args, blockIdx.y * gridDim.x + blockIdx.x, gridDim.x * gridDim.y, raw);
#endif  // R1D_SM90
}

// Many tokens. Block (partial of kChunks chunks, 64 experts, 64 tokens). A warp computes 32 x 32 of
// the tile; the second four take the second half of the chunks.
template <int kChunks>
__global__ void __launch_bounds__(kThreads, 1)
    logits_tiles_bf16(const __grid_constant__ CUtensorMap weight_map,
                      const __grid_constant__ CUtensorMap x_map,
                      const __grid_constant__ Finish args) {
#ifdef R1D_SM90
  // [kChunks][64 experts][224 columns], then the same of x. Rows are 448 bytes, so that the two
  // rows of eight lanes' 16-byte reads lie in different banks.
  extern __shared__ __align__(128) uint8_t raw[];
  __shared__ uint64_t full[kChunks];
  constexpr int kEach = kChunks == 4 ? 2 : 1;  // chunks of a warp
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int half = warp / 4;
  const int part = blockIdx.x;
  const int e0 = blockIdx.y * kTile;
  const int t0 = blockIdx.z * kTile;
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : full) mbarrier_init(&barrier, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  // The halves' first chunks come first.
  const auto chunk_at = [](int i) { return kChunks == 4 ? i % 2 * 2 + i / 2 : i; };
  if (threadIdx.x == 0) {
    for (int i = 0; i < kChunks; ++i) {
      const int c = chunk_at(i);
      mbarrier_arrive_expect(&full[c], 2 * kTileBytes);
      tensor_load_2d(
          raw + c * kTileBytes, &weight_map, (part * kChunks + c) * kChunk, e0, &full[c]);
    }
  }
  prefetch_bias(args);
  grid_dependency_wait();
  grid_launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kChunks; ++i) {
      const int c = chunk_at(i);
      tensor_load_2d(
          raw + (kChunks + c) * kTileBytes, &x_map, (part * kChunks + c) * kChunk, t0, &full[c]);
    }
  }
  const int m0 = warp % 4 / 2 * 32;
  const int n0 = warp % 2 * 32;
  const int tiles = min((args.num_tokens - t0 - n0 + 7) / 8, 4);  // of 8 tokens, not above 0: none
  float sum[2][4][4];
  if (half < kChunks) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int c = half * kEach + i;
      float even[2][4][4] = {};
      float odd[2][4][4] = {};
      mbarrier_wait(&full[c], 0);
      const uint8_t* w = raw + c * kTileBytes + (m0 + lane / 4) * kChunk * 2 + lane % 4 * 16;
      const uint8_t* x =
          raw + (kChunks + c) * kTileBytes + (n0 + lane / 4) * kChunk * 2 + lane % 4 * 16;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        uint4 a[4];  // rows lane / 4 + 8 i
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          a[r] = *reinterpret_cast<const uint4*>(w + r * 8 * kChunk * 2 + s * 64);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if (n >= tiles) break;
          const uint4 b = *reinterpret_cast<const uint4*>(x + n * 8 * kChunk * 2 + s * 64);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            mma_even(even[m][n], a[2 * m], a[2 * m + 1], b);
            mma_odd(odd[m][n], a[2 * m], a[2 * m + 1], b);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        const float chunk = even[j / 16][j / 4 % 4][j % 4] + odd[j / 16][j / 4 % 4][j % 4];
        float& to = sum[j / 16][j / 4 % 4][j % 4];
        to = i == 0 ? chunk : to + chunk;
      }
    }
  }
  if constexpr (kChunks > 1) {
    __syncthreads();  // the tiles are read
    auto* exchange = reinterpret_cast<float*>(raw) + threadIdx.x % 128;
    if (half == 1) {
#pragma unroll
      for (int j = 0; j < 32; ++j) exchange[j * 128] = sum[j / 16][j / 4 % 4][j % 4];
    }
    __syncthreads();
    if (half == 0) {
#pragma unroll
      for (int j = 0; j < 32; ++j) sum[j / 16][j / 4 % 4][j % 4] += exchange[j * 128];
    }
  }
  if (half == 0) {
    const int e = e0 + m0 + lane / 4;
    const int experts = args.plan.rules.num_experts - e;
    float* row = partial_of(args, t0 + n0 + lane % 4 * 2, part) + e;
    const int stride = args.num_partials * args.pitch;  // of tokens
#pragma unroll
    for (int j = 0; j < 8; ++j) {  // this lane's tokens
      const int t = j / 2 * 8 + j % 2;
      if (t0 + n0 + lane % 4 * 2 + t >= args.num_tokens) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // and its experts, eight apart
        if (8 * i < experts) {
          hand_over(row + t * stride + 8 * i, sum[i / 2][j / 2][i % 2 * 2 + j % 2]);
        }
      }
    }
  }
  if (!args.here) return;
  __syncthreads();
  finish<kGroup / kChunks>(args,
                           (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x,
                           gridDim.x * gridDim.y * gridDim.z,
                           raw);
#endif  // R1D_SM90
}

// f32 weights: plain FMA, since no product of the tensor cores keeps all their bits. Block (chunk,
// 64 experts, 64 tokens); a thread owns one expert and every second token.
__global__ void __launch_bounds__(kF32Threads) logits_f32(const float* weight,
                                                          const __nv_bfloat16* x,
                                                          int hidden,
                                                          const __grid_constant__ Finish args) {
#ifdef R1D_SM90
  extern __shared__ __align__(16) float tiles_f32[];
  constexpr int kPitchF32 = kChunk + 1;
  float* w_tile = tiles_f32;
  float* x_tile = tiles_f32 + kTile * kPitchF32;
  const int k0 = blockIdx.x * kChunk;
  const int e0 = blockIdx.y * kTile;
  const int t0 = blockIdx.z * kTile;
  const int tokens = min(args.num_tokens - t0, kTile);
  for (int i = threadIdx.x; i < kTile * kChunk; i += kF32Threads) {
    const int e = e0 + i / kChunk;
    const int k = k0 + i % kChunk;
    w_tile[i / kChunk * kPitchF32 + i % kChunk] = e < args.plan.rules.num_experts && k < hidden
                                                      ? weight[static_cast<int64_t>(e) * hidden + k]
                                                      : 0.0F;
  }
  grid_dependency_wait();
  grid_launch_dependents();
  for (int i = threadIdx.x; i < tokens * kChunk; i += kF32Threads) {
    const int k = k0 + i % kChunk;
    x_tile[i] =
        k < hidden ? __bfloat162float(x[static_cast<int64_t>(t0 + i / kChunk) * hidden + k]) : 0.0F;
  }
  __syncthreads();
  const int e = threadIdx.x % kTile;
  if (e0 + e >= args.plan.rules.num_experts) return;
  for (int t = threadIdx.x / kTile; t < tokens; t += kF32Threads / kTile) {
    float sum = 0;
#pragma unroll 8
    for (int k = 0; k < kChunk; ++k) {
      sum = fmaf(w_tile[e * kPitchF32 + k], x_tile[t * kChunk + k], sum);
    }
    hand_over(partial_of(args, t0 + t, blockIdx.x) + e0 + e, sum);
  }
#endif  // R1D_SM90
}

// Behind launches that do not finish themselves.
template <int kPer>
__global__ void __launch_bounds__(kThreads, 1) finish_kernel(const __grid_constant__ Finish args) {
#ifdef R1D_SM90
  extern __shared__ __align__(128) uint8_t raw[];
  grid_dependency_wait();
  grid_launch_dependents();
  finish<kPer>(args, blockIdx.x, gridDim.x, raw);
#endif  // R1D_SM90
}

__global__ void __launch_bounds__(kThreads) list_kernel(
    const int32_t* experts, int num_tokens, Divisor top_k, ListOptions options, ExpertLists lists) {
#ifdef R1D_SM90
  extern __shared__ __align__(128) uint8_t raw[];
  auto* slots = reinterpret_cast<uint32_t*>(raw);
  grid_dependency_wait();
  grid_launch_dependents();
  for (int i = threadIdx.x; i < num_tokens * top_k.n; i += kThreads) slots[i] = __ldcg(experts + i);
  __syncthreads();
  const int entries = live_entries(options, num_tokens, top_k.n);
  auto& shared = *reinterpret_cast<ListShared*>(slots + slots_of(num_tokens, top_k.n));
  build_lists(slots, num_tokens, top_k, entries, options, lists, shared);
#endif  // R1D_SM90
}

bool valid(const ListOptions& options) {
  return options.num_local >= 1 && options.num_local <= kMaxExperts && options.first_expert >= 0;
}

size_t finish_bytes(const Finish& args) {
  const size_t choices = sizeof(uint32_t) * args.round * args.plan.words();
  const size_t lists = makes_lists(args.num_tokens) ? sizeof(ListShared) : 0;
  return sizeof(uint32_t) * slots_of(args.num_tokens, args.plan.rules.top_k) +
         std::max(choices, lists);
}
int blocks_of(const Grid& grid) {
  return static_cast<int>(grid.blocks.x * grid.blocks.y * grid.blocks.z);
}
int finishing_blocks(int num_tokens) {
  return num_tokens <= kTokensAlone ? 1 : num_tokens;
}
// Tokens that one of `blocks` takes at a time.
int round_of(int num_tokens, int blocks) {
  return num_tokens <= kTokensAlone ? num_tokens
                                    : std::min((num_tokens + blocks - 1) / blocks, kRoundTokens);
}

// How the logits are computed: `chunks` make a partial.
struct Form {
  bool rows = false;  // logits_rows_bf16, else tiles
  int chunks = 1;
  Grid grid;
};
Form rows_form(int64_t hidden, int num_experts) {
  Form form{.rows = true, .chunks = kGroup, .grid = {}};
  form.grid.blocks = dim3(static_cast<unsigned>((num_chunks(hidden) + kGroup - 1) / kGroup),
                          (num_experts + kRowExperts - 1) / kRowExperts);
  form.grid.threads = dim3(kThreads);
  return form;
}
Form tiles_form(int num_tokens, int64_t hidden, int num_experts, int chunks) {
  Form form{.rows = false, .chunks = chunks, .grid = {}};
  form.grid.blocks = dim3(static_cast<unsigned>((num_chunks(hidden) + chunks - 1) / chunks),
                          (num_experts + kTile - 1) / kTile,
                          (num_tokens + kTile - 1) / kTile);
  form.grid.threads = dim3(kThreads);
  return form;
}
// The least chunks a block whose blocks all fit on the GPU at once.
Form bf16_form(int num_tokens, int64_t hidden, int num_experts, int num_sms) {
  if (num_tokens <= kRowTokens) return rows_form(hidden, num_experts);
  Form form = tiles_form(num_tokens, hidden, num_experts, 1);
  for (int chunks = 2; chunks <= kGroup && blocks_of(form.grid) > num_sms; chunks *= 2) {
    form = tiles_form(num_tokens, hidden, num_experts, chunks);
  }
  return form;
}

template <int kChunks>
cudaError_t launch_tiles(const void* weight,
                         const __nv_bfloat16* x,
                         int64_t hidden,
                         const Finish& args,
                         Grid grid,
                         const Launch& launch) {
  CUtensorMap maps[2];
  const void* data[2] = {weight, x};
  const int64_t rows[2] = {args.plan.rules.num_experts, args.num_tokens};
  for (int i = 0; i < 2; ++i) {
    const cudaError_t error = encode_2d({.data = data[i],
                                         .rows = rows[i],
                                         .cols = hidden,
                                         .box_rows = kTile,
                                         .box_cols = kChunk,
                                         .swizzle = Swizzle::kNone},
                                        &maps[i]);
    if (error != cudaSuccess) return error;
  }
  grid.shared_bytes = std::max<size_t>(2 * kChunks * kTileBytes, finish_bytes(args));
  return enqueue(logits_tiles_bf16<kChunks>, grid, launch, maps[0], maps[1], args);
}

cudaError_t launch_rows(const void* weight,
                        const __nv_bfloat16* x,
                        int64_t hidden,
                        const Finish& args,
                        Grid grid,
                        const Launch& launch) {
  const cudaError_t error = leave_shared_memory(logits_rows_bf16);
  if (error != cudaSuccess) return error;
  grid.shared_bytes = finish_bytes(args);
  return enqueue(
      logits_rows_bf16, grid, launch, static_cast<const __nv_bfloat16*>(weight), x, hidden, args);
}

cudaError_t launch_f32(const void* weight,
                       const __nv_bfloat16* x,
                       int64_t hidden,
                       const Finish& args,
                       Grid grid,
                       const Launch& launch) {
  grid.threads = dim3(kF32Threads);
  grid.shared_bytes = (static_cast<size_t>(kTile) * (kChunk + 1) +
                       static_cast<size_t>(std::min(args.num_tokens, kTile)) * kChunk) *
                      sizeof(float);
  return enqueue(logits_f32, grid, launch, static_cast<const float*>(weight), x, hidden, args);
}

template <int kPer>
cudaError_t launch_finish(const Finish& args, const Launch& launch) {
  Grid grid;
  grid.blocks = dim3(finishing_blocks(args.num_tokens));
  grid.threads = dim3(kThreads);
  grid.shared_bytes = finish_bytes(args);
  return enqueue(finish_kernel<kPer>, grid, launch, args);
}

}  // namespace
}  // namespace router

size_t route_decode_workspace(int32_t num_tokens, int64_t hidden, int32_t num_experts) {
  const int64_t pitch = (num_experts + 3) / 4 * 4;
  const int64_t words =
      int64_t{num_tokens} * (router::kMaxTopK + router::num_chunks(hidden) * pitch);
  return static_cast<size_t>(words) * sizeof(uint32_t);
}

cudaError_t route_decode(const void* weight,
                         RouterWeightType weight_type,
                         const float* bias,
                         const __nv_bfloat16* x,
                         int32_t num_tokens,
                         int64_t hidden,
                         const RouterRules& rules,
                         const ListOptions& options,
                         const Routing& routing,
                         const ExpertLists& lists,
                         void* workspace,
                         const Launch& launch) {
  using namespace router;
  if (num_tokens == 0) return cudaSuccess;
  if (num_tokens < 0 || num_tokens > kRouteDecodeTokens || hidden < 8 || hidden % 8 != 0 ||
      hidden > (1 << 20) || !valid(rules) || !valid(options)) {
    return cudaErrorInvalidValue;
  }
  int device = 0;
  int num_sms = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;

  const bool f32 = weight_type == RouterWeightType::kF32;
  const Form form = f32 ? tiles_form(num_tokens, hidden, rules.num_experts, 1)
                        : bf16_form(num_tokens, hidden, rules.num_experts, num_sms);
  // Blocks that wait for each other must all have a place.
  const bool here = !f32 && blocks_of(form.grid) <= num_sms;
  auto* published = static_cast<uint32_t*>(workspace);
  const Finish args{
      .partial = reinterpret_cast<float*>(published + int64_t{num_tokens} * kMaxTopK),
      .published = published,
      .bias = bias,
      .plan = ChoicePlan(rules),
      .top_k = Divisor(rules.top_k),
      .options = options,
      .routing = routing,
      .lists = lists,
      .num_tokens = num_tokens,
      .num_partials = static_cast<int>(form.grid.blocks.x),
      .pitch = (rules.num_experts + 3) / 4 * 4,
      .round = round_of(num_tokens, here ? blocks_of(form.grid) : finishing_blocks(num_tokens)),
      .here = here};
  if (f32) {
    error = launch_f32(weight, x, hidden, args, form.grid, launch);
  } else if (form.rows) {
    error = launch_rows(weight, x, hidden, args, form.grid, launch);
  } else if (form.chunks == 1) {
    error = launch_tiles<1>(weight, x, hidden, args, form.grid, launch);
  } else if (form.chunks == 2) {
    error = launch_tiles<2>(weight, x, hidden, args, form.grid, launch);
  } else {
    error = launch_tiles<4>(weight, x, hidden, args, form.grid, launch);
  }
  if (error != cudaSuccess || here) return error;
  return f32 ? launch_finish<kGroup>(args, launch) : launch_finish<1>(args, launch);
}

cudaError_t list_experts(const int32_t* experts,
                         int32_t num_tokens,
                         int32_t top_k,
                         const ListOptions& options,
                         const ExpertLists& lists,
                         const Launch& launch) {
  using namespace router;
  if (num_tokens == 0) return cudaSuccess;
  if (num_tokens < 0 || num_tokens > kRouteDecodeTokens || top_k < 1 || top_k > kMaxTopK ||
      !valid(options)) {
    return cudaErrorInvalidValue;
  }
  Grid grid;
  grid.blocks = dim3(1);
  grid.threads = dim3(kThreads);
  grid.shared_bytes = sizeof(uint32_t) * slots_of(num_tokens, top_k) + sizeof(ListShared);
  return enqueue(list_kernel, grid, launch, experts, num_tokens, Divisor(top_k), options, lists);
}

}  // namespace r1d::kernels
