// SPDX-License-Identifier: Apache-2.0
// Problem   gather_latents: the step's latents from cache pages to packed rows, c in bf16 or
//           quantised by 1 x 128, k_pe in bf16. rotate_queries: q's 64 rope values, in place.
// Layout    cache [num_blocks, block_size, 576] bf16, or e4m3 as ops::LatentFormat has it; c
//           [S, 512], k_pe [S, 64]; q [T, H, 192]; cos_sin [T, 64] f32.
// Bound     bytes. gather: 1152 read and 1152 (bf16) or 656 (e4m3) written a row: 4.4 or 3.4 us for
//           8192 rows at 4.3 TB/s. rotate: 128 read and written a head: 33.6 MB and the angles for
//           8192 tokens of 16 heads, 8.3 us (less where q is still in L2).
// Launch    gather: a warp a row, 72 chunks of 16 bytes. rotate: a thread 8 pairs. No shared
// memory;
//           limited by memory latency at 2048 rows, by bandwidth at 8192.
// Numerics  scale = largest magnitude of 128 / 448, the quotient rounded as IEEE division, then to
//           nearest even; rotation in f32, rounded once.
// Source    DeepSeek-V3 report, section 3.3.2 (1x128 tiles); RoFormer, equation 34.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/common/ptx.cuh"
#include "kernels/mla_prefill/mla_prefill.h"

namespace r1d::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kCacheWidth = kMlaLatentDim + kMlaRopeDim;
constexpr int kChunk = 8;  // bf16 values of 16 bytes
constexpr int kGroupLanes = 128 / kChunk;

#ifdef R1D_SM90

// Two bf16 of one register, the lower half first.
__device__ __forceinline__ float2 unpack_bf16(uint32_t bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000));
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// (x, y) turned by the angle of this cosine and sine.
__device__ __forceinline__ float2 rotate(float x, float y, float cosine, float sine) {
  return make_float2(fmaf(x, cosine, -(y * sine)), fmaf(x, sine, y * cosine));
}
// One pair in one register.
__device__ __forceinline__ uint32_t rotate_pair(uint32_t pair, float cosine, float sine) {
  const float2 v = unpack_bf16(pair);
  const float2 r = rotate(v.x, v.y, cosine, sine);
  return pack_bf16(r.x, r.y);
}
// Two pairs, whose first values share a register and whose second values share another.
__device__ __forceinline__ void rotate_two(uint32_t& first,
                                           uint32_t& second,
                                           float2 cosine,
                                           float2 sine) {
  const float2 x = unpack_bf16(first);
  const float2 y = unpack_bf16(second);
  const float2 a = rotate(x.x, y.x, cosine.x, sine.x);
  const float2 b = rotate(x.y, y.y, cosine.y, sine.y);
  first = pack_bf16(a.x, b.x);
  second = pack_bf16(a.y, b.y);
}

// Quantises a lane's 8 values of a 128-column group that 16 lanes hold.
__device__ __forceinline__ uint2 quantise(uint4 bits, float* scale) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  float v[8];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack_bf16(words[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
    largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
  }
#pragma unroll
  for (int step = 1; step < kGroupLanes; step *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, step));
  }
  *scale = largest > 0 ? largest / 448.0F : 1.0F;
  const float inverse = 1.0F / *scale;
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // A quotient by one reciprocal for all: the residual's correction makes it the rounded x /
    // scale.
    const float quotient = v[i] * inverse;
    v[i] = fmaf(fmaf(-quotient, *scale, v[i]), inverse, quotient);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] =
        __nv_cvt_float2_to_fp8x2(make_float2(v[2 * i], v[2 * i + 1]), __NV_SATFINITE, __NV_E4M3);
  }
  return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

