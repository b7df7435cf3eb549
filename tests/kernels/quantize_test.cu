// SPDX-License-Identifier: Apache-2.0
#include "kernels/quantize/quantize.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels::test {
namespace {

struct Expected {
  std::vector<uint8_t> codes;
  std::vector<float> scales;  // [cols / 128, scale_stride]; 0 where no row is
};

Expected quantized(
    const std::vector<float>& x, int64_t stride, int64_t rows, int64_t cols, int64_t scale_stride) {
  Expected expected;
  expected.codes.resize(static_cast<size_t>(rows * cols));
  expected.scales.resize(static_cast<size_t>(cols / 128 * scale_stride));
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t g = 0; g < cols / 128; ++g) {
      const float* const group = &x[static_cast<size_t>(t * stride + g * 128)];
      float largest = 0;
      for (int k = 0; k < 128; ++k) largest = std::max(largest, std::fabs(group[k]));
      const float scale = largest > 0 ? largest / 448.0F : 1.0F;
      expected.scales[static_cast<size_t>(g * scale_stride + t)] = scale;
      for (int k = 0; k < 128; ++k) {
        expected.codes[static_cast<size_t>(t * cols + g * 128 + k)] =
            f32_to_f8e4m3(group[k] / scale);
      }
    }
  }
  return expected;
}

void expect_exact(const std::vector<float>& wanted, int64_t stride, int64_t rows, int64_t cols) {
  const std::vector<uint16_t> bits = to_bf16(wanted);
  const int64_t scale_stride = (rows + 3) / 4 * 4;
  const Expected expected = quantized(from_bf16(bits), stride, rows, cols, scale_stride);
  const DeviceArray<uint16_t> x(bits);
  DeviceArray<uint8_t> codes(expected.codes.size());
  DeviceArray<float> scales(expected.scales.size());
  const QuantizedRows out{codes.data(), scales.data(), cols, scale_stride};
  ASSERT_EQ(quantize_rows(reinterpret_cast<const __nv_bfloat16*>(x.data()), stride, rows, out, {}),
            cudaSuccess);
  const std::vector<uint8_t> got_codes = codes.download();
  const std::vector<float> got_scales = scales.download();
  for (size_t i = 0; i < got_codes.size(); ++i) {
    // As values: the sign of a zero is free.
    ASSERT_EQ(f8e4m3_to_f32(got_codes[i]), f8e4m3_to_f32(expected.codes[i]))
        << "code " << i << " of " << rows << "x" << cols;
  }
  for (int64_t g = 0; g < cols / 128; ++g) {
    for (int64_t t = 0; t < scale_stride; ++t) {
      const auto at = static_cast<size_t>(g * scale_stride + t);
      if (t < rows) {
        ASSERT_EQ(got_scales[at], expected.scales[at]) << "group " << g << " row " << t;
      } else {
        ASSERT_TRUE(std::isnan(got_scales[at])) << "wrote the scale of a row that is not";
      }
    }
  }
}

TEST(QuantizeTest, CodesAndScalesAreThoseOfTheFormula) {
  R1D_NEEDS_GPU(80);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 128},
                                   {3, 256},
                                   {1, 7168},
                                   {17, 1536},
                                   {64, 7168},
                                   {1000, 2048}}) {
    expect_exact(random_floats(static_cast<size_t>(rows * cols), 7), cols, rows, cols);
  }
}

TEST(QuantizeTest, RowsMayLieApart) {
  R1D_NEEDS_GPU(80);
  expect_exact(random_floats(5 * 2112, 8), 2112, 5, 1536);
}

TEST(QuantizeTest, AGroupOfZerosHasScaleOne) {
  R1D_NEEDS_GPU(80);
  std::vector<float> x = random_floats(2 * 512, 9);
  std::fill(x.begin() + 128, x.begin() + 384, 0.0F);
  expect_exact(x, 512, 2, 512);
}

TEST(QuantizeTest, HoldsOverTheWholeRangeOfBf16) {
  R1D_NEEDS_GPU(80);
  // Row t is scaled by 2^(t - 126): from subnormal scales to the largest.
  constexpr int64_t kRows = 250;
  std::vector<float> x = random_floats(kRows * 256, 10, 0.25F);
  for (int64_t t = 0; t < kRows; ++t) {
    for (int64_t k = 0; k < 256; ++k) {
      x[static_cast<size_t>(t * 256 + k)] =
          std::ldexp(x[static_cast<size_t>(t * 256 + k)], static_cast<int>(t) - 126);
    }
  }
  expect_exact(x, 256, kRows, 256);
}

TEST(QuantizeTest, EveryMantissaUnderEveryLargestValueIsExact) {
  R1D_NEEDS_GPU(80);
  // Row m: groups of 128 whose largest value is 1 + m / 128; group e holds every mantissa at
  // exponent -e.
  constexpr int64_t kGroups = 20;
  std::vector<float> x;
  for (int m = 0; m < 128; ++m) {
    const float largest = 1.0F + static_cast<float>(m) / 128.0F;
    for (int e = 0; e < kGroups; ++e) {
      for (int k = 0; k < 128; ++k) {
        const float value = std::ldexp(1.0F + static_cast<float>(k) / 128.0F, -e);
        x.push_back(k == (e % 2 == 0 ? 127 : 0)
                        ? largest
                        : std::min(value, largest) * (k % 2 == 0 ? 1.0F : -1.0F));
      }
    }
  }
  expect_exact(x, kGroups * 128, 128, kGroups * 128);
}

TEST(QuantizeTest, RefusesRaggedShapesAndAcceptsNoRows) {
  R1D_NEEDS_GPU(80);
  DeviceArray<uint8_t> codes(256);
  DeviceArray<float> scales(4);
  DeviceArray<__nv_bfloat16> x(256);
  EXPECT_EQ(quantize_rows(x.data(), 128, 1, {codes.data(), scales.data(), 100, 4}, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(quantize_rows(x.data(), 132, 1, {codes.data(), scales.data(), 128, 4}, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(quantize_rows(x.data(), 128, 5, {codes.data(), scales.data(), 128, 4}, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(quantize_rows(x.data(), 128, 0, {codes.data(), scales.data(), 128, 4}, {}),
            cudaSuccess);
}

}  // namespace
}  // namespace r1d::kernels::test
