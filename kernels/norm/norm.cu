// SPDX-License-Identifier: Apache-2.0
// Problem   residual += parts; y = residual * rsqrt(mean(residual^2) + eps) * weight, as bf16 and
//           as e4m3 with 1x128 scales; and the same of MLA's query and latent, with k_pe rotated.
// Layout    rows of bf16, 8 values (16 bytes) a lane, so 16 lanes hold one group of 128; all of a
//           row stays in registers.
// Bound     bytes: add_norm with one bf16 part and a quantized output moves 2 + 2 + 2 + 1 bytes a
//           value. R1, 8192 tokens: 411 MB, 96 us at 4.3 TB/s. Up to some 16 tokens latency is all:
//           launch, one trip to memory, one sum.
// Launch    To 16 tokens: a token over a cluster of 8 CTAs (to 32: 4), one vector a thread, since
//           one SM alone would need 0.5 us to take in the 56 KB of a row of 7168 (part, residual,
//           weight); sums meet in distributed shared memory. To 132 tokens: a CTA a token, one
//           vector a thread. More: 4 vectors a thread in small CTAs, four of which share an SM, so
//           that one loads while another sums; registers set that number. The weight is read before
//           the dependency wait where a thread has one vector, and what comes next may start then:
//           it loads its weights while the kernel ahead still runs. MLA: the query's and the
//           latent's part of a token are blocks of their own; above 512 tokens a block takes 4
//           tokens, or R1's sizes a warp a token.
// Numerics  f32. The sum of squares has one order in all forms: 8 values, a tree over 16 lanes,
//           groups 32 apart, a tree over 32 lanes. Scales: largest magnitude / 448, 1 for zeros;
//           IEEE division, so that codes equal the CPU's.
// Source    RMSNorm: arXiv 1910.07467; 1x128 tiles: DeepSeek-V3 report, section 3.3.2; MLA:
//           DeepSeek-V2 report, section 2.1.
#include <algorithm>

#include "kernels/norm/norm.h"
#include "kernels/norm/normed_row.cuh"
#include "kernels/norm/row.cuh"
#include "kernels/quantize/quantize.cuh"

