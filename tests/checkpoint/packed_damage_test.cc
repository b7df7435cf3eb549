// SPDX-License-Identifier: Apache-2.0
// What open_packed() and its sources refuse, and with which words.
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"

#include "checkpoint/packed_file.h"
#include "tests/support/packed.h"

namespace r1d::checkpoint {
namespace {

namespace fs = std::filesystem;

using test::Json;
using test::TempDir;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kRank0 = "rank-00-of-02.r1dpack";
constexpr const char* kRank1 = "rank-01-of-02.r1dpack";
constexpr const char* kMatrix = "model.layers.1.mlp.experts.3.down_proj.weight";

// Packed for two ranks; every test bends its copy.
class PackedDamage {
 public:
  explicit PackedDamage(const Json& config = test::packable_config(true)) {
    test::make_checkpoint(config, true, 1).write(model_);
    const auto packed =
        pack_checkpoint(model_.path(), dir(), {.world_size = 2, .piece_bytes = 4096});
    EXPECT_TRUE(packed.ok()) << packed.status();
  }

  [[nodiscard]] std::string dir() const { return out_.path() + "/packed"; }
  [[nodiscard]] std::string path(const std::string& name) const { return dir() + "/" + name; }

  void edit(const std::string& name, const std::function<void(std::string&)>& change) const {
    std::string content = test::read_file(path(name));
    change(content);
    test::write_file(path(name), content);
  }
  void edit_config(const char* key, const Json& value) const {
    edit("config.json", [&](std::string& text) {
      Json config = Json::parse(text);
      config[key] = value;
      text = config.dump();
    });
  }
  // Every rank's header with what `change` makes of it, and with checksums that fit.
  void edit_headers(const std::function<void(std::string&)>& change) const {
    for (const char* name : {kRank0, kRank1}) {
      edit(name, [&](std::string& file) {
        change(file);
        test::renew_checksums(file);
      });
    }
  }

