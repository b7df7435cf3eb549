// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "kernels/fp8_gemm/fp8_gemm.h"
#include "kernels/fp8_gemm/fp8_gemm_plan.h"
#include "kernels/quantize/quantize.h"
#include "kernels/tile_weights/tile_weights.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels::test {
namespace {

// Finite e4m3 codes of magnitude up to 15, many a nanosecond: large weights are built in a blink.
std::vector<uint8_t> quick_codes(size_t count, uint64_t seed) {
  std::vector<uint8_t> codes(count);
  uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
  for (uint8_t& code : codes) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const auto top = static_cast<uint8_t>(state >> 56);
    code = static_cast<uint8_t>((top & 0x80) | ((top & 0x7F) % 0x58));
  }
  return codes;
}

std::vector<float> random_scales(size_t count, uint64_t seed) {
  std::vector<float> scales = random_floats(count, seed);
  for (float& scale : scales) scale = 0.002F * (0.5F + std::fabs(scale));
  return scales;
}

// A weight on the host, row-major, and tiled on the device.
struct Weight {
  Weight(int64_t rows, int64_t cols, uint64_t seed)
      : rows(rows),
        cols(cols),
        codes(quick_codes(static_cast<size_t>(rows * cols), seed)),
        scale(random_scales(static_cast<size_t>((rows + 127) / 128 * (cols / 128)), seed + 1)),
        tiles(codes.size()),
        device_scale(scale) {
    const DeviceArray<uint8_t> source(codes);
    R1D_MUST(tile_weight(source.data(), rows, cols, tiles.data(), {}));
    R1D_MUST(cudaDeviceSynchronize());
  }
  [[nodiscard]] TiledMatrix view() const { return {tiles.data(), device_scale.data(), rows, cols}; }

  int64_t rows;
  int64_t cols;
  std::vector<uint8_t> codes;
  std::vector<float> scale;
  DeviceArray<uint8_t> tiles;
  DeviceArray<float> device_scale;
};

// Activations as bf16 rows `stride` apart and as QuantizedRows; the latter also on the host.
struct Input {
  Input(int64_t tokens, int64_t cols, int64_t stride, uint64_t seed)
      : tokens(tokens),
        cols(cols),
        stride(stride),
        scale_stride((tokens + 3) / 4 * 4),
        rows(to_bf16(random_floats(static_cast<size_t>(tokens * stride), seed))),
        codes(static_cast<size_t>(tokens * cols)),
        scale(static_cast<size_t>(cols / 128 * scale_stride)) {
    R1D_MUST(quantize_rows(bf16().data, stride, tokens, quantized(), {}));
    host_codes = codes.download();
    host_scale = scale.download();
  }
  [[nodiscard]] Bf16Rows bf16() const {
    return {reinterpret_cast<const __nv_bfloat16*>(rows.data()), stride};
  }
  QuantizedRows quantized() { return {codes.data(), scale.data(), cols, scale_stride}; }

  int64_t tokens;
  int64_t cols;
  int64_t stride;
  int64_t scale_stride;
  DeviceArray<uint16_t> rows;
  DeviceArray<uint8_t> codes;
  DeviceArray<float> scale;
  std::vector<uint8_t> host_codes;
  std::vector<float> host_scale;
};

double product(const Weight& w, const Input& x, int64_t t, int64_t r) {
  double sum = 0;
  for (int64_t b = 0; b < w.cols / 128; ++b) {
    double part = 0;
    for (int64_t k = 128 * b; k < 128 * (b + 1); ++k) {
      part +=
          static_cast<double>(f8e4m3_to_f32(x.host_codes[static_cast<size_t>(t * x.cols + k)])) *
          static_cast<double>(f8e4m3_to_f32(w.codes[static_cast<size_t>(r * w.cols + k)]));
    }
    sum += part * static_cast<double>(x.host_scale[static_cast<size_t>(b * x.scale_stride + t)]) *
           static_cast<double>(w.scale[static_cast<size_t>(r / 128 * (w.cols / 128) + b)]);
  }
  return sum;
}