namespace r1d::kernels {
namespace {

constexpr int kMaxThreads = 1024;  // with one vector each
constexpr int kMaxVectors = 8;     // a thread
constexpr int kMaxCluster = 8;

// ---- residual and norm -------------------------------------------------------------------------

// What is added to the residual. One bf16 part is the common case and known to the compiler, so
// that its loads and the residual's go out together.
enum class Parts { kNone, kOneBf16, kAny };

__device__ __forceinline__ void add(const float (&v)[kVector], float (&sum)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] += v[i];
}

// The sum of the parts at element `at` of part 0.
__device__ __forceinline__ void sum_parts(const AddNorm& a, int64_t at, float (&sum)[kVector]) {
  float v[kVector];
#pragma unroll
  for (float& s : sum) s = 0;
  if (a.partial_f32) {
    const float* part = static_cast<const float*>(a.partial) + at;
#pragma unroll 4
    for (int p = 0; p < a.parts; ++p) {
      load_f32(part + p * a.part_stride, v);
      add(v, sum);
    }
    return;
  }
  const __nv_bfloat16* part = static_cast<const __nv_bfloat16*>(a.partial) + at;
#pragma unroll 8
  for (int p = 0; p < a.parts; ++p) {
    unpack_bf16(load_row(part + p * a.part_stride), v);
    add(v, sum);
  }
}

// Vectors a thread and threads of the forms: one vector for latency; 4 where there are tokens
// enough that several CTAs share an SM; 8 for the longest rows.
constexpr int max_threads(int vectors) {
  return vectors == 1 ? 1024 : vectors == 4 ? 256 : 512;
}
constexpr int least_ctas(int vectors, Parts parts) {
  return vectors != 4 ? 1 : parts == Parts::kAny ? 3 : 4;
}

// One token a cluster. `x` is read; a.residual is written when there are parts. CTA c of the
// cluster takes vectors [c * segment, (c + 1) * segment).
template <int kVectors, Parts kParts>
__global__ void __launch_bounds__(max_threads(kVectors), least_ctas(kVectors, kParts))
    add_norm_bf16(AddNorm a, const __nv_bfloat16* x, int64_t x_stride, int cluster, int segment) {
  __shared__ RowSums sums;
  const auto token = static_cast<int64_t>(blockIdx.x) / cluster;
  const int rank = static_cast<int>(blockIdx.x) % cluster;
  const auto vectors = static_cast<int>(a.cols / kVector);
  const int groups = (vectors + kGroupLanes - 1) / kGroupLanes;
  const int first = rank * segment + static_cast<int>(threadIdx.x);
  const int end = min(vectors, (rank + 1) * segment);
  const auto step = static_cast<int>(blockDim.x);
  constexpr bool kEarlyWeight = kVectors == 1;

  float weight[kVector] = {};
  if (kEarlyWeight && first < end && a.weight != nullptr)
    load_f32(a.weight + first * kVector, weight);
  open_row_sums(sums, cluster, groups);
  if constexpr (kVectors == 1) dependents_launch();
  inputs_wait();

  // Load.
  uint4 row[kVectors];
  uint4 part[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = first + i * step;
    row[i] = part[i] = {};
    if (vector >= end) continue;
    row[i] = load_row(x + token * x_stride + vector * kVector);
    if constexpr (kParts == Parts::kOneBf16) {
      part[i] = load_row(static_cast<const __nv_bfloat16*>(a.partial) + token * a.partial_stride +
                         vector * kVector);
    }
  }
  if constexpr (kVectors != 1 && kParts != Parts::kAny) dependents_launch();

  // Add.
  if constexpr (kParts != Parts::kNone) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = first + i * step;
      if (vector >= end) continue;
      float v[kVector];
      float sum[kVector];
      if constexpr (kParts == Parts::kOneBf16) {
        unpack_bf16(part[i], sum);
      } else {
        sum_parts(a, token * a.partial_stride + vector * kVector, sum);
      }
      unpack_bf16(row[i], v);
      add(sum, v);
      row[i] = pack_bf16(v);
      *reinterpret_cast<uint4*>(a.residual + token * a.residual_stride + vector * kVector) = row[i];
    }
  }
  if constexpr (kVectors != 1 && kParts == Parts::kAny) dependents_launch();

  // Reduce.
  await_cluster(cluster);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float v[kVector];
    unpack_bf16(row[i], v);
    const float sum = square_sum(v);
    const int group = (first + i * step) / kGroupLanes;
    // Else its first vector is out of range, so all are.
    if (group * kGroupLanes < end) send_row_sum(sums, cluster, group, sum);
  }
  await_row_sums(sums, cluster);
  const float factor = row_rsqrt(sums.group, groups, a.cols, a.eps);

  // Store.
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = first + i * step;
    const bool live = vector < end;
    if (!kEarlyWeight && live && a.weight != nullptr) load_f32(a.weight + vector * kVector, weight);
    float v[kVector];
    unpack_bf16(row[i], v);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] *= factor * weight[j];
    store_normed(v, a.out, token, vector, live);
  }
}

// ---- MLA ---------------------------------------------------------------------------------------

__device__ __forceinline__ ops::LatentFormat format_of(const MlaSplitNorm& a) {
  return {.dtype = DType::kF8E4M3, .latent = a.latent, .rope = a.rope};
}
// An e4m3 cache's block that holds a slot.
__device__ __forceinline__ uint8_t* block_of(const MlaSplitNorm& a, int64_t slot) {
  const int64_t bytes = a.cache.block_size * format_of(a).bytes_per_token();
  return static_cast<uint8_t*>(a.cache.data) + slot / a.cache.block_size * bytes;
}
template <bool kFp8>
__device__ __forceinline__ __nv_bfloat16* rope_of(const MlaSplitNorm& a, int64_t slot) {
  if constexpr (!kFp8) {
    return static_cast<__nv_bfloat16*>(a.cache.data) + slot * a.cache.width + a.latent;
  }
  const int64_t token = slot % a.cache.block_size;
  return reinterpret_cast<__nv_bfloat16*>(block_of(a, slot) +
                                          format_of(a).rope_offset(a.cache.block_size, token));
}

