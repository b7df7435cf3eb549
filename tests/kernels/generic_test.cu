// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <memory>
#include <numeric>

#include "kernels/generic/generic.h"
#include "tests/kernels/support.cuh"
#include "tests/support/latent_reference.h"

namespace r1d::kernels::generic {
namespace {

using test::DeviceArray;
using test::from_bf16;
using test::random_f8;
using test::random_floats;
using test::relative_l2;
using test::to_bf16;

constexpr Launch kLaunch{};

__nv_bfloat16* bf16(DeviceArray<uint16_t>& array) {
  return reinterpret_cast<__nv_bfloat16*>(array.data());
}

float rounded(float value) {
  return bf16_to_f32(f32_to_bf16(value));
}

// Where a tensor-parallel slice starts inside its first scale block.
struct ScaleOffset {
  int32_t row = 0;
  int32_t col = 0;
};

// A random weight on the device and its f32 values.
class TestWeight {
 public:
  TestWeight(DType dtype, int64_t rows, int64_t cols, uint64_t seed, ScaleOffset offset = {})
      : data_(static_cast<size_t>(rows * cols * dtype_bytes(dtype))) {
    matrix_.data = data_.data();
    matrix_.dtype = dtype;
    matrix_.rows = rows;
    matrix_.cols = cols;
    const auto count = static_cast<size_t>(rows * cols);
    std::vector<uint8_t> bytes(data_.size());
    if (dtype == DType::kF8E4M3) {
      matrix_.scale_row_offset = offset.row;
      matrix_.scale_col_offset = offset.col;
      matrix_.scale_cols = (cols + offset.col + 127) / 128;
      const int64_t scale_rows = (rows + offset.row + 127) / 128;
      std::vector<float> scales =
          random_floats(static_cast<size_t>(scale_rows * matrix_.scale_cols), seed + 1, 1e-4F);
      for (float& scale : scales) scale = 1e-4F + std::abs(scale);
      scale_ = std::make_unique<DeviceArray<float>>(scales);
      matrix_.scale = scale_->data();
      bytes = random_f8(count, seed);
      values_.resize(count);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t block =
              (r + offset.row) / 128 * matrix_.scale_cols + (c + offset.col) / 128;
          const auto i = static_cast<size_t>(r * cols + c);
          values_[i] = f8e4m3_to_f32(bytes[i]) * scales[static_cast<size_t>(block)];
        }
      }
    } else if (dtype == DType::kBF16) {
      const std::vector<uint16_t> bits = to_bf16(random_floats(count, seed, 0.05F));
      std::memcpy(bytes.data(), bits.data(), bytes.size());
      values_ = from_bf16(bits);
    } else {
      values_ = random_floats(count, seed, 0.05F);
      std::memcpy(bytes.data(), values_.data(), bytes.size());
    }
    data_.upload(bytes);
  }

  const ops::Matrix& matrix() const { return matrix_; }
  float at(int64_t row, int64_t col) const {
    return values_[static_cast<size_t>(row * matrix_.cols + col)];
  }

 private:
  DeviceArray<uint8_t> data_;
  std::unique_ptr<DeviceArray<float>> scale_;
  ops::Matrix matrix_;
  std::vector<float> values_;
};

// ---- products ----------------------------------------------------------------------------------

struct GemmCase {
  DType dtype;
  int64_t rows;
  int64_t cols;
  int64_t tokens;
  ScaleOffset offset = {};
  int64_t x_padding = 0;
  int64_t out_padding = 0;
  int64_t x_shift = 0;  // elements before the first row
};

std::vector<float> run_gemm(const TestWeight& weight,
                            const std::vector<uint16_t>& x,
                            int64_t x_stride,
                            int64_t tokens,
                            int64_t out_padding,
                            DType out_dtype,
                            bool exact,
                            int64_t x_shift = 0) {
  std::vector<uint16_t> shifted(static_cast<size_t>(x_shift), 0xFFFF);
  shifted.insert(shifted.end(), x.begin(), x.end());
  DeviceArray<uint16_t> device_x(shifted);
  const int64_t rows = weight.matrix().rows;
  const int64_t out_stride = rows + out_padding;
  DeviceArray<uint8_t> out(static_cast<size_t>(tokens * out_stride * dtype_bytes(out_dtype)));
  Gemm problem;
  problem.weights = weight.matrix();
  problem.x = bf16(device_x) + x_shift;
  problem.x_stride = x_stride;
  problem.num_tokens = tokens;
  problem.out = out.data();
  problem.out_stride = out_stride;
  problem.out_dtype = out_dtype;
  problem.exact = exact;
  R1D_MUST(gemm(problem, kLaunch));
  const std::vector<uint8_t> bytes = out.download();
  std::vector<float> values;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t n = 0; n < out_stride; ++n) {
      const auto at = static_cast<size_t>(t * out_stride + n);
      float value = 0;
      if (out_dtype == DType::kF32) {
        std::memcpy(&value, bytes.data() + 4 * at, 4);
      } else {
        uint16_t bits = 0;
        std::memcpy(&bits, bytes.data() + 2 * at, 2);
        value = bf16_to_f32(bits);
      }
      if (n < rows) {
        values.push_back(value);
      } else {
        EXPECT_TRUE(std::isnan(value)) << "wrote between rows, token " << t;
      }
    }
  }
  return values;
}

