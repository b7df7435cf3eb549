// SPDX-License-Identifier: Apache-2.0
#include "config/values.h"

#include <limits>

#include <gtest/gtest.h>

namespace r1d::config {
namespace {

TEST(ValuesTest, ReadDurationsInEveryUnit) {
  EXPECT_EQ(*parse_duration("10ms"), 10);
  EXPECT_EQ(*parse_duration("2s"), 2000);
  EXPECT_EQ(*parse_duration("5m"), 300000);
  EXPECT_EQ(*parse_duration("1h"), 3600000);
  EXPECT_EQ(*parse_duration("1500"), 1500) << "a plain number is milliseconds";
  EXPECT_EQ(*parse_duration("0"), 0);
}

TEST(ValuesTest, RefuseWhatIsNoDuration) {
  for (const char* text : {"", "ms", "1.5s", "2 s", "2S", "1d", "1hms", "+1s", "99999999999999h"}) {
    EXPECT_FALSE(parse_duration(text).ok()) << text;
  }
}

TEST(ValuesTest, ReadBytesWithDecimalAndBinarySuffixes) {
  EXPECT_EQ(*parse_bytes("4096"), 4096);
  EXPECT_EQ(*parse_bytes("3K"), 3000);
  EXPECT_EQ(*parse_bytes("3M"), 3000000);
  EXPECT_EQ(*parse_bytes("3G"), 3000000000);
  EXPECT_EQ(*parse_bytes("3Ki"), 3 * 1024);
  EXPECT_EQ(*parse_bytes("3Mi"), 3 * 1024 * 1024);
  EXPECT_EQ(*parse_bytes("16Gi"), int64_t{16} << 30);
}

TEST(ValuesTest, RefuseWhatIsNoNumberOfBytes) {
  for (const char* text :
       {"", "Gi", "1.5G", "1GiB", "1k", "1 G", "0x10", "9223372036854775807Gi"}) {
    EXPECT_FALSE(parse_bytes(text).ok()) << text;
  }
}

TEST(ValuesTest, ReadWholeNumbersThatFit) {
  EXPECT_EQ(*parse_integer("-7"), -7);
  EXPECT_EQ(*parse_integer("9223372036854775807"), std::numeric_limits<int64_t>::max());
  for (const char* text : {"", "1e3", "1_000", "0x10", " 1", "1 ", "9223372036854775808", "true"}) {
    EXPECT_FALSE(parse_integer(text).ok()) << text;
  }
}

TEST(ValuesTest, WriteInTheLargestUnitThatDivides) {
  EXPECT_EQ(format_duration(0), "0ms");
  EXPECT_EQ(format_duration(1500), "1500ms");
  EXPECT_EQ(format_duration(90000), "90s");
  EXPECT_EQ(format_duration(600000), "10m");
  EXPECT_EQ(format_duration(7200000), "2h");
  EXPECT_EQ(format_bytes(0), "0");
  EXPECT_EQ(format_bytes(1000), "1000");
  EXPECT_EQ(format_bytes(4 << 20), "4Mi");
}

TEST(ValuesTest, QuoteWithoutControlCharactersAndCut) {
  EXPECT_EQ(quote("a\"b\\c\n\x7f"), R"("a\"b\\c\x0a\x7f")");
  EXPECT_EQ(quote(std::string(200, 'x')), "\"" + std::string(80, 'x') + "\"...");
}

}  // namespace
}  // namespace r1d::config