// Vector `vector` of a latent. All lanes of a warp call it, `live` or not, for the group's maximum.
template <bool kFp8>
__device__ __forceinline__ void store_latent(
    const MlaSplitNorm& a, int64_t slot, int vector, const float (&v)[kVector], bool live) {
  if constexpr (!kFp8) {
    if (!live) return;
    auto* row = static_cast<__nv_bfloat16*>(a.cache.data) + slot * a.cache.width;
    *reinterpret_cast<uint4*>(row + vector * kVector) = pack_bf16(v);
    return;
  }
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, fabsf(v[i]));
  const float scale = ops::LatentFormat::scale_of(half_warp_max(largest));
  if (!live) return;
  const float inverse = ops::LatentFormat::inverse_of(scale);
  uint32_t pairs[kVector / 2];
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    pairs[i] = __nv_cvt_float2_to_fp8x2(
        {v[2 * i] * inverse, v[2 * i + 1] * inverse}, __NV_SATFINITE, __NV_E4M3);
  }
  const ops::LatentFormat format = format_of(a);
  const int64_t token = slot % a.cache.block_size;
  const int group = vector / kGroupLanes;
  uint8_t* block = block_of(a, slot);
  uint8_t* codes = block + format.codes_offset(a.cache.block_size, group, token) +
                   vector % kGroupLanes * kVector;
  // Small blocks of odd sizes are aligned to 4 bytes alone.
  reinterpret_cast<uint32_t*>(codes)[0] = pairs[0] | pairs[1] << 16;
  reinterpret_cast<uint32_t*>(codes)[1] = pairs[2] | pairs[3] << 16;
  if (vector % kGroupLanes == 0) {
    reinterpret_cast<float*>(block + format.scales_offset(a.cache.block_size, token))[group] =
        scale;
  }
}

__device__ __forceinline__ void rotate_pair(const MlaSplitNorm& a,
                                            const __nv_bfloat16* k_pe,
                                            int64_t token,
                                            int64_t pair,
                                            __nv_bfloat16* out) {
  const int64_t pairs = a.rope / 2;
  const int64_t first = a.interleave ? 2 * pair : pair;
  const int64_t second = a.interleave ? first + 1 : pair + pairs;
  const float cos = a.cos_sin[token * a.rope + pair];
  const float sin = a.cos_sin[token * a.rope + pairs + pair];
  const float x = __bfloat162float(k_pe[first]);
  const float y = __bfloat162float(k_pe[second]);
  out[first] = __float2bfloat16_rn(x * cos - y * sin);
  out[second] = __float2bfloat16_rn(x * sin + y * cos);
}

// Block (b, 0): the latent rows of tokens kTokens b ...; (b, 1): their low-rank queries. One vector
// a thread and token; the last threads rotate. Several tokens a block keep more loads in flight
// where there are many.
template <int kTokens, bool kFp8>
__global__ void __launch_bounds__(kMaxThreads) mla_split_norm_bf16(MlaSplitNorm a) {
  __shared__ float group_sums[kTokens][kMaxThreads / kGroupLanes];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTokens;
  const bool query = blockIdx.y == 1;
  const int64_t cols = query ? a.q_lora : a.latent;
  const auto vector = static_cast<int>(threadIdx.x);
  const bool live = vector * kVector < cols;
  float weight[kVector] = {};
  if (live) load_f32((query ? a.q_weight : a.kv_weight) + vector * kVector, weight);
  if constexpr (kTokens == 1) dependents_launch();  // as in add_norm_bf16
  inputs_wait();

  const __nv_bfloat16* row = a.x + first * a.x_stride + (query ? 0 : a.q_lora);
  uint4 bits[kTokens];
  int64_t slot[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const bool mine = first + t < a.tokens;
    bits[t] = {};
    if (live && mine) bits[t] = load_row(row + t * a.x_stride + vector * kVector);
    slot[t] = mine ? (query ? 0 : a.slots[first + t]) : -1;
  }
  if constexpr (kTokens != 1) dependents_launch();
  if (!query) {
    for (int64_t pair = blockDim.x - 1 - threadIdx.x; pair < a.rope / 2; pair += blockDim.x) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (slot[t] < 0) continue;
        rotate_pair(a, row + t * a.x_stride + a.latent, first + t, pair, rope_of<kFp8>(a, slot[t]));
      }
    }
  }

