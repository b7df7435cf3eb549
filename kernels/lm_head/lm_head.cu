// SPDX-License-Identifier: Apache-2.0
// Problem   out[m, n] = sum_k w[n, k] x[row(m), k], M <= 256 tokens; w bf16 [N, K], read once.
// Layout    Weight rows take the M side of the products, tokens the N side, so 8 tokens cost an n8
//           product and no padding. wgmma: stages of [rows, 64] weights and [tokens, 64]
//           activations in shared memory, 128-byte swizzle; weights by tensor map, activations by
//           cp.async (their rows are gathered). mma.sync: operands stay in registers; a lane loads
//           16 bytes of a row, which serve two products, K permuted alike on both sides.
// Bound     bytes = 2 N K: lm_head of one rank of eight, 16160 x 7168: 232 MB, 54 us at 4.3 TB/s.
//           The flops take as long at 155 tokens (668 TFLOPS). Each CTA reads the activations anew,
//           from L2: M / rows times the weight's bytes, hence 128 rows a CTA from 32 tokens on.
// Launch    wgmma: a CTA for 64 rows (one math warpgroup, two CTAs an SM) or 128 rows (two, one CTA
//           an SM), one weight warp, two or four activation warps. Small weights: a cluster of 2,
//           3, 4 or 8 CTAs shares K, so that more SMs read. The weight warp starts before the
//           dependency wait. Shared memory sets the occupancy: 200 KB of stages an SM.
// Numerics  f32 accumulators along K; a cluster's partial sums are added in rank order. The split
//           is a function of N and K up to 128 tokens, and beyond when asked for, so that a row's
//           bits do not depend on M.
// Source    operands swapped for few tokens: published by TensorRT-LLM and DeepGEMM.
#include <algorithm>
#include <iterator>

#include "kernels/common/tensor_map.h"
#include "kernels/common/wgmma.cuh"
#include "kernels/lm_head/lm_head.h"
#include "kernels/norm/row.cuh"

