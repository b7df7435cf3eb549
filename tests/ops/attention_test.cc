// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/attention.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "tests/ops/attention_fixture.h"

namespace r1d::ops {
namespace {

using test::AttentionModel;
using test::AttentionRun;
using test::AttentionShape;
using test::Chunks;

const AttentionShape kGeneric{"generic", 96, 4, 48, 32, 16, 8, 16, DType::kBF16};
// dn + dv = 80 rows a head: most heads begin inside a scale block.
const AttentionShape kRagged{"ragged", 200, 6, 72, 80, 32, 16, 48, DType::kF8E4M3};
const AttentionShape kNoLowRank{"no q_lora", 64, 2, 0, 24, 12, 10, 20, DType::kF32, false};
const AttentionShape kR1Heads{"R1 heads", 256, 2, 128, 512, 128, 64, 128, DType::kF8E4M3};
const AttentionShape kShapes[] = {kGeneric, kRagged, kNoLowRank, kR1Heads};

// A first token, a whole prompt over several key tiles, a chunked prompt, decode after a prefix.
const std::vector<std::pair<uint64_t, Chunks>> kSequences = {
    {1, {1}}, {2, {150}}, {3, {5, 124, 1, 1}}, {4, {63, 2}}, {5, {1, 1, 1}}, {6, {129, 30}}};

// f32: five products of at most 512 terms, each off by about sqrt(512) * 2^-24 = 1.4e-6 of its
// size; scores of size up to 20 turn that into 3e-5 of a probability at worst, less on average.
constexpr double kTolerance = 2e-5;
// bf16 pages: the reference rounds its own f64 latents. Where f32 falls on the other side of a
// rounding boundary (about 1e-6 / 2^-9 = 5e-4 of the values) they differ by 2^-8: sqrt(5e-4) * 2^-8
// = 9e-5.
constexpr double kBf16Tolerance = 4e-4;
// e4m3 pages: the same with steps of 2^-3 to 2^-4: 1e-6 / 2^-4 = 2e-5 of the values differ by that
// much, sqrt(2e-5) * 2^-4 = 3e-4 of the whole; one flip in a short context is more.
constexpr double kFp8Tolerance = 2e-3;

const char* name(MlaForm form) {
  return form == MlaForm::kNaive ? "naive" : form == MlaForm::kAbsorbed ? "absorbed" : "auto";
}

// The f64 outputs of every sequence.
std::vector<std::vector<double>> references(const AttentionModel& model, DType page_dtype) {
  std::vector<std::vector<double>> all;
  for (const auto& [id, chunks] : kSequences) {
    all.push_back(attend(model, sequence_input(model, id, chunks), page_dtype));
  }
  return all;
}

void expect_references(const AttentionModel& model,
                       const std::vector<std::vector<double>>& want,
                       const AttentionRun& run) {
  const double tolerance = run.page_dtype == DType::kF32    ? kTolerance
                           : run.page_dtype == DType::kBF16 ? kBf16Tolerance
                                                            : kFp8Tolerance;
  const auto out = run_attention(model, kSequences, run);
  for (size_t s = 0; s < kSequences.size(); ++s) {
    EXPECT_LT(test::relative_l2(out[s], want[s]), tolerance) << "sequence " << kSequences[s].first;
  }
}

TEST(AttentionTest, EveryFormMatchesF64OnEveryShape) {
  for (const AttentionShape& shape : kShapes) {
    const AttentionModel model = random_attention(shape, 1);
    const auto want = references(model, DType::kF32);
    for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed, MlaForm::kAuto}) {
      SCOPED_TRACE(std::string(shape.name) + ' ' + name(form));
      expect_references(model, want, {.form = form});
    }
  }
}

TEST(AttentionTest, EveryTargetMatchesF64) {
  const AttentionModel model = random_attention(kRagged, 2);
  const auto want = references(model, DType::kF32);
  test::for_each_target([&](const std::string& target) {
    for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed}) {
      SCOPED_TRACE(target + ' ' + name(form));
      expect_references(model, want, {.form = form, .block_size = 16});
    }
  });
}

TEST(AttentionTest, PagesOfAnySizeAndOrderGiveTheSameBits) {
  const AttentionModel model = random_attention(kGeneric, 3);
  for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed}) {
    const auto want = run_attention(model, kSequences, {.form = form, .block_size = 64, .seed = 1});
    for (const int32_t block_size : {1, 3, 64, 200}) {
      for (const uint64_t seed : {2U, 3U}) {
        SCOPED_TRACE(std::string(name(form)) + " block " + std::to_string(block_size));
        EXPECT_EQ(run_attention(
                      model, kSequences, {.form = form, .block_size = block_size, .seed = seed}),
                  want);
      }
    }
  }
}

TEST(AttentionTest, PagesOfFewerBitsMatchAReferenceOfRoundedLatents) {
  for (const AttentionShape& shape : kShapes) {
    const AttentionModel model = random_attention(shape, 4);
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      const auto want = references(model, dtype);
      for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed}) {
        SCOPED_TRACE(std::string(shape.name) + ' ' + name(form) + ' ' + dtype_name(dtype));
        expect_references(model, want, {.form = form, .page_dtype = dtype, .block_size = 3});
      }
    }
  }
}