// Relative error over a sample: every token, rows at random and the corners.
template <typename Value>
double sampled_error(const Value& got, const Value& want, int64_t tokens, int64_t rows) {
  std::mt19937_64 random(5);
  std::vector<double> values;
  std::vector<double> expected;
  const int64_t each = std::max<int64_t>(4, 512 / tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < each; ++i) {
      int64_t r = static_cast<int64_t>(random() % static_cast<uint64_t>(rows));
      if (i == 0) r = 0;
      if (i == 1) r = rows - 1;
      values.push_back(got(t, r));
      expected.push_back(want(t, r));
    }
  }
  return relative_l2(values, expected);
}

using Sample = std::function<double(int64_t, int64_t)>;

Sample read_bf16(const std::vector<uint16_t>& out, int64_t stride) {
  return [&out, stride](int64_t t, int64_t r) {
    return static_cast<double>(bf16_to_f32(out[static_cast<size_t>(t * stride + r)]));
  };
}

std::vector<uint16_t> run(
    const TiledMatrix& w, Input& x, int64_t tokens, bool quantized, Launch launch = {}) {
  DeviceArray<uint16_t> out(static_cast<size_t>(tokens * w.rows));
  auto* const to = reinterpret_cast<__nv_bfloat16*>(out.data());
  EXPECT_EQ(quantized ? fp8_gemm_decode(w, x.quantized(), tokens, to, w.rows, launch)
                      : fp8_gemm_decode(w, x.bf16(), tokens, to, w.rows, launch),
            cudaSuccess);
  return out.download();
}

struct Shape {
  int64_t rows;
  int64_t cols;
};

// The tensor-parallel eighths and whole matrices of R1, golden sizes, and slices of unequal length.
const Shape kShapes[] = {{64, 128},
                         {128, 256},
                         {192, 384},
                         {64, 1152},
                         {2112, 7168},
                         {1536, 7168},
                         {576, 7168},
                         {512, 7168},
                         {3072, 1536},
                         {7168, 2048},
                         {7168, 2304},
                         {4608, 7168},
                         {192, 3584},
                         {7168, 256},
                         {4096, 512},
                         {320, 20480}};

TEST(Fp8GemmTest, SmallShapesSumTheScaledProducts) {
  R1D_NEEDS_GPU(90);
  for (const Shape shape : {Shape{64, 128}, Shape{128, 256}, Shape{64, 1152}}) {
    const Weight w(shape.rows, shape.cols, 11);
    for (const int64_t tokens : {1, 9, 33, 65}) {
      Input x(tokens, shape.cols, shape.cols, 12);
      for (const bool quantized : {true, false}) {
        const std::vector<uint16_t> out = run(w.view(), x, tokens, quantized);
        const Sample want = [&](int64_t t, int64_t r) { return product(w, x, t, r); };
        EXPECT_LT(sampled_error(read_bf16(out, w.rows), want, tokens, w.rows), 3e-3)
            << shape.rows << "x" << shape.cols << " tokens " << tokens << " quantized "
            << quantized;
      }
    }
  }
}

TEST(Fp8GemmTest, SumsTheScaledProductsAtModelShapes) {
  R1D_NEEDS_GPU(90);
  for (const Shape shape : kShapes) {
    const Weight w(shape.rows, shape.cols, 11);
    Input x(128, shape.cols, shape.cols, 12);
    const std::vector<uint16_t> whole = run(w.view(), x, 128, true);
    const Sample want = [&](int64_t t, int64_t r) { return product(w, x, t, r); };
    EXPECT_LT(sampled_error(read_bf16(whole, w.rows), want, 128, w.rows), 3e-3)
        << shape.rows << "x" << shape.cols;
    // Batch invariance: fewer tokens, and either form of x, give the first rows of the same bits.
    for (const int64_t tokens : {1, 2, 5, 8, 9, 16, 17, 24, 31, 32, 40, 48, 63, 64, 65, 127, 128}) {
      for (const bool quantized : {true, false}) {
        const std::vector<uint16_t> out = run(w.view(), x, tokens, quantized);
        const auto first = std::mismatch(out.begin(), out.end(), whole.begin()).first;
        EXPECT_EQ(first, out.end())
            << shape.rows << "x" << shape.cols << " tokens " << tokens << " quantized " << quantized
            << " differs at " << first - out.begin();
      }
    }
  }
}