namespace r1d::kernels {
namespace {

struct Product {
  const __nv_bfloat16* x;
  int64_t x_stride;
  const int32_t* rows;
  int m;
  int n;
  int k;
  void* out;
  int64_t out_stride;
  bool out_bf16;
};

__device__ __forceinline__ void store(const Product& p, int token, int row, float value) {
  const int64_t at = token * p.out_stride + row;
  if (p.out_bf16) {
    static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(p.out)[at] = value;
  }
}
// Where output row `token`'s row of x begins, in units of 16 bytes (so 32 bits do); -1: zeros.
__device__ __forceinline__ int32_t row_of(const Product& p, int token) {
  if (token >= p.m) return -1;
  const int64_t row = p.rows != nullptr ? p.rows[token] : token;
  return row < 0 ? -1 : static_cast<int32_t>(row * (p.x_stride / 8));
}
__device__ __forceinline__ const __nv_bfloat16* value_at(const Product& p,
                                                         int32_t row,
                                                         int column) {
  return p.x + static_cast<int64_t>(row) * 8 + column;
}

// ---- wgmma -------------------------------------------------------------------------------------

constexpr int kBlockK = 64;  // 128 bytes: one swizzle row

constexpr int kSwizzleBytes = 128;
constexpr int kAtom = 1024;

template <int kTileRows, int kTileTokens>
struct Tile {
  static constexpr int kGroups = kTileRows / 64;  // math warpgroups
  static constexpr int kMathThreads = 128 * kGroups;
  static constexpr int kLoadWarps = std::min(4, kTileTokens / 4);
  static constexpr int kThreads = kMathThreads + 32 + 32 * kLoadWarps;
  static constexpr int kWeightBytes = kTileRows * kSwizzleBytes;
  static constexpr int kTokenBytes = kTileTokens * kSwizzleBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static constexpr int kBudget = (kGroups == 1 ? 108 : 200) * 1024;  // two CTAs an SM, or one
  static constexpr int kStages = std::min(12, kBudget / kStageBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes + kAtom;  // and what aligns them
  // Partial sums [tokens][rows] for the cluster, over the ring; the padding keeps a warp's writes
  // on different banks.
  static constexpr int kPartialStride = kTileRows + 4;
  static_assert(kTileTokens * kPartialStride * 4 <= kStages * kStageBytes);
  static_assert(kWeightBytes % kAtom == 0 && kTokenBytes % kAtom == 0);
};

#ifdef R1D_SM90
// A warp that gathers its share of the activations of every stage.
template <typename T>
__device__ __forceinline__ void load_tokens(const Product& p,
                                            int first_token,
                                            int begin,
                                            int end,
                                            uint32_t ring,
                                            uint64_t* full,
                                            uint64_t* empty) {
  constexpr int kThreads = 32 * T::kLoadWarps;
  constexpr int kChunks = T::kTokenBytes / 16 / kThreads;  // a thread and stage
  constexpr int kRowsApart = kThreads / 8;
  const int thread = static_cast<int>(threadIdx.x) - T::kMathThreads - 32;
  const int chunk = thread % 8;  // of the 128 bytes
  int32_t rows[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) rows[i] = row_of(p, first_token + thread / 8 + i * kRowsApart);
  // Rows 8 apart share the swizzle.
  const uint32_t to =
      ring + T::kWeightBytes + (thread / 8) * kSwizzleBytes + ((chunk ^ (thread / 8 % 8)) * 16);
  static_assert(kRowsApart % 8 == 0);
  for (int block = 0; block < end - begin; ++block) {
    const int stage = block % T::kStages;
    mbarrier_wait(&empty[stage], (block / T::kStages + 1) & 1);
    const int column = (begin + block) * kBlockK + chunk * 8;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const bool valid = rows[i] >= 0 && column < p.k;
      cp_async_16(to + stage * T::kStageBytes + i * kRowsApart * kSwizzleBytes,
                  valid ? value_at(p, rows[i], column) : p.x,
                  valid);
    }
    mbarrier_arrive_cp_async(&full[stage]);
  }
}

template <typename T, int kTileTokens>
__device__ __forceinline__ void multiply(
    float (&sums)[kTileTokens / 2], int count, uint32_t ring, uint64_t* full, uint64_t* empty) {
  const uint32_t rows = (threadIdx.x / 128) * 64 * kSwizzleBytes;
  const bool signals = threadIdx.x % 32 == 0;
  for (int block = 0; block < count; ++block) {
    const int stage = block % T::kStages;
    mbarrier_wait(&full[stage], (block / T::kStages) & 1);
    fence_async_shared();  // the activations came by ordinary writes
    const uint32_t at = ring + stage * T::kStageBytes;
    const uint64_t a = wgmma_descriptor_k128(at + rows);
    const uint64_t b = wgmma_descriptor_k128(at + T::kWeightBytes);
    wgmma_fence_registers(sums);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kBlockK / 16; ++step) {
      Wgmma<kTileTokens>::template bf16<0, 0>(sums, a + step * 2, b + step * 2, 1);
    }
    wgmma_commit();
    wgmma_fence_registers(sums);
    wgmma_wait<1>();
    if (block > 0 && signals) mbarrier_arrive(&empty[(block - 1) % T::kStages]);
  }
  wgmma_wait<0>();
  wgmma_fence_registers(sums);
}
#endif

template <int kTileRows, int kTileTokens>
__global__ void __launch_bounds__(Tile<kTileRows, kTileTokens>::kThreads)
    gemm_wgmma(const __grid_constant__ CUtensorMap weights, Product p, int split) {
#ifdef R1D_SM90
  using T = Tile<kTileRows, kTileTokens>;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[T::kStages];
  __shared__ uint64_t empty[T::kStages];
  const uint32_t ring = (smem_address(shared) + kAtom - 1) / kAtom * kAtom;
  const int rank = static_cast<int>(blockIdx.x) % split;
  const int first_row = static_cast<int>(blockIdx.x) / split * kTileRows;
  const int first_token = static_cast<int>(blockIdx.y) * kTileTokens;
  const int blocks = (p.k + kBlockK - 1) / kBlockK;
  const int begin = blocks * rank / split;
  const int end = blocks * (rank + 1) / split;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  constexpr int kWeightWarp = T::kMathThreads / 32;
  uint8_t* stages = shared + (ring - smem_address(shared));
  auto* partial = reinterpret_cast<float*>(stages);

  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; ++s) {
      mbarrier_init(&full[s], 1 + 32 * T::kLoadWarps);
      mbarrier_init(&empty[s], T::kMathThreads / 32);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (warp == kWeightWarp) {
    if (elect_one()) {
      tensor_prefetch_map(&weights);
      for (int block = 0; block < end - begin; ++block) {
        const int stage = block % T::kStages;
        mbarrier_wait(&empty[stage], (block / T::kStages + 1) & 1);
        mbarrier_arrive_expect(&full[stage], T::kWeightBytes);
        tensor_load_2d(stages + stage * T::kStageBytes,
                       &weights,
                       (begin + block) * kBlockK,
                       first_row,
                       &full[stage]);
      }
      grid_launch_dependents();
    }
    __syncwarp();
    grid_dependency_wait();
  } else if (warp > kWeightWarp) {
    grid_dependency_wait();
    load_tokens<T>(p, first_token, begin, end, ring, full, empty);
  } else {
    float sums[kTileTokens / 2] = {};
    multiply<T, kTileTokens>(sums, end - begin, ring, full, empty);
    grid_dependency_wait();
    // sums[4 j + 2 h + c] belongs to row `row` + 8 h, token `token` + 8 j + c.
    const int row = warp * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    const int token = 2 * (static_cast<int>(threadIdx.x) % 4);
    if (split == 1) {
#pragma unroll
      for (int i = 0; i < kTileTokens / 2; ++i) {
        const int n = first_row + row + 8 * (i / 2 % 2);
        const int m = first_token + token + 8 * (i / 4) + i % 2;
        if (n < p.n && m < p.m) store(p, m, n, sums[i]);
      }
      return;
    }
    named_barrier(1, T::kMathThreads);  // all have read what the sums overwrite
#pragma unroll
    for (int i = 0; i < kTileTokens / 2; ++i) {
      partial[(token + 8 * (i / 4) + i % 2) * T::kPartialStride + row + 8 * (i / 2 % 2)] = sums[i];
    }
  }
  if (split == 1) return;

  // The cluster's sums: each CTA adds up a share of the rows, 4 at a time, in rank order.
  cluster_arrive();
  cluster_wait();
  constexpr int kQuads = kTileRows / 4;
  const int first_quad = kQuads * rank / split;
  const int quads = kQuads * (rank + 1) / split - first_quad;
  const int tokens = min(kTileTokens, p.m - first_token);
  for (int i = threadIdx.x; i < quads * tokens; i += T::kThreads) {
    const int row = (first_quad + i % quads) * 4;
    const int m = i / quads;
    const uint32_t at = smem_address(&partial[m * T::kPartialStride + row]);
    float total[4] = {};
#pragma unroll 4
    for (int r = 0; r < split; ++r) {
      const float4 v = cluster_load_float4(cluster_address(at, r));
      total[0] += v.x, total[1] += v.y, total[2] += v.z, total[3] += v.w;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (first_row + row + j < p.n) store(p, first_token + m, first_row + row + j, total[j]);
    }
  }
  cluster_arrive();  // nobody leaves while others read
  cluster_wait();
#endif
}

// ---- mma.sync ----------------------------------------------------------------------------------

constexpr int kMmaRows = 32;
constexpr int kMmaWarps = 8;  // they share K: warp w takes blocks w, w + 8, ... of 64
constexpr int kMmaThreads = 32 * kMmaWarps;

template <int kTileTokens>
__global__ void __launch_bounds__(kMmaThreads) gemm_mma(const __nv_bfloat16* weights, Product p) {
  constexpr int kTiles = kTileTokens / 8;
  constexpr int kStrips = kMmaRows / 16;
  __shared__ float partial[kMmaWarps][kTileTokens][kMmaRows + 4];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = static_cast<int>(blockIdx.x) * kMmaRows;
  const int first_token = static_cast<int>(blockIdx.y) * kTileTokens;
  const __nv_bfloat16* rows[2 * kStrips];
#pragma unroll
  for (int i = 0; i < 2 * kStrips; ++i) {
    rows[i] = weights + static_cast<int64_t>(min(first_row + lane / 4 + 8 * i, p.n - 1)) * p.k;
  }
  // Chunks 8 (lane % 4) and 32 + 8 (lane % 4) of the 64 columns at `column`.
  auto load = [&](const __nv_bfloat16* row, int column, uint4(&to)[2]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int at = column + 32 * c + lane % 4 * 8;
      to[c] = row != nullptr && at < p.k ? *reinterpret_cast<const uint4*>(row + at) : uint4{};
    }
  };
  auto load_weights = [&](int column, uint4(&to)[2 * kStrips][2]) {
#pragma unroll
    for (int i = 0; i < 2 * kStrips; ++i) load(rows[i], column, to[i]);
  };