 private:
  TempDir model_;
  TempDir out_;
};

void put(std::string& file, size_t offset, uint64_t value, size_t size = 8) {
  for (size_t i = 0; i < size; ++i) file[offset + i] = static_cast<char>(value >> (8 * i));
}

struct Damage {
  const char* name;
  std::function<void(const PackedDamage&)> make;
  absl::StatusCode code;
  std::vector<std::string> words;
};
void PrintTo(const Damage& damage, std::ostream* out) {
  *out << damage.name;
}

class DamageTest : public testing::TestWithParam<Damage> {};

TEST_P(DamageTest, IsRefusedByName) {
  const PackedDamage packed;
  ASSERT_TRUE(open_packed(packed.dir(), {}).ok());
  GetParam().make(packed);
  for (const bool verify : {true, false}) {  // headers are judged either way
    const auto opened = open_checkpoint(packed.dir(), {.verify_checksums = verify});
    ASSERT_FALSE(opened.ok());
    EXPECT_EQ(opened.status().code(), GetParam().code) << opened.status();
    for (const std::string& words : GetParam().words) {
      EXPECT_THAT(message_of(opened.status()), HasSubstr(words));
    }
  }
}

// Fields of the first page and of record 1, as docs/packed-format.md numbers them.
constexpr size_t kVersionAt = 8;
constexpr size_t kPieceBytesAt = 24;
constexpr size_t kNumSectionsAt = 32;
constexpr size_t kModelAt = 72;
constexpr size_t kRecord1 = 4096 + 88;

const std::vector<Damage>& damages() {
  using Packed = const PackedDamage&;
  constexpr auto kData = absl::StatusCode::kDataLoss;
  constexpr auto kState = absl::StatusCode::kFailedPrecondition;
  constexpr auto kInput = absl::StatusCode::kInvalidArgument;
  static const std::vector<Damage> all = {
      {"truncated",
       [](Packed p) { fs::resize_file(p.path(kRank1), fs::file_size(p.path(kRank1)) - 4096); },
       kData,
       {kRank1, "truncated"}},
      {"appended_to",
       [](Packed p) { p.edit(kRank0, [](std::string& file) { file += '\0'; }); },
       kData,
       {kRank0, "appended to"}},
      {"empty",
       [](Packed p) { test::write_file(p.path(kRank0), ""); },
       kData,
       {kRank0, "too short"}},
      {"missing_rank", [](Packed p) { fs::remove(p.path(kRank1)); }, kState, {kRank1, "missing"}},
      {"missing_config",
       [](Packed p) { fs::remove(p.path("config.json")); },
       absl::StatusCode::kNotFound,
       {"config.json"}},
      {"newer_version",
       [](Packed p) { p.edit(kRank0, [](std::string& file) { put(file, kVersionAt, 2, 4); }); },
       kState,
       {kRank0, "format version 2", "reads up to 1"}},
      {"no_magic",
       [](Packed p) { p.edit(kRank1, [](std::string& file) { file[0] = 'X'; }); },
       kInput,
       {kRank1, "no packed file"}},
      {"first_page_altered",
       [](Packed p) { p.edit(kRank0, [](std::string& file) { file[130] ^= 1; }); },
       kData,
       {kRank0, "first page", "checksum"}},
      {"table_altered",
       [](Packed p) { p.edit(kRank0, [](std::string& file) { file[5000] ^= 1; }); },
       kData,
       {kRank0, "table of sections", "checksum"}},
      {"ranks_exchanged",
       [](Packed p) {
         fs::rename(p.path(kRank0), p.path("x"));
         fs::rename(p.path(kRank1), p.path(kRank0));
         fs::rename(p.path("x"), p.path(kRank1));
       },
       kInput,
       {kRank0, "holds rank 1 of 2"}},
      {"two_world_sizes",
       [](Packed p) { fs::copy_file(p.path(kRank0), p.path("rank-00-of-04.r1dpack")); },
       kState,
       {"world size 2 and of 4"}},
      {"another_model_of_the_same_sizes",
       [](Packed p) {
         const TempDir model;
         const TempDir out;
         const Json config = test::packable_config(true);
         auto checkpoint = test::make_checkpoint(config, true, 1);
         checkpoint.tensor("model.norm.weight").bytes[1] ^= 1;
         checkpoint.write(model);
         ASSERT_TRUE(
             pack_checkpoint(model.path(), out.path(), {.world_size = 2, .piece_bytes = 4096})
                 .ok());
         test::write_file(p.path(kRank1), test::read_file(out.path() + "/" + kRank1));
       },
       kInput,
       {kRank1, "another packing"}},
      {"config_of_another_shape",
       [](Packed p) { p.edit_config("intermediate_size", 384); },
       kInput,
       {kRank0, "another model than config.json", "model.layers.0.mlp.gate_proj.weight", "[384, "}},
      {"config_of_more_layers",
       [](Packed p) { p.edit_config("num_hidden_layers", 3); },
       kInput,
       {kRank0, "another model than config.json"}},
      {"config_that_cannot_be_cut",
       [](Packed p) { p.edit_config("num_attention_heads", 1); },
       kInput,
       {kRank0, "num_attention_heads"}},
      {"config_without_fp8",
       [](Packed p) { p.edit_config("quantization_config", nullptr); },
       kInput,
       {kRank0, "F8_E4M3"}},
      {"digest_of_another_model",
       [](Packed p) { p.edit_headers([](std::string& file) { file[kModelAt] ^= 1; }); },
       kInput,
       {kRank0, "another model than config.json"}},
      {"odd_piece_bytes",
       [](Packed p) { p.edit_headers([](std::string& file) { put(file, kPieceBytesAt, 5000); }); },
       kInput,
       {kRank0, "piece_bytes", "power of two"}},
      {"endless_table",
       [](Packed p) {
         p.edit_headers([](std::string& file) { put(file, kNumSectionsAt, uint64_t{1} << 60); });
       },
       kInput,
       {kRank0, "num_sections"}},
      {"section_behind_the_end",
       [](Packed p) {
         p.edit_headers([](std::string& file) { put(file, kRecord1, uint64_t{1} << 62); });
       },
       kInput,
       {kRank0, "section 1", "do not lie in the file"}},
      {"section_over_the_one_before",
       [](Packed p) { p.edit_headers([](std::string& file) { put(file, kRecord1, 0); }); },
       kInput,
       {kRank0, "section 1", "behind those of the section before"}},
      {"section_of_another_size",
       [](Packed p) { p.edit_headers([](std::string& file) { put(file, kRecord1 + 8, 77); }); },
       kInput,
       {kRank0, "section 1", "does not fit its slice"}},
      {"slice_outside_its_tensor",
       [](Packed p) {
         p.edit_headers([](std::string& file) { put(file, kRecord1 + 40, 1 << 20); });
       },
       kInput,
       {kRank0, "section 1", "does not lie in its tensor"}},
      {"no_such_dtype",
       [](Packed p) { p.edit_headers([](std::string& file) { file[kRecord1 + 78] = 9; }); },
       kInput,
       {kRank0, "section 1", "dtype"}},
      {"name_of_another_tensor",
       [](Packed p) { p.edit_headers([](std::string& file) { put(file, kRecord1 + 72, 0, 4); }); },
       kInput,
       {kRank0, "section 1", "name"}},
      {"checksums_of_another_section",
       [](Packed p) { p.edit_headers([](std::string& file) { put(file, kRecord1 + 64, 0); }); },
       kInput,
       {kRank0, "section 1", "checksums"}},
  };
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, DamageTest, testing::ValuesIn(damages()), [](const auto& damage) {
  return damage.param.name;
});

TEST(PackedDamageTest, IsRefusedForAnotherWorldSizeOrSplit) {
  const PackedDamage packed;
  const auto other_size = open_checkpoint(packed.dir(), {.world_size = 4});
  EXPECT_EQ(other_size.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(message_of(other_size.status()),
              AllOf(HasSubstr(packed.dir()),
                    HasSubstr("packed for world size 2, asked for 4"),
                    HasSubstr("--world-size 2")));
  const auto other_split = open_checkpoint(packed.dir(), {.expert_split = ExpertSplit::kExpert});
  EXPECT_EQ(other_split.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(message_of(other_split.status()),
              AllOf(HasSubstr(packed.dir()), HasSubstr("asked for whole experts")));
}

TEST(PackedDamageTest, OfWhatWeightsDoNotDependOnIsNone) {
  const PackedDamage packed;
  packed.edit_config("max_position_embeddings", 4096);
  const auto opened = open_packed(packed.dir(), {});
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->config().max_position_embeddings, 4096);
}

// A byte in the middle of a matrix that only rank 1's file has.
class AlteredByte {
 public:
  explicit AlteredByte(const PackedDamage& packed) {
    const auto file = PackedFile::open(packed.path(kRank1), kRank1);
    for (index_ = 0; file->sections()[index_].name != kMatrix;) ++index_;
    const PackedSection& section = file->sections()[index_];
    slice = section.slice;
    num_bytes = static_cast<size_t>(section.num_bytes());
    packed.edit(kRank1, [&](std::string& content) {
      content[static_cast<size_t>(section.offset) + num_bytes / 2] ^= 4;
    });
  }
  [[nodiscard]] std::string section() const { return fmt::format("section {}", index_); }

  TensorSlice slice;
  size_t num_bytes = 0;

 private:
  size_t index_ = 0;
};

TEST(PackedDamageTest, AnAlteredByteIsRefusedByFileSectionAndTensorWhenItIsRead) {
  const PackedDamage packed;
  const AlteredByte altered(packed);
  const auto opened = open_packed(packed.dir(), {});
  ASSERT_TRUE(opened.ok()) << opened.status();
  std::vector<std::byte> dest(altered.num_bytes);
  const absl::Status status = (*opened)->for_rank(1).read(kMatrix, altered.slice, dest);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(message_of(status),
              AllOf(HasSubstr(kRank1),
                    HasSubstr(altered.section()),
                    HasSubstr(kMatrix),
                    HasSubstr("checksum")));
  // Rows of another piece are as they were; rows of the same piece are not believed.
  const int64_t row_bytes = static_cast<int64_t>(altered.num_bytes) / altered.slice.rows.size();
  std::vector<std::byte> row(static_cast<size_t>(row_bytes));
  const auto read_row = [&](int64_t index) {
    const TensorSlice slice{.rows = {index, index + 1}, .cols = altered.slice.cols};
    return (*opened)->for_rank(1).read(kMatrix, slice, row);
  };
  EXPECT_TRUE(absl::IsDataLoss(read_row(altered.slice.rows.size() / 2)));
  EXPECT_TRUE((*opened)->for_rank(0).find(kMatrix).ok());
}

TEST(PackedDamageTest, AnAlteredByteIsNotLookedForWithoutChecksums) {
  const PackedDamage packed;
  const AlteredByte altered(packed);
  const auto opened = open_packed(packed.dir(), {.verify_checksums = false});
  std::vector<std::byte> dest(altered.num_bytes);
  const absl::Status status = (*opened)->for_rank(1).read(kMatrix, altered.slice, dest);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(PackedDamageTest, VerifyingFindsEveryDamagedSectionAndDirtyPadding) {
  const PackedDamage packed;
  const AlteredByte altered(packed);
  packed.edit(kRank0, [](std::string& file) { file.back() = 1; });  // behind the last vector
  const auto verified = verify_packed(packed.dir(), 3, nullptr);
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_EQ(verified->num_damaged, 2);
  EXPECT_THAT(verified->findings,
              testing::UnorderedElementsAre(
                  AllOf(HasSubstr(kRank1), HasSubstr(altered.section()), HasSubstr(kMatrix)),
                  AllOf(HasSubstr(kRank0), HasSubstr("not zero"))));
}

TEST(PackedDamageTest, VerifyingEndsWhenAskedTo) {
  const PackedDamage packed;
  const auto verified =
      verify_packed(packed.dir(), 2, [](double /*fraction*/) { return cancelled("enough"); });
  EXPECT_TRUE(absl::IsCancelled(verified.status())) << verified.status();
}

}  // namespace
}  // namespace r1d::checkpoint
