// SPDX-License-Identifier: Apache-2.0
// pack_checkpoint() and open_packed(): every rank gets the bytes that the checkpoint has for it.
#include "r1d/checkpoint/packed.h"

#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "checkpoint/packed_file.h"
#include "checkpoint/packed_layout.h"
#include "tests/support/packed.h"
#include "tests/support/test_data.h"

namespace r1d::checkpoint {
namespace {

using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kSmallPieces = 4096;  // so that matrices have several

std::vector<std::byte> bytes_for(const StoredTensor& stored, const TensorSlice& slice) {
  const int64_t count = slice.empty() ? 0 : slice.rows.size() * slice.cols.size();
  return std::vector<std::byte>(static_cast<size_t>(count * dtype_bytes(stored.dtype)));
}

std::vector<std::byte> widened(const std::vector<std::byte>& bf16) {
  std::vector<std::byte> wide(2 * bf16.size());
  for (size_t i = 0; i < bf16.size() / 2; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, bf16.data() + 2 * i, sizeof(bits));
    const float value = bf16_to_f32(bits);
    std::memcpy(wide.data() + 4 * i, &value, sizeof(value));
  }
  return wide;
}

// What `source` has for the slice, vectors as F32.
std::vector<std::byte> expected_bytes(const WeightSource& source,
                                      const std::string& name,
                                      const TensorSlice& slice,
                                      bool rank_1) {
  const StoredTensor stored = source.find(name).value();
  std::vector<std::byte> bytes = bytes_for(stored, slice);
  EXPECT_TRUE(source.read(name, slice, bytes).ok()) << name;
  return rank_1 && stored.dtype == DType::kBF16 ? widened(bytes) : bytes;
}

void expect_slice(const WeightSource& packed,
                  const WeightSource& source,
                  const std::string& name,
                  const TensorSlice& slice,
                  bool rank_1) {
  const absl::StatusOr<StoredTensor> stored = packed.find(name);
  ASSERT_TRUE(stored.ok()) << stored.status();
  const StoredTensor original = source.find(name).value();
  EXPECT_EQ(stored->rows, original.rows) << name;
  EXPECT_EQ(stored->cols, original.cols) << name;
  EXPECT_EQ(stored->dtype, rank_1 ? DType::kF32 : original.dtype) << name;
  std::vector<std::byte> found = bytes_for(*stored, slice);
  const absl::Status status = packed.read(name, slice, found);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(found, expected_bytes(source, name, slice, rank_1)) << name;
  const std::optional<TensorBytes> place = packed.locate(name, slice);
  if (!place) return;
  const int64_t rows_before = slice.rows.begin - place->held.rows.begin;
  const int64_t row_bytes = place->held.cols.size() * dtype_bytes(stored->dtype);
  std::vector<std::byte> located = bytes_for(*stored, slice);
  ASSERT_TRUE(place->file->read_at(place->begin + rows_before * row_bytes, located).ok()) << name;
  EXPECT_EQ(located, found) << name;
}

void expect_rank(const WeightSource& packed, const WeightSource& source, const RankShard& shard) {
  for (const TensorSpec& spec : expected_tensors(source.config(), source.has_mtp())) {
    if (spec.duplicate) {
      EXPECT_TRUE(absl::IsNotFound(packed.find(spec.name).status())) << spec.name;
      continue;
    }
    const TensorSlice slice = slice_of(spec, shard);
    expect_slice(packed, source, spec.name, slice, spec.rank_1);
    const std::string scale = scale_name(spec.name);
    ASSERT_EQ(packed.find(scale).ok(), source.find(scale).ok()) << scale;
    if (!source.find(scale).ok()) continue;
    expect_slice(
        packed, source, scale, scale_slice_of(slice, *source.config().quantization), false);
  }
}

struct Case {
  int32_t world_size;
  ExpertSplit split;
  bool fp8;
  bool with_mtp;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.world_size << (c.split == ExpertSplit::kExpert ? " experts" : " slices")
       << (c.fp8 ? " fp8" : " bf16") << (c.with_mtp ? " mtp" : "");
}
std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const int32_t world_size : {1, 2, 4, 8}) {
    for (const ExpertSplit split : {ExpertSplit::kTensor, ExpertSplit::kExpert}) {
      for (const bool fp8 : {false, true}) {
        for (const bool mtp : {false, true}) cases.push_back({world_size, split, fp8, mtp});
      }
    }
  }
  return cases;
}

class PackedBytesTest : public testing::TestWithParam<Case> {};

