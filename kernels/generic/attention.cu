// SPDX-License-Identifier: Apache-2.0
// Problem   o[t, h, :R] = sum over keys s <= position(t) of softmax(q[t, h] . key[s] * scale) *
//           key[s, :R], keys from the paged latent cache: MLA's absorbed form, in which all heads
//           share the keys.
// Layout    q [T, H, R + rope] f32; cache pages [blocks, block_size, width] bf16 or f32, or e4m3 as
//           ops::LatentFormat has it; o [T, H, R] f32.
// Bound     2 H (2 R + rope) flop per query and key on the f32 units: exact rather than fast.
// Launch    A CTA of 256 threads per 16 rows, a row being a (query token, head) pair of one
//           sequence; keys pass 16 at a time through shared memory (R + rope = 576: 92 KB in all,
//           which every GPU from sm_80 on has). With a workspace, a CTA per 16 rows and 256 keys,
//           and one kernel that merges.
// Numerics  f32; running maximum in base 2; every 256 keys get a softmax state of their own, and
//           the states are merged in order with explicitly rounded operations. So a row's bits
//           depend on its keys alone: not on the batch, the query length or the workspace. Masked
//           keys count 0; a row without keys is 0.
// Source    DeepSeek-V2 report, section 2.1 (MLA); online softmax as in FlashAttention.
#include <algorithm>

#include "kernels/generic/exact_product.cuh"
#include "kernels/generic/generic.h"
#include "kernels/generic/loads.cuh"
#include "kernels/generic/tile16.cuh"

namespace r1d::kernels::generic {
namespace {

constexpr int kTile = Tile16::kTile;  // rows, and keys at a time
constexpr int kThreads = Tile16::kThreads;
constexpr int kChunk = 256;  // keys of one softmax state
static_assert(kChunk % kTile == 0);

// Columns of an output row per thread: 2 for each pass over 512.
constexpr int kPassColumns = 2 * kThreads;

struct AttendPlan {
  int32_t stride;  // floats of a row in shared memory: 4 (mod 32)
  size_t shared_bytes;

  explicit AttendPlan(int32_t width) : stride((width + 31) / 32 * 32 + 4) {
    const size_t floats = 2 * size_t{kTile} * static_cast<size_t>(stride) + Tile16::kPartials +
                          kTile * kTile + 3 * kTile;
    shared_bytes = floats * sizeof(float);
  }
};

// The rows of one CTA: rows first .. first + 15 of a sequence's query_len * H.
struct RowTile {
  int32_t sequence;  // -1: none
  int32_t first;
};

// Counts through the sequences, a warp at a time; sequence s has ceil(query_len * H / 16) tiles.
__device__ RowTile find_tile(const StepSequences& sequences, int32_t heads, int32_t tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int32_t base = 0; base < sequences.num_sequences; base += 32) {
    const int32_t s = base + lane;
    const int32_t tiles =
        s < sequences.num_sequences
            ? static_cast<int32_t>(
                  (static_cast<int64_t>(sequences.query_len[s]) * heads + kTile - 1) / kTile)
            : 0;
    int32_t end = tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t below = __shfl_up_sync(0xFFFFFFFFU, end, step);
      if (lane >= step) end += below;
    }
    const uint32_t later = __ballot_sync(0xFFFFFFFFU, tile < end);
    if (later != 0) {
      const int owner = __ffs(static_cast<int>(later)) - 1;
      const int32_t begin = __shfl_sync(0xFFFFFFFFU, end - tiles, owner);
      return {base + owner, (tile - begin) * kTile};
    }
    tile -= __shfl_sync(0xFFFFFFFFU, end, 31);
  }
  return {-1, 0};
}

// A token of an e4m3 cache, four columns at a time: no group, and no boundary of latent and rope,
// cuts those; R + rope may.
struct Fp8Token {
  ops::LatentFormat format;
  int64_t block_size;
  int64_t token;
  const uint8_t* block;

  __device__ Fp8Token(const Attend& p, int64_t slot)
      : format{.dtype = DType::kF8E4M3, .latent = p.dims.latent, .rope = p.dims.rope},
        block_size(p.cache.block_size),
        token(slot % block_size),
        block(static_cast<const uint8_t*>(p.cache.data) +
              slot / block_size * block_size * format.bytes_per_token()) {}

