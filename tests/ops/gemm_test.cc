// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/gemm.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "ops/cpu/kernels.h"
#include "tests/ops/reference.h"

namespace r1d::ops::cpu {
namespace {

using test::for_each_target;
using test::Guarded;
using test::random_floats;
using test::random_matrix;
using test::TestMatrix;

struct Shape {
  int64_t rows, cols;
  int32_t row_offset = 0, col_offset = 0;
};

// Vector and tile edges, ragged scale blocks, slices that begin inside a block, and R1's kv_a.
const Shape kShapes[] = {{1, 1},
                         {3, 5},
                         {4, 16},
                         {17, 31},
                         {16, 128},
                         {130, 129},
                         {33, 300},
                         {80, 96, 80},
                         {48, 200, 112, 40},
                         {20, 260, 127, 127},
                         {9, 77, 1, 100},
                         {576, 7168},
                         {64, 1536, 64, 64},
                         {52, 1100, 100, 127}};
const DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3};

// What a product must give and how far off f32 may be: a running sum of K products in at least 4
// lanes rounds by 2^-24 of a partial sum in each of K / 4 + 3 additions, and sum |w x| bounds every
// partial sum; products and scaled weights round once each.
struct Expected {
  std::vector<double> values;  // [tokens, rows]
  std::vector<double> bounds;
};

// `activation_error`: relative, when activations are rounded first.
Expected expect(const TestMatrix& w, std::span<const float> x, double activation_error = 0) {
  const double relative = (static_cast<double>(w.view.cols) / 4 + 5) * 0x1p-24 + activation_error;
  TestMatrix sizes = w;
  for (double& v : sizes.values) v = std::abs(v);
  std::vector<double> x_sizes = test::to_double(x);
  Expected e{.values = multiply(x_sizes, w), .bounds = {}};
  for (double& v : x_sizes) v = std::abs(v);
  e.bounds = multiply(x_sizes, sizes);
  for (double& bound : e.bounds) bound *= relative;
  return e;
}

// `y` holds the first tokens of what is expected.
void expect_near(std::span<const float> y, const Expected& expected, int64_t rows) {
  ASSERT_LE(y.size(), expected.values.size());
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_NEAR(y[i], expected.values[i], expected.bounds[i])
        << "token " << i / static_cast<size_t>(rows) << " row " << i % static_cast<size_t>(rows);
  }
}

class GemmRunner {
 public:
  GemmRunner(int32_t threads, bool bf16_dot, int64_t max_cols)
      : parallel_(threads), gemm_(parallel_, bf16_dot, max_cols) {
    Arena measure(nullptr);
    gemm_.layout(measure);
    memory_ = HostMemory::allocate(measure.used(), "test").value();
    Arena arena(memory_.data());
    gemm_.layout(arena);
  }
  Gemm& gemm() { return gemm_; }

 private:
  Parallel parallel_;
  Gemm gemm_;
  HostMemory memory_;
};

std::vector<float> product(GemmRunner& runner, const TestMatrix& w, std::span<const float> x) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / w.view.cols;
  Guarded y(static_cast<size_t>(tokens * w.view.rows));
  runner.gemm().run({.weights = w.view,
                     .x = x.data(),
                     .x_stride = w.view.cols,
                     .tokens = tokens,
                     .y = y.data(),
                     .y_stride = w.view.rows});
  y.expect_intact();
  return {y.values().begin(), y.values().end()};
}

void expect_product(const TestMatrix& w, std::span<const float> x, std::span<const float> y) {
  const Expected expected = expect(w, x);
  ASSERT_EQ(y.size(), expected.values.size());
  expect_near(y, expected, w.view.rows);
}

TEST(GemmTest, MatchesF64OnEveryTargetShapeAndDtype) {
  for (const Shape& s : kShapes) {
    for (const DType dtype : kDTypes) {
      const TestMatrix w = random_matrix(s.rows, s.cols, dtype, 3, s.row_offset, s.col_offset);
      const bool large = s.rows * s.cols > 1000000;
      const size_t max_tokens = large ? 5 : 9;
      const std::vector<float> x = random_floats(max_tokens * static_cast<size_t>(s.cols), 5);
      const Expected expected = expect(w, x);
      for_each_target([&](const std::string& target) {
        GemmRunner runner(2, false, s.cols);
        for (const size_t tokens : {0U, 1U, 2U, 3U, 4U, 5U, 9U}) {
          if (large && tokens != 1 && tokens != 5) continue;
          SCOPED_TRACE(target + ' ' + dtype_name(dtype) + ' ' + std::to_string(s.rows) + 'x' +
                       std::to_string(s.cols) + " tokens " + std::to_string(tokens));
          const auto part = std::span(x).first(tokens * static_cast<size_t>(s.cols));
          expect_near(product(runner, w, part), expected, s.rows);
        }
      });
    }
  }
}

