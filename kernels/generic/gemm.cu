// SPDX-License-Identifier: Apache-2.0
// Problem   out[t, n] = sum over k of x[t, k] W[n, k]; dense, or one product per expert over the
//           expert's slots.
// Layout    W bf16, f32 or e4m3 with 128x128 scales, [N, K] dense; x bf16 [T, K]; out bf16 or f32.
//           Any N, K, T, any alignment.
// Bound     Few tokens: the bytes of W. Many: 2 T N K flop on mma.sync bf16.
// Launch    Few tokens (16 a product; 256 where tiles would leave SMs idle): a CTA of 8 warps per
//           16 weight rows, warp s reading K slice s straight from global memory. More: tiles of
//           64x64 (8 warps) or 128x128 (16 warps), K in blocks of 32 through cp.async stages in
//           shared memory, 3 blocks ahead.
// Numerics  bf16 operands, f32 sums. All kernels sum in one order: a block of 32 columns feeds the
//           same two mma in the same lanes, and the blocks form 8 contiguous slices whose sums are
//           added in order. So an element's bits depend on its weight row, its x row and K alone.
// Source    PTX ISA, mma.m16n8k16 fragments, weights as the 16-row operand. A sum may take its
//           terms in any order, so lane (g, t) takes columns 8 t .. 8 t + 7 of a block, one 16-byte
//           load, as its share of both mma.
#include <algorithm>

#include "kernels/generic/exact_product.cuh"
#include "kernels/generic/generic.h"
#include "kernels/generic/loads.cuh"

namespace r1d::kernels::generic {
namespace {

constexpr int kBlockCols = 32;  // K columns of one block: two mma
constexpr int kSlices = 8;      // K slices, each summed apart

// A dense product (experts == nullptr) or one product per expert.
struct Product {
  ops::Matrix weights;
  const ops::Matrix* experts;  // device
  const int32_t* offset;       // ExpertLists
  const int32_t* slots;
  int32_t slots_per_x_row;
  const __nv_bfloat16* x;
  int64_t x_stride;
  int32_t num_tokens;  // dense
  void* out;
  int64_t out_stride;
  bool out_f32;
};

__device__ __forceinline__ int32_t blocks_of(int32_t cols) {
  return (cols + kBlockCols - 1) / kBlockCols;
}
__device__ __forceinline__ int32_t blocks_per_slice(int32_t cols) {
  return (blocks_of(cols) + kSlices - 1) / kSlices;
}

// The tokens one CTA meets: all, or an expert's.
struct Tokens {
  bool grouped;
  int32_t begin;  // in the slot list
  int32_t count;

