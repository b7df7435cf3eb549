// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "kernels/fp8_gemm_prefill/fp8_gemm_prefill.h"
#include "tests/kernels/prefill_data.h"

namespace r1d::kernels {
namespace {

using namespace test;

struct Shape {
  int32_t tokens;
  int64_t rows;
  int64_t cols;
};

double dot(const HostRows& x, int64_t t, const HostMatrix& w, int64_t r, int64_t cols) {
  double sum = 0;
  for (int64_t k = 0; k < cols; ++k) sum += static_cast<double>(x.at(t, k)) * w.at(0, r, k);
  return sum;
}

// Runs one product into a poisoned output with a padded stride; checks a sample against the
// reference and everything else for having been written, or left alone.
void check_product(const Shape& s,
                   const Fp8PrefillTile& tile,
                   HostRows& x,
                   HostMatrix& w,
                   bool dependent = false) {
  SCOPED_TRACE(testing::Message() << s.tokens << " x " << s.rows << " x " << s.cols << " tile "
                                  << tile.block_rows << " x " << tile.block_cols << " k "
                                  << tile.k_groups << " split " << tile.split);
  const int64_t stride = s.rows + 8;
  DeviceArray<__nv_bfloat16> out(s.tokens * stride);
  R1D_MUST(fp8_gemm_prefill(
      w.device(), x.device(), s.tokens, out.data(), stride, tile, {.dependent = dependent}));
  const std::vector<__nv_bfloat16> raw = out.download();
  const auto* bits = reinterpret_cast<const uint16_t*>(raw.data());
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t r = 0; r < stride; ++r) {
      const uint16_t value = bits[t * stride + r];
      if (r < s.rows) {
        ASSERT_TRUE(std::isfinite(bf16_to_f32(value))) << "token " << t << " row " << r;
      } else {
        ASSERT_EQ(value, 0xFFFF) << "wrote beside the rows: token " << t << " row " << r;
      }
    }
  }
  std::vector<double> got;
  std::vector<double> want;
  std::mt19937_64 random(s.tokens + s.rows);
  const int64_t samples = std::min<int64_t>(int64_t{s.tokens} * s.rows, 20'000'000 / s.cols / 4);
  const auto sample = [&](int64_t t, int64_t r) {
    got.push_back(bf16_to_f32(bits[t * stride + r]));
    want.push_back(dot(x, t, w, r, s.cols));
  };
  for (int64_t i = 0; i < samples; ++i) sample(random() % s.tokens, random() % s.rows);
  for (int64_t r = s.rows - 64; r < s.rows; r += 7) sample(s.tokens - 1, r);
  EXPECT_LT(relative_l2(got, want), 3e-3);
}

TEST(Fp8GemmPrefillTest, EveryTileServesRaggedTokensAndRows) {
  R1D_NEEDS_GPU(90);
  const Shape shapes[] = {{1, 64, 128},
                          {65, 192, 256},
                          {130, 448, 384},
                          {257, 2112, 512},
                          {400, 320, 1152},
                          {17, 192, 7168},
                          {63, 128, 5248}};
  for (const Shape& s : shapes) {
    HostRows x(s.tokens, s.cols, 1);
    HostMatrix w(1, s.rows, s.cols, 2);
    for (const Fp8PrefillTile& tile : fp8_gemm_prefill_tiles()) {
      if (tile.split <= s.cols / 128) check_product(s, tile, x, w);
    }
  }
}

TEST(Fp8GemmPrefillTest, ChosenTileServesTheShapesOfR1) {
  R1D_NEEDS_GPU(90);
  const Shape shapes[] = {{64, 2112, 7168},
                          {33, 512, 7168},
                          {100, 2112, 7168},
                          {1000, 3072, 1536},
                          {4096, 512, 7168},
                          {777, 7168, 256},
                          {300, 7168, 2304}};
  for (const Shape& s : shapes) {
    HostRows x(s.tokens, s.cols, 3);
    HostMatrix w(1, s.rows, s.cols, 4);
    check_product(s, fp8_gemm_prefill_tile(s.tokens, s.rows, s.cols), x, w);
    check_product(s, fp8_gemm_prefill_tile(s.tokens, s.rows, s.cols, true), x, w, true);
  }
}

