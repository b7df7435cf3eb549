// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/safetensors.h"

#include <functional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "tests/support/checkpoint_writer.h"

namespace r1d::checkpoint {
namespace {

using test::Json;
using test::TensorMap;

// a: 16 bytes, b: 12, c: 4.
TensorMap three_tensors() {
  return {{"a", {"F32", {2, 2}, std::string(16, 'a')}},
          {"b", {"BF16", {6}, std::string(12, 'b')}},
          {"c", {"U8", {4, 1}, std::string(4, 'c')}}};
}

std::string length_prefix(uint64_t length) {
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) bytes += static_cast<char>(length >> shift);
  return bytes;
}

absl::StatusOr<SafetensorsFile> open_bytes(const test::TempDir& dir, const std::string& bytes) {
  dir.write("x.safetensors", bytes);
  return SafetensorsFile::open(dir.path() + "/x.safetensors", "x.safetensors");
}

// ---- headers that lie ----

struct BadHeader {
  const char* name;
  std::function<void(Json&)> edit;
  const char* message;
};
void PrintTo(const BadHeader& bad, std::ostream* out) {
  *out << bad.name;
}
std::string name_of_header(const testing::TestParamInfo<BadHeader>& info) {
  return info.param.name;
}

class BadHeaderTest : public testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaderTest, IsRefusedByFileAndTensor) {
  const test::TempDir dir;
  const auto file = open_bytes(dir, test::serialize(three_tensors(), GetParam().edit));
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(message_of(file.status()), std::string("x.safetensors: ") + GetParam().message);
}

