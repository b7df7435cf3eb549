// SPDX-License-Identifier: Apache-2.0
// Reading operands of any dtype and alignment, eight consecutive elements at a time.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "r1d/ops/tensor.h"

#include "kernels/common/ptx.cuh"

namespace r1d::kernels::generic {

// Every kernel here begins with it: none reads or writes anything before its predecessors are done,
// and its successor may always be set up early.
__device__ __forceinline__ void begin_dependent_kernel() {
#ifdef R1D_SM90
  grid_dependency_wait();
  grid_launch_dependents();
#endif
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000U)};
}

// Two e4m3 codes, exactly. sm_80 has no instruction for it: there an e4m3 code, its fields moved,
// is an f16 of 1/256 the value (biases 7 and 15), subnormals included; its NaN, which no sound
// weight holds, reads as 480.
__device__ __forceinline__ float2 widen_e4m3(uint32_t two_codes) {
#if __CUDA_ARCH__ >= 890
  const __half2_raw halves =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two_codes & 0xFFFFU), __NV_E4M3);
  return __half22float2(__half2(halves));
#else
  const uint32_t spread =
      __byte_perm(two_codes, 0, 0x1404);  // code 0 to bits 8..15, code 1 to bits 24..31
  const uint32_t moved = (spread & 0x80008000U) | ((spread & 0x7F007F00U) >> 1);
  const float2 small = __half22float2(*reinterpret_cast<const __half2*>(&moved));
  return {small.x * 256.0F, small.y * 256.0F};
#endif
}

template <typename T>
__host__ __device__ __forceinline__ bool aligned_16(const T* pointer) {
  return (reinterpret_cast<uintptr_t>(pointer) & 15U) == 0;
}

// 16 or 8 bytes, or zeros when !valid; `from` may then be anything. Volatile, so that a group of
// loads stays ahead of the products that use them: left alone, the compiler sinks each load to its
// use.
__device__ __forceinline__ uint4 load_16(const void* from, bool valid) {
  uint4 v;
  asm volatile(
      "{\n.reg .pred valid;\n"
      "setp.ne.b32 valid, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@valid ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<uint32_t>(valid))
      : "memory");
  return v;
}
__device__ __forceinline__ uint2 load_8(const void* from, bool valid) {
  uint2 v;
  asm volatile(
      "{\n.reg .pred valid;\n"
      "setp.ne.b32 valid, %3, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\n"
      "@valid ld.global.v2.b32 {%0, %1}, [%2];\n}"
      : "=&r"(v.x), "=&r"(v.y)
      : "l"(from), "r"(static_cast<uint32_t>(valid))
      : "memory");
  return v;
}

// 8 bytes global -> shared past the registers; zeros when !valid. `from` must be a mapped address
// even then.
__device__ __forceinline__ void cp_async_8(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ uint4 pack8_bf16(const float (&values)[8]) {
  return {pack_bf16(values[0], values[1]),
          pack_bf16(values[2], values[3]),
          pack_bf16(values[4], values[5]),
          pack_bf16(values[6], values[7])};
}

__device__ __forceinline__ void unpack8_bf16(const uint4& bits, float (&values)[8]) {
  const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = unpack_bf16(pairs[i]);
    values[2 * i] = two.x;
    values[2 * i + 1] = two.y;
  }
}

// One row of activations, bf16 or f32. Elements past `cols`, and those of a missing row, read as 0.
template <typename T>
struct ActivationRow {
  const T* data;  // null: a missing row
  int32_t cols;
  bool vector;  // a row that starts at 16 bytes and holds whole groups of 8

  __device__ ActivationRow(const T* row, int64_t num_cols)
      : data(row),
        cols(static_cast<int32_t>(num_cols)),
        vector(row != nullptr && aligned_16(row) && num_cols % 8 == 0) {}

  __device__ __forceinline__ bool has(int32_t col) const { return data != nullptr && col < cols; }

  // Eight bf16 values from column `col`, a multiple of 8.
  __device__ __forceinline__ uint4 load8_bf16(int32_t col) const {
    static_assert(sizeof(T) == 2);
    if (!has(col)) return {0, 0, 0, 0};
    if (vector) return *reinterpret_cast<const uint4*>(data + col);
    const auto* bits = reinterpret_cast<const uint16_t*>(data) + col;
    uint32_t pairs[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (col + i < cols) pairs[i / 2] |= static_cast<uint32_t>(bits[i]) << (16 * (i % 2));
    }
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
  }

  __device__ __forceinline__ void load8_f32(int32_t col, float (&values)[8]) const {
    if constexpr (sizeof(T) == 2) {
      unpack8_bf16(load8_bf16(col), values);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = 0;
      if (!has(col)) return;
      if (vector) {
        *reinterpret_cast<float4*>(values) = reinterpret_cast<const float4*>(data + col)[0];
        *reinterpret_cast<float4*>(values + 4) = reinterpret_cast<const float4*>(data + col)[1];
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (col + i < cols) values[i] = data[col + i];
        }
      }
    }
  }
};