TEST(AttentionTest, ASequenceAloneAndInABatchGivesTheSameBits) {
  for (const AttentionShape& shape : {kGeneric, kRagged}) {
    const AttentionModel model = random_attention(shape, 5);
    for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed, MlaForm::kAuto}) {
      SCOPED_TRACE(std::string(shape.name) + ' ' + name(form));
      const auto together = run_attention(model, kSequences, {.form = form, .threads = 3});
      for (size_t s = 0; s < kSequences.size(); ++s) {
        const auto alone =
            run_attention(model, {kSequences[s]}, {.form = form, .block_size = 16, .threads = 1});
        EXPECT_EQ(alone[0], together[s]) << "sequence " << kSequences[s].first;
      }
    }
  }
}

// More tokens than are projected together: the boundary falls inside the second sequence.
TEST(AttentionTest, AStepBeyondOneChunkGivesTheSameBits) {
  const AttentionModel model = random_attention(kNoLowRank, 6);
  const std::vector<std::pair<uint64_t, Chunks>> sequences = {
      {1, {700}}, {2, {30, 701}}, {3, {9, 1}}};
  for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed}) {
    const auto together = run_attention(model, sequences, {.form = form});
    for (size_t s = 0; s < sequences.size(); ++s) {
      EXPECT_EQ(run_attention(model, {sequences[s]}, {.form = form})[0], together[s]) << name(form);
    }
  }
}

TEST(AttentionTest, HeadsSplitOverRanksSumToTheWhole) {
  const AttentionShape four_heads{"four", 200, 4, 72, 80, 32, 16, 48, DType::kF8E4M3};
  for (const AttentionShape& shape : {kGeneric, four_heads}) {
    const AttentionModel model = random_attention(shape, 7);
    const auto want = references(model, DType::kF32);
    for (const int32_t world : {2, 4}) {
      for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed}) {
        std::vector<std::vector<float>> sum;
        for (int32_t rank = 0; rank < world; ++rank) {
          auto part = run_attention(slice(model, rank, world), kSequences, {.form = form});
          if (rank == 0) {
            sum = std::move(part);
            continue;
          }
          for (size_t s = 0; s < sum.size(); ++s) {
            for (size_t i = 0; i < sum[s].size(); ++i) sum[s][i] += part[s][i];
          }
        }
        for (size_t s = 0; s < sum.size(); ++s) {
          EXPECT_LT(test::relative_l2(sum[s], want[s]), kTolerance)
              << shape.name << " world " << world << ' ' << name(form);
        }
      }
    }
  }
}

TEST(AttentionTest, AStepOfNoTokensDoesNothing) {
  const AttentionModel model = random_attention(kGeneric, 8);
  auto ops = make_local_cpu_ops({model.dims}, {.max_tokens = 4});
  std::vector<float> memory(40 * 64);
  const LatentPages pages{.data = memory.data(), .num_blocks = 1, .block_size = 64, .width = 40};
  std::vector<float> x;
  ASSERT_TRUE(ops[0]->begin_step({}).ok());
  EXPECT_TRUE(
      ops[0]
          ->attention(model.weights(), pages, test::tensor_of(x, 0, 96), test::tensor_of(x, 0, 96))
          .ok());
  EXPECT_EQ(memory, std::vector<float>(40 * 64));
}

ModelDims r1_dims() {
  ModelDims dims;
  dims.kv_lora_rank = 512;
  dims.qk_nope_head_dim = 128;
  dims.qk_rope_head_dim = 64;
  dims.v_head_dim = 128;
  return dims;
}

TEST(AttentionTest, DecodeAbsorbsAndLongPrefillIsNaive) {
  const ModelDims dims = r1_dims();
  using cpu::takes_absorbed;
  for (const int64_t keys : {1, 2, 100, 100000}) {
    EXPECT_TRUE(takes_absorbed(MlaForm::kAuto, dims, 1, keys));
    EXPECT_FALSE(takes_absorbed(MlaForm::kNaive, dims, 1, keys));
    EXPECT_TRUE(takes_absorbed(MlaForm::kAbsorbed, dims, 1000, keys + 1000));
  }
  EXPECT_FALSE(takes_absorbed(MlaForm::kAuto, dims, 4096, 4096));
  EXPECT_TRUE(takes_absorbed(MlaForm::kAuto, dims, 4, 4096));  // a few drafts over a long cache
  // Far from the start both are linear in the keys: 131072 + 320 q against 1088 q, equal at q =
  // 170.7.
  EXPECT_TRUE(takes_absorbed(MlaForm::kAuto, dims, 150, 1000000));
  EXPECT_FALSE(takes_absorbed(MlaForm::kAuto, dims, 171, 1000000));
}

}  // namespace
}  // namespace r1d::ops