#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    float v[kVector];
    unpack_bf16(bits[t], v);
    const float sum = square_sum(v);
    if (vector % kGroupLanes == 0) group_sums[t][vector / kGroupLanes] = sum;
  }
  __syncthreads();
  if (vector / 32 * 32 * kVector >= cols) return;  // this warp only rotates
  const int groups = static_cast<int>((cols + kGroup - 1) / kGroup);
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float factor = row_rsqrt(group_sums[t], groups, cols, a.eps);
    float v[kVector];
    unpack_bf16(bits[t], v);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] *= factor * weight[j];
    const bool stores = live && slot[t] >= 0;
    if (query) {
      store_normed(v, a.q, first + t, vector, stores);
    } else {
      store_latent<kFp8>(a, slot[t], vector, v, stores);
    }
  }
}

// Many tokens of R1's sizes with codes out and a bf16 cache: a warp a token. q_low and latent are
// 16 groups in a row, 8 a pass of the warp; four lanes hold a group, lane m of them the vectors m,
// m + 4, m + 8 and m + 12. So sums need two shuffles for 32 values, and no barrier. They are taken
// in the order of the form above: its bits are the same.
constexpr int kSplitQuery = 1536;
constexpr int kSplitLatent = 512;
constexpr int kSplitRope = 64;
constexpr int kSplitWarps = 2;  // of a block: small ones fill the registers of an SM best

__global__ void __launch_bounds__(32 * kSplitWarps) mla_split_norm_many(MlaSplitNorm a) {
  constexpr int kPasses = 2;
  constexpr int kVectors = 4;  // of a group and lane
  constexpr int kPassCols = (kSplitQuery + kSplitLatent) / kPasses;
  static_assert(kPassCols == 32 / kVectors * kGroup);
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kSplitWarps + threadIdx.x / 32;
  const int column = lane / 4 * kGroup + lane % 4 * kVector;  // of the lane's first vector
  const bool query = column < kSplitQuery - kPassCols;        // in the second pass
  const auto next = [](int vector) { return vector * kGroup / kVectors; };
  inputs_wait();
  if (token >= a.tokens) return;
  const __nv_bfloat16* row = a.x + token * a.x_stride;
  uint4 bits[kPasses][kVectors];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      bits[pass][i] = load_row(row + pass * kPassCols + column + next(i));
    }
  }
  const int64_t slot = a.slots[token];
  dependents_launch();
  if (slot >= 0) {
    rotate_pair(a, row + kSplitQuery + kSplitLatent, token, lane, rope_of<false>(a, slot));
  }

  float sums[kPasses];  // of the lane's group
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    float square[kVectors] = {};
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float v[kVector];
      unpack_bf16(bits[pass][i], v);
#pragma unroll
      for (int j = 0; j < kVector; ++j) square[i] = fmaf(v[j], v[j], square[i]);
    }
    float sum = (square[0] + square[2]) + (square[1] + square[3]);
    sum += __shfl_xor_sync(~0U, sum, 2);
    sums[pass] = sum + __shfl_xor_sync(~0U, sum, 1);
  }
  float q_sum = sums[0] + (query ? sums[1] : 0.F);
  float kv_sum = sums[1];  // in the lanes of the latent
  q_sum += __shfl_xor_sync(~0U, q_sum, 16);
#pragma unroll
  for (int lanes = 8; lanes >= 4; lanes /= 2) {
    q_sum += __shfl_xor_sync(~0U, q_sum, lanes);
    kv_sum += __shfl_xor_sync(~0U, kv_sum, lanes);
  }
  const float q_factor = rsqrtf(q_sum / kSplitQuery + a.eps);
  const float kv_factor = rsqrtf(kv_sum / kSplitLatent + a.eps);

