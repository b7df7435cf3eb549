// SPDX-License-Identifier: Apache-2.0
#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include "kernels/norm/norm.h"
#include "tests/kernels/support.cuh"
#include "tests/support/latent_reference.h"

namespace r1d::kernels {
namespace {

using test::DeviceArray;
using test::from_bf16;
using test::random_floats;
using test::to_bf16;

__nv_bfloat16* bf16(DeviceArray<uint16_t>& array) {
  return reinterpret_cast<__nv_bfloat16*>(array.data());
}
float rounded(double v) {
  return bf16_to_f32(f32_to_bf16(static_cast<float>(v)));
}
float decode_e4m3(uint8_t code) {
  __nv_fp8_e4m3 v;
  v.__x = code;
  return static_cast<float>(v);
}

std::vector<float> bf16_values(size_t count, uint64_t seed, float scale = 1) {
  return from_bf16(to_bf16(random_floats(count, seed, scale)));
}

// Row norm in f64, not rounded.
std::vector<double> reference_norm(const float* x, const float* weight, int64_t cols, double eps) {
  double square = 0;
  for (int64_t i = 0; i < cols; ++i) square += static_cast<double>(x[i]) * x[i];
  const double factor = 1 / std::sqrt(square / static_cast<double>(cols) + eps);
  std::vector<double> y(static_cast<size_t>(cols));
  for (int64_t i = 0; i < cols; ++i) y[static_cast<size_t>(i)] = x[i] * factor * weight[i];
  return y;
}

// A bf16 of `got` is within two roundings of the exact value.
void expect_bf16_near(float got, double want, int64_t t, int64_t i) {
  ASSERT_LE(std::abs(got - want), std::abs(want) * 0.006 + 1e-30)
      << "token " << t << " column " << i << ": " << got;
}

// The codes and scales are exactly those of the bf16 row.
void expect_quantized(const std::vector<float>& y,
                      const std::vector<uint8_t>& codes,
                      const std::vector<float>& scales,
                      int64_t tokens,
                      int64_t cols,
                      int64_t scale_stride) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t g = 0; g < cols / 128; ++g) {
      float largest = 0;
      const float* group = &y[static_cast<size_t>(t * cols + g * 128)];
      for (int i = 0; i < 128; ++i) largest = std::max(largest, std::abs(group[i]));
      const float scale = largest > 0 ? largest / 448.F : 1.F;
      ASSERT_EQ(scales[static_cast<size_t>(g * scale_stride + t)], scale)
          << "token " << t << " group " << g;
      for (int i = 0; i < 128; ++i) {
        const uint8_t want = __nv_cvt_float_to_fp8(group[i] / scale, __NV_SATFINITE, __NV_E4M3);
        const uint8_t got = codes[static_cast<size_t>(t * cols + g * 128 + i)];
        ASSERT_EQ(decode_e4m3(got), decode_e4m3(want))
            << "token " << t << " column " << g * 128 + i;
      }
    }
  }
}

struct AddCase {
  int64_t tokens;
  int64_t cols;
  int32_t parts;
  bool f32 = false;
  bool quantized = true;
  int64_t pad = 0;  // between rows
  int capability = 90;
  float scale = 1;
};