void check_gemm(const GemmCase& c, DType out_dtype, bool exact) {
  SCOPED_TRACE(testing::Message() << dtype_name(c.dtype) << " rows " << c.rows << " cols " << c.cols
                                  << " tokens " << c.tokens << " out " << dtype_name(out_dtype)
                                  << (exact ? " exact" : ""));
  const TestWeight weight(c.dtype, c.rows, c.cols, 1, c.offset);
  const int64_t x_stride = c.cols + c.x_padding;
  const std::vector<uint16_t> x =
      to_bf16(random_floats(static_cast<size_t>(c.tokens * x_stride), 7));
  const std::vector<float> out =
      run_gemm(weight, x, x_stride, c.tokens, c.out_padding, out_dtype, exact, c.x_shift);
  // Every output where there are few; else a sample that meets the last rows and tokens.
  const int64_t total = c.rows * c.tokens;
  const int64_t step = std::max<int64_t>(1, total * c.cols / 20'000'000) | 1;
  std::vector<float> got;
  std::vector<double> want;
  const auto sample = [&](int64_t i) {
    const int64_t t = i / c.rows;
    const int64_t n = i % c.rows;
    double sum = 0;
    for (int64_t k = 0; k < c.cols; ++k) {
      const float w = exact ? weight.at(n, k) : rounded(weight.at(n, k));
      sum += static_cast<double>(w) * bf16_to_f32(x[static_cast<size_t>(t * x_stride + k)]);
    }
    got.push_back(out[static_cast<size_t>(i)]);
    want.push_back(sum);
  };
  for (int64_t i = 0; i < total; i += step) sample(i);
  sample(total - 1);
  EXPECT_LT(relative_l2(got, want), out_dtype == DType::kBF16 ? 4e-3 : exact ? 2e-6 : 1e-5);
}

TEST(GenericGemmTest, MatchesTheReferenceAtSmallAndRaggedShapes) {
  R1D_NEEDS_GPU(80);
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF8E4M3}) {
    for (const int64_t tokens : {1, 7, 8, 9, 16, 17, 65, 300}) {
      check_gemm({dtype, 128, 128, tokens}, DType::kBF16, false);
      check_gemm({dtype, 80, 192, tokens, {48, 64}}, DType::kF32, false);
      check_gemm(
          {dtype, 192, 20, tokens, {0, 20}, 4, 3}, DType::kBF16, false);  // rows start anywhere
      check_gemm({dtype, 33, 157, tokens, {120, 101}, 3, 1}, DType::kF32, false);
      check_gemm({dtype, 1, 1, tokens}, DType::kF32, false);
      check_gemm(
          {dtype, 64, 64, tokens, {}, 0, 0, 1}, DType::kF32, false);  // only x is off 16 bytes
    }
  }
}

TEST(GenericGemmTest, MatchesTheReferenceAtLargeShapes) {
  R1D_NEEDS_GPU(80);
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF8E4M3}) {
    check_gemm({dtype, 576, 7168, 4}, DType::kBF16, false);
    check_gemm({dtype, 1536, 7168, 300}, DType::kF32, false);
    check_gemm({dtype, 2112, 1536, 2048}, DType::kBF16, false);  // the 128 x 128 tile
  }
}

TEST(GenericGemmTest, ExactKeepsFloatWeights) {
  R1D_NEEDS_GPU(80);
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF8E4M3}) {
    check_gemm({dtype, 16, 128, 5}, DType::kF32, true);
    check_gemm({dtype, 18, 192, 40}, DType::kF32, true);
    check_gemm({dtype, 33, 157, 17, {120, 101}, 3, 1}, DType::kBF16, true);
    check_gemm({dtype, 256, 7168, 33}, DType::kF32, true);
  }
}

TEST(GenericGemmTest, ResultsDoNotDependOnTheBatch) {
  R1D_NEEDS_GPU(80);
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF8E4M3}) {
    for (const bool exact : {false, true}) {
      const int64_t cols = 1000;
      const int64_t rows = 1500;
      const TestWeight weight(dtype, rows, cols, 3);
      const int64_t most = 1200;
      const std::vector<uint16_t> x = to_bf16(random_floats(static_cast<size_t>(most * cols), 5));
      const std::vector<float> all = run_gemm(weight, x, cols, most, 0, DType::kF32, exact);
      for (const int64_t tokens : {1, 8, 16, 64, 100}) {
        const std::vector<uint16_t> some(x.begin(), x.begin() + tokens * cols);
        const std::vector<float> out = run_gemm(weight, some, cols, tokens, 0, DType::kF32, exact);
        const std::vector<float> same(all.begin(), all.begin() + tokens * rows);
        EXPECT_TRUE(out == same) << dtype_name(dtype) << " " << tokens << (exact ? " exact" : "");
      }
    }
  }
}