// One row of a weight matrix; elements outside the matrix read as 0.
template <DType kDType>
struct WeightRow {
  static constexpr bool kFp8 = kDType == DType::kF8E4M3;
  static constexpr int kBytes = static_cast<int>(dtype_bytes(kDType));
  static constexpr int kScaleBlock = ops::Matrix::kScaleBlock;

  // Eight weights as they lie in memory.
  struct alignas(kFp8 ? 8 : 16) Raw {
    uint32_t words[2 * kBytes];
  };

  const uint8_t* data;  // null: no such row
  const float* scales;  // of the row's scale blocks
  int32_t cols;
  int32_t scale_offset;  // columns of the first scale block that lie before the row
  bool vector;           // groups of 8: all inside or all outside, aligned, under one scale

  __device__ WeightRow(const ops::Matrix& w, int32_t row)
      : data(row < w.rows
                 ? static_cast<const uint8_t*>(w.data) + static_cast<int64_t>(row) * w.cols * kBytes
                 : nullptr),
        scales(nullptr),
        cols(static_cast<int32_t>(w.cols)),
        scale_offset(w.scale_col_offset),
        vector(aligned_16(w.data) && w.cols % 8 == 0 && (!kFp8 || w.scale_col_offset % 8 == 0)) {
    if (kFp8 && data != nullptr) {
      scales =
          w.scale + static_cast<int64_t>((row + w.scale_row_offset) / kScaleBlock) * w.scale_cols;
    }
  }

  __device__ __forceinline__ bool has(int32_t col) const { return data != nullptr && col < cols; }

  __device__ __forceinline__ float scale(int32_t col) const {
    return kFp8 && has(col) ? scales[(col + scale_offset) / kScaleBlock] : 0.0F;
  }

  // Columns col .. col + 7, `col` a multiple of 8; only where `vector`.
  __device__ __forceinline__ Raw load8(int32_t col) const {
    Raw raw;
    const uint8_t* from = data + static_cast<int64_t>(col) * kBytes;
    if constexpr (kFp8) {
      const uint2 two = load_8(from, has(col));
      raw.words[0] = two.x;
      raw.words[1] = two.y;
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 2; ++i) {
        const uint4 four = load_16(from + 16 * i, has(col));
        raw.words[4 * i] = four.x;
        raw.words[4 * i + 1] = four.y;
        raw.words[4 * i + 2] = four.z;
        raw.words[4 * i + 3] = four.w;
      }
    }
    return raw;
  }

  __device__ static __forceinline__ void widen(const Raw& raw, float scale, float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 two;
      if constexpr (kFp8) {
        two = widen_e4m3(raw.words[i / 2] >> (16 * (i % 2)));
        two.x *= scale;
        two.y *= scale;
      } else if constexpr (kDType == DType::kBF16) {
        two = unpack_bf16(raw.words[i]);
      } else {
        two = {__uint_as_float(raw.words[2 * i]), __uint_as_float(raw.words[2 * i + 1])};
      }
      values[2 * i] = two.x;
      values[2 * i + 1] = two.y;
    }
  }
  __device__ static __forceinline__ uint4 widen_bf16(const Raw& raw, float scale) {
    if constexpr (kDType == DType::kBF16) {
      return {raw.words[0], raw.words[1], raw.words[2], raw.words[3]};
    } else {
      float values[8];
      widen(raw, scale, values);
      return pack8_bf16(values);
    }
  }

  // Any alignment, element by element.
  __device__ __forceinline__ void load8_slow(int32_t col, float (&values)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      values[i] = 0;
      if (!has(col + i)) continue;
      const uint8_t* from = data + static_cast<int64_t>(col + i) * kBytes;
      if constexpr (kFp8) {
        values[i] = widen_e4m3(*from).x * scale(col + i);
      } else if constexpr (kDType == DType::kBF16) {
        values[i] = __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(from));
      } else {
        values[i] = *reinterpret_cast<const float*>(from);
      }
    }
  }
  __device__ __forceinline__ uint4 load8_slow_bf16(int32_t col) const {
    float values[8];
    load8_slow(col, values);
    return pack8_bf16(values);
  }

  __device__ __forceinline__ void load8_f32(int32_t col, float (&values)[8]) const {
    if (vector) {
      widen(load8(col), scale(col), values);
    } else {
      load8_slow(col, values);
    }
  }
};

// Eight exact f32 weights of a dtype known at run time.
__device__ __forceinline__ void load8_weights_f32(const ops::Matrix& w,
                                                  int32_t row,
                                                  int32_t col,
                                                  float (&values)[8]) {
  switch (w.dtype) {
    case DType::kBF16:
      return WeightRow<DType::kBF16>(w, row).load8_f32(col, values);
    case DType::kF32:
      return WeightRow<DType::kF32>(w, row).load8_f32(col, values);
    case DType::kF8E4M3:
      return WeightRow<DType::kF8E4M3>(w, row).load8_f32(col, values);
  }
}

}  // namespace r1d::kernels::generic
