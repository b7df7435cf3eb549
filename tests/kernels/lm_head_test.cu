// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include <gtest/gtest.h>

#include "kernels/lm_head/lm_head.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;
using test::from_bf16;

struct Case {
  int64_t m;
  int64_t n;
  int64_t k;
  bool gathered = false;
  bool bf16 = false;
  int64_t x_pad = 0;
  int64_t out_pad = 0;
};

// Seeded values in [-scale, scale), fast enough for 100 million.
std::vector<uint16_t> noise(int64_t count, uint64_t seed, float scale) {
  std::vector<uint16_t> bits(static_cast<size_t>(count));
  uint64_t state = seed * 0x9E3779B97F4A7C15U;
  for (uint16_t& b : bits) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    b = f32_to_bf16((static_cast<float>(state >> 40) * 0x1p-23F - 1) * scale);
  }
  return bits;
}

// A product's operands on host and device, and one run's outputs as floats.
class Problem {
 public:
  explicit Problem(const Case& c)
      : c_(c),
        x_rows_(c.m + 40),
        x_stride_(c.k + c.x_pad),
        w_(noise(c.n * c.k, 1, 0.1F)),
        x_(noise(x_rows_ * x_stride_, 2, 2)),
        d_w_(w_),
        d_x_(x_) {
    for (int64_t i = 0; i < c.m; ++i) {
      rows_.push_back(i % 11 == 7 ? -1 : static_cast<int32_t>((i * 37 + 5) % x_rows_));
    }
    d_rows_ = std::make_unique<DeviceArray<int32_t>>(rows_);
  }

  std::vector<float> run(const Bf16GemmPlan* plan) {
    const int64_t stride = c_.n + c_.out_pad;
    const auto size = static_cast<size_t>(c_.m * stride);
    DeviceArray<float> out_f32(size);
    DeviceArray<uint16_t> out_bf16(size);
    EXPECT_EQ(
        bf16_gemm_decode({.w = reinterpret_cast<const __nv_bfloat16*>(d_w_.data()),
                          .x = reinterpret_cast<const __nv_bfloat16*>(d_x_.data()),
                          .x_stride = x_stride_,
                          .rows = c_.gathered ? d_rows_->data() : nullptr,
                          .m = c_.m,
                          .n = c_.n,
                          .k = c_.k,
                          .out = c_.bf16 ? static_cast<void*>(out_bf16.data()) : out_f32.data(),
                          .out_bf16 = c_.bf16,
                          .out_stride = stride,
                          .deterministic = true,
                          .capability = test::compute_capability(),
                          .plan = plan},
                         {}),
        cudaSuccess);
    return c_.bf16 ? from_bf16(out_bf16.download()) : out_f32.download();
  }

  void check(const std::vector<float>& got) const {
    const int64_t stride = c_.n + c_.out_pad;
    // All of a small problem, else a sample with the corners.
    const int64_t step = std::max<int64_t>(1, c_.m * c_.n * c_.k / 8'000'000);
    for (int64_t at = 0; at < c_.m * c_.n;
         at += at + step < c_.m * c_.n ? step : std::max<int64_t>(1, c_.m * c_.n - 1 - at)) {
      check_one(got, at / c_.n, at % c_.n);
    }
    for (int64_t m = 0; m < c_.m; ++m) {
      check_one(got, m, c_.n - 1);
      for (int64_t n = c_.n; n < stride; ++n) {
        ASSERT_TRUE(std::isnan(got[static_cast<size_t>(m * stride + n)])) << "wrote between rows";
      }
    }
  }

 private:
  void check_one(const std::vector<float>& got, int64_t m, int64_t n) const {
    const int64_t row = c_.gathered ? rows_[static_cast<size_t>(m)] : m;
    double want = 0;
    double magnitude = 0;
    for (int64_t k = 0; k < c_.k && row >= 0; ++k) {
      const double product =
          static_cast<double>(bf16_to_f32(w_[static_cast<size_t>(n * c_.k + k)])) *
          bf16_to_f32(x_[static_cast<size_t>(row * x_stride_ + k)]);
      want += product;
      magnitude += std::abs(product);
    }
    const float value = got[static_cast<size_t>(m * (c_.n + c_.out_pad) + n)];
    const double tolerance = magnitude * 4e-6 + (c_.bf16 ? std::abs(want) * 0.004 : 0);
    ASSERT_LE(std::abs(value - want), tolerance)
        << "row " << m << " column " << n << ": " << value << ", not " << want;
  }

  Case c_;
  int64_t x_rows_;
  int64_t x_stride_;
  std::vector<uint16_t> w_;
  std::vector<uint16_t> x_;
  std::vector<int32_t> rows_;
  DeviceArray<uint16_t> d_w_;
  DeviceArray<uint16_t> d_x_;
  std::unique_ptr<DeviceArray<int32_t>> d_rows_;
};

void check(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.m << " rows, " << c.n << " x " << c.k << " gathered "
                                  << c.gathered);
  Problem problem(c);
  problem.check(problem.run(nullptr));
  const Bf16GemmPlan fast = plan_bf16_gemm(c.m, c.n, c.k, test::compute_capability(), false);
  if (c.m > 128) problem.check(problem.run(&fast));
  const Bf16GemmPlan mma = plan_bf16_gemm(c.m, c.n, c.k, 80, false);
  problem.check(problem.run(&mma));
}