void check_add_norm(const AddCase& c) {
  SCOPED_TRACE(testing::Message() << c.tokens << " x " << c.cols << ", parts " << c.parts << " f32 "
                                  << c.f32 << " pad " << c.pad << " capability " << c.capability);
  const int64_t stride = c.cols + c.pad;
  const auto size = static_cast<size_t>(c.tokens * stride);
  const auto residual = bf16_values(size, 1, c.scale);
  const auto weight = random_floats(static_cast<size_t>(c.cols), 2);
  auto parts = random_floats(size * static_cast<size_t>(std::max(c.parts, 1)), 3, c.scale);
  if (!c.f32) parts = from_bf16(to_bf16(parts));
  DeviceArray<uint16_t> d_residual(to_bf16(residual));
  DeviceArray<float> d_weight(weight);
  DeviceArray<float> d_f32(parts);
  DeviceArray<uint16_t> d_bf16(to_bf16(parts));
  DeviceArray<uint16_t> out(size);
  const int64_t scale_stride = (c.tokens + 3) / 4 * 4;
  DeviceArray<uint8_t> codes(static_cast<size_t>(c.tokens * c.cols));
  DeviceArray<float> scales(static_cast<size_t>((c.cols + 127) / 128 * scale_stride));
  AddNorm a{.partial = c.f32 ? static_cast<void*>(d_f32.data()) : d_bf16.data(),
            .partial_f32 = c.f32,
            .parts = c.parts,
            .partial_stride = stride,
            .residual = bf16(d_residual),
            .residual_stride = stride,
            .weight = d_weight.data(),
            .eps = 1e-6F,
            .tokens = c.tokens,
            .cols = c.cols,
            .out = {.bf16 = bf16(out), .stride = stride},
            .capability = c.capability};
  if (c.quantized) a.out.quantized = {codes.data(), scales.data(), c.cols, scale_stride};
  ASSERT_EQ(add_norm(a, {}), cudaSuccess);

  const auto got_residual = from_bf16(d_residual.download());
  const auto got = from_bf16(out.download());
  std::vector<float> dense;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const auto row = static_cast<size_t>(t * stride);
    for (int64_t i = 0; i < c.cols; ++i) {
      const size_t at = row + static_cast<size_t>(i);
      float sum = 0;
      for (int32_t p = 0; p < c.parts; ++p) sum += parts[static_cast<size_t>(p) * size + at];
      const float want = c.parts > 0 ? rounded(residual[at] + sum) : residual[at];
      ASSERT_EQ(got_residual[at], want) << "token " << t << " column " << i;
    }
    const auto y = reference_norm(&got_residual[row], weight.data(), c.cols, 1e-6);
    for (int64_t i = 0; i < c.cols; ++i) {
      expect_bf16_near(got[row + static_cast<size_t>(i)], y[static_cast<size_t>(i)], t, i);
      dense.push_back(got[row + static_cast<size_t>(i)]);
    }
    for (int64_t i = c.cols; i < stride; ++i) {
      ASSERT_TRUE(std::isnan(got[row + static_cast<size_t>(i)])) << "wrote between rows";
    }
  }
  if (c.quantized) {
    expect_quantized(dense, codes.download(), scales.download(), c.tokens, c.cols, scale_stride);
  }
}

TEST(NormTest, AddsOnePartAndNormsAtEverySize) {
  R1D_NEEDS_GPU(80);
  for (const int64_t tokens : {1, 16, 17, 133}) {
    check_add_norm({.tokens = tokens, .cols = 7168, .parts = 1});
    check_add_norm({.tokens = tokens, .cols = 7168, .parts = 1, .capability = 80});
  }
  for (const int64_t cols : {128, 640, 1536, 2176, 8192, 32768}) {
    check_add_norm({.tokens = 1, .cols = cols, .parts = 1});
    check_add_norm({.tokens = 5, .cols = cols, .parts = 1, .pad = 8});
    check_add_norm({.tokens = 140, .cols = cols, .parts = 1});
  }
}

TEST(NormTest, SumsPartsInOrder) {
  R1D_NEEDS_GPU(80);
  for (const bool f32 : {false, true}) {
    for (const int32_t parts : {0, 2, 3, 8, 16}) {
      check_add_norm({.tokens = 3, .cols = 7168, .parts = parts, .f32 = f32});
      check_add_norm({.tokens = 150, .cols = 896, .parts = parts, .f32 = f32});
    }
  }
}

TEST(NormTest, TakesSizesAndStridesOffTheVector) {
  R1D_NEEDS_GPU(80);
  for (const int64_t cols : {1, 7, 8, 40, 100, 130, 264, 1000, 2056, 40000}) {
    for (const int64_t pad : {0, 3}) {
      check_add_norm({.tokens = 2, .cols = cols, .parts = 1, .quantized = false, .pad = pad});
      check_add_norm(
          {.tokens = 20, .cols = cols, .parts = 3, .f32 = true, .quantized = false, .pad = pad});
    }
  }
}