  __device__ Tokens(const Product& p, bool by_expert)
      : grouped(by_expert), begin(0), count(p.num_tokens) {
    if (!grouped) return;
    begin = p.offset[blockIdx.z];
    count = p.offset[blockIdx.z + 1] - begin;
  }
  __device__ __forceinline__ int32_t out_row(const Product& p, int32_t i) const {
    return grouped ? p.slots[begin + i] : i;
  }
  __device__ __forceinline__ int32_t x_row(const Product& p, int32_t i) const {
    return grouped ? p.slots[begin + i] / p.slots_per_x_row : i;
  }
};

__device__ __forceinline__ void store_out(const Product& p,
                                          int32_t row,
                                          int32_t column,
                                          float value) {
  const int64_t at = row * p.out_stride + column;
  if (p.out_f32) {
    static_cast<float*>(p.out)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16_rn(value);
  }
}

// One block of 32 columns: 16 weight rows (`low` row g, `high` row g + 8) by 8 tokens.
__device__ __forceinline__ void multiply_block(float (&sum)[4],
                                               const uint4& low,
                                               const uint4& high,
                                               const uint4& x) {
  mma_bf16_16x8x16(sum, {low.x, high.x, low.y, high.y}, {x.x, x.y});
  mma_bf16_16x8x16(sum, {low.z, high.z, low.w, high.w}, {x.z, x.w});
}

// ---- few tokens --------------------------------------------------------------------------------

constexpr int kFewRows = 16;
constexpr int kFewThreads = 32 * kSlices;

template <DType kDType, int kTokenTiles>
__global__ void __launch_bounds__(kFewThreads, 2) product_few(const Product p) {
  constexpr int kTokens = 8 * kTokenTiles;
  // Blocks whose loads are under way together.
  constexpr int kAhead = kTokenTiles == 4 || kDType == DType::kF32      ? 2
                         : kTokenTiles == 1 && kDType == DType::kF8E4M3 ? 8
                                                                        : 4;
  __shared__ float partial[kSlices][kTokens][kFewRows];
  begin_dependent_kernel();
  const Tokens tokens(p, p.experts != nullptr);
  if (tokens.count == 0) return;
  const ops::Matrix w = tokens.grouped ? p.experts[blockIdx.z] : p.weights;
  const auto cols = static_cast<int32_t>(w.cols);
  const int32_t row = static_cast<int32_t>(blockIdx.x) * kFewRows;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int slice = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4;
  const WeightRow<kDType> low(w, row + g);
  const WeightRow<kDType> high(w, row + g + 8);
  const int32_t per_slice = blocks_per_slice(cols);
  const int32_t block_end = min((slice + 1) * per_slice, blocks_of(cols));

  for (int32_t first = static_cast<int32_t>(blockIdx.y) * kTokens; first < tokens.count;
       first += static_cast<int32_t>(gridDim.y) * kTokens) {
    // ---- load and compute
    const __nv_bfloat16* x[kTokenTiles];
    bool x_vector = cols % 8 == 0;
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      const int32_t i = first + 8 * n + g;
      x[n] = i < tokens.count ? p.x + tokens.x_row(p, i) * p.x_stride : nullptr;
      x_vector = x_vector && aligned_16(x[n]);
    }
    float sum[kTokenTiles][4] = {};
    if (low.vector && __all_sync(0xFFFFFFFFU, x_vector)) {
      for (int32_t block = slice * per_slice; block < block_end; block += kAhead) {
        typename WeightRow<kDType>::Raw low_raw[kAhead];
        typename WeightRow<kDType>::Raw high_raw[kAhead];
        float low_scale[kAhead];
        float high_scale[kAhead];
        uint4 xs[kAhead][kTokenTiles];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          // A block past the slice's end reads column `cols`: zeros, which add nothing.
          const int32_t col =
              block + a < block_end ? (block + a) * kBlockCols + 8 * (lane % 4) : cols;
          low_raw[a] = low.load8(col);
          high_raw[a] = high.load8(col);
          low_scale[a] = low.scale(col);
          high_scale[a] = high.scale(col);
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
            xs[a][n] = load_16(x[n] + col, x[n] != nullptr && col < cols);
          }
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          const uint4 w_low = WeightRow<kDType>::widen_bf16(low_raw[a], low_scale[a]);
          const uint4 w_high = WeightRow<kDType>::widen_bf16(high_raw[a], high_scale[a]);
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) multiply_block(sum[n], w_low, w_high, xs[a][n]);
        }
      }
    } else {
      for (int32_t block = slice * per_slice; block < block_end; ++block) {
        const int32_t col = block * kBlockCols + 8 * (lane % 4);
        const uint4 w_low = low.load8_slow_bf16(col);
        const uint4 w_high = high.load8_slow_bf16(col);
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          multiply_block(
              sum[n], w_low, w_high, ActivationRow<__nv_bfloat16>(x[n], cols).load8_bf16(col));
        }
      }
    }

    // ---- reduce and store
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        partial[slice][8 * n + 2 * (lane % 4) + i % 2][g + 8 * (i / 2)] = sum[n][i];
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * kFewRows; i += kFewThreads) {
      const int token = i / kFewRows;
      const int r = i % kFewRows;
      if (first + token >= tokens.count || row + r >= w.rows) continue;
      float total = 0;
#pragma unroll
      for (int s = 0; s < kSlices; ++s) total += partial[s][token][r];
      store_out(p, tokens.out_row(p, first + token), row + r, total);
    }
    __syncthreads();
  }
}

// ---- many tokens -------------------------------------------------------------------------------

