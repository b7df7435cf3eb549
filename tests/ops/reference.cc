// SPDX-License-Identifier: Apache-2.0
#include "tests/ops/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include "r1d/base/random.h"

namespace r1d::ops::test {
namespace {

constexpr float kPattern = 12345.678F;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

void for_each_target(const std::function<void(const std::string& name)>& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

std::vector<float> random_floats(size_t count, uint64_t seed, double scale) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>((2 * base::random_unit(seed, i) - 1) * scale);
  }
  return values;
}

TestMatrix random_matrix(int64_t rows,
                         int64_t cols,
                         DType dtype,
                         uint64_t seed,
                         int32_t row_offset,
                         int32_t col_offset) {
  constexpr int64_t kBlock = Matrix::kScaleBlock;
  const bool scaled = dtype == DType::kF8E4M3;
  TestMatrix m;
  const auto count = static_cast<size_t>(rows * cols);
  m.bytes = std::make_shared<std::vector<std::byte>>(count * dtype_bytes(dtype));
  const int64_t scale_rows = ceil_div(rows + row_offset, kBlock);
  const int64_t scale_cols = ceil_div(cols + col_offset, kBlock);
  m.view = {.data = m.bytes->data(), .dtype = dtype, .rows = rows, .cols = cols};
  // FP8 values up to 100; scales bring them back, each different from the next.
  const double size = std::sqrt(3.0 / static_cast<double>(cols));
  if (scaled) {
    m.scale = std::make_shared<std::vector<float>>(
        random_floats(static_cast<size_t>(scale_rows * scale_cols), seed + 1, 0.5 * size / 100));
    for (float& s : *m.scale) s += static_cast<float>(size / 100);
    m.view.scale = m.scale->data();
    m.view.scale_cols = scale_cols;
    m.view.scale_row_offset = row_offset;
    m.view.scale_col_offset = col_offset;
  }
  const std::vector<float> raw = random_floats(count, seed, scaled ? 100 : size);
  m.values.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const auto row = static_cast<int64_t>(i) / cols;
    const auto col = static_cast<int64_t>(i) % cols;
    if (dtype == DType::kF32) {
      std::memcpy(m.bytes->data() + 4 * i, &raw[i], 4);
      m.values[i] = raw[i];
    } else if (dtype == DType::kBF16) {
      const uint16_t bits = f32_to_bf16(raw[i]);
      std::memcpy(m.bytes->data() + 2 * i, &bits, 2);
      m.values[i] = bf16_to_f32(bits);
    } else {
      const uint8_t bits = f32_to_f8e4m3(raw[i]);
      (*m.bytes)[i] = static_cast<std::byte>(bits);
      const int64_t block = (row + row_offset) / kBlock * scale_cols + (col + col_offset) / kBlock;
      m.values[i] = double{f8e4m3_to_f32(bits)} * (*m.scale)[static_cast<size_t>(block)];
    }
  }
  return m;
}

TestMatrix slice(
    const TestMatrix& m, int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end) {
  constexpr int64_t kBlock = Matrix::kScaleBlock;
  const auto element = static_cast<size_t>(dtype_bytes(m.view.dtype));
  TestMatrix s;
  s.bytes = std::make_shared<std::vector<std::byte>>();
  for (int64_t r = row_begin; r < row_end; ++r) {
    const std::byte* row = m.bytes->data() + static_cast<size_t>(r * m.view.cols) * element;
    s.bytes->insert(s.bytes->end(),
                    row + static_cast<size_t>(col_begin) * element,
                    row + static_cast<size_t>(col_end) * element);
    for (int64_t c = col_begin; c < col_end; ++c) s.values.push_back(m.at(r, c));
  }
  s.view = m.view;
  s.view.data = s.bytes->data();
  s.view.rows = row_end - row_begin;
  s.view.cols = col_end - col_begin;
  if (m.scale == nullptr) return s;
  const int64_t first_row = row_begin + m.view.scale_row_offset;
  const int64_t first_col = col_begin + m.view.scale_col_offset;
  s.scale = std::make_shared<std::vector<float>>();
  for (int64_t r = first_row / kBlock; r * kBlock < row_end + m.view.scale_row_offset; ++r) {
    for (int64_t c = first_col / kBlock; c * kBlock < col_end + m.view.scale_col_offset; ++c) {
      s.scale->push_back((*m.scale)[static_cast<size_t>(r * m.view.scale_cols + c)]);
    }
  }
  s.view.scale = s.scale->data();
  s.view.scale_cols = ceil_div(col_end + m.view.scale_col_offset, kBlock) - first_col / kBlock;
  s.view.scale_row_offset = static_cast<int32_t>(first_row % kBlock);
  s.view.scale_col_offset = static_cast<int32_t>(first_col % kBlock);
  return s;
}