// Each product reads what the one before it wrote, and may start before that one ends.
TEST(GenericGemmTest, DependentLaunchesWaitForTheirInputs) {
  R1D_NEEDS_GPU(90);
  constexpr int64_t kSize = 512;
  constexpr int64_t kTokens = 70;
  const TestWeight weight(DType::kBF16, kSize, kSize, 3);
  const std::vector<uint16_t> x = to_bf16(random_floats(kTokens * kSize, 5));
  std::vector<uint16_t> results[2];
  for (const bool dependent : {false, true}) {
    DeviceArray<uint16_t> a(x);
    DeviceArray<uint16_t> b(x.size());
    for (int i = 0; i < 20; ++i) {
      Gemm problem;
      problem.weights = weight.matrix();
      problem.x = bf16(i % 2 == 0 ? a : b);
      problem.x_stride = kSize;
      problem.num_tokens = i % 4 < 2 ? kTokens : 16;  // 16: another kernel
      problem.out = bf16(i % 2 == 0 ? b : a);
      problem.out_stride = kSize;
      R1D_MUST(gemm(problem, {nullptr, dependent}));
    }
    results[dependent] = a.download();
  }
  EXPECT_TRUE(results[0] == results[1]);
}

TEST(GenericGemmTest, RefusesFp8OutputsAndEnqueuesNothingForNoTokens) {
  R1D_NEEDS_GPU(80);
  Gemm problem;
  problem.out_dtype = DType::kF8E4M3;
  EXPECT_EQ(gemm(problem, kLaunch), cudaErrorInvalidValue);
  EXPECT_EQ(gemm({}, kLaunch), cudaSuccess);
}

// ---- routed experts ----------------------------------------------------------------------------

// k distinct experts of `total` per token.
std::vector<int32_t> random_choices(int64_t tokens, int32_t k, int32_t total, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(total));
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<int32_t> choices;
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(ids.begin(), ids.end(), random);
    choices.insert(choices.end(), ids.begin(), ids.begin() + k);
  }
  return choices;
}

struct DeviceLists {
  DeviceArray<int32_t> offset;
  DeviceArray<int32_t> slots;
  DeviceLists(int32_t num_experts, size_t num_slots)
      : offset(static_cast<size_t>(num_experts) + 1), slots(num_slots) {}
  ExpertLists view() { return {offset.data(), slots.data()}; }
};

TEST(GenericExpertsTest, ListsHoldEveryLocalSlotInOrder) {
  R1D_NEEDS_GPU(80);
  struct Case {
    int64_t tokens;
    int32_t k, total, first, local;
  };
  for (const Case& c : {Case{1, 4, 16, 0, 16},
                        Case{3, 5, 18, 6, 3},
                        Case{100, 5, 18, 12, 6},
                        Case{1000, 8, 256, 0, 256},
                        Case{3000, 8, 256, 224, 32}}) {
    const std::vector<int32_t> choices = random_choices(c.tokens, c.k, c.total, 9);
    DeviceArray<int32_t> experts(choices);
    DeviceLists lists(c.local, choices.size());
    R1D_MUST(build_lists(experts.data(),
                         static_cast<int64_t>(choices.size()),
                         c.first,
                         c.local,
                         lists.view(),
                         kLaunch));
    std::vector<int32_t> offset{0};
    std::vector<int32_t> slots;
    for (int32_t e = 0; e < c.local; ++e) {
      for (size_t i = 0; i < choices.size(); ++i) {
        if (choices[i] == c.first + e) slots.push_back(static_cast<int32_t>(i));
      }
      offset.push_back(static_cast<int32_t>(slots.size()));
    }
    EXPECT_EQ(lists.offset.download(), offset);
    std::vector<int32_t> got = lists.slots.download();
    for (size_t i = slots.size(); i < got.size(); ++i)
      EXPECT_EQ(got[i], -1) << "wrote behind the lists";
    got.resize(slots.size());
    EXPECT_EQ(got, slots);
  }
}

struct ExpertsCase {
  DType dtype;
  int64_t tokens;
  int32_t k, total, first, local;
  int64_t hidden, intermediate;
  ScaleOffset offset;
};