#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const bool quantizes = pass == 0 || query;
    const float factor = quantizes ? q_factor : kv_factor;
    const float* weight = quantizes ? a.q_weight + pass * kPassCols + column
                                    : a.kv_weight + column - (kSplitQuery - kPassCols);
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float v[kVector];
      float w[kVector];
      unpack_bf16(bits[pass][i], v);
      load_f32(weight + next(i), w);
#pragma unroll
      for (int j = 0; j < kVector; ++j) v[j] *= factor * w[j];
      bits[pass][i] = pack_bf16(v);
      unpack_bf16(bits[pass][i], v);
#pragma unroll
      for (int j = 0; j < kVector; ++j) largest = fmaxf(largest, fabsf(v[j]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, 2));
    largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, 1));
    if (!quantizes) {
      if (slot < 0) continue;
      auto* to = static_cast<__nv_bfloat16*>(a.cache.data) + slot * a.cache.width + column -
                 (kSplitQuery - kPassCols);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) *reinterpret_cast<uint4*>(to + next(i)) = bits[pass][i];
      continue;
    }
    const GroupScale group = group_scale(largest);
    const int at = pass * kPassCols + column;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (a.q.bf16 != nullptr) {
        *reinterpret_cast<uint4*>(a.q.bf16 + token * a.q.stride + at + next(i)) = bits[pass][i];
      }
      float v[kVector];
      unpack_bf16(bits[pass][i], v);
      uint32_t pairs[kVector / 2];
#pragma unroll
      for (int j = 0; j < kVector / 2; ++j) {
        pairs[j] = code_pair(v[2 * j] * group.up, v[2 * j + 1] * group.up, group);
      }
      *reinterpret_cast<uint2*>(a.q.quantized.data + token * a.q.quantized.cols + at + next(i)) =
          make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
    }
    if (lane % 4 == 0) {
      a.q.quantized.scale[at / kGroup * a.q.quantized.scale_stride + token] = group.scale;
    }
  }
}

// ---- any size ----------------------------------------------------------------------------------

constexpr int kScalarThreads = 256;

// rsqrt(mean(square) + eps) of `cols` values of which thread t summed the squares of t, t + 256,
// ...
__device__ float scalar_rsqrt(float square, int64_t cols, float eps) {
  __shared__ float warp_sums[kScalarThreads / 32];
  square = warp_sum(square);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = square;
  __syncthreads();
  float sum = 0;
  for (const float s : warp_sums) sum += s;
  return rsqrtf(sum / static_cast<float>(cols) + eps);
}

__global__ void __launch_bounds__(kScalarThreads)
    add_norm_scalar(AddNorm a, const __nv_bfloat16* x, int64_t x_stride) {
  const auto token = static_cast<int64_t>(blockIdx.x);
  const __nv_bfloat16* row = x + token * x_stride;
  inputs_wait();
  dependents_launch();
  float square = 0;
  for (int64_t i = threadIdx.x; i < a.cols; i += kScalarThreads) {
    float v = __bfloat162float(row[i]);
    if (a.parts > 0) {
      float sum = 0;
      for (int p = 0; p < a.parts; ++p) {
        const int64_t at = p * a.part_stride + token * a.partial_stride + i;
        sum += a.partial_f32 ? static_cast<const float*>(a.partial)[at]
                             : __bfloat162float(static_cast<const __nv_bfloat16*>(a.partial)[at]);
      }
      const __nv_bfloat16 rounded = __float2bfloat16_rn(v + sum);
      a.residual[token * a.residual_stride + i] = rounded;
      v = __bfloat162float(rounded);
    }
    square = fmaf(v, v, square);
  }
  const float factor = scalar_rsqrt(square, a.cols, a.eps);
  if (a.out.bf16 == nullptr) return;
  for (int64_t i = threadIdx.x; i < a.cols; i += kScalarThreads) {
    const float v = __bfloat162float(row[i]);  // this thread's own write above, where it was one
    a.out.bf16[token * a.out.stride + i] = __float2bfloat16_rn(v * (factor * a.weight[i]));
  }
}