TEST_P(PackedBytesTest, AreThoseOfTheCheckpointForEveryRank) {
  const auto [world_size, split, fp8, with_mtp] = GetParam();
  const TempDir model;
  const TempDir out;
  test::make_checkpoint(test::packable_config(fp8), with_mtp, 2).write(model);
  const auto packed = pack_checkpoint(model.path(),
                                      out.path() + "/new/packed",
                                      {.world_size = world_size,
                                       .expert_split = split,
                                       .num_threads = 2,
                                       .piece_bytes = kSmallPieces});
  ASSERT_TRUE(packed.ok()) << packed.status();
  const auto source = open_hugging_face(model.path());
  const auto opened = open_checkpoint(out.path() + "/new/packed",
                                      {.world_size = world_size, .expert_split = split});
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->has_mtp(), with_mtp);
  for (int32_t rank = 0; rank < world_size; ++rank) {
    const RankShard shard = make_rank_shard((*source)->config(), rank, world_size, split).value();
    expect_rank((*opened)->for_rank(rank), **source, shard);
    expect_rank(**opened, **source, shard);
  }
  const auto unverified =
      open_checkpoint(out.path() + "/new/packed",
                      {.world_size = world_size, .expert_split = split, .verify_checksums = false});
  ASSERT_TRUE(unverified.ok()) << unverified.status();
  const RankShard first = make_rank_shard((*source)->config(), 0, world_size, split).value();
  expect_rank((*unverified)->for_rank(0), **source, first);
  const TensorSlice norm{.rows = {0, (*source)->config().hidden_size}, .cols = {0, 1}};
  EXPECT_TRUE((*unverified)->for_rank(0).locate("model.norm.weight", norm).has_value());
  const auto checked = (*opened)->for_rank(0).locate("model.norm.weight", norm);
  ASSERT_TRUE(checked.has_value());
  EXPECT_GT(checked->check.piece_bytes, 0);
  const auto verified = verify_packed(out.path() + "/new/packed", 2, nullptr);
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_EQ(verified->num_damaged, 0);
  EXPECT_EQ(verified->num_sections, packed->num_sections);
}

INSTANTIATE_TEST_SUITE_P(All, PackedBytesTest, testing::ValuesIn(all_cases()));

class PackedTest : public testing::Test {
 protected:
  void SetUp() override {
    test::make_checkpoint(test::packable_config(true), true, 2).write(model_);
    model_.write("tokenizer.json", "{}");
    model_.write("notes.txt", "not read by r1d");
  }

  void pack(const std::string& dir, int32_t threads = 2) {
    const auto packed = pack_checkpoint(
        model_.path(), dir, {.world_size = 2, .num_threads = threads, .piece_bytes = kSmallPieces});
    ASSERT_TRUE(packed.ok()) << packed.status();
  }

  TempDir model_;
  TempDir out_;
};

TEST_F(PackedTest, TheFilesAreTheSameWhateverTheThreads) {
  pack(out_.path() + "/one", 1);
  pack(out_.path() + "/many", 5);
  for (const char* name : {"rank-00-of-02.r1dpack", "rank-01-of-02.r1dpack"}) {
    EXPECT_EQ(test::read_file(out_.path() + "/one/" + name),
              test::read_file(out_.path() + "/many/" + name))
        << name;
  }
}

TEST_F(PackedTest, WhatIsReadBesideTheWeightsIsCopied) {
  pack(out_.path());
  for (const char* name : {"config.json", "tokenizer.json"}) {
    EXPECT_EQ(test::read_file(out_.path() + "/" + name),
              test::read_file(model_.path() + "/" + name));
  }
  EXPECT_FALSE(std::filesystem::exists(out_.path() + "/notes.txt"));
  EXPECT_FALSE(std::filesystem::exists(out_.path() + "/model.safetensors.index.json"));
}

TEST_F(PackedTest, ReadsRowsOfASliceWithAndWithoutChecksums) {
  pack(out_.path());
  const auto source = open_hugging_face(model_.path());
  const std::string name = "model.layers.1.self_attn.q_b_proj.weight";  // 96 rows of 32 a rank
  for (const bool verify : {true, false}) {
    const auto opened = open_packed(out_.path(), {.verify_checksums = verify});
    for (const Range rows : {Range{0, 1}, Range{5, 90}, Range{96, 192}, Range{191, 192}}) {
      expect_slice(**opened, **source, name, {.rows = rows, .cols = {0, 32}}, false);
    }
  }
}