TEST(Fp8GemmPrefillTest, FixedOrderGivesATokenTheSameBitsInAnyBatch) {
  R1D_NEEDS_GPU(90);
  constexpr int64_t kRows = 1024;
  constexpr int64_t kCols = 1536;
  HostRows x(2000, kCols, 5);
  HostMatrix w(1, kRows, kCols, 6);
  DeviceArray<__nv_bfloat16> all(2000 * kRows);
  R1D_MUST(fp8_gemm_prefill(w.device(), x.device(), 2000, all.data(), kRows, true, {}));
  const std::vector<__nv_bfloat16> want = all.download();
  for (const int32_t tokens : {65, 200, 513}) {
    DeviceArray<__nv_bfloat16> some(tokens * kRows);
    R1D_MUST(fp8_gemm_prefill(w.device(), x.device(), tokens, some.data(), kRows, true, {}));
    const std::vector<__nv_bfloat16> got = some.download();
    EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * 2), 0) << tokens;
  }
}

TEST(Fp8GemmPrefillTest, SplitGivesATokenTheSameBitsInAnyBatch) {
  R1D_NEEDS_GPU(90);
  constexpr int64_t kRows = 320;
  constexpr int64_t kCols = 2560;
  const Fp8PrefillTile tile{.block_rows = 64, .block_cols = 64, .k_groups = 2, .split = 3};
  HostRows x(200, kCols, 15);
  HostMatrix w(1, kRows, kCols, 16);
  DeviceArray<__nv_bfloat16> all(200 * kRows);
  R1D_MUST(fp8_gemm_prefill(w.device(), x.device(), 200, all.data(), kRows, tile, {}));
  const std::vector<__nv_bfloat16> want = all.download();
  for (const int32_t tokens : {1, 16, 17, 50, 129}) {
    DeviceArray<__nv_bfloat16> some(tokens * kRows);
    R1D_MUST(fp8_gemm_prefill(
        w.device(), x.device(), tokens, some.data(), kRows, tile, {.dependent = true}));
    const std::vector<__nv_bfloat16> got = some.download();
    EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * 2), 0) << tokens;
  }
}