// A latent in e4m3, a warp a group; `value` gives its values.
template <typename Value>
__device__ void store_groups(const MlaSplitNorm& a, int64_t slot, const Value& value) {
  const ops::LatentFormat format = format_of(a);
  const int64_t token = slot % a.cache.block_size;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  uint8_t* block = block_of(a, slot);
  auto* scales = reinterpret_cast<float*>(block + format.scales_offset(a.cache.block_size, token));
  for (int64_t g = threadIdx.x / 32; g < format.groups(); g += kScalarThreads / 32) {
    const int64_t width = format.group_width(g);
    float largest = 0;
    for (int64_t i = lane; i < width; i += 32) {
      largest = fmaxf(largest, fabsf(value(g * format.kGroup + i)));
    }
    largest = half_warp_max(largest);
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, 16));
    const float scale = ops::LatentFormat::scale_of(largest);
    uint8_t* codes = block + format.codes_offset(a.cache.block_size, g, token);
    for (int64_t i = lane; i < width; i += 32) {
      codes[i] =
          __nv_cvt_float_to_fp8(value(g * format.kGroup + i) * ops::LatentFormat::inverse_of(scale),
                                __NV_SATFINITE,
                                __NV_E4M3);
    }
    if (lane == 0) scales[g] = scale;
  }
}

template <bool kFp8>
__global__ void __launch_bounds__(kScalarThreads) mla_split_norm_scalar(MlaSplitNorm a) {
  const auto token = static_cast<int64_t>(blockIdx.x);
  const bool query = blockIdx.y == 1;
  const int64_t cols = query ? a.q_lora : a.latent;
  const float* weight = query ? a.q_weight : a.kv_weight;
  inputs_wait();
  dependents_launch();
  const int64_t slot = query ? 0 : a.slots[token];
  if (slot < 0) return;
  const __nv_bfloat16* row = a.x + token * a.x_stride + (query ? 0 : a.q_lora);
  auto* out = query ? a.q.bf16 + token * a.q.stride
                    : static_cast<__nv_bfloat16*>(a.cache.data) + slot * a.cache.width;  // as bf16
  float square = 0;
  for (int64_t i = threadIdx.x; i < cols; i += kScalarThreads) {
    const float v = __bfloat162float(row[i]);
    square = fmaf(v, v, square);
  }
  const float factor = scalar_rsqrt(square, cols, a.eps);
  const auto normed = [&](int64_t i) { return __bfloat162float(row[i]) * (factor * weight[i]); };
  if (kFp8 && !query) {
    store_groups(a, slot, normed);
  } else {
    for (int64_t i = threadIdx.x; i < cols; i += kScalarThreads) {
      out[i] = __float2bfloat16_rn(normed(i));
    }
  }
  if (query) return;
  for (int64_t pair = threadIdx.x; pair < a.rope / 2; pair += kScalarThreads) {
    rotate_pair(a, row + a.latent, token, pair, rope_of<kFp8>(a, slot));
  }
}

// ---- launchers ---------------------------------------------------------------------------------

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}
template <typename... Sizes>
bool vectors(Sizes... sizes) {
  return ((sizes % kVector == 0) && ...);
}
int warps(int64_t threads) {
  return static_cast<int>((threads + 31) / 32 * 32);
}

bool takes_vectors(const NormOutput& out) {
  return aligned(out.bf16) && vectors(out.stride) && aligned(out.quantized.data);
}
// The quantized output exists in the vector form alone.
bool valid(const NormOutput& out, int64_t cols, bool fast) {
  return out.quantized.data == nullptr || (fast && out.quantized.scale != nullptr &&
                                           cols % kGroup == 0 && out.quantized.cols == cols);
}

struct RowPlan {
  int vectors = 1;  // a thread
  int threads = 0;
  int cluster = 1;
  int segment = 0;  // vectors of one CTA
};

