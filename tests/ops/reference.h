// SPDX-License-Identifier: Apache-2.0
// Plain f64 loops that the operators are compared with, and the random data they are compared on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "r1d/ops/cpu_ops.h"
#include "r1d/ops/ops.h"
#include "r1d/ops/tensor.h"

namespace r1d::ops::test {

// Calls body(name) once for every instruction set that this build and this CPU have.
void for_each_target(const std::function<void(const std::string& name)>& body);

// Uniform in [-scale, scale].
[[nodiscard]] std::vector<float> random_floats(size_t count, uint64_t seed, double scale = 1);

// A weight with its exact values. Copies share the storage.
struct TestMatrix {
  Matrix view;
  std::vector<double> values;  // [rows, cols]
  std::shared_ptr<std::vector<std::byte>> bytes;
  std::shared_ptr<std::vector<float>> scale;

  [[nodiscard]] double at(int64_t row, int64_t col) const {
    return values[static_cast<size_t>(row * view.cols + col)];
  }
};

// Values of about unit variance over sqrt(cols). FP8: the matrix begins at (row_offset, col_offset)
// of its first scale block.
[[nodiscard]] TestMatrix random_matrix(int64_t rows,
                                       int64_t cols,
                                       DType dtype,
                                       uint64_t seed,
                                       int32_t row_offset = 0,
                                       int32_t col_offset = 0);

// A rank's part as the loader cuts it: a dense copy with the scale blocks that it touches.
[[nodiscard]] TestMatrix slice(
    const TestMatrix& m, int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end);

// y [T, rows] = x [T, cols] m^T.
[[nodiscard]] std::vector<double> multiply(std::span<const double> x, const TestMatrix& m);
[[nodiscard]] std::vector<double> rms_norm(std::span<const double> x,
                                           std::span<const float> weight,
                                           double eps);

[[nodiscard]] std::vector<double> to_double(std::span<const float> x);
[[nodiscard]] double relative_l2(std::span<const float> got, std::span<const double> want);

// Memory for outputs: NaN inside, a pattern before and behind.
class Guarded {
 public:
  explicit Guarded(size_t count);
  [[nodiscard]] float* data() { return storage_.data() + kGuard; }
  [[nodiscard]] std::span<const float> values() const {
    return std::span(storage_).subspan(kGuard, storage_.size() - 2 * kGuard);
  }
  [[nodiscard]] Tensor tensor(int64_t rows, int64_t cols) {
    return {.data = data(), .dtype = DType::kF32, .rows = rows, .cols = cols, .stride = cols};
  }
  // Every value was written (none is NaN) and nothing around them was.
  void expect_intact() const;

 private:
  static constexpr size_t kGuard = 64;
  std::vector<float> storage_;
};

[[nodiscard]] Tensor tensor_of(std::vector<float>& x, int64_t rows, int64_t cols);

// A step of one sequence; owns what StepInputs borrows.
struct OneSequence {
  std::vector<TokenId> ids;
  std::vector<int32_t> positions;
  std::vector<BlockId> blocks = {0};
  std::vector<int32_t> logit_rows;
  SequenceSpan span;

  OneSequence(OneSequence&&) = default;  // moves keep what `span` points to, copies would not
  OneSequence& operator=(OneSequence&&) = default;
  explicit OneSequence(std::vector<TokenId> tokens) : ids(std::move(tokens)) {
    const auto count = static_cast<int32_t>(ids.size());
    for (int32_t i = 0; i < count; ++i) positions.push_back(i);
    span = {.query_len = count, .context_len = count, .block_table = blocks};
  }
  [[nodiscard]] StepInputs inputs() const {
    return {.token_ids = ids,
            .positions = positions,
            .sequences = {&span, 1},
            .logit_rows = logit_rows};
  }
};

// One MLP in f64: x [T, D].
struct TestMlp {
  TestMatrix gate, up, down;
  [[nodiscard]] MlpWeights weights() const { return {gate.view, up.view, down.view}; }
};
[[nodiscard]] TestMlp random_mlp(int64_t hidden, int64_t intermediate, DType dtype, uint64_t seed);
// Rows [begin, end) of the intermediate size.
[[nodiscard]] TestMlp slice(const TestMlp& mlp, int64_t begin, int64_t end);
[[nodiscard]] std::vector<double> mlp(std::span<const double> x, const TestMlp& weights);

}  // namespace r1d::ops::test