TEST(NormTest, TinyValuesQuantizeExactly) {
  R1D_NEEDS_GPU(80);
  // eps dominates, the normed values are tiny: scales below 2^-100 lose no bits.
  check_add_norm({.tokens = 2, .cols = 256, .parts = 1, .scale = 1e-33F});
}

TEST(NormTest, ZerosGetScaleOne) {
  R1D_NEEDS_GPU(80);
  DeviceArray<uint16_t> x(std::vector<uint16_t>(256, 0));
  DeviceArray<float> weight(std::vector<float>(256, 1));
  DeviceArray<uint8_t> codes(256);
  DeviceArray<float> scales(2 * 4);
  RmsNorm a{.x = bf16(x), .weight = weight.data(), .tokens = 1, .cols = 256};
  a.out.quantized = {codes.data(), scales.data(), 256, 4};
  ASSERT_EQ(rms_norm(a, {}), cudaSuccess);
  EXPECT_EQ(codes.download(), std::vector<uint8_t>(256, 0));
  EXPECT_EQ(scales.download()[0], 1.F);
  EXPECT_EQ(scales.download()[4], 1.F);
}

TEST(NormTest, ATokensBitsDoNotDependOnTheBatch) {
  R1D_NEEDS_GPU(80);
  constexpr int64_t kCols = 7168;
  constexpr int64_t kTokens = 200;
  DeviceArray<uint16_t> x(to_bf16(random_floats(kTokens * kCols, 5)));
  DeviceArray<float> weight(random_floats(kCols, 6));
  DeviceArray<uint16_t> out(kTokens * kCols);
  RmsNorm a{.x = bf16(x),
            .weight = weight.data(),
            .tokens = kTokens,
            .cols = kCols,
            .out = {.bf16 = bf16(out)}};
  ASSERT_EQ(rms_norm(a, {}), cudaSuccess);
  const auto all = out.download();
  for (const int64_t tokens : {1, 16, 100}) {
    for (const int capability : {80, 90}) {
      out.poison();
      a.tokens = tokens;
      a.capability = capability;
      ASSERT_EQ(rms_norm(a, {}), cudaSuccess);
      const auto some = out.download();
      EXPECT_TRUE(std::equal(some.begin(), some.begin() + tokens * kCols, all.begin())) << tokens;
    }
  }
}

TEST(NormTest, ADependentChainGivesTheSameBits) {
  R1D_NEEDS_GPU(90);
  constexpr int64_t kCols = 7168;
  for (const int64_t tokens : {1, 20, 200}) {
    const auto size = static_cast<size_t>(tokens * kCols);
    const auto start = to_bf16(random_floats(size, 21));
    DeviceArray<float> weight(random_floats(kCols, 22));
    DeviceArray<uint16_t> residual(size);
    DeviceArray<uint16_t> normed(size);
    std::vector<uint16_t> results[2];
    for (const bool dependent : {false, true}) {
      residual.upload(start);
      normed.upload(start);
      // Each call adds what the one before it wrote.
      const AddNorm a{.partial = normed.data(),
                      .residual = bf16(residual),
                      .weight = weight.data(),
                      .tokens = tokens,
                      .cols = kCols,
                      .out = {.bf16 = bf16(normed)}};
      for (int i = 0; i < 30; ++i) ASSERT_EQ(add_norm(a, {.dependent = dependent}), cudaSuccess);
      results[dependent] = normed.download();
    }
    EXPECT_EQ(results[0], results[1]) << tokens << " tokens";
  }
}