TEST(GemmTest, ATokensBitsDoNotDependOnTheBatchNorOnThreads) {
  for_each_target([](const std::string& target) {
    for (const Shape& s : {Shape{70, 300}, Shape{52, 1100, 100, 127}, Shape{300, 1536}}) {
      for (const DType dtype : kDTypes) {
        SCOPED_TRACE(target + ' ' + dtype_name(dtype) + ' ' + std::to_string(s.cols));
        const TestMatrix w = random_matrix(s.rows, s.cols, dtype, 4, s.row_offset, s.col_offset);
        const std::vector<float> x = random_floats(static_cast<size_t>(150 * s.cols), 6);
        GemmRunner one(1, false, s.cols);
        GemmRunner many(3, false, s.cols);
        const std::vector<float> whole = product(one, w, x);
        for (const auto& [first, count] : {std::tuple{0, 1},
                                           {7, 1},
                                           {149, 1},
                                           {3, 2},
                                           {5, 3},
                                           {1, 4},
                                           {10, 5},
                                           {64, 70},
                                           {0, 150}}) {
          const auto part = std::span(x).subspan(static_cast<size_t>(first * s.cols),
                                                 static_cast<size_t>(count * s.cols));
          const std::vector<float> y = product(many, w, part);
          EXPECT_EQ(std::memcmp(y.data(), whole.data() + first * s.rows, y.size() * 4), 0)
              << "tokens " << first << " + " << count;
        }
      }
    }
  });
}

TEST(GemmTest, ReadsGatheredRowsAndWritesStridedOnes) {
  const TestMatrix w = random_matrix(37, 90, DType::kBF16, 8);
  const std::vector<float> x = random_floats(10 * 100, 9);
  const std::vector<int32_t> rows = {9, 0, 4, 4, 7, 2};
  GemmRunner runner(2, false, 90);
  std::vector<float> y(6 * 50, -1.0F);
  runner.gemm().run({.weights = w.view,
                     .x = x.data(),
                     .x_stride = 100,
                     .x_rows = rows.data(),
                     .tokens = 6,
                     .y = y.data(),
                     .y_stride = 50});
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto token = std::span(x).subspan(static_cast<size_t>(rows[i]) * 100, 90);
    expect_product(w, token, std::span(y).subspan(i * 50, 37));
    for (size_t c = 37; c < 50; ++c) EXPECT_EQ(y[i * 50 + c], -1.0F);
  }
}

TEST(GemmTest, RunsManyJobsOfDifferentShapesAtOnce) {
  const TestMatrix a = random_matrix(257, 300, DType::kF8E4M3, 1, 5, 6);
  const TestMatrix b = random_matrix(40, 1000, DType::kBF16, 2);
  const TestMatrix c = random_matrix(8, 64, DType::kF32, 3);
  const std::vector<float> x = random_floats(200 * 1000, 4);
  GemmRunner runner(3, false, 1000);
  std::vector<std::vector<float>> y;
  std::vector<GemmJob> jobs;
  const auto add = [&](const TestMatrix& m, int64_t tokens) {
    y.emplace_back(static_cast<size_t>(tokens * m.view.rows));
    jobs.push_back({.weights = m.view,
                    .x = x.data(),
                    .x_stride = m.view.cols,
                    .tokens = tokens,
                    .y = y.back().data(),
                    .y_stride = m.view.rows});
  };
  add(a, 1);
  add(b, 0);
  add(b, 200);
  add(c, 3);
  add(a, 66);
  runner.gemm().run(jobs);
  const TestMatrix* matrices[] = {&a, &b, &b, &c, &a};
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto count = static_cast<size_t>(jobs[i].tokens * matrices[i]->view.cols);
    expect_product(*matrices[i], std::span(x).first(count), y[i]);
  }
}