// kTile weight rows by kTile tokens; a warp takes 32 rows by kTile / 4 tokens. To load a block of
// 32 columns, each thread takes 8 columns of a weight row and of a token, kStages - 1 blocks ahead:
// bf16 straight into the operand tiles, other weights into a queue of the thread's own, from which
// it widens them into the tile.
template <DType kDType, int kTile>
struct ManyPlan {
  static constexpr bool kAligned = kTile == 128;  // only for problems that are known to be
  static constexpr bool kWidens = kDType != DType::kBF16;
  static constexpr int kStages = 4;
  static constexpr int kWarpTokens = kTile / 4;
  static constexpr int kTokenTiles = kWarpTokens / 8;
  static constexpr int kThreads = 4 * kTile;
  // Operand rows of 64 bytes, unpadded: eight lanes of a 16-byte access cover two whole rows, so no
  // bank repeats.
  struct Shared {
    uint4 x[kStages][kTile][kBlockCols / 8];
    uint4 w[kWidens ? 2 : kStages][kTile][kBlockCols / 8];
    typename WeightRow<kDType>::Raw queue[kWidens ? kStages : 1][kWidens ? kThreads : 1];
    int32_t out_row[kTile];
  };
  static_assert(kDType == DType::kF32 || sizeof(Shared) <= 99 * 1024);  // what sm_89 has
};

template <DType kDType, int kTile>
__global__ void __launch_bounds__(ManyPlan<kDType, kTile>::kThreads) product_many(const Product p) {
  using Plan = ManyPlan<kDType, kTile>;
  extern __shared__ uint4 shared_memory[];
  auto& shared = *reinterpret_cast<typename Plan::Shared*>(shared_memory);
  begin_dependent_kernel();
  const Tokens tokens(p, !Plan::kAligned && p.experts != nullptr);
  if (tokens.count == 0) return;
  const ops::Matrix w = tokens.grouped ? p.experts[blockIdx.z] : p.weights;
  const auto cols = static_cast<int32_t>(w.cols);
  const int32_t row = static_cast<int32_t>(blockIdx.x) * kTile;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 128 * 32;
  const int warp_token = thread / 32 % 4 * Plan::kWarpTokens;
  const int32_t num_blocks = blocks_of(cols);
  const int32_t per_slice = blocks_per_slice(cols);
  const int own = thread / 4;        // row and token it loads
  const int own_group = thread % 4;  // of 8 columns in a block
  const WeightRow<kDType> w_row(w, row + own);

  for (int32_t first = static_cast<int32_t>(blockIdx.y) * kTile; first < tokens.count;
       first += static_cast<int32_t>(gridDim.y) * kTile) {
    __syncthreads();  // the tile before may still be in use
    const bool has_token = first + own < tokens.count;
    if (own_group == 0) shared.out_row[own] = has_token ? tokens.out_row(p, first + own) : -1;
    __syncthreads();
    const ActivationRow<__nv_bfloat16> x(
        has_token ? p.x + tokens.x_row(p, first + own) * p.x_stride : nullptr, cols);

    // ---- load. Every thread commits one group of copies per block.
    const auto load = [&](int32_t block) {
      const int stage = block % Plan::kStages;
      const int32_t col = block * kBlockCols + 8 * own_group;
      uint4* to_x = &shared.x[stage][own][own_group];
      if (Plan::kAligned || x.vector) {
        cp_async_16(smem_address(to_x), x.has(col) ? x.data + col : p.x, x.has(col));
      } else {
        *to_x = x.load8_bf16(col);
      }
      if (Plan::kAligned || w_row.vector) {
        const bool has = w_row.has(col);
        const void* from = has ? w_row.data + static_cast<int64_t>(col) * w_row.kBytes : w.data;
        if constexpr (!Plan::kWidens) {
          cp_async_16(smem_address(&shared.w[stage][own][own_group]), from, has);
        } else if constexpr (w_row.kFp8) {
          cp_async_8(smem_address(&shared.queue[stage][thread]), from, has);
        } else {
          const uint32_t to = smem_address(&shared.queue[stage][thread]);
          cp_async_16(to, from, has);
          cp_async_16(to + 16, has ? static_cast<const uint8_t*>(from) + 16 : from, has);
        }
      } else if constexpr (!Plan::kWidens) {
        shared.w[stage][own][own_group] = w_row.load8_slow_bf16(col);
      }
      cp_async_commit();
    };

    float total[2][Plan::kTokenTiles][4] = {};
    float sum[2][Plan::kTokenTiles][4] = {};
#pragma unroll 1
    for (int32_t block = 0; block < Plan::kStages - 1; ++block) load(block);  // past the end: zeros
    float next_scale = w_row.scale(8 * own_group);
    int32_t slice_end = per_slice;
    for (int32_t block = 0; block < num_blocks; ++block) {
      cp_async_wait<Plan::kStages - 2>();
      if constexpr (Plan::kWidens) {
        // This buffer's readers, two blocks ago, passed the barrier of the block before.
        const int32_t col = block * kBlockCols + 8 * own_group;
        shared.w[block % 2][own][own_group] =
            Plan::kAligned || w_row.vector
                ? w_row.widen_bf16(shared.queue[block % Plan::kStages][thread], next_scale)
                : w_row.load8_slow_bf16(col);
        next_scale = w_row.scale(col + kBlockCols);
      }
      __syncthreads();
      load(block + Plan::kStages - 1);  // into the stage that block - 1 left

      // ---- compute
      const int stage = block % Plan::kStages;
      const int w_stage = Plan::kWidens ? block % 2 : stage;
      uint4 w_low[2];
      uint4 w_high[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        w_low[m] = shared.w[w_stage][warp_row + 16 * m + lane / 4][lane % 4];
        w_high[m] = shared.w[w_stage][warp_row + 16 * m + 8 + lane / 4][lane % 4];
      }
#pragma unroll
      for (int n = 0; n < Plan::kTokenTiles; ++n) {
        const uint4 xs = shared.x[stage][warp_token + 8 * n + lane / 4][lane % 4];
#pragma unroll
        for (int m = 0; m < 2; ++m) multiply_block(sum[m][n], w_low[m], w_high[m], xs);
      }

      // ---- reduce
      if (block + 1 == slice_end || block + 1 == num_blocks) {
        slice_end += per_slice;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < Plan::kTokenTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              total[m][n][i] += sum[m][n][i];
              sum[m][n][i] = 0;
            }
          }
        }
      }
    }
    cp_async_wait<0>();

    // ---- store