TEST(NormTest, NormsInPlaceWithoutAResidual) {
  R1D_NEEDS_GPU(80);
  for (const int64_t cols : {512, 77}) {
    const auto values = bf16_values(static_cast<size_t>(3 * cols), 7);
    const auto weight = random_floats(static_cast<size_t>(cols), 8);
    DeviceArray<uint16_t> x(to_bf16(values));
    DeviceArray<float> d_weight(weight);
    ASSERT_EQ(rms_norm({.x = bf16(x),
                        .weight = d_weight.data(),
                        .tokens = 3,
                        .cols = cols,
                        .out = {.bf16 = bf16(x)}},
                       {}),
              cudaSuccess);
    const auto got = from_bf16(x.download());
    for (int64_t t = 0; t < 3; ++t) {
      const auto y =
          reference_norm(&values[static_cast<size_t>(t * cols)], weight.data(), cols, 1e-6);
      for (int64_t i = 0; i < cols; ++i) {
        expect_bf16_near(got[static_cast<size_t>(t * cols + i)], y[static_cast<size_t>(i)], t, i);
      }
    }
  }
}

struct SplitCase {
  int64_t tokens;
  int64_t q_lora;
  int64_t latent;
  int64_t rope;
  bool interleave = true;
  bool quantized = true;
  int64_t pad = 0;
};

void check_split(const SplitCase& c) {
  SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.q_lora << " | " << c.latent
                                  << " | " << c.rope << " pad " << c.pad << " interleave "
                                  << c.interleave);
  const int64_t stride = c.q_lora + c.latent + c.rope + c.pad;
  const int64_t width = c.latent + c.rope;
  constexpr int kBlock = 4;
  const int64_t num_slots = (c.tokens + 8) / kBlock * kBlock + kBlock;
  const auto x = bf16_values(static_cast<size_t>(c.tokens * stride), 11);
  const auto q_weight = random_floats(static_cast<size_t>(c.q_lora), 12);
  const auto kv_weight = random_floats(static_cast<size_t>(c.latent), 13);
  const auto angles = random_floats(static_cast<size_t>(c.tokens * c.rope), 14);
  std::vector<int64_t> slots;
  for (int64_t t = 0; t < c.tokens; ++t) slots.push_back(t % 5 == 3 ? -1 : num_slots - 1 - t);
  DeviceArray<uint16_t> d_x(to_bf16(x));
  DeviceArray<float> d_q(q_weight);
  DeviceArray<float> d_kv(kv_weight);
  DeviceArray<float> d_angles(angles);
  DeviceArray<int64_t> d_slots(slots);
  DeviceArray<uint16_t> cache(static_cast<size_t>(num_slots * width));
  DeviceArray<uint16_t> q(static_cast<size_t>(c.tokens * c.q_lora));
  const int64_t scale_stride = (c.tokens + 3) / 4 * 4;
  DeviceArray<uint8_t> codes(static_cast<size_t>(c.tokens * c.q_lora));
  DeviceArray<float> scales(static_cast<size_t>((c.q_lora + 127) / 128 * scale_stride));
  MlaSplitNorm a{.x = bf16(d_x),
                 .x_stride = stride,
                 .tokens = c.tokens,
                 .q_lora = c.q_lora,
                 .latent = c.latent,
                 .rope = c.rope,
                 .q_weight = d_q.data(),
                 .kv_weight = d_kv.data(),
                 .cos_sin = d_angles.data(),
                 .interleave = c.interleave,
                 .q = {.bf16 = bf16(q)},
                 .cache = {cache.data(), kBlock, static_cast<int32_t>(width)},
                 .slots = d_slots.data()};
  if (c.quantized) a.q.quantized = {codes.data(), scales.data(), c.q_lora, scale_stride};
  ASSERT_EQ(mla_split_norm(a, {}), cudaSuccess);

  const auto rows = from_bf16(cache.download());
  std::vector<bool> written(static_cast<size_t>(num_slots));
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t slot = slots[static_cast<size_t>(t)];
    if (slot < 0) continue;
    written[static_cast<size_t>(slot)] = true;
    const float* from = &x[static_cast<size_t>(t * stride + c.q_lora)];
    const float* row = &rows[static_cast<size_t>(slot * width)];
    const auto latent = reference_norm(from, kv_weight.data(), c.latent, 1e-6);
    for (int64_t i = 0; i < c.latent; ++i)
      expect_bf16_near(row[i], latent[static_cast<size_t>(i)], t, i);
    const int64_t pairs = c.rope / 2;
    for (int64_t p = 0; p < pairs; ++p) {
      const int64_t i = c.latent + (c.interleave ? 2 * p : p);
      const int64_t j = c.interleave ? i + 1 : i + pairs;
      const float cos = angles[static_cast<size_t>(t * c.rope + p)];
      const float sin = angles[static_cast<size_t>(t * c.rope + pairs + p)];
      const double magnitude = std::abs(from[i]) + std::abs(from[j]);
      ASSERT_NEAR(row[i], from[i] * cos - from[j] * sin, 0.004 * magnitude * 4)
          << t << " pair " << p;
      ASSERT_NEAR(row[j], from[i] * sin + from[j] * cos, 0.004 * magnitude * 4)
          << t << " pair " << p;
    }
  }
  for (int64_t s = 0; s < num_slots; ++s) {
    for (int64_t i = 0; i < width && !written[static_cast<size_t>(s)]; ++i) {
      ASSERT_TRUE(std::isnan(rows[static_cast<size_t>(s * width + i)])) << "wrote slot " << s;
    }
  }
  const auto got = from_bf16(q.download());
  for (int64_t t = 0; t < c.tokens; ++t) {
    const auto y =
        reference_norm(&x[static_cast<size_t>(t * stride)], q_weight.data(), c.q_lora, 1e-6);
    for (int64_t i = 0; i < c.q_lora; ++i) {
      expect_bf16_near(got[static_cast<size_t>(t * c.q_lora + i)], y[static_cast<size_t>(i)], t, i);
    }
  }
  if (c.quantized)
    expect_quantized(got, codes.download(), scales.download(), c.tokens, c.q_lora, scale_stride);
}