TEST(GemmTest, EveryF8CodeConvertsExactlyAndNanStaysNan) {
  for_each_target([](const std::string& target) {
    SCOPED_TRACE(target);
    std::vector<uint8_t> codes(256);
    for (size_t i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
    const float scales[] = {1.0F, 3.0F};
    const Matrix m{.data = codes.data(),
                   .dtype = DType::kF8E4M3,
                   .rows = 1,
                   .cols = 256,
                   .scale = scales,
                   .scale_cols = 2};
    std::vector<float> values(256);
    dequantize_rows(m, 0, 1, values.data(), 256);
    std::vector<float> plain(256);
    load_row(codes.data(), DType::kF8E4M3, 256, plain.data());
    for (size_t i = 0; i < 256; ++i) {
      const float want = f8e4m3_to_f32(codes[i]);
      EXPECT_EQ(std::isnan(values[i]), std::isnan(want)) << i;
      EXPECT_EQ(std::isnan(plain[i]), std::isnan(want)) << i;
      if (std::isnan(want)) continue;
      EXPECT_EQ(values[i], want * scales[i / 128]) << i;
      EXPECT_EQ(plain[i], want) << i;
    }
  });
}

TEST(GemmTest, ANanWeightPoisonsItsOutputOnly) {
  TestMatrix w = random_matrix(8, 64, DType::kF8E4M3, 5);
  (*w.bytes)[3 * 64 + 10] = std::byte{0xFF};
  const std::vector<float> x = random_floats(2 * 64, 6);
  std::vector<float> y(16);
  GemmRunner runner(1, false, 64);
  runner.gemm().run({.weights = w.view,
                     .x = x.data(),
                     .x_stride = 64,
                     .tokens = 2,
                     .y = y.data(),
                     .y_stride = 8});
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(std::isnan(y[i]), i % 8 == 3) << i;
}

TEST(GemmTest, SlicedRowsKeepTheirScales) {
  const TestMatrix w = random_matrix(400, 140, DType::kF8E4M3, 7, 100, 30);
  const Matrix part = slice_rows(w.view, 150, 200);
  std::vector<float> values(200 * 140);
  dequantize_rows(part, 0, 200, values.data(), 140);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(values[i], static_cast<float>(w.values[150 * 140 + i])) << i;
  }
}

TEST(GemmTest, ATensorParallelSliceHoldsTheSameNumbers) {
  const TestMatrix w = random_matrix(300, 300, DType::kF8E4M3, 7);
  const TestMatrix s = test::slice(w, 70, 290, 90, 210);
  std::vector<float> values(220 * 120);
  dequantize_rows(s.view, 0, 220, values.data(), 120);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], static_cast<float>(s.values[i]));
}

// bf16 activations: 8 significant bits, so x rounds by up to 2^-8 of itself; the rest as in f32.
TEST(GemmTest, Bf16DotStaysWithinTheRoundingOfActivations) {
  if (!has_bf16_dot()) GTEST_SKIP() << "this CPU has no AVX-512 BF16";
  for (const Shape& s : kShapes) {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      const TestMatrix w = random_matrix(s.rows, s.cols, dtype, 3, s.row_offset, s.col_offset);
      const std::vector<float> x = random_floats(5 * static_cast<size_t>(s.cols), 5);
      const Expected expected = expect(w, x, 0x1p-8);
      GemmRunner runner(2, true, s.cols);
      for (const size_t tokens : {1U, 2U, 3U, 4U, 5U}) {
        SCOPED_TRACE(std::string(dtype_name(dtype)) + ' ' + std::to_string(s.rows) + 'x' +
                     std::to_string(s.cols) + " tokens " + std::to_string(tokens));
        const auto part = std::span(x).first(tokens * static_cast<size_t>(s.cols));
        expect_near(product(runner, w, part), expected, s.rows);
      }
    }
  }
}

// On activations that bf16 holds exactly only the order of sums differs from the f32 path.
TEST(GemmTest, Bf16DotIsExactOnBf16Activations) {
  if (!has_bf16_dot()) GTEST_SKIP() << "this CPU has no AVX-512 BF16";
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    const TestMatrix w = random_matrix(50, 500, dtype, 3, 60, 70);
    GemmRunner runner(1, true, 500);
    std::vector<float> x = random_floats(4 * 500, 5);
    for (float& v : x) v = bf16_to_f32(f32_to_bf16(v));
    expect_product(w, x, product(runner, w, x));
  }
}

TEST(GemmTest, Bf16DotBitsDoNotDependOnTheBatch) {
  if (!has_bf16_dot()) GTEST_SKIP() << "this CPU has no AVX-512 BF16";
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    const TestMatrix w = random_matrix(70, 300, dtype, 4, 30, 40);
    const std::vector<float> x = random_floats(9 * 300, 6);
    GemmRunner runner(2, true, 300);
    const std::vector<float> whole = product(runner, w, x);
    for (size_t t = 0; t < 9; ++t) {
      const std::vector<float> y = product(runner, w, std::span(x).subspan(t * 300, 300));
      EXPECT_EQ(std::memcmp(y.data(), whole.data() + t * 70, 70 * 4), 0) << t;
    }
  }
}

}  // namespace
}  // namespace r1d::ops::cpu