TEST(LmHeadTest, SmallShapesAndEdges) {
  R1D_NEEDS_GPU(80);
  for (const int64_t m : {1, 2, 8, 9, 17, 33, 64, 65, 129, 256}) {
    check({.m = m, .n = 200, .k = 264, .gathered = true, .out_pad = 3});
    check({.m = m, .n = 64, .k = 64});
  }
  check({.m = 1, .n = 1, .k = 8});
  check({.m = 3, .n = 7, .k = 40, .gathered = true, .bf16 = true});
  check({.m = 5, .n = 129, .k = 2048, .x_pad = 8});
}

TEST(LmHeadTest, RealShapes) {
  R1D_NEEDS_GPU(80);
  for (const int64_t m : {1, 64}) {
    check({.m = m, .n = 1536, .k = 7168});
    check({.m = m, .n = 576, .k = 7168, .bf16 = true});
    check({.m = m, .n = 3072, .k = 1536});
    check({.m = m, .n = 7168, .k = 2048, .bf16 = true});
  }
  check({.m = 200, .n = 16160, .k = 7168, .gathered = true});
}

TEST(LmHeadTest, EveryPlanIsRight) {
  R1D_NEEDS_GPU(90);
  Problem problem({.m = 70, .n = 328, .k = 1096, .gathered = true});
  for (const auto& [rows, tokens] :
       {std::pair{64, 8}, {64, 16}, {64, 32}, {64, 64}, {128, 32}, {128, 64}, {128, 128}}) {
    for (const int split : {1, 2, 3, 4, 8}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << tokens << " split " << split);
      const Bf16GemmPlan plan{.tile_rows = rows, .tile_tokens = tokens, .split = split};
      problem.check(problem.run(&plan));
    }
  }
}

TEST(LmHeadTest, ARowsBitsDoNotDependOnTheBatch) {
  R1D_NEEDS_GPU(80);
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{576, 7168}, {3000, 1536}}) {
    Problem large({.m = 256, .n = n, .k = k});
    const auto all = large.run(nullptr);
    for (const int64_t m : {1, 8, 9, 20, 40, 70, 130}) {
      // The same seed: its weights are equal, and its rows the first of the larger problem's.
      Problem small({.m = m, .n = n, .k = k});
      const auto some = small.run(nullptr);
      EXPECT_EQ(std::memcmp(some.data(), all.data(), some.size() * sizeof(float)), 0)
          << m << " of 256 rows, N " << n;
    }
  }
}

TEST(LmHeadTest, ADependentChainGivesTheSameBits) {
  R1D_NEEDS_GPU(90);
  for (const int64_t size : {512, 2048}) {
    for (const int64_t m : {1, 40, 100}) {
      DeviceArray<uint16_t> w(noise(size * size, 5, 0.05F));
      DeviceArray<uint16_t> x(static_cast<size_t>(m * size));
      DeviceArray<uint16_t> y(static_cast<size_t>(m * size));
      std::vector<uint16_t> results[2];
      for (const bool dependent : {false, true}) {
        x.upload(noise(m * size, 6, 1));
        Bf16GemmDecode a{.w = reinterpret_cast<const __nv_bfloat16*>(w.data()),
                         .m = m,
                         .n = size,
                         .k = size,
                         .out_bf16 = true};
        // Each product reads what the one before it wrote.
        for (int i = 0; i < 12; ++i) {
          a.x = reinterpret_cast<const __nv_bfloat16*>(i % 2 == 0 ? x.data() : y.data());
          a.out = i % 2 == 0 ? y.data() : x.data();
          ASSERT_EQ(bf16_gemm_decode(a, {.dependent = dependent}), cudaSuccess);
        }
        results[dependent] = x.download();
      }
      EXPECT_EQ(results[0], results[1]) << m << " rows of " << size;
    }
  }
}

TEST(LmHeadTest, RefusesWhatItDoesNotServe) {
  __nv_bfloat16 x{};
  EXPECT_EQ(bf16_gemm_decode({.w = &x, .x = &x, .m = 257, .n = 8, .k = 8, .out = &x}, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(bf16_gemm_decode({.w = &x, .x = &x, .m = 1, .n = 8, .k = 12, .out = &x}, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(bf16_gemm_decode({.m = 0, .n = 8, .k = 8}, {}), cudaSuccess);
}

TEST(LmHeadTest, ADeterministicPlanSplitsByTheWeightAlone) {
  for (const int64_t m : {1, 64, 256}) {
    EXPECT_EQ(plan_bf16_gemm(m, 16160, 7168, 90, true).split, 1);
    EXPECT_EQ(plan_bf16_gemm(m, 1536, 7168, 90, true).split, 8);
    EXPECT_EQ(plan_bf16_gemm(m, 7168, 2048, 90, true).split, 2);
    EXPECT_EQ(plan_bf16_gemm(m, 4608, 7168, 90, true).split, 3);
    EXPECT_EQ(plan_bf16_gemm(m, 64, 64, 90, true).split, 1);
  }
}

}  // namespace
}  // namespace r1d::kernels