const BadHeader kBadHeaders[] = {
    {"Overlap",
     [](Json& h) {
       h["b"]["data_offsets"] = {12, 24};
       h["c"]["data_offsets"] = {28, 32};
     },
     "tensor b at bytes [12, 24) overlaps tensor a at [0, 16)"},
    {"SameBytesTwice",
     [](Json& h) { h["d"] = h["b"]; },
     "tensor d at bytes [16, 28) overlaps tensor b at [16, 28)"},
    {"Hole",
     [](Json& h) {
       h["b"] = {{"dtype", "BF16"}, {"shape", {5}}, {"data_offsets", {18, 28}}};
     },
     "2 bytes of data before tensor b belong to no tensor"},
    {"HoleAtTheBeginning",
     [](Json& h) {
       h["a"] = {{"dtype", "F32"}, {"shape", {3}}, {"data_offsets", {4, 16}}};
     },
     "4 bytes of data before tensor a belong to no tensor"},
    {"UnclaimedTail",
     [](Json& h) { h.erase("c"); },
     "4 bytes of data after the last tensor belong to no tensor"},
    {"NoTensorAtAll",
     [](Json& h) {
       h.erase("a");
       h.erase("b");
       h.erase("c");
     },
     "32 bytes of data after the last tensor belong to no tensor"},
    {"BeyondTheData",
     [](Json& h) {
       h["c"] = {{"dtype", "U8"}, {"shape", {5}}, {"data_offsets", {28, 33}}};
     },
     "tensor c ends at byte 33 of a data section of 32: the file is truncated"},
    {"SizeDiffersFromShape",
     [](Json& h) {
       h["a"]["shape"] = {2, 3};
     },
     "tensor a has 16 bytes of data, F32 [2, 3] needs 24"},
    {"SizeDiffersFromDtype",
     [](Json& h) { h["a"]["dtype"] = "BF16"; },
     "tensor a has 16 bytes of data, BF16 [2, 2] needs 8"},
    {"UnknownDtype",
     [](Json& h) { h["a"]["dtype"] = "F7"; },
     "tensor a has dtype F7, which the safetensors format does not know"},
    {"DtypeIsNoString", [](Json& h) { h["a"]["dtype"] = 4; }, "tensor a has no dtype string"},
    {"NoShape",
     [](Json& h) { h["a"].erase("shape"); },
     "tensor a has no shape list of at most 8 sizes"},
    {"TooManyDimensions",
     [](Json& h) { h["a"]["shape"] = std::vector<int>(9, 1); },
     "tensor a has no shape list of at most 8 sizes"},
    {"NegativeSize",
     [](Json& h) {
       h["a"]["shape"] = {-2, -2};
     },
     "tensor a has -2 in its shape, expected integers from 0 to 2^63 - 1"},
    {"FractionalSize",
     [](Json& h) {
       h["a"]["shape"] = {2.0, 2};
     },
     "tensor a has 2.0 in its shape, expected integers from 0 to 2^63 - 1"},
    {"SizeOverInt64",
     [](Json& h) { h["a"]["shape"] = {18446744073709551615U}; },
     "tensor a has 18446744073709551615 in its shape, expected integers from 0 to 2^63 - 1"},
    {"ProductOverflows",
     [](Json& h) {
       h["a"]["shape"] = {4294967296, 4294967296};
     },
     "tensor a has shape [4294967296, 4294967296], whose size overflows"},
    {"ProductOverflowsBesideZero",
     [](Json& h) {
       h["a"]["shape"] = {0, 4294967296, 4294967296};
     },
     "tensor a has shape [0, 4294967296, 4294967296], whose size overflows"},
    {"HalfAByte",
     [](Json& h) {
       h["a"] = {{"dtype", "F4"}, {"shape", {31}}, {"data_offsets", {0, 16}}};
     },
     "tensor a has 124 bits, not whole bytes"},
    {"NoOffsets",
     [](Json& h) { h["a"].erase("data_offsets"); },
     "tensor a has no data_offsets list of at most 8 sizes"},
    {"OneOffset",
     [](Json& h) { h["a"]["data_offsets"] = {0}; },
     "tensor a has data_offsets [0], expected [begin, end]"},
    {"OffsetsBackwards",
     [](Json& h) {
       h["a"]["data_offsets"] = {16, 0};
     },
     "tensor a has data_offsets [16, 0], expected [begin, end]"},
    {"NegativeOffset",
     [](Json& h) {
       h["a"]["data_offsets"] = {-16, 0};
     },
     "tensor a has -16 in its data_offsets, expected integers from 0 to 2^63 - 1"},
    {"HugeOffsets",
     [](Json& h) {
       h["a"]["data_offsets"] = {9223372036854775791, 9223372036854775807};
     },
     "tensor a ends at byte 9223372036854775807 of a data section of 32: the file is truncated"},
    {"EntryIsNoObject", [](Json& h) { h["a"] = 7; }, "tensor a is 7, expected an object"},
    {"MetadataIsNoObject", [](Json& h) { h["__metadata__"] = 1; }, "__metadata__ is not an object"},
    {"MetadataIsNoString",
     [](Json& h) { h["__metadata__"]["format"] = 1; },
     "__metadata__: format is not a string"},
    {"NestedTooDeep",
     [](Json& h) { h["a"]["x"] = Json::parse(std::string(8, '[') + std::string(8, ']')); },
     "header: JSON is nested deeper than 8 levels"},
};
INSTANTIATE_TEST_SUITE_P(AllHeaders, BadHeaderTest, testing::ValuesIn(kBadHeaders), name_of_header);

// ---- files that are broken as such ----

struct BadFile {
  const char* name;
  std::string bytes;
  const char* message;
};
std::string name_of_file(const testing::TestParamInfo<BadFile>& info) {
  return info.param.name;
}
void PrintTo(const BadFile& bad, std::ostream* out) {
  *out << bad.name;
}

class BadFileTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadFileTest, IsRefused) {
  const test::TempDir dir;
  const auto file = open_bytes(dir, GetParam().bytes);
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(message_of(file.status()),
              testing::HasSubstr(std::string("x.safetensors: ") + GetParam().message));
}

std::string with_json(const std::string& json) {
  return length_prefix(json.size()) + json;
}