  int column = warp * kBlockK;
  uint4 next[2 * kStrips][2];
  load_weights(column, next);
  inputs_wait();
  dependents_launch();
  const __nv_bfloat16* tokens[kTiles];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const int32_t row = row_of(p, first_token + 8 * j + lane / 4);
    tokens[j] = row >= 0 ? value_at(p, row, 0) : nullptr;
  }
  float sums[kStrips][kTiles][4] = {};
  for (; column < p.k; column += kMmaWarps * kBlockK) {
    uint4 w[2 * kStrips][2];
#pragma unroll
    for (int i = 0; i < 2 * kStrips; ++i) w[i][0] = next[i][0], w[i][1] = next[i][1];
    load_weights(column + kMmaWarps * kBlockK, next);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      uint4 x[2];
      load(tokens[j], column, x);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          const uint4& low = w[2 * s][c];
          const uint4& high = w[2 * s + 1][c];
          mma_bf16_16x8x16(sums[s][j], {low.x, high.x, low.y, high.y}, {x[c].x, x[c].y});
          mma_bf16_16x8x16(sums[s][j], {low.z, high.z, low.w, high.w}, {x[c].z, x[c].w});
        }
      }
    }
  }

#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        partial[warp][8 * j + 2 * (lane % 4) + i % 2][16 * s + 8 * (i / 2) + lane / 4] =
            sums[s][j][i];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTileTokens * kMmaRows; i += kMmaThreads) {
    const int token = i / kMmaRows;
    const int row = i % kMmaRows;
    float total = 0;
    for (int w = 0; w < kMmaWarps; ++w) total += partial[w][token][row];
    if (first_token + token < p.m && first_row + row < p.n) {
      store(p, first_token + token, first_row + row, total);
    }
  }
}