// Gather by token, then by slot, as gate and down do.
void check_grouped(const ExpertsCase& c) {
  SCOPED_TRACE(testing::Message() << dtype_name(c.dtype) << " tokens " << c.tokens
                                  << " intermediate " << c.intermediate);
  const std::vector<int32_t> choices = random_choices(c.tokens, c.k, c.total, 21);
  const auto num_slots = static_cast<int64_t>(choices.size());
  DeviceArray<int32_t> experts(choices);
  DeviceLists lists(c.local, choices.size());
  R1D_MUST(build_lists(experts.data(), num_slots, c.first, c.local, lists.view(), kLaunch));
  for (const bool down : {false, true}) {
    const int64_t rows = down ? c.hidden : c.intermediate;
    const int64_t cols = down ? c.intermediate : c.hidden;
    const ScaleOffset offset = down ? ScaleOffset{c.offset.col, c.offset.row} : c.offset;
    std::vector<std::unique_ptr<TestWeight>> weights;
    std::vector<ops::Matrix> matrices;
    for (int32_t e = 0; e < c.local; ++e) {
      weights.push_back(std::make_unique<TestWeight>(
          c.dtype, rows, cols, 100 + static_cast<uint64_t>(e), offset));
      matrices.push_back(weights.back()->matrix());
    }
    DeviceArray<ops::Matrix> device_matrices(matrices);
    const int64_t x_rows = down ? num_slots : c.tokens;
    const std::vector<uint16_t> x = to_bf16(random_floats(static_cast<size_t>(x_rows * cols), 31));
    DeviceArray<uint16_t> device_x(x);
    DeviceArray<uint16_t> out(static_cast<size_t>(num_slots * rows));
    GroupedGemm problem;
    problem.weights = device_matrices.data();
    problem.dtype = c.dtype;
    problem.rows = rows;
    problem.cols = cols;
    problem.num_experts = c.local;
    problem.lists = lists.view();
    problem.x = bf16(device_x);
    problem.x_stride = cols;
    problem.slots_per_x_row = down ? 1 : c.k;
    problem.out = bf16(out);
    problem.out_stride = rows;
    problem.num_slots = num_slots;
    problem.max_count = c.tokens;
    R1D_MUST(grouped_gemm(problem, kLaunch));
    const std::vector<uint16_t> result = out.download();
    std::vector<float> got;
    std::vector<double> want;
    const int64_t step = std::max<int64_t>(1, num_slots * rows * cols / 20'000'000) | 1;
    for (int64_t i = 0; i < num_slots * rows; ++i) {
      const int64_t slot = i / rows;
      const int64_t n = i % rows;
      const int32_t local = choices[static_cast<size_t>(slot)] - c.first;
      if (local < 0 || local >= c.local) {
        ASSERT_EQ(result[static_cast<size_t>(i)], 0xFFFF) << "wrote another rank's slot " << slot;
        continue;
      }
      if (i % step != 0) continue;
      double sum = 0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += static_cast<double>(rounded(weights[static_cast<size_t>(local)]->at(n, k))) *
               bf16_to_f32(x[static_cast<size_t>((down ? slot : slot / c.k) * cols + k)]);
      }
      got.push_back(bf16_to_f32(result[static_cast<size_t>(i)]));
      want.push_back(sum);
    }
    EXPECT_LT(relative_l2(got, want), 4e-3) << (down ? "down" : "gate");
  }
}

TEST(GenericExpertsTest, GroupedGemmMatchesTheReference) {
  R1D_NEEDS_GPU(80);
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF8E4M3}) {
    for (const int64_t tokens : {1, 6, 70, 400}) {
      check_grouped({dtype, tokens, 4, 16, 0, 16, 128, 64, {}});
      check_grouped(
          {dtype, tokens, 5, 18, 6, 6, 192, 20, {20, 0}});  // the ragged checkpoint, cut in eight
      check_grouped({dtype, tokens, 5, 18, 0, 18, 192, 80, {80, 0}});
    }
    check_grouped({dtype, 600, 4, 8, 4, 4, 256, 1024, {}});  // tiles of 64
    check_grouped({dtype, 700, 5, 18, 6, 6, 192, 20, {20, 0}});
  }
}

// All tokens choose expert 0, many more than an even share.
TEST(GenericExpertsTest, GroupedGemmServesOneCrowdedExpert) {
  R1D_NEEDS_GPU(80);
  const int64_t tokens = 700;
  const int32_t num_experts = 64;
  DeviceArray<int32_t> experts(std::vector<int32_t>(tokens, 0));
  DeviceLists lists(num_experts, tokens);
  R1D_MUST(build_lists(experts.data(), tokens, 0, num_experts, lists.view(), kLaunch));
  const TestWeight weight(DType::kBF16, 96, 128, 4);
  DeviceArray<ops::Matrix> matrices(std::vector<ops::Matrix>(num_experts, weight.matrix()));
  const std::vector<uint16_t> x = to_bf16(random_floats(static_cast<size_t>(tokens * 128), 5));
  DeviceArray<uint16_t> device_x(x);
  DeviceArray<uint16_t> out(static_cast<size_t>(tokens * 96));
  GroupedGemm problem;
  problem.weights = matrices.data();
  problem.rows = 96;
  problem.cols = 128;
  problem.num_experts = num_experts;
  problem.lists = lists.view();
  problem.x = bf16(device_x);
  problem.x_stride = 128;
  problem.out = bf16(out);
  problem.out_stride = 96;
  problem.num_slots = tokens;
  problem.max_count = tokens;
  R1D_MUST(grouped_gemm(problem, kLaunch));
  EXPECT_EQ(from_bf16(out.download()), run_gemm(weight, x, 128, tokens, 0, DType::kBF16, false));
}

TEST(GenericExpertsTest, SwigluMatchesTheReference) {
  R1D_NEEDS_GPU(80);
  struct Case {
    int64_t rows, cols, padding;
  };
  for (const Case& c : {Case{1, 1, 0}, Case{5, 20, 1}, Case{33, 64, 8}, Case{1000, 2048, 0}}) {
    const int64_t stride = c.cols + c.padding;
    const auto count = static_cast<size_t>(c.rows * stride);
    const std::vector<uint16_t> gate = to_bf16(random_floats(count, 1, 4));
    const std::vector<uint16_t> up = to_bf16(random_floats(count, 2));
    DeviceArray<uint16_t> device_gate(gate);
    DeviceArray<uint16_t> device_up(up);
    DeviceArray<uint16_t> out(static_cast<size_t>(c.rows * c.cols));
    R1D_MUST(swiglu(bf16(device_gate),
                    stride,
                    bf16(device_up),
                    stride,
                    bf16(out),
                    c.cols,
                    c.rows,
                    c.cols,
                    kLaunch));
    std::vector<double> want;
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t i = 0; i < c.cols; ++i) {
        const double g = bf16_to_f32(gate[static_cast<size_t>(r * stride + i)]);
        want.push_back(g / (1 + std::exp(-g)) *
                       bf16_to_f32(up[static_cast<size_t>(r * stride + i)]));
      }
    }
    EXPECT_LT(relative_l2(from_bf16(out.download()), want), 4e-3);
  }
}