TEST(Fp8GemmPrefillTest, RefusesShapesItDoesNotServe) {
  const TiledMatrix w{nullptr, nullptr, 96, 128};
  const QuantizedRows x{nullptr, nullptr, 128, 64};
  EXPECT_EQ(fp8_gemm_prefill(w, x, 64, nullptr, 96, false, {}), cudaErrorInvalidValue);
  EXPECT_EQ(fp8_gemm_prefill({nullptr, nullptr, 64, 256}, x, 64, nullptr, 64, false, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(fp8_gemm_prefill(
                {nullptr, nullptr, 64, 128}, x, 64, nullptr, 64, Fp8PrefillTile{.split = 2}, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(fp8_gemm_prefill({nullptr, nullptr, 64, 128}, x, 65, nullptr, 64, false, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(fp8_gemm_prefill({nullptr, nullptr, 64, 128}, x, 64, nullptr, 60, false, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(fp8_gemm_prefill({nullptr, nullptr, 64, 128}, x, 0, nullptr, 64, false, {}),
            cudaSuccess);
}

TEST(Fp8GemmPrefillTest, TileFollowsTheShape) {
  EXPECT_EQ(fp8_gemm_prefill_tile(4096, 2112, 7168).block_rows, 128);
  EXPECT_EQ(fp8_gemm_prefill_tile(100, 2112, 7168).block_rows, 64);
  EXPECT_EQ(fp8_gemm_prefill_tile(64, 2112, 7168).split, 3);
  EXPECT_EQ(fp8_gemm_prefill_tile(64, 2112, 7168, true).split, 0);
  EXPECT_EQ(fp8_gemm_prefill_tile(65, 2112, 7168).split, 0);
  EXPECT_EQ(fp8_gemm_prefill_tile(64, 7168, 2048).split, 0);
  for (const int32_t tokens : {65, 100, 1000})
    EXPECT_EQ(fp8_gemm_prefill_tile(tokens, 512, 7168, true).k_groups, 1);
}

struct GateUpShape {
  int32_t tokens;
  int64_t intermediate;
  int64_t cols;
};

TEST(Fp8GateUpPrefillTest, QuantizesEachGroupOf128) {
  R1D_NEEDS_GPU(90);
  const GateUpShape shapes[] = {{1, 128, 128},
                                {129, 256, 384},
                                {700, 2304, 7168},
                                {300, 256, 7168},
                                {2500, 256, 512},
                                {5000, 512, 256}};
  for (const GateUpShape& s : shapes) {
    SCOPED_TRACE(testing::Message() << s.tokens << " " << s.intermediate << " " << s.cols);
    HostRows x(s.tokens, s.cols, 7);
    HostGateUp w(1, s.intermediate, s.cols, 8);
    OutputRows out(s.tokens + 3, s.intermediate);
    R1D_MUST(fp8_gate_up_prefill(w.device(), x.device(), s.tokens, out.device(), {}));
    out.fetch();
    out.expect_untouched_from(s.tokens);
    std::mt19937_64 random(9);
    for (int i = 0; i < 24; ++i) {
      const int64_t t = i == 0 ? s.tokens - 1 : random() % s.tokens;
      const int64_t group = i == 0 ? s.intermediate / 128 - 1 : random() % (s.intermediate / 128);
      std::array<double, 128> want;
      for (int64_t j = 0; j < 128; ++j) {
        want[j] = w.swiglu(0, group * 128 + j, [&](int64_t k) { return x.at(t, k); });
      }
      out.expect_group(t, group, want);
    }
  }
}

TEST(Fp8GateUpPrefillTest, GivesATokenTheSameBitsInAnyBatch) {
  R1D_NEEDS_GPU(90);
  HostRows x(5000, 1024, 13);
  HostGateUp w(1, 256, 1024, 14);
  OutputRows all(5000, 256);
  R1D_MUST(fp8_gate_up_prefill(w.device(), x.device(), 5000, all.device(), {}));
  all.fetch();
  for (const int32_t tokens : {65, 1500, 3000}) {
    OutputRows some(tokens, 256);
    R1D_MUST(
        fp8_gate_up_prefill(w.device(), x.device(), tokens, some.device(), {.dependent = true}));
    some.fetch();
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < 256; ++i)
        ASSERT_EQ(some.at(t, i), all.at(t, i)) << tokens << " tokens, " << t << ", " << i;
    }
  }
}

TEST(Fp8GateUpPrefillTest, GroupOfZerosHasScaleOne) {
  R1D_NEEDS_GPU(90);
  HostGateUp w(1, 128, 128, 10);
  DeviceArray<uint8_t> data(65 * 128, 0);
  DeviceArray<float> scale(std::vector<float>(68, 1.0F));
  OutputRows out(65, 128);
  R1D_MUST(
      fp8_gate_up_prefill(w.device(), {data.data(), scale.data(), 128, 68}, 65, out.device(), {}));
  out.fetch();
  for (int64_t t = 0; t < 65; ++t) {
    EXPECT_EQ(out.scale(t, 0), 1.0F);
    for (int64_t k = 0; k < 128; ++k) ASSERT_EQ(out.at(t, k), 0.0F);
  }
}

TEST(Fp8GateUpPrefillTest, ServesAnyMultipleOf32AsBf16) {
  R1D_NEEDS_GPU(90);
  const GateUpShape shapes[] = {{1, 32, 128}, {129, 160, 384}, {300, 320, 1024}};
  for (const GateUpShape& s : shapes) {
    SCOPED_TRACE(testing::Message() << s.tokens << " " << s.intermediate << " " << s.cols);
    HostRows x(s.tokens, s.cols, 11);
    HostGateUp w(1, s.intermediate, s.cols, 12);
    const int64_t stride = s.intermediate + 8;
    DeviceArray<uint16_t> out(s.tokens * stride);
    R1D_MUST(fp8_gate_up_prefill_bf16(w.device(),
                                      x.device(),
                                      s.tokens,
                                      reinterpret_cast<__nv_bfloat16*>(out.data()),
                                      stride,
                                      {}));
    const std::vector<uint16_t> got = out.download();
    std::vector<double> values;
    std::vector<double> want;
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t i = s.intermediate; i < stride; ++i) ASSERT_EQ(got[t * stride + i], 0xFFFF);
      for (int64_t i = t % 5; i < s.intermediate; i += 5) {
        values.push_back(bf16_to_f32(got[t * stride + i]));
        want.push_back(w.swiglu(0, i, [&](int64_t k) { return x.at(t, k); }));
      }
    }
    EXPECT_LT(relative_l2(values, want), 3e-3);
  }
}

}  // namespace
}  // namespace r1d::kernels