// ---- launcher ----------------------------------------------------------------------------------

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <int kTileRows, int kTileTokens>
cudaError_t enqueue_wgmma(const __nv_bfloat16* w,
                          const Product& p,
                          int split,
                          const Launch& launch) {
  using T = Tile<kTileRows, kTileTokens>;
  CUtensorMap map;
  const cudaError_t error = encode_2d({.data = w,
                                       .dtype = DType::kBF16,
                                       .rows = p.n,
                                       .cols = p.k,
                                       .box_rows = kTileRows,
                                       .box_cols = kBlockK},
                                      &map);
  if (error != cudaSuccess) return error;
  const Grid grid{.blocks = dim3(static_cast<unsigned>(ceil_div(p.n, kTileRows) * split),
                                 static_cast<unsigned>(ceil_div(p.m, kTileTokens))),
                  .threads = T::kThreads,
                  .shared_bytes = T::kSharedBytes,
                  .cluster = split};
  return enqueue(gemm_wgmma<kTileRows, kTileTokens>, grid, launch, map, p, split);
}

cudaError_t enqueue_mma(const __nv_bfloat16* w,
                        const Product& p,
                        int tile_tokens,
                        const Launch& launch) {
  const Grid grid{.blocks = dim3(static_cast<unsigned>(ceil_div(p.n, kMmaRows)),
                                 static_cast<unsigned>(ceil_div(p.m, tile_tokens))),
                  .threads = kMmaThreads};
  if (tile_tokens == 8) return enqueue(gemm_mma<8>, grid, launch, w, p);
  if (tile_tokens == 32) return enqueue(gemm_mma<32>, grid, launch, w, p);
  return cudaErrorInvalidValue;
}

}  // namespace