TEST(GenericExpertsTest, CombineSkipsRowsOfOtherRanks) {
  R1D_NEEDS_GPU(80);
  for (const int64_t cols : {20, 192, 7168}) {
    for (const bool shared : {false, true}) {
      for (const bool by_expert : {false, true}) {
        const int64_t tokens = 9;
        const int32_t k = 5;
        const int32_t first = 6;
        const int32_t local = 6;
        const std::vector<int32_t> choices = random_choices(tokens, k, 18, 2);
        std::vector<uint16_t> rows =
            to_bf16(random_floats(static_cast<size_t>(tokens * k * cols), 3));
        std::vector<float> weights = random_floats(static_cast<size_t>(tokens * k), 4);
        const std::vector<uint16_t> residual =
            to_bf16(random_floats(static_cast<size_t>(tokens * cols), 5));
        std::vector<double> want(static_cast<size_t>(tokens * cols), 0);
        for (int64_t slot = 0; slot < tokens * k; ++slot) {
          const auto s = static_cast<size_t>(slot);
          const bool here = choices[s] >= first && choices[s] < first + local;
          if (!here && !by_expert) weights[s] = 0;
          for (int64_t i = 0; i < cols; ++i) {
            uint16_t& value = rows[static_cast<size_t>(slot * cols + i)];
            if (!here) value = 0xFFFF;  // NaN
            if (here)
              want[static_cast<size_t>(slot / k * cols + i)] +=
                  static_cast<double>(weights[s]) * bf16_to_f32(value);
          }
        }
        for (size_t i = 0; i < want.size() && shared; ++i) want[i] += bf16_to_f32(residual[i]);
        DeviceArray<uint16_t> device_rows(rows);
        DeviceArray<float> device_weights(weights);
        DeviceArray<int32_t> device_choices(choices);
        DeviceArray<uint16_t> device_shared(residual);
        DeviceArray<uint16_t> out(static_cast<size_t>(tokens * cols));
        CombineSlots problem;
        problem.rows = bf16(device_rows);
        problem.weights = device_weights.data();
        problem.experts = by_expert ? device_choices.data() : nullptr;
        problem.first_expert = first;
        problem.num_experts = local;
        problem.shared = shared ? bf16(device_shared) : nullptr;
        problem.out = bf16(out);
        problem.out_stride = cols;
        problem.num_tokens = tokens;
        problem.k = k;
        problem.cols = cols;
        R1D_MUST(combine_slots(problem, kLaunch));
        EXPECT_LT(relative_l2(from_bf16(out.download()), want), 4e-3)
            << cols << shared << by_expert;
      }
    }
  }
}

// ---- attention ---------------------------------------------------------------------------------

struct Span {
  int32_t query_len;
  int32_t context_len;
};

// Sequences over a shuffled paged cache of random rows; rows of no sequence are NaN.
class TestCache {
 public:
  // `rope`: of the width, read where the cache is e4m3.
  TestCache(const std::vector<Span>& spans,
            int32_t block_size,
            int32_t width,
            DType dtype,
            uint64_t seed,
            int32_t rope = 0)
      : block_size_(block_size), width_(width), dtype_(dtype), spans_(spans) {
    std::vector<int32_t> query_begin;
    std::vector<int32_t> query_len;
    std::vector<int32_t> context_len;
    std::vector<int32_t> block_begin;
    int32_t num_blocks = 0;
    for (const Span& span : spans) {
      query_begin.push_back(num_tokens_);
      query_len.push_back(span.query_len);
      context_len.push_back(span.context_len);
      block_begin.push_back(num_blocks);
      num_tokens_ += span.query_len;
      num_blocks += (span.context_len + block_size - 1) / block_size;
      max_context_ = std::max(max_context_, span.context_len);
    }
    std::vector<int32_t> ids(static_cast<size_t>(num_blocks) + 3);
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937_64 random(seed);
    std::shuffle(ids.begin(), ids.end(), random);
    std::vector<float> rows(ids.size() * static_cast<size_t>(block_size * width), NAN);
    for (size_t s = 0; s < spans.size(); ++s) {
      // A sequence's keys depend on its length and the seed alone, so that batches can be compared.
      keys_.push_back(
          random_floats(static_cast<size_t>(spans[s].context_len) * static_cast<size_t>(width),
                        seed + static_cast<uint64_t>(spans[s].context_len)));
      if (dtype == DType::kBF16) keys_.back() = from_bf16(to_bf16(keys_.back()));
      for (int32_t i = 0; i < spans[s].context_len; ++i) {
        const int64_t slot =
            int64_t{ids[static_cast<size_t>(block_begin[s] + i / block_size)]} * block_size +
            i % block_size;
        std::copy_n(keys_.back().begin() + int64_t{i} * width, width, rows.begin() + slot * width);
      }
    }
    if (dtype == DType::kF8E4M3) {
      r1d::test::Fp8Cache cache(static_cast<int64_t>(ids.size()), block_size, width - rope, rope);
      for (size_t slot = 0; slot < rows.size() / static_cast<size_t>(width); ++slot) {
        const float* row = &rows[slot * static_cast<size_t>(width)];
        if (!std::isnan(row[0])) cache.store(static_cast<int64_t>(slot), row);
      }
      for (size_t s = 0; s < spans.size(); ++s) {
        for (int32_t i = 0; i < spans[s].context_len; ++i) {
          const int64_t slot =
              int64_t{ids[static_cast<size_t>(block_begin[s] + i / block_size)]} * block_size +
              i % block_size;
          for (int32_t j = 0; j < width; ++j) {
            keys_[s][static_cast<size_t>(int64_t{i} * width + j)] = cache.value(slot, j);
          }
        }
      }
      f8_ = std::make_unique<DeviceArray<uint8_t>>(cache.bytes);
    } else if (dtype == DType::kBF16) {
      bf16_ = std::make_unique<DeviceArray<uint16_t>>(to_bf16(rows));
    } else {
      f32_ = std::make_unique<DeviceArray<float>>(rows);
    }
    arrays_.push_back(std::make_unique<DeviceArray<int32_t>>(query_begin));
    arrays_.push_back(std::make_unique<DeviceArray<int32_t>>(query_len));
    arrays_.push_back(std::make_unique<DeviceArray<int32_t>>(context_len));
    arrays_.push_back(std::make_unique<DeviceArray<int32_t>>(block_begin));
    arrays_.push_back(std::make_unique<DeviceArray<int32_t>>(ids));
  }