RowPlan plan_rows(int64_t tokens, int64_t cols, int capability) {
  constexpr int64_t kEighths = 16;  // so many tokens over clusters of 8 CTAs: still one CTA an SM
  constexpr int64_t kQuarters = 32;
  constexpr int64_t kOneWave = 132;
  const int64_t total = (cols + kVector - 1) / kVector;
  RowPlan plan;
  if (capability >= 90 && tokens <= kQuarters && total >= kMaxCluster * kGroupLanes * 2) {
    plan.cluster = tokens <= kEighths ? kMaxCluster : kMaxCluster / 2;
  } else if (total > kMaxThreads) {
    plan.vectors = kMaxVectors;
  } else if (tokens > kOneWave) {
    plan.vectors = 4;
  }
  const int64_t per_cta = (total + plan.cluster - 1) / plan.cluster;
  plan.segment = static_cast<int>((per_cta + kGroupLanes - 1) / kGroupLanes * kGroupLanes);
  plan.threads = warps((plan.segment + plan.vectors - 1) / plan.vectors);
  return plan;
}

using RowKernel = void (*)(AddNorm, const __nv_bfloat16*, int64_t, int, int);
template <Parts kParts>
RowKernel row_kernel(int vectors) {
  if (vectors == 1) return &add_norm_bf16<1, kParts>;
  if (vectors == 4) return &add_norm_bf16<4, kParts>;
  return &add_norm_bf16<kMaxVectors, kParts>;
}

cudaError_t enqueue_rows(const AddNorm& a,
                         const __nv_bfloat16* x,
                         int64_t x_stride,
                         const Launch& launch) {
  const bool fast = vectors(a.cols, x_stride) && aligned(x) && takes_vectors(a.out) &&
                    aligned(a.weight) && a.cols <= kMaxCols &&
                    (a.parts == 0 || (vectors(a.partial_stride, a.part_stride, a.residual_stride) &&
                                      aligned(a.partial) && aligned(a.residual)));
  if (!valid(a.out, a.cols, fast)) return cudaErrorInvalidValue;
  if (!fast) {
    const Grid grid{.blocks = static_cast<unsigned>(a.tokens), .threads = kScalarThreads};
    return enqueue(add_norm_scalar, grid, launch, a, x, x_stride);
  }
  const RowPlan plan = plan_rows(a.tokens, a.cols, a.capability);
  const Grid grid{.blocks = static_cast<unsigned>(a.tokens * plan.cluster),
                  .threads = static_cast<unsigned>(plan.threads),
                  .cluster = plan.cluster};
  const RowKernel kernel = a.parts == 0 ? row_kernel<Parts::kNone>(plan.vectors)
                           : a.parts == 1 && !a.partial_f32
                               ? row_kernel<Parts::kOneBf16>(plan.vectors)
                               : row_kernel<Parts::kAny>(plan.vectors);
  return enqueue(kernel, grid, launch, a, x, x_stride, plan.cluster, plan.segment);
}

}  // namespace

cudaError_t rms_norm(const RmsNorm& a, const Launch& launch) {
  const bool wanted = a.out.bf16 != nullptr || a.out.quantized.data != nullptr;
  if (a.tokens < 0 || a.cols <= 0 || !wanted) return cudaErrorInvalidValue;
  if (a.tokens == 0) return cudaSuccess;
  if (a.x == nullptr || a.weight == nullptr) return cudaErrorInvalidValue;
  AddNorm norm{.parts = 0,
               .weight = a.weight,
               .eps = a.eps,
               .tokens = a.tokens,
               .cols = a.cols,
               .out = a.out,
               .capability = a.capability};
  if (norm.out.stride == 0) norm.out.stride = a.cols;
  return enqueue_rows(norm, a.x, a.x_stride != 0 ? a.x_stride : a.cols, launch);
}

