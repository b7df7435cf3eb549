// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/tensor_map.h"

#include <algorithm>

namespace r1d::kernels {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function through the runtime, so that nothing links against libcuda.
Encode find_encode() {
  constexpr unsigned kCuda12 = 12000;  // the version that brought it
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      "cuTensorMapEncodeTiled", &function, kCuda12, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Encode>(function);
}

CUtensorMapDataType data_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::kBF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kF8E4M3:
      break;
  }
  return CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

CUtensorMapSwizzle swizzle_mode(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::kNone:
      break;
    case Swizzle::k32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::k64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
  }
  return CU_TENSOR_MAP_SWIZZLE_NONE;
}

// Dimensions from the innermost on; strides are those of the second and later ones.
template <int kRank>
cudaError_t encode_box(const TensorMap2d& matrix,
                       const cuuint64_t (&sizes)[kRank],
                       const cuuint64_t (&strides)[kRank - 1],
                       const cuuint32_t (&box)[kRank],
                       CUtensorMapL2promotion promotion,
                       CUtensorMap* map) {
  static const Encode encode = find_encode();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint32_t steps[kRank];
  std::fill_n(steps, kRank, 1);
  const CUresult result = encode(map,
                                 data_type(matrix.dtype),
                                 kRank,
                                 const_cast<void*>(matrix.data),
                                 sizes,
                                 strides,
                                 box,
                                 steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 swizzle_mode(matrix.swizzle),
                                 promotion,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

bool has_sizes(const TensorMap2d& matrix) {
  return matrix.rows > 0 && matrix.cols > 0 && matrix.box_rows > 0 && matrix.box_cols > 0;
}

cuuint64_t row_stride(const TensorMap2d& matrix) {
  const int64_t dense = matrix.cols * dtype_bytes(matrix.dtype);
  return static_cast<cuuint64_t>(matrix.stride_bytes != 0 ? matrix.stride_bytes : dense);
}

}  // namespace

cudaError_t encode_2d(const TensorMap2d& matrix, CUtensorMap* map) {
  if (!has_sizes(matrix)) return cudaErrorInvalidValue;
  return encode_box<2>(
      matrix,
      {static_cast<cuuint64_t>(matrix.cols), static_cast<cuuint64_t>(matrix.rows)},
      {row_stride(matrix)},
      {static_cast<cuuint32_t>(matrix.box_cols), static_cast<cuuint32_t>(matrix.box_rows)},
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      map);
}

cudaError_t encode_slices(const TensorMap2d& matrix, int32_t slices, CUtensorMap* map) {
  constexpr int kGroup = 8;
  if (!has_sizes(matrix) || slices <= 0 || matrix.cols % matrix.box_cols != 0 ||
      matrix.rows % kGroup != 0 || matrix.box_rows % kGroup != 0) {
    return cudaErrorInvalidValue;
  }
  const auto width = static_cast<cuuint64_t>(matrix.box_cols);
  const auto row = row_stride(matrix);
  return encode_box<4>(matrix,
                       {width,
                        kGroup,
                        static_cast<cuuint64_t>(matrix.cols) / width,
                        static_cast<cuuint64_t>(matrix.rows / kGroup)},
                       {row, width * dtype_bytes(matrix.dtype), row * kGroup},
                       {static_cast<cuuint32_t>(matrix.box_cols),
                        kGroup,
                        static_cast<cuuint32_t>(slices),
                        static_cast<cuuint32_t>(matrix.box_rows / kGroup)},
                       CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                       map);
}

}  // namespace r1d::kernels