const BadFile kBadFiles[] = {
    {"Empty", "", "is 0 bytes long, too short for a safetensors file"},
    {"ShorterThanItsLength", "1234567", "is 7 bytes long, too short for a safetensors file"},
    {"HeaderBeyondTheFile",
     length_prefix(100) + "{}",
     "header length 100 is more than the 2 bytes that follow it"},
    {"HeaderLengthNegative",
     length_prefix(~uint64_t{0}) + "{}",
     "header length 18446744073709551615 is more than the 2 bytes that follow it"},
    {"NoHeader", length_prefix(0), "header does not start with '{'"},
    {"SpacesFirst", with_json("  {}"), "header does not start with '{'"},
    {"NotJson", with_json("{\"a\": "), "header: not JSON: parse error"},
    {"TwoDocuments", with_json("{}{}"), "header: not JSON: parse error"},
    {"SameNameTwice",
     with_json(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
               R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
     "header: JSON has key \"a\" twice"},
    {"LongName",
     with_json("{\"" + std::string(2000, 'n') + "\":1}"),
     "header: JSON key \"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn...\" is 2000 bytes long"},
    {"OneByteCut",
     test::serialize(three_tensors()).substr(0, test::serialize(three_tensors()).size() - 1),
     "tensor c ends at byte 32 of a data section of 31: the file is truncated"},
    {"OneByteMore",
     test::serialize(three_tensors()) + "x",
     "1 bytes of data after the last tensor belong to no tensor"},
};
INSTANTIATE_TEST_SUITE_P(AllFiles, BadFileTest, testing::ValuesIn(kBadFiles), name_of_file);

TEST(SafetensorsTest, RefusesAHeaderOverTheFormatsLimitBeforeReadingIt) {
  const test::TempDir dir;
  dir.write("x.safetensors", length_prefix(101 << 20) + "{");
  std::filesystem::resize_file(dir.path() + "/x.safetensors", 200 << 20);  // a sparse file
  EXPECT_EQ(message_of(SafetensorsFile::open(dir.path() + "/x.safetensors", "x").status()),
            "x: header length 105906176 is more than the format's 104857600");
}

TEST(SafetensorsTest, RefusesMoreTensorsThanTheLimit) {
  std::string json = "{";
  for (int i = 0; i <= 200'000; ++i) {
    json += (i == 0 ? "\"" : ",\"") + std::to_string(i) +
            R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  EXPECT_EQ(message_of(parse_safetensors_header(json + "}", 0).status()),
            "header has more than 200000 tensors");
}

// ---- what is accepted ----

TEST(SafetensorsTest, ListsTensorsInTheOrderOfTheirDataAndReadsThem) {
  const test::TempDir dir;
  const auto file = open_bytes(dir, test::serialize(three_tensors()));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 3U);
  const TensorEntry& b = file->tensors()[1];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, "BF16");
  EXPECT_EQ(b.shape, std::vector<int64_t>{6});
  std::string bytes(4, '\0');
  ASSERT_TRUE(file->read_at(b.end - 2, std::as_writable_bytes(std::span(bytes))).ok());
  EXPECT_EQ(bytes, "bbcc");
}

TEST(SafetensorsTest, SaysWhereAFileEndsThatWasCutAfterOpening) {
  const test::TempDir dir;
  const auto file = open_bytes(dir, test::serialize(three_tensors()));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string path = dir.path() + "/x.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4);
  std::string bytes(16, '\0');
  const absl::Status status = file->read_at(16, std::as_writable_bytes(std::span(bytes)));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(message_of(status), testing::HasSubstr("4 bytes too early"));
}

TEST(SafetensorsTest, TakesEmptyTensorsScalarsAndAnyDtypeOfTheFormat) {
  const test::TempDir dir;
  const auto file = open_bytes(dir,
                               test::serialize({{"empty", {"F64", {0, 3}, ""}},
                                                {"nothing", {"I64", {0}, ""}},
                                                {"packed", {"F6_E2M3", {4}, "123"}},
                                                {"scalar", {"C64", {}, "12345678"}}}));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 4U);
  EXPECT_FALSE(loadable_dtype("F64"));
  EXPECT_EQ(loadable_dtype("F8_E4M3"), DType::kF8E4M3);
}

TEST(SafetensorsTest, TakesAFileWithoutTensors) {
  const test::TempDir dir;
  const auto file = open_bytes(dir, with_json("{}"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->tensors().empty());
}

}  // namespace
}  // namespace r1d::checkpoint