TEST_F(PackedTest, RefusesSlicesThatNoRankHas) {
  pack(out_.path());
  const auto opened = open_packed(out_.path(), {});
  const std::string name = "model.layers.0.mlp.down_proj.weight";  // [160, 192], cut by columns
  std::vector<std::byte> dest(160 * 48);
  const TensorSlice quarter{.rows = {0, 160}, .cols = {0, 48}};
  const WeightSource* const all = opened->get();
  for (const WeightSource* source : {all, &all->for_rank(0)}) {
    const absl::Status status = source->read(name, quarter, dest);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(message_of(status), AllOf(HasSubstr(name), HasSubstr("packed for world size 2")));
  }
  EXPECT_TRUE(absl::IsNotFound((*opened)->read("no.such.weight", quarter, dest)));
}

// The other rank's file is damaged all over, behind its header.
TEST_F(PackedTest, ARankReadsItsOwnFileAlone) {
  pack(out_.path());
  const auto page = PackedFile::open(out_.path() + "/rank-01-of-02.r1dpack", "other")->page();
  std::string other = test::read_file(out_.path() + "/rank-01-of-02.r1dpack");
  for (size_t i = static_cast<size_t>(page.data_begin); i < other.size(); ++i) other[i] ^= 1;
  test::write_file(out_.path() + "/rank-01-of-02.r1dpack", other);
  const auto source = open_hugging_face(model_.path());
  const auto opened = open_packed(out_.path(), {});
  ASSERT_TRUE(opened.ok()) << opened.status();
  const RankShard first = make_rank_shard((*source)->config(), 0, 2, ExpertSplit::kTensor).value();
  expect_rank((*opened)->for_rank(0), **source, first);
  const std::string name = "model.norm.weight";  // on both
  std::vector<std::byte> dest(160 * sizeof(float));
  const absl::Status status =
      (*opened)->for_rank(1).read(name, {.rows = {0, 160}, .cols = {0, 1}}, dest);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr("rank-01-of-02.r1dpack"));
}

TEST_F(PackedTest, TakesWorldSizeAndSplitFromTheDirectoryUnlessAsked) {
  pack(out_.path());
  EXPECT_TRUE(is_packed(out_.path()));
  EXPECT_FALSE(is_packed(model_.path()));
  const auto info = read_packed_info(out_.path());
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->world_size, 2);
  EXPECT_EQ(info->expert_split, ExpertSplit::kTensor);
  EXPECT_THAT(info->source, HasSubstr(model_.path()));
  for (size_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(static_cast<uintmax_t>(info->file_bytes[rank]),
              std::filesystem::file_size(out_.path() + "/" +
                                         packed_file_name(static_cast<int32_t>(rank), 2)));
  }
}

TEST_F(PackedTest, IsInspectedForTheWorldItWasPackedFor) {
  pack(out_.path());
  const auto report = inspect_report(out_.path(), std::nullopt, std::nullopt);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(*report, AllOf(HasSubstr("packed for world size 2"), HasSubstr(model_.path())));
  const auto other = inspect_report(out_.path(), 4, std::nullopt);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
}

// Offsets are what O_DIRECT, caches and GPUs ask for; 8 files of R1 hold R1 and little more.
TEST(PackedLayoutTest, OfR1IsAlignedAndHasHardlyMoreThanTheWeights) {
  const ModelConfig r1 = ModelConfig::load(test::data("configs/deepseek-r1.json")).value();
  const auto source = make_dummy_source(r1, 1);
  const auto dtype_of = [&](const std::string& name) -> absl::StatusOr<DType> {
    return source->find(name).value().dtype;
  };
  for (const ExpertSplit split : {ExpertSplit::kTensor, ExpertSplit::kExpert}) {
    const RankShard shard = make_rank_shard(r1, 7, 8, split).value();
    const auto layout = lay_out_packed(r1, /*with_mtp=*/true, shard, 4 << 20, dtype_of);
    ASSERT_TRUE(layout.ok()) << layout.status();
    int64_t weights = 0;
    int32_t layer = -2;
    int64_t end = layout->data_begin;
    for (const PackedSection& section : layout->sections) {
      ASSERT_EQ(section.offset % kPackedAlignment, 0) << section.name;
      ASSERT_GE(section.offset, end) << section.name;
      if (section.layer != layer) {
        ASSERT_EQ(section.offset % kPackedPageBytes, 0) << section.name;
      }
      layer = section.layer;
      end = section.end();
      weights += section.num_bytes();
    }
    EXPECT_EQ(layout->file_bytes % kPackedPageBytes, 0);
    EXPECT_LT(static_cast<double>(layout->file_bytes), 1.001 * static_cast<double>(weights));
    EXPECT_NEAR(static_cast<double>(layout->file_bytes), 87e9, 1e9);
  }
}

}  // namespace
}  // namespace r1d::checkpoint
