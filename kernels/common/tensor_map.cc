// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/tensor_map.h"

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

}  // namespace

cudaError_t encode_2d(const TensorMap2d& matrix, CUtensorMap* map) {
  static const Encode encode = find_encode();
  if (encode == nullptr) return cudaErrorNotSupported;
  if (matrix.rows <= 0 || matrix.cols <= 0 || matrix.box_rows <= 0 || matrix.box_cols <= 0) {
    return cudaErrorInvalidValue;
  }
  const int64_t dense = matrix.cols * dtype_bytes(matrix.dtype);
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(matrix.cols),
                               static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t strides[1] = {
      static_cast<cuuint64_t>(matrix.stride_bytes != 0 ? matrix.stride_bytes : dense)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(matrix.box_cols),
                             static_cast<cuuint32_t>(matrix.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = encode(map,
                                 data_type(matrix.dtype),
                                 2,
                                 const_cast<void*>(matrix.data),
                                 sizes,
                                 strides,
                                 box,
                                 steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 swizzle_mode(matrix.swizzle),
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace r1d::kernels