std::vector<double> multiply(std::span<const double> x, const TestMatrix& m) {
  const auto cols = static_cast<size_t>(m.view.cols);
  const auto rows = static_cast<size_t>(m.view.rows);
  std::vector<double> y;
  y.reserve(x.size() / cols * rows);
  for (size_t t = 0; t < x.size() / cols; ++t) {
    for (size_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (size_t c = 0; c < cols; ++c) sum += x[t * cols + c] * m.values[r * cols + c];
      y.push_back(sum);
    }
  }
  return y;
}

std::vector<double> rms_norm(std::span<const double> x, std::span<const float> weight, double eps) {
  const size_t cols = weight.size();
  std::vector<double> y(x.size());
  for (size_t t = 0; t < x.size() / cols; ++t) {
    double squares = 0;
    for (size_t c = 0; c < cols; ++c) squares += x[t * cols + c] * x[t * cols + c];
    const double factor = 1 / std::sqrt(squares / static_cast<double>(cols) + eps);
    for (size_t c = 0; c < cols; ++c) y[t * cols + c] = x[t * cols + c] * factor * weight[c];
  }
  return y;
}

std::vector<double> to_double(std::span<const float> x) {
  return {x.begin(), x.end()};
}

double relative_l2(std::span<const float> got, std::span<const double> want) {
  EXPECT_EQ(got.size(), want.size());
  double error = 0;
  double size = 0;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return size == 0 ? error : std::sqrt(error / size);
}

Guarded::Guarded(size_t count) : storage_(count + 2 * kGuard, kPattern) {
  std::fill_n(storage_.begin() + kGuard, count, std::numeric_limits<float>::quiet_NaN());
}

void Guarded::expect_intact() const {
  for (size_t i = 0; i < kGuard; ++i) {
    EXPECT_EQ(storage_[i], kPattern) << "written " << kGuard - i << " before the output";
    EXPECT_EQ(storage_[storage_.size() - 1 - i], kPattern) << "written behind the output";
  }
  const std::span<const float> inside = values();
  const auto nan =
      std::find_if(inside.begin(), inside.end(), [](float v) { return std::isnan(v); });
  EXPECT_EQ(nan, inside.end()) << "NaN or not written at " << nan - inside.begin();
}

Tensor tensor_of(std::vector<float>& x, int64_t rows, int64_t cols) {
  return {.data = x.data(), .dtype = DType::kF32, .rows = rows, .cols = cols, .stride = cols};
}

TestMlp random_mlp(int64_t hidden, int64_t intermediate, DType dtype, uint64_t seed) {
  return {.gate = random_matrix(intermediate, hidden, dtype, seed),
          .up = random_matrix(intermediate, hidden, dtype, seed + 10),
          .down = random_matrix(hidden, intermediate, dtype, seed + 20)};
}

TestMlp slice(const TestMlp& mlp, int64_t begin, int64_t end) {
  const int64_t hidden = mlp.gate.view.cols;
  return {.gate = slice(mlp.gate, begin, end, 0, hidden),
          .up = slice(mlp.up, begin, end, 0, hidden),
          .down = slice(mlp.down, 0, hidden, begin, end)};
}

std::vector<double> mlp(std::span<const double> x, const TestMlp& weights) {
  std::vector<double> h = multiply(x, weights.gate);
  const std::vector<double> up = multiply(x, weights.up);
  for (size_t i = 0; i < h.size(); ++i) h[i] = h[i] / (1 + std::exp(-h[i])) * up[i];
  return multiply(h, weights.down);
}

}  // namespace r1d::ops::test