  LatentCache cache() const {
    void* data = dtype_ == DType::kF8E4M3 ? static_cast<void*>(f8_->data())
                 : dtype_ == DType::kBF16 ? static_cast<void*>(bf16_->data())
                                          : f32_->data();
    return {data, block_size_, width_, dtype_};
  }
  StepSequences sequences() const {
    return {arrays_[0]->data(),
            arrays_[1]->data(),
            arrays_[2]->data(),
            arrays_[3]->data(),
            arrays_[4]->data(),
            static_cast<int32_t>(spans_.size())};
  }
  int32_t num_tokens() const { return num_tokens_; }
  int32_t max_context() const { return max_context_; }
  const std::vector<Span>& spans() const { return spans_; }
  const float* key(size_t s, int32_t position) const {
    return keys_[s].data() + int64_t{position} * width_;
  }

 private:
  int32_t block_size_;
  int32_t width_;
  DType dtype_;
  std::vector<Span> spans_;
  int32_t num_tokens_ = 0;
  int32_t max_context_ = 0;
  std::vector<std::vector<float>> keys_;
  std::unique_ptr<DeviceArray<uint8_t>> f8_;
  std::unique_ptr<DeviceArray<uint16_t>> bf16_;
  std::unique_ptr<DeviceArray<float>> f32_;
  std::vector<std::unique_ptr<DeviceArray<int32_t>>> arrays_;
};

std::vector<float> run_attend(const AttentionDims& dims,
                              const TestCache& cache,
                              const std::vector<float>& q,
                              float scale,
                              bool split) {
  DeviceArray<float> device_q(q);
  DeviceArray<float> out(
      static_cast<size_t>(int64_t{cache.num_tokens()} * dims.heads * dims.latent));
  DeviceArray<uint8_t> workspace(
      attend_workspace_bytes(dims, cache.num_tokens(), cache.max_context() + 700));
  Attend problem;
  problem.dims = dims;
  problem.q_latent = device_q.data();
  problem.cache = cache.cache();
  problem.sequences = cache.sequences();
  problem.softmax_scale = scale;
  problem.o_latent = out.data();
  problem.num_tokens = cache.num_tokens();
  if (split) {
    problem.workspace = reinterpret_cast<float*>(workspace.data());
    problem.max_context_len = cache.max_context() + 700;
  }
  R1D_MUST(attend(problem, kLaunch));
  workspace.download();
  return out.download();
}

struct AttentionCase {
  AttentionDims dims;
  std::vector<Span> spans;
  int32_t block_size = 16;
  DType cache_dtype = DType::kBF16;
  int32_t cache_padding = 0;
};