TEST(Fp8GemmTest, MoreClustersThanFitAtOnceGiveTheSameBitsEveryTime) {
  R1D_NEEDS_GPU(90);
  const Weight w(4608, 7168, 25);
  for (const int64_t tokens : {17, 64, 128}) {
    Input x(tokens, 7168, 7168, 26);
    const std::vector<uint16_t> expected = run(w.view(), x, tokens, true);
    for (int round = 0; round < 20; ++round) {
      ASSERT_EQ(run(w.view(), x, tokens, round % 2 == 0), expected) << tokens << " " << round;
    }
  }
}

TEST(Fp8GemmTest, ServesTheUnshardedOutputProjection) {
  R1D_NEEDS_GPU(90);
  const Weight w(7168, 16384, 13);
  Input x(64, 16384, 16384, 14);
  for (const int64_t tokens : {1, 64}) {
    const std::vector<uint16_t> out = run(w.view(), x, tokens, false);
    const Sample want = [&](int64_t t, int64_t r) { return product(w, x, t, r); };
    EXPECT_LT(sampled_error(read_bf16(out, w.rows), want, tokens, w.rows), 3e-3);
  }
}

TEST(Fp8GemmTest, WritesF32AndLeavesWhatLiesBetweenRows) {
  R1D_NEEDS_GPU(90);
  const Weight w(192, 2048, 15);
  for (const int64_t tokens : {1, 13, 50}) {
    Input x(tokens, 2048, 2112, 16);  // rows of x apart too
    constexpr int64_t kStride = 256;
    DeviceArray<float> out(static_cast<size_t>(tokens * kStride));
    ASSERT_EQ(fp8_gemm_decode(w.view(), x.bf16(), tokens, out.data(), kStride, {}), cudaSuccess);
    const std::vector<float> got = out.download();
    const Sample read = [&](int64_t t, int64_t r) {
      return static_cast<double>(got[static_cast<size_t>(t * kStride + r)]);
    };
    const Sample want = [&](int64_t t, int64_t r) { return product(w, x, t, r); };
    EXPECT_LT(sampled_error(read, want, tokens, w.rows), 1e-3) << "tokens " << tokens;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = w.rows; r < kStride; ++r) {
        ASSERT_TRUE(std::isnan(got[static_cast<size_t>(t * kStride + r)])) << t << " " << r;
      }
    }
  }
}

TEST(Fp8GemmTest, GateUpAppliesTheActivation) {
  R1D_NEEDS_GPU(90);
  for (const Shape shape :
       {Shape{32, 256}, Shape{160, 1024}, Shape{256, 7168}, Shape{2304, 7168}}) {
    const Weight gate(
        shape.rows * 2, shape.cols, 17);  // rows to spare: the shape alone must be a tile's
    const Weight up(shape.rows * 2, shape.cols, 18);
    const auto count = static_cast<size_t>(shape.rows * shape.cols);
    const DeviceArray<uint8_t> gate_rows(gate.codes);
    const DeviceArray<uint8_t> up_rows(up.codes);
    DeviceArray<uint8_t> tiles(2 * count);
    ASSERT_EQ(
        tile_gate_up(gate_rows.data(), up_rows.data(), shape.rows, shape.cols, tiles.data(), {}),
        cudaSuccess);
    const TiledGateUp w{
        tiles.data(), gate.device_scale.data(), up.device_scale.data(), shape.rows, shape.cols};
    Input x(64, shape.cols, shape.cols, 19);
    std::vector<uint16_t> whole;
    for (const int64_t tokens : {64, 1, 8, 20}) {
      for (const bool quantized : {true, false}) {
        DeviceArray<uint16_t> out(static_cast<size_t>(tokens * shape.rows));
        auto* const to = reinterpret_cast<__nv_bfloat16*>(out.data());
        ASSERT_EQ(quantized ? fp8_gate_up_decode(w, x.quantized(), tokens, to, shape.rows, {})
                            : fp8_gate_up_decode(w, x.bf16(), tokens, to, shape.rows, {}),
                  cudaSuccess);
        const std::vector<uint16_t> got = out.download();
        if (whole.empty()) whole = got;
        EXPECT_TRUE(std::equal(got.begin(), got.end(), whole.begin()))
            << shape.rows << "x" << shape.cols << " tokens " << tokens;
        const Sample want = [&](int64_t t, int64_t r) {
          const double g = product(gate, x, t, r);
          return g / (1 + std::exp(-g)) * product(up, x, t, r);
        };
        EXPECT_LT(sampled_error(read_bf16(got, shape.rows), want, tokens, shape.rows), 4e-3)
            << shape.rows << "x" << shape.cols << " tokens " << tokens;
      }
    }
  }
}

