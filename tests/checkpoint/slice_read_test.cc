// SPDX-License-Identifier: Apache-2.0
// Slices of stored and of dummy tensors against the whole tensor.
#include "checkpoint/slice_read.h"

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "tests/support/checkpoint_writer.h"
#include "tests/support/test_data.h"

namespace r1d::checkpoint {
namespace {

std::string read(const WeightSource& source, const std::string& name, const TensorSlice& slice) {
  const StoredTensor stored = source.find(name).value();
  const int64_t bytes =
      slice.empty() ? 0 : slice.rows.size() * slice.cols.size() * dtype_bytes(stored.dtype);
  std::string data(static_cast<size_t>(bytes), '\x5A');
  const absl::Status status = source.read(name, slice, std::as_writable_bytes(std::span(data)));
  EXPECT_TRUE(status.ok()) << status;
  return data;
}

// Puts `part` where `slice` says into `whole`, a tensor of `cols` columns.
void place(const std::string& part,
           const TensorSlice& slice,
           const StoredTensor& stored,
           std::string& whole) {
  const int64_t width = dtype_bytes(stored.dtype);
  const auto row_bytes = static_cast<size_t>(slice.cols.size() * width);
  for (int64_t r = 0; r < slice.rows.size(); ++r) {
    const int64_t to = ((slice.rows.begin + r) * stored.cols + slice.cols.begin) * width;
    std::memcpy(whole.data() + to, part.data() + static_cast<size_t>(r) * row_bytes, row_bytes);
  }
}

void expect_slices_reassemble(const WeightSource& source, int32_t world_size, ExpertSplit split) {
  const ModelConfig& config = source.config();
  for (const TensorSpec& spec : expected_tensors(config, source.has_mtp())) {
    const StoredTensor stored = source.find(spec.name).value();
    const std::string whole = read(source, spec.name, {{0, spec.rows}, {0, spec.cols}});
    std::string joined(whole.size(), '\0');
    for (int32_t rank = 0; rank < world_size; ++rank) {
      const RankShard shard = make_rank_shard(config, rank, world_size, split).value();
      const TensorSlice slice = slice_of(spec, shard);
      if (!slice.empty()) place(read(source, spec.name, slice), slice, stored, joined);
    }
    EXPECT_EQ(joined, whole) << spec.name << " over " << world_size << " ranks";
  }
}

TEST(SliceReadTest, SlicesOfGoldenCheckpointsReassembleToTheWhole) {
  for (const char* golden :
       {"v3-generic-bf16", "v3-noqlora-bf16", "v3-r1heads-fp8", "v3-ragged-fp8"}) {
    const auto source = open_hugging_face(test::data("golden/") + golden);
    ASSERT_TRUE(source.ok()) << source.status();
    for (const int32_t world_size : {2, 4}) {
      expect_slices_reassemble(**source, world_size, ExpertSplit::kTensor);
    }
    expect_slices_reassemble(**source, 2, ExpertSplit::kExpert);
  }
}

// The element at (row, col) of a rank's slice, as the header says: block of the element, less the
// first block of the scale slice.
TEST(SliceReadTest, ScaleSlicesHoldTheBlocksOfTheirRows) {
  const auto source = open_hugging_face(test::data("golden/v3-ragged-fp8"));
  ASSERT_TRUE(source.ok()) << source.status();
  const QuantizationConfig blocks = *(*source)->config().quantization;
  for (const TensorSpec& spec : expected_tensors((*source)->config(), false)) {
    if (!spec.quantizable) continue;
    const std::string name = scale_name(spec.name);
    const StoredTensor stored = (*source)->find(name).value();
    const std::string whole = read(**source, name, {{0, stored.rows}, {0, stored.cols}});
    for (int32_t rank = 0; rank < 4; ++rank) {
      const RankShard shard =
          make_rank_shard((*source)->config(), rank, 4, ExpertSplit::kTensor).value();
      const TensorSlice slice = slice_of(spec, shard);
      const TensorSlice scale = scale_slice_of(slice, blocks);
      const std::string part = read(**source, name, scale);
      for (int64_t r = 0; r < slice.rows.size(); ++r) {
        const int64_t block = (slice.rows.begin + r) / blocks.block_rows;
        const int64_t local = block - scale.rows.begin;
        ASSERT_EQ(
            part.substr(static_cast<size_t>(local * scale.cols.size() * 4), 4),
            whole.substr(static_cast<size_t>((block * stored.cols + scale.cols.begin) * 4), 4))
            << name << " rank " << rank << " row " << r;
      }
    }
  }
}

TEST(SliceReadTest, AgreesWithPlainCopyingForNarrowAndWideSkips) {
  constexpr uint32_t kSeed = 17;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  // Rows of 300 bytes are read in bands, of 20,000 one by one, of 3 MiB in bands of one row.
  for (const int64_t cols : {300, 20'000, 3 << 20}) {
    const StoredTensor stored{.dtype = DType::kF8E4M3, .rows = 7, .cols = cols};
    std::string whole(static_cast<size_t>(stored.rows * cols), '\0');
    for (char& byte : whole) byte = static_cast<char>(random());
    const ReadBytes read_bytes = [&](int64_t offset, std::span<std::byte> dest) {
      EXPECT_LE(static_cast<size_t>(offset) + dest.size(), whole.size());
      std::memcpy(dest.data(), whole.data() + offset, dest.size());
      return absl::OkStatus();
    };
    for (const Range columns : {Range{0, cols},
                                Range{0, 1},
                                Range{cols - 1, cols},
                                Range{7, 100},
                                Range{1, cols},
                                Range{0, cols - 1}}) {
      for (const Range rows : {Range{0, 7}, Range{6, 7}, Range{2, 5}}) {
        std::string expected;
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          expected += whole.substr(static_cast<size_t>(r * cols + columns.begin),
                                   static_cast<size_t>(columns.size()));
        }
        std::string read(expected.size(), '\0');
        ASSERT_TRUE(
            read_slice(stored, {rows, columns}, std::as_writable_bytes(std::span(read)), read_bytes)
                .ok());
        EXPECT_TRUE(read == expected) << cols << " " << columns.begin << ".." << columns.end;
      }
    }
  }
}

TEST(SliceReadTest, PassesAFailedReadOn) {
  const StoredTensor stored{.dtype = DType::kF32, .rows = 4, .cols = 4};
  std::vector<std::byte> dest(4 * 2 * 4);
  const absl::Status status =
      read_slice(stored, {{0, 4}, {1, 3}}, dest, [](int64_t, std::span<std::byte>) {
        return data_loss("gone");
      });
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
}

TEST(SliceReadTest, ReadsNothingForAnEmptySlice) {
  const StoredTensor stored{.dtype = DType::kF32, .rows = 4, .cols = 4};
  EXPECT_TRUE(read_slice(stored, {}, {}, [](int64_t, std::span<std::byte>) {
                return internal_error("not called");
              }).ok());
}

TEST(SliceReadDeathTest, ChecksThatTheDestinationHasTheSizeOfTheSlice) {
  const auto source =
      make_dummy_source(ModelConfig::parse(test::small_config(true).dump()).value(), 1);
  std::vector<std::byte> dest(3);
  EXPECT_DEATH(static_cast<void>(source->read("lm_head.weight", {{0, 1}, {0, 2}}, dest)),
               "dest_bytes");
  EXPECT_DEATH(static_cast<void>(source->read("lm_head.weight", {{63, 65}, {0, 1}}, dest)),
               "slice.rows.end");
}

// ---- dummy weights ----

ModelConfig small(bool fp8) {
  return ModelConfig::parse(test::small_config(fp8).dump()).value();
}

TEST(DummySourceTest, AnyShardingSeesTheSameModel) {
  for (const bool fp8 : {false, true}) {
    const auto source = make_dummy_source(small(fp8), 7);
    EXPECT_TRUE(source->has_mtp());
    for (const int32_t world_size : {2, 4}) {
      expect_slices_reassemble(*source, world_size, ExpertSplit::kTensor);
      expect_slices_reassemble(*source, world_size, ExpertSplit::kExpert);
    }
  }
}

TEST(DummySourceTest, OddSlicesEqualTheWhole) {
  const auto source = make_dummy_source(small(true), 7);
  const std::string name = "model.layers.0.mlp.down_proj.weight";  // 160 x 192, one byte each
  const std::string whole = read(*source, name, {{0, 160}, {0, 192}});
  for (const Range cols : {Range{3, 5}, Range{5, 17}, Range{0, 9}, Range{191, 192}}) {
    const std::string part = read(*source, name, {{10, 12}, cols});
    const auto width = static_cast<size_t>(cols.size());
    EXPECT_EQ(part.substr(0, width),
              whole.substr(10 * 192 + static_cast<size_t>(cols.begin), width));
    EXPECT_EQ(part.substr(width), whole.substr(11 * 192 + static_cast<size_t>(cols.begin), width));
  }
}

TEST(DummySourceTest, DependsOnSeedAndName) {
  const auto one = make_dummy_source(small(false), 1);
  const auto again = make_dummy_source(small(false), 1);
  const auto two = make_dummy_source(small(false), 2);
  const TensorSlice row{.rows = {0, 1}, .cols = {0, 160}};
  const std::string gate = "model.layers.0.mlp.gate_proj.weight";
  EXPECT_EQ(read(*one, gate, row), read(*again, gate, row));
  EXPECT_NE(read(*one, gate, row), read(*two, gate, row));
  EXPECT_NE(read(*one, gate, row), read(*one, "model.layers.0.mlp.up_proj.weight", row));
}

// Dequantized values of a tensor, by the definition of weight_scale_inv.
std::vector<float> values_of(const WeightSource& source, const std::string& name) {
  const StoredTensor stored = source.find(name).value();
  const std::string data = read(source, name, {{0, stored.rows}, {0, stored.cols}});
  std::vector<float> scales;
  int64_t scale_cols = 0;
  if (stored.dtype == DType::kF8E4M3) {
    const StoredTensor scale = source.find(scale_name(name)).value();
    const std::string bytes = read(source, scale_name(name), {{0, scale.rows}, {0, scale.cols}});
    scales.resize(bytes.size() / 4);
    std::memcpy(scales.data(), bytes.data(), bytes.size());
    scale_cols = scale.cols;
  }
  std::vector<float> values;
  for (int64_t i = 0; i < stored.rows * stored.cols; ++i) {
    const char* at = data.data() + i * dtype_bytes(stored.dtype);
    float value = 0;
    uint16_t half = 0;
    switch (stored.dtype) {
      case DType::kF32:
        std::memcpy(&value, at, sizeof(value));
        break;
      case DType::kBF16:
        std::memcpy(&half, at, sizeof(half));
        value = bf16_to_f32(half);
        break;
      case DType::kF8E4M3:
        value =
            f8e4m3_to_f32(static_cast<uint8_t>(*at)) *
            scales[static_cast<size_t>(i / stored.cols / 128 * scale_cols + i % stored.cols / 128)];
        break;
    }
    values.push_back(value);
  }
  return values;
}

void expect_moments(const std::vector<float>& values,
                    double mean,
                    double deviation,
                    double tolerance) {
  double sum = 0;
  double squares = 0;
  for (const float value : values) {
    ASSERT_TRUE(std::isfinite(value));
    sum += value;
    squares += double{value} * value;
  }
  const auto count = static_cast<double>(values.size());
  EXPECT_NEAR(sum / count, mean, 0.05 * deviation + 1e-9);
  EXPECT_NEAR(std::sqrt(squares / count - mean * mean), deviation, tolerance * deviation + 1e-6);
}

TEST(DummySourceTest, ValuesKeepActivationsSane) {
  for (const bool fp8 : {false, true}) {
    const auto source = make_dummy_source(small(fp8), 7);
    // 10,000 values and more: the mean of n uniform ones strays by deviation / sqrt(n). Scales of
    // FP8 blocks stray by up to a quarter, and these tensors have few blocks.
    const double tolerance = fp8 ? 0.27 : 0.05;
    const double from_160 = 1 / std::sqrt(160);
    const double from_192 = 1 / std::sqrt(192);
    const auto values = [&](const char* name) { return values_of(*source, name); };
    expect_moments(values("model.layers.0.mlp.gate_proj.weight"), 0, from_160, tolerance);
    expect_moments(values("model.layers.0.mlp.down_proj.weight"), 0, from_192, tolerance);
    expect_moments(values("lm_head.weight"), 0, from_160, tolerance);
    expect_moments(values("model.norm.weight"), 1, 0, tolerance);
    for (const float bias : values_of(*source, "model.layers.1.mlp.gate.e_score_correction_bias")) {
      EXPECT_LE(std::abs(bias), 0.01F);
    }
  }
}

TEST(DummySourceTest, IsFp8OnlyWhereTheConfigAndTheFormatSaySo) {
  const auto source = make_dummy_source(small(true), 7);
  EXPECT_EQ(source->find("model.layers.0.mlp.down_proj.weight")->dtype, DType::kF8E4M3);
  EXPECT_EQ(source->find("model.layers.1.mlp.gate.weight")->dtype, DType::kBF16);
  EXPECT_EQ(source->find("model.layers.2.eh_proj.weight")->dtype, DType::kBF16);
  EXPECT_EQ(source->find("model.layers.0.mlp.down_proj.weight_scale_inv")->rows, 2);
  EXPECT_EQ(source->find("model.layers.1.mlp.gate.weight_scale_inv").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(make_dummy_source(small(false), 7)->find("model.layers.0.mlp.down_proj.weight")->dtype,
            DType::kBF16);
}

TEST(DummySourceTest, ReportsAnUnknownTensorOnReadAsOnFind) {
  const auto source = make_dummy_source(small(true), 7);
  EXPECT_EQ(source->read("no.such.tensor", {}, {}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(message_of(source->find("no.such.tensor").status()),
            "the dummy model has no tensor no.such.tensor");
}

}  // namespace
}  // namespace r1d::checkpoint