void check_attend(const AttentionCase& c) {
  const int32_t width = c.dims.latent + c.dims.rope;
  SCOPED_TRACE(testing::Message() << "heads " << c.dims.heads << " latent " << c.dims.latent
                                  << " sequences " << c.spans.size() << " block " << c.block_size
                                  << dtype_name(c.cache_dtype));
  const TestCache cache(
      c.spans, c.block_size, width + c.cache_padding, c.cache_dtype, 11, c.dims.rope);
  const std::vector<float> q =
      random_floats(static_cast<size_t>(int64_t{cache.num_tokens()} * c.dims.heads * width), 12);
  const float scale = 1.5F / std::sqrt(static_cast<float>(width));
  const std::vector<float> out = run_attend(c.dims, cache, q, scale, false);
  EXPECT_TRUE(out == run_attend(c.dims, cache, q, scale, true)) << "split over keys, other bits";

  double work = 0;
  for (const Span& span : c.spans)
    work += 2.0 * span.query_len * span.context_len * c.dims.heads * width;
  const int64_t step = static_cast<int64_t>(work / 3e7) | 1;
  std::vector<float> got;
  std::vector<double> want;
  int64_t row = 0;  // of [T, H]
  for (size_t s = 0; s < c.spans.size(); ++s) {
    const Span& span = c.spans[s];
    for (int32_t i = 0; i < span.query_len * c.dims.heads; ++i, ++row) {
      if (i % step != 0 && i + 1 != span.query_len * c.dims.heads) continue;
      const int32_t num_keys =
          std::max(0, span.context_len - span.query_len + i / c.dims.heads + 1);
      std::vector<double> weights(static_cast<size_t>(num_keys));
      double max = -INFINITY;
      for (int32_t k = 0; k < num_keys; ++k) {
        double dot = 0;
        for (int32_t j = 0; j < width; ++j)
          dot += double{q[static_cast<size_t>(row * width + j)]} * cache.key(s, k)[j];
        weights[static_cast<size_t>(k)] = dot * scale;
        max = std::max(max, dot * scale);
      }
      double sum = 0;
      std::vector<double> values(static_cast<size_t>(c.dims.latent), 0);
      for (int32_t k = 0; k < num_keys; ++k) {
        const double weight = std::exp(weights[static_cast<size_t>(k)] - max);
        sum += weight;
        for (int32_t j = 0; j < c.dims.latent; ++j)
          values[static_cast<size_t>(j)] += weight * cache.key(s, k)[j];
      }
      for (int32_t j = 0; j < c.dims.latent; ++j) {
        got.push_back(out[static_cast<size_t>(row * c.dims.latent + j)]);
        want.push_back(sum > 0 ? values[static_cast<size_t>(j)] / sum : 0);
        if (num_keys == 0) EXPECT_EQ(got.back(), 0) << "padding must give zeros";
      }
    }
  }
  EXPECT_LT(relative_l2(got, want), 1e-5);
}

constexpr AttentionDims kGolden{4, 64, 32, 16, 32};
constexpr AttentionDims kRagged{2, 64, 32, 16, 48};
constexpr AttentionDims kR1Small{8, 512, 128, 64, 128};
constexpr AttentionDims kR1Rank{16, 512, 128, 64, 128};

TEST(GenericAttendTest, MatchesTheReference) {
  R1D_NEEDS_GPU(80);
  const std::vector<Span> decode{{1, 1}, {1, 16}, {1, 17}, {1, 0}, {1, 700}, {1, 1500}, {1, 0}};
  const std::vector<Span> mixed{{1, 5}, {70, 70}, {3, 600}, {1, 0}, {33, 513}, {1, 1}};
  for (const std::vector<Span>& spans : {decode, mixed}) {
    check_attend({kGolden, spans});
    check_attend({kGolden, spans, 7, DType::kF32});
    check_attend({kRagged, spans, 1});
    check_attend({kR1Small, spans, 64});
    check_attend({kR1Rank, spans, 32, DType::kF32});
    check_attend({{1, 37, 5, 6, 3}, spans, 16, DType::kBF16, 3});  // nothing aligned
    check_attend({{128, 512, 128, 64, 128}, {{1, 0}, {2, 40}, {1, 600}}, 64});
    check_attend({{3, 700, 8, 10, 8}, {{5, 40}, {1, 600}}, 16});  // two passes over the columns
    check_attend({kGolden, spans, 7, DType::kF8E4M3});
    check_attend({kR1Rank, spans, 64, DType::kF8E4M3});
    check_attend({{3, 700, 8, 10, 8}, {{5, 40}, {1, 600}}, 3, DType::kF8E4M3});
  }
}

TEST(GenericAttendTest, FindsTilesAmongManySequences) {
  R1D_NEEDS_GPU(80);
  std::vector<Span> spans;
  for (int32_t s = 0; s < 150; ++s) spans.push_back({1 + s % 9, (1 + s % 9) + s * 7 % 60});
  check_attend({kGolden, spans});
}

TEST(GenericAttendTest, ServesALongContext) {
  R1D_NEEDS_GPU(80);
  check_attend({kGolden, {{2, 163840}}, 64});
}

TEST(GenericAttendTest, ResultsDoNotDependOnTheBatch) {
  R1D_NEEDS_GPU(80);
  for (const AttentionDims& dims : {kGolden, kR1Small}) {
    const int32_t row = dims.heads * (dims.latent + dims.rope);
    const TestCache batch(
        {{40, 100}, {3, 900}, {1, 0}, {1, 1300}}, 16, dims.latent + dims.rope, DType::kBF16, 5);
    const std::vector<float> q = random_floats(static_cast<size_t>(batch.num_tokens() * row), 6);
    const std::vector<float> all = run_attend(dims, batch, q, 0.1F, false);
    int32_t token = 0;
    for (const Span& span : batch.spans()) {
      if (span.context_len > 0) {
        const TestCache alone({span}, 64, dims.latent + dims.rope, DType::kBF16, 5);
        const std::vector<float> own_q(q.begin() + token * row,
                                       q.begin() + (token + span.query_len) * row);
        const int32_t out_row = dims.heads * dims.latent;
        const std::vector<float> same(all.begin() + token * out_row,
                                      all.begin() + (token + span.query_len) * out_row);
        EXPECT_TRUE(run_attend(dims, alone, own_q, 0.1F, true) == same) << span.context_len;
      }
      token += span.query_len;
    }
  }
}