TEST(Fp8GemmTest, AChainUnderProgrammaticLaunchReadsWhatItsPredecessorWrote) {
  R1D_NEEDS_GPU(90);
  const Weight first(1536, 7168, 20);
  const Weight second(7168, 1536, 21);
  constexpr int64_t kTokens = 16;
  Input x(kTokens, 7168, 7168, 22);
  std::vector<uint16_t> expected;
  for (const bool dependent : {false, true}) {
    cudaStream_t stream = nullptr;
    R1D_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    DeviceArray<__nv_bfloat16> middle(kTokens * 1536);
    DeviceArray<__nv_bfloat16> out(kTokens * 7168);
    const Launch launch{stream, dependent};
    Bf16Rows from = x.bf16();
    for (int round = 0; round < 20; ++round) {
      ASSERT_EQ(fp8_gemm_decode(first.view(), from, kTokens, middle.data(), 1536, launch),
                cudaSuccess);
      ASSERT_EQ(
          fp8_gemm_decode(
              second.view(), Bf16Rows{middle.data(), 1536}, kTokens, out.data(), 7168, launch),
          cudaSuccess);
      from = Bf16Rows{out.data(), 7168};
    }
    R1D_MUST(cudaStreamSynchronize(stream));
    R1D_MUST(cudaStreamDestroy(stream));
    const std::vector<__nv_bfloat16> got = out.download();
    std::vector<uint16_t> bits(got.size());
    std::memcpy(bits.data(), got.data(), 2 * got.size());
    if (!dependent) expected = bits;
    EXPECT_EQ(bits, expected);
  }
}

TEST(Fp8GemmTest, EveryPlanFitsAnSm) {
  for (const Shape shape : kShapes) {
    for (int64_t tokens = 1; tokens <= kFp8DecodeMaxTokens; ++tokens) {
      DecodePlan plan;
      plan.split = decode_split(shape.rows / 64, shape.cols / 128);
      plan.stages = decode_stages(shape.rows / 64, shape.cols / 128, tokens, plan.split);
      EXPECT_GE(plan.stages, 1);
      EXPECT_GE(plan.split, 1);
      EXPECT_LE(plan.split, 8);
      EXPECT_LE(decode_shared_bytes(shape.cols / 128, tokens, plan), 227U * 1024U)
          << shape.rows << "x" << shape.cols << " tokens " << tokens;
    }
  }
}

TEST(Fp8GemmTest, RefusesWhatItDoesNotServe) {
  R1D_NEEDS_GPU(90);
  const Weight w(64, 128, 23);
  Input x(4, 128, 128, 24);
  DeviceArray<float> out(4 * 64);
  TiledMatrix ragged = w.view();
  ragged.rows = 65;
  EXPECT_EQ(fp8_gemm_decode(ragged, x.bf16(), 4, out.data(), 128, {}), cudaErrorInvalidValue);
  EXPECT_EQ(fp8_gemm_decode(w.view(), x.bf16(), 129, out.data(), 64, {}), cudaErrorInvalidValue);
  EXPECT_EQ(fp8_gemm_decode(w.view(), x.bf16(), 4, out.data(), 60, {}), cudaErrorInvalidValue);
  EXPECT_EQ(fp8_gemm_decode(w.view(), x.bf16(), 0, out.data(), 64, {}), cudaSuccess);
}

}  // namespace
}  // namespace r1d::kernels::test
