// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/layout.h"

namespace r1d::ops::cuda {

// Hands out aligned pieces of one allocation. Without a base it only counts, so that one layout
// function both measures and places.
class Arena {
 public:
  static constexpr size_t kAlignment = 1024;  // what wgmma's swizzle and the copy engine want

  explicit Arena(std::byte* base) : base_(base) {}

  template <typename T>
  [[nodiscard]] T* take(int64_t count) {
    const size_t offset = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset);
  }
  [[nodiscard]] kernels::QuantizedRows take_quantized(int64_t rows, int64_t cols) {
    const int64_t stride = (rows + 3) / 4 * 4;
    kernels::QuantizedRows quantized;
    quantized.data = take<uint8_t>(rows * cols);
    quantized.scale = take<float>((cols + 127) / 128 * stride);
    quantized.cols = cols;
    quantized.scale_stride = stride;
    return quantized;
  }
  [[nodiscard]] size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace r1d::ops::cuda