cudaError_t add_norm(const AddNorm& arguments, const Launch& launch) {
  AddNorm a = arguments;
  const bool wanted = a.out.bf16 != nullptr || a.out.quantized.data != nullptr;
  if (a.tokens < 0 || a.cols <= 0 || a.parts < 0 || a.parts > AddNorm::kMaxParts)
    return cudaErrorInvalidValue;
  if (a.tokens == 0 || (a.parts == 0 && !wanted)) return cudaSuccess;
  if (a.residual == nullptr || (a.parts > 0 && a.partial == nullptr) ||
      (wanted && a.weight == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (a.partial_stride == 0) a.partial_stride = a.cols;
  if (a.part_stride == 0) a.part_stride = a.tokens * a.partial_stride;
  if (a.residual_stride == 0) a.residual_stride = a.cols;
  if (a.out.stride == 0) a.out.stride = a.cols;
  return enqueue_rows(a, a.residual, a.residual_stride, launch);
}

cudaError_t mla_split_norm(const MlaSplitNorm& arguments, const Launch& launch) {
  MlaSplitNorm a = arguments;
  if (a.tokens < 0 || a.q_lora < 0 || a.latent <= 0 || a.rope < 0 || a.rope % 2 != 0) {
    return cudaErrorInvalidValue;
  }
  if (a.tokens == 0) return cudaSuccess;
  const bool query = a.q_lora > 0;
  const bool q_wanted = a.q.bf16 != nullptr || a.q.quantized.data != nullptr;
  if (a.x == nullptr || a.kv_weight == nullptr || a.slots == nullptr || a.cache.data == nullptr ||
      a.cache.width != a.latent + a.rope || (a.rope > 0 && a.cos_sin == nullptr) ||
      (query && (a.q_weight == nullptr || !q_wanted))) {
    return cudaErrorInvalidValue;
  }
  if (!query) a.q = NormOutput{};
  if (a.x_stride == 0) a.x_stride = a.q_lora + a.latent + a.rope;
  if (a.q.stride == 0) a.q.stride = a.q_lora;
  const int64_t longest = std::max(a.q_lora, a.latent);
  const bool fast = vectors(a.q_lora, a.latent, a.x_stride, int64_t{a.cache.width}) &&
                    aligned(a.x) && aligned(a.cache.data) && aligned(a.kv_weight) &&
                    aligned(a.q_weight) && takes_vectors(a.q) &&
                    longest <= int64_t{kVector} * kMaxThreads;
  if (query && !valid(a.q, a.q_lora, fast)) return cudaErrorInvalidValue;
  const bool fp8 = a.cache.dtype == DType::kF8E4M3;
  const ops::LatentFormat format{.dtype = a.cache.dtype, .latent = a.latent, .rope = a.rope};
  if (a.cache.dtype == DType::kF32 || !format.valid() || (fp8 && a.cache.block_size <= 0)) {
    return cudaErrorInvalidValue;
  }
  const dim3 blocks(static_cast<unsigned>(a.tokens), query ? 2 : 1);
  if (!fast) {
    return enqueue(fp8 ? mla_split_norm_scalar<true> : mla_split_norm_scalar<false>,
                   {.blocks = blocks, .threads = kScalarThreads},
                   launch,
                   a);
  }
  // The last threads rotate while the first ones norm, up to a point.
  const int64_t latent_threads = a.latent / kVector + std::min<int64_t>(a.rope / 2, 64);
  const int64_t threads =
      std::min<int64_t>(kMaxThreads, warps(std::max(a.q_lora / kVector, latent_threads)));
  constexpr int kManyTokens = 512;
  constexpr int kTokens = 4;
  Grid grid{.blocks = blocks, .threads = static_cast<unsigned>(threads)};
  if (a.tokens <= kManyTokens) {
    return enqueue(
        fp8 ? mla_split_norm_bf16<1, true> : mla_split_norm_bf16<1, false>, grid, launch, a);
  }
  if (!fp8 && a.q_lora == kSplitQuery && a.latent == kSplitLatent && a.rope == kSplitRope &&
      a.q.quantized.data != nullptr) {
    const auto warp_blocks = static_cast<unsigned>((a.tokens + kSplitWarps - 1) / kSplitWarps);
    return enqueue(mla_split_norm_many, {warp_blocks, 32 * kSplitWarps}, launch, a);
  }
  grid.blocks.x = static_cast<unsigned>((a.tokens + kTokens - 1) / kTokens);
  return enqueue(fp8 ? mla_split_norm_bf16<kTokens, true> : mla_split_norm_bf16<kTokens, false>,
                 grid,
                 launch,
                 a);
}

}  // namespace r1d::kernels