// The row of an e4m3 cache against the norm's, and nothing written besides it.
void check_fp8_cache(int64_t tokens, int64_t latent, int64_t rope, int block_size, int pad = 0) {
  SCOPED_TRACE(testing::Message() << tokens << " tokens, latent " << latent << ", rope " << rope
                                  << ", blocks of " << block_size << ", pad " << pad);
  const int64_t stride = latent + rope + pad;
  const int64_t blocks = tokens / block_size + 2;
  const int64_t num_slots = blocks * block_size;
  auto x = bf16_values(static_cast<size_t>(tokens * stride), 11);
  if (tokens > 1) std::fill_n(x.begin() + stride, std::min<int64_t>(latent, 128), 0.0F);
  const auto weight = random_floats(static_cast<size_t>(latent), 13);
  const auto angles = random_floats(static_cast<size_t>(tokens * rope), 14);
  std::vector<int64_t> slots;
  for (int64_t t = 0; t < tokens; ++t) slots.push_back(t % 5 == 3 ? -1 : num_slots - 1 - t);
  DeviceArray<uint16_t> d_x(to_bf16(x));
  DeviceArray<float> d_weight(weight);
  DeviceArray<float> d_angles(angles);
  DeviceArray<int64_t> d_slots(slots);
  DeviceArray<uint16_t> rows(static_cast<size_t>(num_slots * (latent + rope)));
  r1d::test::Fp8Cache want(blocks, block_size, static_cast<int>(latent), static_cast<int>(rope));
  std::fill(want.bytes.begin(), want.bytes.end(), uint8_t{0xFF});
  DeviceArray<uint8_t> cache(want.bytes.size());
  MlaSplitNorm a{.x = bf16(d_x),
                 .x_stride = stride,
                 .tokens = tokens,
                 .latent = latent,
                 .rope = rope,
                 .kv_weight = d_weight.data(),
                 .cos_sin = d_angles.data(),
                 .cache = {rows.data(), block_size, static_cast<int32_t>(latent + rope)},
                 .slots = d_slots.data()};
  ASSERT_EQ(mla_split_norm(a, {}), cudaSuccess);
  const auto as_bf16 = from_bf16(rows.download());
  a.cache.data = cache.data();
  a.cache.dtype = DType::kF8E4M3;
  ASSERT_EQ(mla_split_norm(a, {}), cudaSuccess);
  r1d::test::Fp8Cache got = want;
  got.bytes = cache.download();
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t slot = slots[static_cast<size_t>(t)];
    if (slot < 0) continue;
    const float* bf16_row = &as_bf16[static_cast<size_t>(slot * (latent + rope))];
    std::vector<float> row(bf16_row, bf16_row + latent + rope);
    const auto normed =
        reference_norm(&x[static_cast<size_t>(t * stride)], weight.data(), latent, 1e-6);
    std::copy(normed.begin(), normed.end(), row.begin());
    want.store(slot, row.data());
    for (int64_t i = 0; i < latent + rope; ++i) {
      const float value = got.value(slot, static_cast<int>(i));
      const float expected = want.value(slot, static_cast<int>(i));
      // A value at the edge of two codes may fall on either side.
      const float step = i < latent ? std::abs(row[i]) / 8 + 1e-4F : 0;
      ASSERT_LE(std::abs(value - expected), step) << "token " << t << " value " << i;
      if (i < latent) ASSERT_LE(std::abs(value - row[i]), step / 2 * 1.001F) << t << " " << i;
    }
    // What else lies in the block, its scales too, is the same in both.
    want.copy_token(slot, got);
  }
  EXPECT_TRUE(want.bytes == got.bytes) << "wrote beside the rows";
}

