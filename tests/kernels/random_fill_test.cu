// SPDX-License-Identifier: Apache-2.0
// The device's dummy weights against the CPU's own (checkpoint::make_dummy_source, behind
// random_fill_reference.h).
#include "r1d/base/random.h"

#include "kernels/random_fill/random_fill.h"
#include "tests/kernels/random_fill_reference.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;
using test::ReferenceTensor;

constexpr uint64_t kSeed = 20261122;

uint64_t name_hash(const std::string& name) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3ULL;
  return hash;
}

// What make_dummy_source gives a tensor of each kind (320 columns wide inside).
RandomFill fill_of(const ReferenceTensor& tensor) {
  RandomFill fill{.key = base::random_bits(kSeed, name_hash(tensor.name)),
                  .center = 0,
                  .amplitude = std::sqrt(3.0F / static_cast<float>(tensor.cols)),
                  .dtype = tensor.dtype};
  if (tensor.name.ends_with("norm.weight")) {
    fill.center = 1;
    fill.amplitude = 0;
  } else if (tensor.name.ends_with("bias")) {
    fill.amplitude = 0.01F;
  } else if (tensor.name.ends_with("weight_scale_inv")) {
    const float scale = std::sqrt(3.0F / 320.0F) / 448;
    fill.center = scale;
    fill.amplitude = scale / 4;
  }
  return fill;
}

TEST(RandomFillTest, EverySliceOfEveryKindOfTensorEqualsTheCpu) {
  R1D_NEEDS_GPU(80);
  for (const ReferenceTensor& tensor : test::reference_tensors()) {
    struct Slice {
      int64_t row_begin, row_end, col_begin, col_end;
    };
    const int64_t rows = tensor.rows;
    const int64_t cols = tensor.cols;
    const int64_t third = cols / 3;
    for (const Slice& s : {Slice{0, rows, 0, cols},
                           Slice{rows / 2, rows, 0, cols},
                           Slice{0, rows, cols / 2, cols},
                           Slice{rows / 3, rows / 2 + 1, third, std::min(cols, third + 77)},
                           Slice{rows - 1, rows, cols - 1, cols},
                           Slice{1, 1, 0, cols}}) {
      SCOPED_TRACE(tensor.name + " rows " + std::to_string(s.row_begin) + ".." +
                   std::to_string(s.row_end) + " cols " + std::to_string(s.col_begin) + ".." +
                   std::to_string(s.col_end));
      RandomFill fill = fill_of(tensor);
      fill.row_begin = s.row_begin;
      fill.row_end = s.row_end;
      fill.col_begin = s.col_begin;
      fill.col_end = s.col_end;
      const std::vector<uint8_t> want =
          test::reference_read(kSeed, tensor, s.row_begin, s.row_end, s.col_begin, s.col_end);
      DeviceArray<uint8_t> out(want.size(), 0x5A);
      R1D_MUST(random_fill(fill, out.data(), {}));
      EXPECT_EQ(out.download(), want);
    }
  }
}

TEST(RandomFillTest, ASliceOfALargeTensorEqualsTheSameCellsOfTheWhole) {
  R1D_NEEDS_GPU(80);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    RandomFill fill{.key = 5,
                    .center = 0.25F,
                    .amplitude = 0.5F,
                    .dtype = dtype,
                    .row_end = 129280,
                    .col_end = 64};
    const auto bytes = static_cast<size_t>(dtype_bytes(dtype));
    DeviceArray<uint8_t> whole(129280 * 64 * bytes);
    R1D_MUST(random_fill(fill, whole.data(), {}));
    fill.row_begin = 129000;
    fill.col_begin = 3;
    fill.col_end = 62;
    DeviceArray<uint8_t> part(280 * 59 * bytes);
    R1D_MUST(random_fill(fill, part.data(), {}));
    const auto all = whole.download();
    const auto some = part.download();
    for (size_t r = 0; r < 280; ++r) {
      EXPECT_TRUE(std::equal(some.begin() + static_cast<int64_t>(r * 59 * bytes),
                             some.begin() + static_cast<int64_t>((r + 1) * 59 * bytes),
                             all.begin() + static_cast<int64_t>(((r + 129000) * 64 + 3) * bytes)));
    }
  }
}

TEST(RandomFillTest, EmptySlicesEnqueueNothingAndBackwardsOnesAreRefused) {
  RandomFill fill{.row_begin = 3, .row_end = 3, .col_begin = 0, .col_end = 8};
  EXPECT_EQ(random_fill(fill, nullptr, {}), cudaSuccess);
  fill.row_end = 2;
  EXPECT_EQ(random_fill(fill, nullptr, {}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace r1d::kernels