// A warp's row out of an e4m3 cache: a lane 16 codes, then 8 rope values or a scale.
template <bool kQuantised>
__device__ __forceinline__ void gather_codes(const GatherLatents& gather,
                                             int64_t block,
                                             int token,
                                             int64_t row,
                                             __nv_bfloat16* c,
                                             const QuantizedRows& rows) {
  const ops::LatentFormat format{
      .dtype = DType::kF8E4M3, .latent = kMlaLatentDim, .rope = kMlaRopeDim};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int size = gather.cache.block_size;
  const auto* from =
      static_cast<const uint8_t*>(gather.cache.data) + block * size * format.bytes_per_token();
  const int group = lane / 8;
  const uint4 codes =
      reinterpret_cast<const uint4*>(from + format.codes_offset(size, group, token))[lane % 8];
  const auto* scales = reinterpret_cast<const float*>(from + format.scales_offset(size, token));
  const float scale = scales[kQuantised ? lane % 4 : group];
  if (lane < kMlaRopeDim / kChunk) {
    reinterpret_cast<uint4*>(gather.k_pe + row * kMlaRopeDim)[lane] =
        reinterpret_cast<const uint4*>(from + format.rope_offset(size, token))[lane];
  }
  if constexpr (kQuantised) {
    reinterpret_cast<uint4*>(rows.data + row * rows.cols)[lane] = codes;
    if (lane < format.groups()) rows.scale[lane * rows.scale_stride + row] = scale;
    return;
  }
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  uint32_t pairs[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(
        static_cast<__nv_fp8x2_storage_t>(words[i / 2] >> (16 * (i % 2))), __NV_E4M3);
    const float2 values = __half22float2(__half2(halves));
    pairs[i] = pack_bf16(values.x * scale, values.y * scale);
  }
  auto* to = reinterpret_cast<uint4*>(c + row * kMlaLatentDim) + 2 * lane;
  to[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  to[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

// How many sequences begin at or before key row `row`.
__device__ __forceinline__ int sequences_until(const GatherLatents& gather, int64_t row) {
  int low = 0;
  int high = gather.num_sequences;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (gather.sequences[middle].key_begin <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

#endif  // R1D_SM90

template <bool kQuantised, bool kFp8>
__global__ void __launch_bounds__(kThreads)
    gather_latents_kernel(const GatherLatents gather, __nv_bfloat16* c, const QuantizedRows rows) {
#ifdef R1D_SM90
  grid_dependency_wait();
  grid_launch_dependents();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= gather.num_keys) return;
  const int until = sequences_until(gather, row);
  if (until == 0) return;
  const PrefillSequence sequence = gather.sequences[until - 1];
  const int64_t in_sequence = row - sequence.key_begin;
  if (in_sequence >= sequence.num_positions) return;
  const int position = sequence.position_begin + static_cast<int>(in_sequence);
  const int block_size = gather.cache.block_size;
  const int64_t block = gather.block_ids[sequence.block_begin + position / block_size];
  if constexpr (kFp8) {
    gather_codes<kQuantised>(gather, block, position % block_size, row, c, rows);
    return;
  }
  const auto* from =
      reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(gather.cache.data) +
                                     (block * block_size + position % block_size) * kCacheWidth);

  const bool has_rope = lane < kMlaRopeDim / kChunk;
  const uint4 latent[2] = {from[lane], from[lane + 32]};
  const uint4 rope = has_rope ? from[lane + 64] : uint4{};
  if (has_rope) reinterpret_cast<uint4*>(gather.k_pe + row * kMlaRopeDim)[lane] = rope;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int chunk = lane + 32 * half;
    if constexpr (kQuantised) {
      float scale;
      const uint2 data = quantise(latent[half], &scale);
      reinterpret_cast<uint2*>(rows.data + row * rows.cols)[chunk] = data;
      if (lane % kGroupLanes == 0) {
        rows.scale[chunk / kGroupLanes * rows.scale_stride + row] = scale;
      }
    } else {
      reinterpret_cast<uint4*>(c + row * kMlaLatentDim)[chunk] = latent[half];
    }
  }
#endif
}

__global__ void __launch_bounds__(kThreads) rotate_queries_kernel(
    __nv_bfloat16* q, const float* cos_sin, int64_t num_tokens, int num_heads, bool interleave) {
#ifdef R1D_SM90
  grid_dependency_wait();
  grid_launch_dependents();
  // A thread rotates 8 pairs: 16 neighbouring values, or 8 values and the 8 that stand 32 behind.
  constexpr int kThreadsPerHead = kMlaRopeDim / 16;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = index / kThreadsPerHead;  // token and head
  const int part = static_cast<int>(index % kThreadsPerHead);
  if (row >= num_tokens * num_heads) return;
  auto* values = reinterpret_cast<uint4*>(q + row * kMlaQueryDim + kMlaNopeDim);
  const int first = interleave ? 2 * part : part;
  const int second = interleave ? 2 * part + 1 : part + 4;
  const uint4 a = values[first];
  const uint4 b = values[second];
  const float* angle = cos_sin + row / num_heads * kMlaRopeDim + 8 * part;
  float cosine[8];
  float sine[8];
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    *reinterpret_cast<float4*>(cosine + i) = *reinterpret_cast<const float4*>(angle + i);
    *reinterpret_cast<float4*>(sine + i) = *reinterpret_cast<const float4*>(angle + 32 + i);
  }
  uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  if (interleave) {
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i] = rotate_pair(words[i], cosine[i], sine[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rotate_two(words[i],
                 words[4 + i],
                 make_float2(cosine[2 * i], cosine[2 * i + 1]),
                 make_float2(sine[2 * i], sine[2 * i + 1]));
    }
  }
  values[first] = make_uint4(words[0], words[1], words[2], words[3]);
  values[second] = make_uint4(words[4], words[5], words[6], words[7]);
#endif
}

template <bool kQuantised>
cudaError_t enqueue_gather(const GatherLatents& gather,
                           __nv_bfloat16* c,
                           const QuantizedRows& rows,
                           const Launch& launch) {
  if (gather.num_keys == 0 || gather.num_sequences == 0) return cudaSuccess;
  if (gather.num_keys < 0 || gather.num_sequences < 0 || gather.cache.width != kCacheWidth ||
      gather.cache.block_size <= 0 || gather.cache.dtype == DType::kF32) {
    return cudaErrorInvalidValue;
  }
  const auto blocks = static_cast<unsigned>((gather.num_keys + kWarps - 1) / kWarps);
  return enqueue(gather.cache.dtype == DType::kF8E4M3 ? gather_latents_kernel<kQuantised, true>
                                                      : gather_latents_kernel<kQuantised, false>,
                 {.blocks = {blocks}, .threads = {kThreads}},
                 launch,
                 gather,
                 c,
                 rows);
}

}  // namespace