#pragma unroll
    for (int n = 0; n < Plan::kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t out_row = shared.out_row[warp_token + 8 * n + 2 * (lane % 4) + i % 2];
        if (out_row < 0) continue;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int32_t column = row + warp_row + 16 * m + lane / 4 + 8 * (i / 2);
          if (column < w.rows) store_out(p, out_row, column, total[m][n][i]);
        }
      }
    }
  }
}

// ---- launch ------------------------------------------------------------------------------------

constexpr int64_t kMaxGridY = 65535;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// `products` products of `rows` weight rows with up to `tokens` tokens each, `likely` of them in
// most.
template <DType kDType>
cudaError_t enqueue_product(const Product& p,
                            int64_t rows,
                            int64_t products,
                            int64_t tokens,
                            int64_t likely,
                            const Launch& launch) {
  const auto grid = [&](int64_t tile_rows, int64_t tile_tokens) {
    const int64_t y =
        products == 1 ? ceil_div(tokens, tile_tokens)
                      : std::min(ceil_div(tokens, tile_tokens), ceil_div(likely, tile_tokens) + 1);
    return dim3(static_cast<unsigned>(ceil_div(rows, tile_rows)),
                static_cast<unsigned>(std::min(y, kMaxGridY)),
                static_cast<unsigned>(products));
  };
  const auto few = [&](auto kernel, int64_t tile_tokens) {
    return enqueue(kernel, {grid(kFewRows, tile_tokens), dim3(kFewThreads)}, launch, p);
  };
  const auto many = [&](auto kernel, int64_t tile, size_t shared_bytes) {
    return enqueue(
        kernel, {grid(tile, tile), dim3(static_cast<unsigned>(4 * tile)), shared_bytes}, launch, p);
  };
  if (likely <= 8) return few(product_few<kDType, 1>, 8);
  if (likely <= 16) return few(product_few<kDType, 2>, 16);
  // Tiles of 64 rows that would leave SMs idle.
  if (ceil_div(rows, 64) * ceil_div(likely, 64) * products < 128 && likely <= 256) {
    return few(product_few<kDType, 4>, 32);
  }
  // Large tiles once they fill a GPU of about a hundred SMs, where the host can see that every row
  // is aligned. (f32 weights need more shared memory for them than sm_89 has.)
  if constexpr (kDType != DType::kF32) {
    const ops::Matrix& w = p.weights;
    const bool aligned = products == 1 && p.experts == nullptr && w.cols % 8 == 0 &&
                         w.scale_col_offset % 8 == 0 && aligned_16(w.data) && p.x_stride % 8 == 0 &&
                         aligned_16(p.x);
    if (aligned && likely >= 96 && ceil_div(rows, 128) * ceil_div(likely, 128) >= 96) {
      return many(product_many<kDType, 128>, 128, sizeof(typename ManyPlan<kDType, 128>::Shared));
    }
  }
  return many(product_many<kDType, 64>, 64, sizeof(typename ManyPlan<kDType, 64>::Shared));
}