  __device__ float4 load4(int32_t column) const {
    if (column >= format.latent) {
      const auto* pairs =
          reinterpret_cast<const uint32_t*>(block + format.rope_offset(block_size, token)) +
          (column - format.latent) / 2;
      const float2 low = unpack_bf16(pairs[0]);
      const bool whole = column + 2 < format.latent + format.rope;
      const float2 high = whole ? unpack_bf16(pairs[1]) : float2{};
      return {low.x, low.y, high.x, high.y};
    }
    const int64_t group = column / format.kGroup;
    const uint32_t codes = *reinterpret_cast<const uint32_t*>(
        block + format.codes_offset(block_size, group, token) + column % format.kGroup);
    const float scale =
        reinterpret_cast<const float*>(block + format.scales_offset(block_size, token))[group];
    const float2 low = widen_e4m3(codes);
    const float2 high = widen_e4m3(codes >> 16);
    return {low.x * scale, low.y * scale, high.x * scale, high.y * scale};
  }
};

// A row's softmax state over some keys: the maximum score (base 2), the sum of 2^(score - max), and
// elsewhere the same sum of values. Merging the states of two key ranges multiplies each side's
// sums by its factor.
struct Merge {
  float max;
  float of_total;
  float of_chunk;

  __device__ Merge(float total_max, float chunk_max) : max(fmaxf(total_max, chunk_max)) {
    of_total = total_max == -INFINITY ? 0.0F : exp2f(total_max - max);
    of_chunk = chunk_max == -INFINITY ? 0.0F : exp2f(chunk_max - max);
  }
};
// Explicit operations, since two kernels must round alike.
__device__ __forceinline__ float merge_sums(float total,
                                            float of_total,
                                            float chunk,
                                            float of_chunk) {
  return __fmaf_rn(chunk, of_chunk, __fmul_rn(total, of_total));
}
__device__ __forceinline__ float divide_or_zero(float value, float sum) {
  return sum > 0 ? __fdiv_rn(value, sum) : 0.0F;
}

// A chunk's state in the workspace: R sums, then the maximum and the sum of weights.
__host__ __device__ __forceinline__ int64_t state_floats(int64_t latent) {
  return latent + 2;
}

