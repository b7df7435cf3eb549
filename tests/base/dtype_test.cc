// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/dtype.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

#include "r1d/base/random.h"

namespace r1d {
namespace {

// e4m3fn by its definition: (-1)^s * 2^(e-7) * (1 + m/8), or 2^-6 * m/8 when e is 0.
double e4m3_by_definition(uint32_t bits) {
  const int exponent = static_cast<int>((bits >> 3) & 0xFU);
  const double mantissa = (bits & 7U) / 8.0;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -6) : std::ldexp(1 + mantissa, exponent - 7);
  return (bits & 0x80U) != 0 ? -magnitude : magnitude;
}

TEST(DTypeTest, EveryF8CodeHasItsDefinedValue) {
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const float value = f8e4m3_to_f32(static_cast<uint8_t>(bits));
    if ((bits & 0x7FU) == 0x7FU) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      continue;
    }
    EXPECT_EQ(value, e4m3_by_definition(bits)) << bits;
    EXPECT_EQ(std::signbit(value), (bits & 0x80U) != 0) << bits;
  }
}

TEST(DTypeTest, EveryF8NumberSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 256; ++bits) {
    if ((bits & 0x7FU) == 0x7FU) continue;
    EXPECT_EQ(f32_to_f8e4m3(f8e4m3_to_f32(static_cast<uint8_t>(bits))), bits);
  }
}

TEST(DTypeTest, F8RoundsToNearestEvenAndSaturates) {
  const struct {
    float value;
    uint8_t bits;
  } cases[] = {{1.0F, 0x38},
               {448.0F, 0x7E},
               {240.0F, 0x77},
               {-1.5F, 0xBC},
               {17.0F, 0x58},
               {19.0F, 0x5A},
               {0.875F, 0x36},
               {0x1p-9F, 0x01},
               {0x1p-10F, 0x00},
               {432.0F, 0x7E},
               {431.0F, 0x7D},
               {0.0146484375F, 0x08},
               {-0.0F, 0x80},
               {1e9F, 0x7E},
               {-1e9F, 0xFE},
               {0x1.8p-9F, 0x02},
               {std::numeric_limits<float>::infinity(), 0x7E}};
  for (const auto& c : cases) EXPECT_EQ(f32_to_f8e4m3(c.value), c.bits) << c.value;
  EXPECT_EQ(f32_to_f8e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7F, 0x7F);
}

TEST(DTypeTest, F8EncodesTheNearestOfAllNumbers) {
  constexpr uint64_t kSeed = 11;
  for (uint64_t i = 0; i < 2000; ++i) {
    const auto value = static_cast<float>(
        std::ldexp(base::random_unit(kSeed, 2 * i) - 0.5, static_cast<int>(i % 20) - 9));
    const double error = std::abs(f8e4m3_to_f32(f32_to_f8e4m3(value)) - double{value});
    for (uint32_t bits = 0; bits < 256; ++bits) {
      if ((bits & 0x7FU) == 0x7FU) continue;
      ASSERT_LE(error, std::abs(e4m3_by_definition(bits) - double{value})) << value << ' ' << bits;
    }
  }
}

TEST(DTypeTest, Bf16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(f32_to_bf16(1.0F), 0x3F80);
  EXPECT_EQ(f32_to_bf16(1.0F + 0x1p-8F), 0x3F80);      // a tie, down to even
  EXPECT_EQ(f32_to_bf16(1.0F + 3 * 0x1p-8F), 0x3F82);  // a tie, up to even
  EXPECT_EQ(f32_to_bf16(1.0F + 0x1.1p-8F), 0x3F81);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    EXPECT_EQ(f32_to_bf16(value), bits);
  }
}

TEST(DTypeTest, SizesAndNamesAreThoseOfSafetensors) {
  EXPECT_EQ(dtype_bytes(DType::kF32), 4);
  EXPECT_EQ(dtype_bytes(DType::kBF16), 2);
  EXPECT_EQ(dtype_bytes(DType::kF8E4M3), 1);
  EXPECT_STREQ(dtype_name(DType::kF32), "F32");
  EXPECT_STREQ(dtype_name(DType::kBF16), "BF16");
  EXPECT_STREQ(dtype_name(DType::kF8E4M3), "F8_E4M3");
}

}  // namespace
}  // namespace r1d
