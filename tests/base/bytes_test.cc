// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/bytes.h"

#include <limits>

#include <gtest/gtest.h>

namespace r1d {
namespace {

TEST(BytesTest, TheUnitFollowsTheSizeAsItIsRounded) {
  EXPECT_EQ(readable_bytes(0), "0 B");
  EXPECT_EQ(readable_bytes(999), "999 B");
  EXPECT_EQ(readable_bytes(1000), "1.00 kB");
  EXPECT_EQ(readable_bytes(999'994), "999.99 kB");
  EXPECT_EQ(readable_bytes(999'995), "1.00 MB");
  EXPECT_EQ(readable_bytes(999'996'000), "1.00 GB");
  EXPECT_EQ(readable_bytes(84'812'345'678), "84.81 GB");
  EXPECT_EQ(readable_bytes(-4'500'000), "-4.50 MB");
}

TEST(BytesTest, DigitsStandInGroupsOfThree) {
  EXPECT_EQ(readable_count(0), "0");
  EXPECT_EQ(readable_count(999), "999");
  EXPECT_EQ(readable_count(1000), "1,000");
  EXPECT_EQ(readable_count(163840), "163,840");
  EXPECT_EQ(readable_count(-163840), "-163,840");
  EXPECT_EQ(readable_count(-100), "-100");
  EXPECT_EQ(readable_count(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

}  // namespace
}  // namespace r1d