template <int kPasses>
__global__ void __launch_bounds__(kThreads, kPasses == 1 ? 2 : 1)
    attend_kernel(const Attend p, const int32_t stride, const int32_t num_chunks) {
  extern __shared__ float4 shared_memory[];
  float* const q = reinterpret_cast<float*>(shared_memory);  // [16][stride]
  float* const keys = q + kTile * stride;                    // [16][stride]
  float* const partial = keys + kTile * stride;
  float* const weights = partial + Tile16::kPartials;  // [key][row]
  float* const factors = weights + kTile * kTile;      // [3][row]
  begin_dependent_kernel();

  const int32_t heads = p.dims.heads;
  const int32_t latent = p.dims.latent;
  const int32_t width = latent + p.dims.rope;
  const int thread = static_cast<int>(threadIdx.x);
  const RowTile tile = find_tile(p.sequences, heads, static_cast<int32_t>(blockIdx.x));
  if (tile.sequence < 0) return;
  const int32_t query_begin = p.sequences.query_begin[tile.sequence];
  const int32_t query_len = p.sequences.query_len[tile.sequence];
  const int32_t context_len = p.sequences.context_len[tile.sequence];
  const auto rows = static_cast<int32_t>(
      min(static_cast<int64_t>(kTile), static_cast<int64_t>(query_len) * heads - tile.first));
  const int64_t first_row = static_cast<int64_t>(query_begin) * heads + tile.first;  // in [T, H]
  // Keys of row i: its position and all before it; a padding sequence has none.
  const int32_t positions_before = context_len - query_len;
  const auto keys_of = [&](int32_t i) {
    return max(0, positions_before + (tile.first + i) / heads + 1);
  };
  const int32_t most_keys = keys_of(rows - 1);
  const bool split = p.workspace != nullptr;
  const int32_t first_key = split ? static_cast<int32_t>(blockIdx.y) * kChunk : 0;
  const int32_t end_key = split ? min(most_keys, first_key + kChunk) : most_keys;
  if (split && first_key >= most_keys) return;

  // ---- load the queries
  for (int32_t i = thread; i < kTile * stride; i += kThreads) {
    const int32_t row = i / stride;
    const int32_t column = i % stride;
    q[i] = row < rows && column < width ? p.q_latent[(first_row + row) * width + column] : 0.0F;
  }

  // Thread 16 i + j holds row i's state (all j alike) and the score of key j; for the sums it owns
  // columns 2 * thread, 2 * thread + 1 of every pass, all 16 rows.
  const int32_t own_row = thread / kTile;
  const int32_t own_keys = own_row < rows ? keys_of(own_row) : 0;
  const float scale = p.softmax_scale * 1.4426950408889634F;
  const int32_t* blocks = p.sequences.block_ids + p.sequences.block_begin[tile.sequence];
  const bool vector = p.cache.width % 8 == 0 && width % 8 == 0 && aligned_16(p.cache.data);
  float total_max = -INFINITY;
  float total_sum = 0;
  const auto each_output = [&](auto&& body) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int32_t column = pass * kPassColumns + 2 * thread + c;
        if (column >= latent) continue;
#pragma unroll
        for (int row = 0; row < kTile; ++row) {
          if (row < rows) body(pass, c, row, column);
        }
      }
    }
  };
  for (int32_t chunk_begin = first_key; chunk_begin < end_key; chunk_begin += kChunk) {
    const int32_t chunk_end = min(chunk_begin + kChunk, end_key);
    float max = -INFINITY;
    float sum = 0;
    float acc[kPasses][2][kTile] = {};
    for (int32_t begin = chunk_begin; begin < chunk_end; begin += kTile) {
      // ---- load 16 keys; 16 threads each
      __syncthreads();
      {
        const int32_t key = begin + thread / kTile;
        float* to = keys + thread / kTile * stride;
        const bool valid = key < chunk_end;
        const int64_t slot =
            valid ? static_cast<int64_t>(blocks[key / p.cache.block_size]) * p.cache.block_size +
                        key % p.cache.block_size
                  : 0;
        const int64_t from = slot * p.cache.width;
        if (p.cache.dtype == DType::kF8E4M3) {
          const Fp8Token token(p, slot);
          for (int32_t column = thread % kTile * 4; column < stride - 4; column += kTile * 4) {
            const bool has = valid && column < width;
            *reinterpret_cast<float4*>(to + column) = has ? token.load4(column) : float4{};
          }
        } else if (vector) {
#pragma unroll 2
          for (int32_t column = thread % kTile * 8; column < stride - 4; column += kTile * 8) {
            float4 low{};
            float4 high{};
            if (valid && column < width) {
              if (p.cache.dtype == DType::kBF16) {
                const uint4 bits = *reinterpret_cast<const uint4*>(
                    static_cast<const __nv_bfloat16*>(p.cache.data) + from + column);
                const float2 a = unpack_bf16(bits.x);
                const float2 b = unpack_bf16(bits.y);
                const float2 c = unpack_bf16(bits.z);
                const float2 d = unpack_bf16(bits.w);
                low = {a.x, a.y, b.x, b.y};
                high = {c.x, c.y, d.x, d.y};
              } else {
                const auto* at = reinterpret_cast<const float4*>(
                    static_cast<const float*>(p.cache.data) + from + column);
                low = at[0];
                high = at[1];
              }
            }
            reinterpret_cast<float4*>(to + column)[0] = low;
            reinterpret_cast<float4*>(to + column)[1] = high;
          }
        } else {
#pragma unroll 1
          for (int32_t column = thread % kTile; column < stride - 4; column += kTile) {
            float value = 0;
            if (valid && column < width) {
              value = p.cache.dtype == DType::kBF16
                          ? __bfloat162float(
                                static_cast<const __nv_bfloat16*>(p.cache.data)[from + column])
                          : static_cast<const float*>(p.cache.data)[from + column];
            }
            to[column] = value;
          }
        }
      }
      __syncthreads();

      // ---- scores and softmax weights
      Tile16 scores;
      scores.multiply(q, keys, stride, stride - 4);
      const float dot = scores.reduce(partial);
      const float score = begin + thread % kTile < own_keys ? dot * scale : -INFINITY;
      float tile_max = score;
#pragma unroll
      for (int step = 8; step > 0; step /= 2) {
        tile_max = fmaxf(tile_max, __shfl_xor_sync(0xFFFFFFFFU, tile_max, step));
      }
      const float new_max = fmaxf(max, tile_max);
      const float factor = max == -INFINITY ? 0.0F : exp2f(max - new_max);
      const float weight = score == -INFINITY ? 0.0F : exp2f(score - new_max);
      float tile_sum = weight;
#pragma unroll
      for (int step = 8; step > 0; step /= 2) {
        tile_sum += __shfl_xor_sync(0xFFFFFFFFU, tile_sum, step);
      }
      sum = fmaf(sum, factor, tile_sum);
      max = new_max;
      weights[thread % kTile * kTile + own_row] = weight;
      if (thread % kTile == 0) factors[own_row] = factor;
      __syncthreads();

      // ---- values
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int32_t column = pass * kPassColumns + 2 * thread;
        if (column >= latent) continue;
#pragma unroll
        for (int row = 0; row < kTile; ++row) {
          const float f = factors[row];
          acc[pass][0][row] *= f;
          acc[pass][1][row] *= f;
        }
#pragma unroll 2
        for (int key = 0; key < kTile; ++key) {
          const float2 value = *reinterpret_cast<const float2*>(keys + key * stride + column);
#pragma unroll
          for (int row = 0; row < kTile; row += 4) {
            const float4 w = *reinterpret_cast<const float4*>(weights + key * kTile + row);
            acc[pass][0][row] = fmaf(w.x, value.x, acc[pass][0][row]);
            acc[pass][1][row] = fmaf(w.x, value.y, acc[pass][1][row]);
            acc[pass][0][row + 1] = fmaf(w.y, value.x, acc[pass][0][row + 1]);
            acc[pass][1][row + 1] = fmaf(w.y, value.y, acc[pass][1][row + 1]);
            acc[pass][0][row + 2] = fmaf(w.z, value.x, acc[pass][0][row + 2]);
            acc[pass][1][row + 2] = fmaf(w.z, value.y, acc[pass][1][row + 2]);
            acc[pass][0][row + 3] = fmaf(w.w, value.x, acc[pass][0][row + 3]);
            acc[pass][1][row + 3] = fmaf(w.w, value.y, acc[pass][1][row + 3]);
          }
        }
      }
    }

    // ---- a chunk done: store its state, or merge it into the total, which lies in o_latent
    if (split) {
      const int64_t state = (first_row * num_chunks + blockIdx.y) * state_floats(latent);
      const int64_t row_step = num_chunks * state_floats(latent);
      if (thread % kTile == 0 && own_row < rows) {
        p.workspace[state + own_row * row_step + latent] = max;
        p.workspace[state + own_row * row_step + latent + 1] = sum;
      }
      each_output([&](int pass, int c, int row, int32_t column) {
        p.workspace[state + row * row_step + column] = acc[pass][c][row];
      });
      return;
    }
    const Merge merge(total_max, max);
    total_max = merge.max;
    total_sum = merge_sums(total_sum, merge.of_total, sum, merge.of_chunk);
    __syncthreads();  // all have read the last tile's factors
    if (thread % kTile == 0) {
      factors[own_row] = merge.of_total;
      factors[kTile + own_row] = merge.of_chunk;
      factors[2 * kTile + own_row] = total_sum;
    }
    __syncthreads();
    const bool first_chunk = chunk_begin == 0;
    const bool last_chunk = chunk_end == end_key;
    each_output([&](int pass, int c, int row, int32_t column) {
      float& total = p.o_latent[(first_row + row) * latent + column];
      const float merged = merge_sums(
          first_chunk ? 0.0F : total, factors[row], acc[pass][c][row], factors[kTile + row]);
      total = last_chunk ? divide_or_zero(merged, factors[2 * kTile + row]) : merged;
    });
  }
  if (most_keys == 0) {
    each_output([&](int, int, int row, int32_t column) {
      p.o_latent[(first_row + row) * latent + column] = 0;
    });
  }
}