TEST(MlaSplitNormTest, WritesAnFp8Cache) {
  R1D_NEEDS_GPU(80);
  for (const int64_t tokens : {1, 7, 515}) {
    check_fp8_cache(tokens, 512, 64, 64);
    check_fp8_cache(tokens, 512, 64, 16);
    check_fp8_cache(tokens, 64, 16, 4);
    check_fp8_cache(tokens, 200, 8, 1);
    check_fp8_cache(tokens, 24, 10, 3);
    check_fp8_cache(tokens, 300, 6, 2, 1);
  }
}

TEST(MlaSplitNormTest, WritesQueryAndCacheRow) {
  R1D_NEEDS_GPU(80);
  for (const int64_t tokens : {1, 7, 515, 1001}) {
    for (const bool interleave : {true, false}) {
      check_split(
          {.tokens = tokens, .q_lora = 1536, .latent = 512, .rope = 64, .interleave = interleave});
      check_split({.tokens = tokens,
                   .q_lora = 0,
                   .latent = 512,
                   .rope = 64,
                   .interleave = interleave,
                   .quantized = false});
      check_split({.tokens = tokens,
                   .q_lora = 128,
                   .latent = 64,
                   .rope = 16,
                   .interleave = interleave,
                   .pad = 8});
    }
  }
}