cudaError_t enqueue_product(DType dtype,
                            const Product& p,
                            int64_t rows,
                            int64_t products,
                            int64_t tokens,
                            int64_t likely,
                            const Launch& launch) {
  switch (dtype) {
    case DType::kBF16:
      return enqueue_product<DType::kBF16>(p, rows, products, tokens, likely, launch);
    case DType::kF32:
      return enqueue_product<DType::kF32>(p, rows, products, tokens, likely, launch);
    case DType::kF8E4M3:
      return enqueue_product<DType::kF8E4M3>(p, rows, products, tokens, likely, launch);
  }
  return cudaErrorInvalidValue;
}

bool fits(int64_t value) {
  return value >= 0 && value <= INT32_MAX - 256;
}

}  // namespace

cudaError_t gemm(const Gemm& problem, const Launch& launch) {
  const ops::Matrix& w = problem.weights;
  if (!fits(w.rows) || !fits(w.cols) || !fits(problem.num_tokens) ||
      problem.out_dtype == DType::kF8E4M3) {
    return cudaErrorInvalidValue;
  }
  if (w.dtype == DType::kF8E4M3 && w.scale == nullptr) return cudaErrorInvalidValue;
  if (problem.num_tokens == 0 || w.rows == 0) return cudaSuccess;
  if (problem.exact) {
    ExactProduct exact;
    exact.weights = w;
    exact.x = problem.x;
    exact.x_stride = problem.x_stride;
    exact.num_tokens = problem.num_tokens;
    exact.rows = w.rows;
    exact.depth = w.cols;
    exact.out = problem.out;
    exact.out_stride = problem.out_stride;
    exact.out_f32 = problem.out_dtype == DType::kF32;
    return enqueue_exact_product(exact, launch);
  }
  Product p{};
  p.weights = w;
  p.x = problem.x;
  p.x_stride = problem.x_stride;
  p.num_tokens = static_cast<int32_t>(problem.num_tokens);
  p.out = problem.out;
  p.out_stride = problem.out_stride;
  p.out_f32 = problem.out_dtype == DType::kF32;
  return enqueue_product(w.dtype, p, w.rows, 1, problem.num_tokens, problem.num_tokens, launch);
}

cudaError_t grouped_gemm(const GroupedGemm& problem, const Launch& launch) {
  if (!fits(problem.rows) || !fits(problem.cols) || !fits(problem.num_slots) ||
      !fits(problem.max_count) || problem.num_experts < 0 || problem.num_experts > kMaxGridY ||
      problem.slots_per_x_row < 1) {
    return cudaErrorInvalidValue;
  }
  if (problem.num_slots == 0 || problem.rows == 0 || problem.num_experts == 0) return cudaSuccess;
  Product p{};
  p.experts = problem.weights;
  p.offset = problem.lists.offset;
  p.slots = problem.lists.slots;
  p.slots_per_x_row = problem.slots_per_x_row;
  p.x = problem.x;
  p.x_stride = problem.x_stride;
  p.out = problem.out;
  p.out_stride = problem.out_stride;
  // Routing is close to even, so an expert has about this many slots where all experts are local,
  // fewer elsewhere.
  const int64_t likely =
      std::min(problem.max_count, ceil_div(problem.num_slots, problem.num_experts));
  return enqueue_product(
      problem.dtype, p, problem.rows, problem.num_experts, problem.max_count, likely, launch);
}

}  // namespace r1d::kernels::generic
