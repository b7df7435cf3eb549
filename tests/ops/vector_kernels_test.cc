// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "ops/cpu/kernels.h"
#include "tests/ops/reference.h"

namespace r1d::ops::cpu {
namespace {

using test::for_each_target;
using test::Guarded;
using test::random_floats;

constexpr int64_t kLengths[] = {1, 2, 7, 8, 16, 17, 31, 48, 64, 100, 513};

std::vector<uint16_t> to_bf16(std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (float& v : values) {
    bits.push_back(f32_to_bf16(v));
    v = bf16_to_f32(bits.back());
  }
  return bits;
}

// Rows of one matrix in reverse order, as a page table might give them.
std::vector<const void*> reversed_rows(const void* data, int64_t bytes, int64_t count) {
  std::vector<const void*> rows;
  for (int64_t i = count; i-- > 0;) rows.push_back(static_cast<const std::byte*>(data) + i * bytes);
  return rows;
}

TEST(VectorKernelsTest, DotRowsMatchesF64OverScatteredKeys) {
  for_each_target([](const std::string& target) {
    for (const int64_t cols : kLengths) {
      for (const int64_t count : {1, 3, 4, 9}) {
        for (const bool bf16 : {false, true}) {
          SCOPED_TRACE(target + ' ' + std::to_string(cols) + ' ' + std::to_string(count));
          std::vector<float> keys = random_floats(static_cast<size_t>(count * cols), 1);
          const std::vector<uint16_t> bits = bf16 ? to_bf16(keys) : std::vector<uint16_t>{};
          const auto rows = bf16 ? reversed_rows(bits.data(), cols * 2, count)
                                 : reversed_rows(keys.data(), cols * 4, count);
          const std::vector<float> q = random_floats(static_cast<size_t>(5 * cols), 2);
          Guarded scores(static_cast<size_t>(5 * count));
          dot_rows({rows.data(), count, bf16 ? DType::kBF16 : DType::kF32},
                   cols,
                   q.data(),
                   cols,
                   5,
                   scores.data(),
                   count);
          scores.expect_intact();
          for (int64_t i = 0; i < 5; ++i) {
            for (int64_t k = 0; k < count; ++k) {
              double want = 0;
              for (int64_t c = 0; c < cols; ++c) {
                want += double{q[static_cast<size_t>(i * cols + c)]} *
                        keys[static_cast<size_t>((count - 1 - k) * cols + c)];
              }
              const double bound =
                  (static_cast<double>(cols) / 4 + 4) * 0x1p-24 * static_cast<double>(cols);
              ASSERT_NEAR(scores.values()[static_cast<size_t>(i * count + k)], want, bound);
            }
          }
        }
      }
    }
  });
}

TEST(VectorKernelsTest, WeightedSumMatchesF64) {
  for_each_target([](const std::string& target) {
    for (const int64_t cols : kLengths) {
      for (const int64_t outputs : {1, 2, 4, 5, 7}) {
        for (const bool bf16 : {false, true}) {
          SCOPED_TRACE(target + ' ' + std::to_string(cols) + ' ' + std::to_string(outputs));
          constexpr int64_t kKeys = 11;
          std::vector<float> values = random_floats(static_cast<size_t>(kKeys * cols), 1);
          const std::vector<uint16_t> bits = bf16 ? to_bf16(values) : std::vector<uint16_t>{};
          const auto rows = bf16 ? reversed_rows(bits.data(), cols * 2, kKeys)
                                 : reversed_rows(values.data(), cols * 4, kKeys);
          const std::vector<float> p = random_floats(static_cast<size_t>(outputs * kKeys), 2);
          const std::vector<float> decay = random_floats(static_cast<size_t>(outputs), 3);
          const std::vector<float> before = random_floats(static_cast<size_t>(outputs * cols), 4);
          Guarded out(before.size());
          std::copy(before.begin(), before.end(), out.data());
          weighted_sum_rows({rows.data(), kKeys, bf16 ? DType::kBF16 : DType::kF32},
                            cols,
                            p.data(),
                            kKeys,
                            outputs,
                            decay.data(),
                            out.data(),
                            cols);
          out.expect_intact();
          for (size_t i = 0; i < before.size(); ++i) {
            const size_t o = i / static_cast<size_t>(cols);
            const size_t c = i % static_cast<size_t>(cols);
            double want = double{decay[o]} * before[i];
            for (size_t k = 0; k < kKeys; ++k) {
              want += double{p[o * kKeys + k]} *
                      values[(kKeys - 1 - k) * static_cast<size_t>(cols) + c];
            }
            ASSERT_NEAR(out.values()[i], want, 2 * (kKeys + 2) * 0x1p-24 * kKeys) << i;
          }
        }
      }
    }
  });
}

TEST(VectorKernelsTest, SoftmaxOverTilesEqualsSoftmaxOverAll) {
  for_each_target([](const std::string& target) {
    SCOPED_TRACE(target);
    const std::vector<float> all = random_floats(300, 5, 40);
    constexpr float kScale = 0.7F;
    double max = -1e300;
    for (const float s : all) max = std::max(max, double{kScale} * s);
    double sum = 0;
    for (const float s : all) sum += std::exp(double{kScale} * s - max);
    SoftmaxState state;
    double shrunk = 0;  // sum of what was stored, shrunk as the caller would
    for (size_t first = 0; first < 300; first += 70) {
      std::vector<float> tile(128, std::numeric_limits<float>::quiet_NaN());
      const size_t count = std::min<size_t>(70, 300 - first);
      std::copy_n(all.begin() + static_cast<int64_t>(first), count, tile.begin());
      shrunk *= softmax_update(tile.data(), static_cast<int64_t>(count), kScale, state);
      for (size_t i = 0; i < count; ++i) shrunk += tile[i];
    }
    EXPECT_NEAR(state.max, max, 1e-5);
    // Scores up to 28 round by 2^-20, which is also the relative error of each exponential.
    EXPECT_NEAR(state.sum / sum, 1, 1e-5);
    EXPECT_NEAR(shrunk / sum, 1, 1e-5);
  });
}

TEST(VectorKernelsTest, SoftmaxOfOneKeyIsOneAndANanShows) {
  for_each_target([](const std::string& target) {
    SCOPED_TRACE(target);
    std::vector<float> row(64, -3.0F);
    SoftmaxState state;
    EXPECT_EQ(softmax_update(row.data(), 1, 2.0F, state), 0.0F);
    EXPECT_EQ(row[0], 1.0F);
    EXPECT_EQ(state.sum, 1.0F);
    std::vector<float> bad(64, 1.0F);
    bad[3] = std::numeric_limits<float>::quiet_NaN();
    SoftmaxState poisoned;
    static_cast<void>(softmax_update(bad.data(), 20, 1.0F, poisoned));
    EXPECT_TRUE(std::isnan(poisoned.sum));
  });
}

TEST(VectorKernelsTest, RmsNormMatchesF64InPlaceAndOut) {
  for_each_target([](const std::string& target) {
    for (const int64_t cols : {1, 5, 16, 33, 512, 1536, 7168}) {
      SCOPED_TRACE(target + ' ' + std::to_string(cols));
      std::vector<float> x = random_floats(static_cast<size_t>(cols), 1, 3);
      const std::vector<float> weight = random_floats(static_cast<size_t>(cols), 2);
      const std::vector<double> want = test::rms_norm(test::to_double(x), weight, 1e-6);
      Guarded out(x.size());
      rms_norm(x.data(), weight.data(), 1e-6F, cols, out.data());
      out.expect_intact();
      rms_norm(x.data(), weight.data(), 1e-6F, cols, x.data());
      for (size_t i = 0; i < x.size(); ++i) {
        // The mean of K squares in 4 or more lanes rounds by K / 4 * 2^-24 at worst.
        const double bound = (static_cast<double>(cols) / 8 + 8) * 0x1p-24 * std::abs(want[i]);
        ASSERT_NEAR(out.values()[i], want[i], bound) << i;
        ASSERT_EQ(out.values()[i], x[i]);
      }
    }
  });
}

TEST(VectorKernelsTest, SiluMatchesF64AlsoFarFromZero) {
  for_each_target([](const std::string& target) {
    SCOPED_TRACE(target);
    std::vector<float> gate = random_floats(203, 1, 10);
    gate[0] = -1000;
    gate[1] = -100;
    gate[2] = 1000;
    gate[3] = 0;
    const std::vector<float> up = random_floats(203, 2);
    std::vector<float> got = gate;
    silu_mul(got.data(), up.data(), 203);
    for (size_t i = 0; i < got.size(); ++i) {
      const double want = double{gate[i]} / (1 + std::exp(-double{gate[i]})) * up[i];
      ASSERT_NEAR(got[i], want, 1e-6 * std::abs(want) + 1e-30) << gate[i];
    }
  });
}

TEST(VectorKernelsTest, AddScaledAndScaleMatch) {
  for_each_target([](const std::string& target) {
    SCOPED_TRACE(target);
    for (const int64_t n : kLengths) {
      const std::vector<float> x = random_floats(static_cast<size_t>(n), 1);
      const std::vector<float> y = random_floats(static_cast<size_t>(n), 2);
      Guarded sum(x.size());
      std::copy(y.begin(), y.end(), sum.data());
      add_scaled(sum.data(), 0.3F, x.data(), n);
      sum.expect_intact();
      Guarded scaled(x.size());
      scale(scaled.data(), 0.3F, x.data(), n);
      scaled.expect_intact();
      for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_NEAR(sum.values()[i], y[i] + 0.3F * double{x[i]}, 2e-7);
        EXPECT_EQ(scaled.values()[i], 0.3F * x[i]);
      }
    }
  });
}

}  // namespace
}  // namespace r1d::ops::cpu