// A CTA per (token, head) row, a thread per column.
__global__ void __launch_bounds__(kThreads) attend_merge(const Attend p, const int32_t num_chunks) {
  begin_dependent_kernel();
  const int32_t heads = p.dims.heads;
  const int32_t latent = p.dims.latent;
  const RowTile tile = find_tile(p.sequences, heads, static_cast<int32_t>(blockIdx.x));
  if (tile.sequence < 0) return;
  const int32_t query_len = p.sequences.query_len[tile.sequence];
  const int32_t row = tile.first + static_cast<int32_t>(blockIdx.y);
  if (row >= query_len * heads) return;
  const int32_t num_keys =
      max(0, p.sequences.context_len[tile.sequence] - query_len + row / heads + 1);
  const int32_t chunks = (num_keys + kChunk - 1) / kChunk;
  const int64_t at = static_cast<int64_t>(p.sequences.query_begin[tile.sequence]) * heads + row;
  const float* states = p.workspace + at * num_chunks * state_floats(latent);
  for (int32_t column = static_cast<int32_t>(threadIdx.x); column < latent; column += kThreads) {
    float total_max = -INFINITY;
    float total_sum = 0;
    float total = 0;
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      const float* state = states + chunk * state_floats(latent);
      const Merge merge(total_max, state[latent]);
      total_max = merge.max;
      total_sum = merge_sums(total_sum, merge.of_total, state[latent + 1], merge.of_chunk);
      total = merge_sums(total, merge.of_total, state[column], merge.of_chunk);
    }
    p.o_latent[at * latent + column] = divide_or_zero(total, total_sum);
  }
}