cudaError_t gather_latents(const GatherLatents& gather, __nv_bfloat16* c, const Launch& launch) {
  return enqueue_gather<false>(gather, c, {}, launch);
}

cudaError_t gather_latents(const GatherLatents& gather,
                           const QuantizedRows& c,
                           const Launch& launch) {
  if (c.cols != kMlaLatentDim || c.scale_stride < gather.num_keys) return cudaErrorInvalidValue;
  return enqueue_gather<true>(gather, nullptr, c, launch);
}

cudaError_t rotate_queries(__nv_bfloat16* q,
                           const float* cos_sin,
                           int64_t num_tokens,
                           int64_t num_heads,
                           bool interleave,
                           const Launch& launch) {
  if (num_tokens == 0 || num_heads == 0) return cudaSuccess;
  if (num_tokens < 0 || num_heads < 0 || num_heads > INT32_MAX) return cudaErrorInvalidValue;
  const int64_t threads = num_tokens * num_heads * (kMlaRopeDim / 16);
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  return enqueue(rotate_queries_kernel,
                 {.blocks = {blocks}, .threads = {kThreads}},
                 launch,
                 q,
                 cos_sin,
                 num_tokens,
                 static_cast<int>(num_heads),
                 interleave);
}

}  // namespace r1d::kernels