Bf16GemmPlan plan_bf16_gemm(int64_t m, int64_t n, int64_t k, int capability, bool deterministic) {
  Bf16GemmPlan plan;
  if (capability != 90) {
    plan.path = Bf16GemmPlan::Path::kMma;
    plan.tile_rows = kMmaRows;
    plan.tile_tokens = m <= 8 ? 8 : 32;
    return plan;
  }
  // CTAs of 128 rows at once, or pairs of 64 rows: one an SM, less where clusters do not fit.
  constexpr int64_t kSlots = 120;
  constexpr int64_t kLeastBlocks = 4;  // of K a CTA
  constexpr int64_t kMostTokens = 128;
  const int64_t copies = deterministic ? 1 : ceil_div(m, kMostTokens);  // tiles of the same rows
  for (const int split : {2, 3, 4, 8}) {
    if (ceil_div(n, 64) * split * copies <= 2 * kSlots &&
        ceil_div(k, kBlockK) >= kLeastBlocks * split) {
      plan.split = split;
    }
  }
  constexpr int kTiles[] = {8, 16, 32, 64, kMostTokens};
  plan.tile_tokens = *std::lower_bound(std::begin(kTiles), std::end(kTiles) - 1, m);
  // Tall tiles read the activations half as often, but there must be enough of them.
  constexpr int64_t kLeastTall = 64;
  const bool tall = plan.tile_tokens >= 32 && ceil_div(n, 128) * plan.split >= kLeastTall;
  plan.tile_rows = tall || plan.tile_tokens > 64 ? 128 : 64;
  return plan;
}

cudaError_t bf16_gemm_decode(const Bf16GemmDecode& a, const Launch& launch) {
  if (a.m < 0 || a.m > Bf16GemmDecode::kMaxRows || a.n < 0 || a.k <= 0 || a.k % 8 != 0 ||
      a.x_stride % 8 != 0 || a.n > INT32_MAX / 2 || a.k > INT32_MAX / 2) {
    return cudaErrorInvalidValue;
  }
  if (a.m == 0 || a.n == 0) return cudaSuccess;
  const auto misaligned = [](const void* p) {
    return p == nullptr || reinterpret_cast<uintptr_t>(p) % 16 != 0;
  };
  if (misaligned(a.w) || misaligned(a.x) || a.out == nullptr) return cudaErrorInvalidValue;
  const Product p{.x = a.x,
                  .x_stride = a.x_stride != 0 ? a.x_stride : a.k,
                  .rows = a.rows,
                  .m = static_cast<int>(a.m),
                  .n = static_cast<int>(a.n),
                  .k = static_cast<int>(a.k),
                  .out = a.out,
                  .out_stride = a.out_stride != 0 ? a.out_stride : a.n,
                  .out_bf16 = a.out_bf16};
  const Bf16GemmPlan plan =
      a.plan != nullptr ? *a.plan : plan_bf16_gemm(a.m, a.n, a.k, a.capability, a.deterministic);
  if (plan.path == Bf16GemmPlan::Path::kMma) return enqueue_mma(a.w, p, plan.tile_tokens, launch);
  switch (plan.tile_rows * 1000 + plan.tile_tokens) {
    case 64008:
      return enqueue_wgmma<64, 8>(a.w, p, plan.split, launch);
    case 64016:
      return enqueue_wgmma<64, 16>(a.w, p, plan.split, launch);
    case 64032:
      return enqueue_wgmma<64, 32>(a.w, p, plan.split, launch);
    case 64064:
      return enqueue_wgmma<64, 64>(a.w, p, plan.split, launch);
    case 128032:
      return enqueue_wgmma<128, 32>(a.w, p, plan.split, launch);
    case 128064:
      return enqueue_wgmma<128, 64>(a.w, p, plan.split, launch);
    case 128128:
      return enqueue_wgmma<128, 128>(a.w, p, plan.split, launch);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace r1d::kernels
