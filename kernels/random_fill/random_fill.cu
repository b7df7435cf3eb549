// SPDX-License-Identifier: Apache-2.0
// Problem   out[r, c] = center + amplitude * u(key, row, col), u uniform in [-1, 1): the values of
//           checkpoint::make_dummy_source.
// Layout    out dense row-major; one 64-bit hash gives 8 bytes of a row, the columns
//           [g * n, g * n + n) with n = 8 / sizeof(T).
// Bound     one write: 85 GB, a rank of eight of R1, in 20 ms at 4.3 TB/s. A hash is about 60
//           integer instructions, and those set the time.
// Launch    256 threads a block; a thread makes 16 bytes (two hashes) where every row begins
// 16-byte
//           aligned, else one hash.
// Numerics  bit for bit the CPU's: multiplication and addition are rounded apart.
// Source    base/random.h (SplitMix64).
#include <algorithm>
#include <bit>

#include "r1d/base/random.h"

#include "kernels/common/ptx.cuh"
#include "kernels/random_fill/random_fill.h"

namespace r1d::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kHashBytes = 8;
constexpr float kF8Largest = 448;

// A byte of a hash -> the e4m3 code nearest to a uniform value over the format's range.
struct F8Table {
  uint8_t code[256];
};
F8Table make_f8_table() {
  F8Table table{};
  for (int i = 0; i < 256; ++i) {
    const float unit = (static_cast<float>(i) - 127.5F) / 127.5F;
    table.code[i] = f32_to_f8e4m3(unit * kF8Largest);
  }
  return table;
}

// The elements of one hash, in the order of the columns; bits are the bytes to store.
template <DType kType>
__device__ __forceinline__ uint64_t
elements(uint64_t bits, float center, float step, const uint8_t* codes) {
  uint64_t out = 0;
  if constexpr (kType == DType::kF32) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto integer = static_cast<int32_t>(bits >> (32 * i));
      const float value = __fadd_rn(center, __fmul_rn(step, static_cast<float>(integer)));
      out |= static_cast<uint64_t>(__float_as_uint(value)) << (32 * i);
    }
  } else if constexpr (kType == DType::kBF16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto integer = static_cast<int16_t>(bits >> (16 * i));
      const float value = __fadd_rn(center, __fmul_rn(step, static_cast<float>(integer)));
      out |= static_cast<uint64_t>(f32_to_bf16(value)) << (16 * i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      out |= static_cast<uint64_t>(codes[(bits >> (8 * i)) & 0xFF]) << (8 * i);
    }
  }
  return out;
}

// `groups`: hashes that a row of the slice touches. kWide: rows are whole pairs of hashes, 16-byte
// aligned.
template <DType kType, bool kWide>
__global__ void __launch_bounds__(kThreads) fill(RandomFill fill,
                                                 int64_t groups,
                                                 float step,
                                                 const __grid_constant__ F8Table table,
                                                 std::byte* out) {
  constexpr int kBytes = static_cast<int>(dtype_bytes(kType));
  constexpr int kCols = kHashBytes / kBytes;
  constexpr int kHashes = kWide ? 2 : 1;
  __shared__ uint8_t codes[256];
  if constexpr (kType == DType::kF8E4M3) {
    codes[threadIdx.x] = table.code[threadIdx.x];
    __syncthreads();
  }
#ifdef R1D_SM90
  grid_dependency_wait();
  grid_launch_dependents();
#endif
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t units = groups / kHashes;  // per row
  const int64_t row_number = number / units;
  const int64_t row = fill.row_begin + row_number;
  if (row >= fill.row_end) return;
  const int64_t first_group = fill.col_begin / kCols + (number - row_number * units) * kHashes;
  uint64_t values[kHashes];
#pragma unroll
  for (int i = 0; i < kHashes; ++i) {
    const uint64_t counter =
        static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(first_group + i);
    values[i] = elements<kType>(base::random_bits(fill.key, counter), fill.center, step, codes);
  }
  const int64_t cols = fill.col_end - fill.col_begin;
  std::byte* const to = out + (row_number * cols + first_group * kCols - fill.col_begin) * kBytes;
  if constexpr (kWide) {
    __stcs(reinterpret_cast<ulonglong2*>(to), make_ulonglong2(values[0], values[1]));
  } else {
    for (int i = 0; i < kCols; ++i) {
      const int64_t col = first_group * kCols + i;
      if (col < fill.col_begin || col >= fill.col_end) continue;
      const uint64_t value = values[0] >> (8 * kBytes * i);
      if constexpr (kBytes == 4) reinterpret_cast<uint32_t*>(to)[i] = static_cast<uint32_t>(value);
      if constexpr (kBytes == 2) reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(value);
      if constexpr (kBytes == 1) reinterpret_cast<uint8_t*>(to)[i] = static_cast<uint8_t>(value);
    }
  }
}

template <DType kType>
cudaError_t enqueue_fill(
    const RandomFill& slice, float step, const F8Table& table, void* out, const Launch& launch) {
  constexpr int64_t kBytes = dtype_bytes(kType);
  constexpr int64_t kCols = kHashBytes / kBytes;
  const int64_t rows = slice.row_end - slice.row_begin;
  const int64_t cols = slice.col_end - slice.col_begin;
  const int64_t groups = (slice.col_end + kCols - 1) / kCols - slice.col_begin / kCols;
  const bool wide = slice.col_begin % kCols == 0 && cols * kBytes % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const int64_t threads = rows * groups / (wide ? 2 : 1);
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  const Grid grid{.blocks = dim3(static_cast<unsigned>(blocks)), .threads = dim3(kThreads)};
  auto* const bytes = static_cast<std::byte*>(out);
  if (wide) return enqueue(fill<kType, true>, grid, launch, slice, groups, step, table, bytes);
  return enqueue(fill<kType, false>, grid, launch, slice, groups, step, table, bytes);
}

}  // namespace

cudaError_t random_fill(const RandomFill& fill, void* out, const Launch& launch) {
  if (fill.row_begin < 0 || fill.row_end > INT32_MAX || fill.col_begin < 0 ||
      fill.col_end > int64_t{1} << 34 || fill.row_end < fill.row_begin ||
      fill.col_end < fill.col_begin) {
    return cudaErrorInvalidValue;
  }
  if (fill.row_begin == fill.row_end || fill.col_begin == fill.col_end) return cudaSuccess;
  static const F8Table table = make_f8_table();
  switch (fill.dtype) {
    case DType::kF32:
      return enqueue_fill<DType::kF32>(fill, fill.amplitude * 0x1p-31F, table, out, launch);
    case DType::kBF16:
      return enqueue_fill<DType::kBF16>(fill, fill.amplitude * 0x1p-15F, table, out, launch);
    case DType::kF8E4M3:
      return enqueue_fill<DType::kF8E4M3>(fill, 0, table, out, launch);
  }
  return cudaErrorInvalidValue;
}

}  // namespace r1d::kernels