bool valid(const AttentionDims& dims) {
  return dims.heads >= 0 && dims.latent >= 0 && dims.nope >= 0 && dims.rope >= 0 &&
         dims.rope % 2 == 0 && dims.v >= 0;
}

// An e4m3 cache's layout follows from the sizes.
bool servable(const LatentCache& cache, const AttentionDims& dims) {
  const ops::LatentFormat format{.dtype = cache.dtype, .latent = dims.latent, .rope = dims.rope};
  return cache.dtype != DType::kF8E4M3 ||
         (format.valid() && cache.width == dims.latent + dims.rope);
}

int64_t num_chunks_of(int64_t context_len) {
  return (context_len + kChunk - 1) / kChunk;
}

}  // namespace

cudaError_t absorb(const Absorb& problem, const Launch& launch) {
  const AttentionDims& d = problem.dims;
  if (!valid(d) || problem.num_tokens < 0) return cudaErrorInvalidValue;
  ExactProduct product;
  product.weights = problem.kv_b;
  product.head_weight_rows = d.nope + d.v;
  product.transposed = true;
  product.x = problem.q;
  product.x_stride = problem.q_stride;
  product.head_x = d.nope + d.rope;
  product.num_tokens = problem.num_tokens;
  product.rows = d.latent;
  product.depth = d.nope;
  product.out = problem.q_latent;
  product.out_f32 = true;
  product.head_out = d.latent + d.rope;
  product.out_stride = product.head_out * d.heads;
  product.heads = d.heads;
  product.rope = d.rope;
  product.interleave = problem.interleave;
  product.cos_sin = problem.cos_sin;
  return enqueue_exact_product(product, launch);
}

cudaError_t expand(const Expand& problem, const Launch& launch) {
  const AttentionDims& d = problem.dims;
  if (!valid(d) || problem.num_tokens < 0) return cudaErrorInvalidValue;
  ExactProduct product;
  product.weights = problem.kv_b;
  product.weight_row = d.nope;
  product.head_weight_rows = d.nope + d.v;
  product.x = problem.o_latent;
  product.x_f32 = true;
  product.head_x = d.latent;
  product.x_stride = product.head_x * d.heads;
  product.num_tokens = problem.num_tokens;
  product.rows = d.v;
  product.depth = d.latent;
  product.out = problem.out;
  product.head_out = d.v;
  product.out_stride = problem.out_stride;
  product.heads = d.heads;
  return enqueue_exact_product(product, launch);
}

size_t attend_workspace_bytes(const AttentionDims& dims,
                              int64_t num_tokens,
                              int64_t max_context_len) {
  return static_cast<size_t>(num_tokens * dims.heads * num_chunks_of(max_context_len) *
                             state_floats(dims.latent)) *
         sizeof(float);
}

cudaError_t attend(const Attend& problem, const Launch& launch) {
  const AttentionDims& d = problem.dims;
  const int32_t width = d.latent + d.rope;
  const bool split = problem.workspace != nullptr;
  const int64_t num_chunks = split ? num_chunks_of(problem.max_context_len) : 1;
  if (!valid(d) || d.latent > 2 * kPassColumns || problem.cache.width < width ||
      problem.cache.block_size < 1 || !servable(problem.cache, d) || problem.num_tokens < 0 ||
      num_chunks < 0 || num_chunks > 65535) {
    return cudaErrorInvalidValue;
  }
  if (problem.num_tokens == 0 || d.heads == 0 || d.latent == 0 ||
      problem.sequences.num_sequences == 0) {
    return cudaSuccess;
  }
  // Every sequence but for its last tile fills 16 rows a tile.
  const int64_t tiles = problem.num_tokens * d.heads / kTile + problem.sequences.num_sequences;
  if (tiles > INT32_MAX) return cudaErrorInvalidValue;
  const AttendPlan plan(width);
  const Grid grid{
      dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(std::max<int64_t>(num_chunks, 1))),
      dim3(kThreads),
      plan.shared_bytes};
  const cudaError_t error = enqueue(d.latent <= kPassColumns ? attend_kernel<1> : attend_kernel<2>,
                                    grid,
                                    launch,
                                    problem,
                                    plan.stride,
                                    num_chunks);
  if (error != cudaSuccess || !split) return error;
  return enqueue(attend_merge,
                 {dim3(static_cast<unsigned>(tiles), kTile), dim3(kThreads)},
                 launch,
                 problem,
                 num_chunks);
}

}  // namespace r1d::kernels::generic