void check_absorb_expand(
    const AttentionDims& d, DType dtype, int64_t tokens, int64_t padding, int32_t row_offset) {
  SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " heads " << d.heads << " latent "
                                  << d.latent << " tokens " << tokens);
  const TestWeight kv_b(dtype, int64_t{d.heads} * (d.nope + d.v), d.latent, 8, {row_offset, 0});
  const int64_t stride = int64_t{d.heads} * (d.nope + d.rope) + padding;
  const std::vector<uint16_t> q = to_bf16(random_floats(static_cast<size_t>(tokens * stride), 9));
  std::vector<float> cos_sin;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int32_t i = 0; i < d.rope; ++i) {
      const float angle = static_cast<float>(t) * 0.3F + static_cast<float>(i % (d.rope / 2));
      cos_sin.push_back(i < d.rope / 2 ? std::cos(angle) : std::sin(angle));
    }
  }
  DeviceArray<uint16_t> device_q(q);
  DeviceArray<float> device_cos_sin(cos_sin);
  const int64_t width = d.latent + d.rope;
  const int64_t step = std::max<int64_t>(1, tokens * d.heads * d.latent * d.nope / 20'000'000) | 1;
  for (const bool interleave : {true, false}) {
    DeviceArray<float> q_latent(static_cast<size_t>(tokens * d.heads * width));
    Absorb problem;
    problem.dims = d;
    problem.kv_b = kv_b.matrix();
    problem.q = bf16(device_q);
    problem.q_stride = stride;
    problem.cos_sin = device_cos_sin.data();
    problem.interleave = interleave;
    problem.q_latent = q_latent.data();
    problem.num_tokens = tokens;
    R1D_MUST(absorb(problem, kLaunch));
    const std::vector<float> result = q_latent.download();
    std::vector<float> got;
    std::vector<double> want;
    std::vector<float> got_rope;
    std::vector<double> want_rope;
    for (int64_t i = 0; i < tokens * d.heads * width; ++i) {
      const int64_t t = i / (d.heads * width);
      const int64_t h = i / width % d.heads;
      const int64_t j = i % width;
      const auto value = [&](int64_t at) {
        return double{bf16_to_f32(q[static_cast<size_t>(t * stride + h * (d.nope + d.rope) + at)])};
      };
      if (j < d.latent) {
        if (i % step != 0) continue;
        double sum = 0;
        for (int64_t n = 0; n < d.nope; ++n) sum += value(n) * kv_b.at(h * (d.nope + d.v) + n, j);
        got.push_back(result[static_cast<size_t>(i)]);
        want.push_back(sum);
      } else {
        const int64_t at = j - d.latent;
        const int64_t half = d.rope / 2;
        const int64_t pair = interleave ? at / 2 : at % half;
        const bool second = interleave ? at % 2 == 1 : at >= half;
        const int64_t other = interleave ? at ^ 1 : second ? at - half : at + half;
        const double cosine = cos_sin[static_cast<size_t>(t * d.rope + pair)];
        const double sine = cos_sin[static_cast<size_t>(t * d.rope + half + pair)];
        got_rope.push_back(result[static_cast<size_t>(i)]);
        want_rope.push_back(value(d.nope + at) * cosine +
                            value(d.nope + other) * (second ? sine : -sine));
      }
    }
    EXPECT_LT(relative_l2(got, want), 2e-6);
    EXPECT_LT(relative_l2(got_rope, want_rope), 2e-6) << "interleave " << interleave;
  }

  const std::vector<float> o_latent =
      random_floats(static_cast<size_t>(tokens * d.heads * d.latent), 10);
  DeviceArray<float> device_o(o_latent);
  const int64_t out_stride = int64_t{d.heads} * d.v;
  DeviceArray<uint16_t> out(static_cast<size_t>(tokens * out_stride));
  Expand problem;
  problem.dims = d;
  problem.kv_b = kv_b.matrix();
  problem.o_latent = device_o.data();
  problem.out = bf16(out);
  problem.out_stride = out_stride;
  problem.num_tokens = tokens;
  R1D_MUST(expand(problem, kLaunch));
  const std::vector<uint16_t> result = out.download();
  std::vector<float> got;
  std::vector<double> want;
  for (int64_t i = 0; i < tokens * out_stride; i += step) {
    const int64_t row = i / d.v;  // of [T, H]
    const int64_t h = row % d.heads;
    double sum = 0;
    for (int64_t r = 0; r < d.latent; ++r) {
      sum += double{o_latent[static_cast<size_t>(row * d.latent + r)]} *
             kv_b.at(h * (d.nope + d.v) + d.nope + i % d.v, r);
    }
    got.push_back(bf16_to_f32(result[static_cast<size_t>(i)]));
    want.push_back(sum);
  }
  EXPECT_LT(relative_l2(got, want), 4e-3);
}

TEST(GenericAbsorbTest, AbsorbAndExpandMatchTheReference) {
  R1D_NEEDS_GPU(80);
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF8E4M3}) {
    for (const int64_t tokens : {1, 16, 37}) {
      check_absorb_expand(kGolden, dtype, tokens, 0, 0);
      check_absorb_expand(kRagged, dtype, tokens, 0, 32);
      check_absorb_expand({3, 37, 5, 6, 3}, dtype, tokens, 1, 7);  // nothing aligned
    }
    check_absorb_expand(kR1Rank, dtype, 130, 0, 0);
  }
}

}  // namespace
}  // namespace r1d::kernels::generic