// Many tokens take another form than few: one token alone, and all of them.
TEST(MlaSplitNormTest, ATokensBitsDoNotDependOnTheOthers) {
  R1D_NEEDS_GPU(80);
  constexpr int64_t kTokens = 1001;
  constexpr int64_t kQuery = 1536;
  constexpr int64_t kLatent = 512;
  constexpr int64_t kRope = 64;
  constexpr int64_t kStride = kQuery + kLatent + kRope;
  auto values = bf16_values(kTokens * kStride, 21);
  std::fill_n(values.begin(), kQuery, 0.0F);             // a query of zeros
  std::fill_n(values.begin() + 5 * kStride, 128, 0.0F);  // a group of zeros
  DeviceArray<uint16_t> x(to_bf16(values));
  DeviceArray<float> q_weight(random_floats(kQuery, 22));
  DeviceArray<float> kv_weight(random_floats(kLatent, 23));
  DeviceArray<float> angles(random_floats(kTokens * kRope, 24));
  std::vector<int64_t> order(kTokens);
  for (int64_t t = 0; t < kTokens; ++t) order[t] = kTokens - 1 - t;
  DeviceArray<int64_t> slots(order);
  DeviceArray<uint16_t> cache(kTokens * (kLatent + kRope));
  DeviceArray<uint16_t> q(kTokens * kQuery);
  DeviceArray<uint8_t> codes(kTokens * kQuery);
  constexpr int64_t kScaleStride = (kTokens + 3) / 4 * 4;
  DeviceArray<float> scales(kQuery / 128 * kScaleStride);
  const auto run = [&](int64_t first, int64_t tokens) {
    MlaSplitNorm a{.x = bf16(x) + first * kStride,
                   .tokens = tokens,
                   .q_lora = kQuery,
                   .latent = kLatent,
                   .rope = kRope,
                   .q_weight = q_weight.data(),
                   .kv_weight = kv_weight.data(),
                   .cos_sin = angles.data() + first * kRope,
                   .q = {.bf16 = bf16(q) + first * kQuery},
                   .cache = {cache.data(), 1, kLatent + kRope},
                   .slots = slots.data() + first};
    a.q.quantized = {codes.data() + first * kQuery, scales.data() + first, kQuery, kScaleStride};
    ASSERT_EQ(mla_split_norm(a, {}), cudaSuccess);
  };
  run(0, kTokens);
  const auto all_cache = cache.download();
  const auto all_q = q.download();
  const auto all_codes = codes.download();
  const auto all_scales = scales.download();
  cache.poison();
  q.poison();
  codes.poison();
  scales.poison();
  for (int64_t t = 0; t < kTokens; t += 77) run(t, std::min<int64_t>(77, kTokens - t));
  EXPECT_TRUE(cache.download() == all_cache);
  EXPECT_TRUE(q.download() == all_q);
  EXPECT_TRUE(codes.download() == all_codes);
  const auto some_scales = scales.download();
  for (int64_t g = 0; g < kQuery / 128; ++g) {
    for (int64_t t = 0; t < kTokens; ++t) {
      ASSERT_EQ(some_scales[g * kScaleStride + t], all_scales[g * kScaleStride + t])
          << "token " << t << " group " << g;
    }
  }
}

TEST(MlaSplitNormTest, TakesOddSizes) {
  R1D_NEEDS_GPU(80);
  for (const bool interleave : {true, false}) {
    check_split({.tokens = 6,
                 .q_lora = 24,
                 .latent = 16,
                 .rope = 8,
                 .interleave = interleave,
                 .quantized = false});
    check_split({.tokens = 6,
                 .q_lora = 33,
                 .latent = 19,
                 .rope = 6,
                 .interleave = interleave,
                 .quantized = false});
    check_split({.tokens = 6,
                 .q_lora = 64,
                 .latent = 32,
                 .rope = 0,
                 .interleave = interleave,
                 .quantized = false});
    check_split({.tokens = 6,
                 .q_lora = 1536,
                 .latent = 512,
                 .rope = 64,
                 .interleave = interleave,
                 .quantized = false,
                 .pad = 1});
    check_split({.tokens = 6,
                 .q_lora = 0,
                 .latent = 48,
                 .rope = 256,
                 .interleave = interleave,
                 .quantized = false});
  }
}

TEST(NormTest, RefusesWhatItDoesNotServe) {
  float weight = 0;
  __nv_bfloat16 x{};
  uint8_t codes = 0;
  RmsNorm a{.x = &x, .weight = &weight, .tokens = 1, .cols = 100, .out = {.bf16 = &x}};
  a.out.quantized = {&codes, &weight, 100, 4};
  EXPECT_EQ(rms_norm(a, {}), cudaErrorInvalidValue);
  EXPECT_EQ(
      rms_norm({.x = &x, .weight = &weight, .tokens = -1, .cols = 8, .out = {.bf16 = &x}}, {}),
      cudaErrorInvalidValue);
  EXPECT_EQ(rms_norm({.tokens = 0, .cols = 8, .out = {.bf16 = &x}}, {}), cudaSuccess);
  EXPECT_EQ(add_norm({.parts = 17, .residual = &x, .tokens = 1, .cols = 8}, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(mla_split_norm({.tokens = 1, .latent = 8, .rope = 3}, {}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace r1d::kernels
