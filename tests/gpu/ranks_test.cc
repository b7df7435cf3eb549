// SPDX-License-Identifier: Apache-2.0
// A model on several ranks gives what it gives on one: logits of prefill and decode steps, eager,
// recorded and replayed. Ranks share one GPU (our collectives alone), or have one each.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/random.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/device/gpu_info.h"
#include "r1d/model/deepseek_v3.h"
#include "r1d/ops/cuda_ops.h"

#include "engine/rank_group.h"

namespace r1d::model {
namespace {

using checkpoint::ExpertSplit;

constexpr int32_t kBlockSize = 64;
constexpr int64_t kBlocks = 16;
constexpr int32_t kMaxTokens = 320;
constexpr int32_t kMaxSequences = 4;

size_t gpu_count() {
  const auto gpus = device::list_gpus();
  return gpus.ok() ? gpus->size() : 0;
}

std::unique_ptr<checkpoint::WeightSource> open_golden(const std::string& name) {
  const char* moved = std::getenv("R1D_TEST_DATA_DIR");
  auto source = checkpoint::open_hugging_face(
      std::string(moved != nullptr ? moved : R1D_TEST_DATA) + "/golden/" + name);
  EXPECT_TRUE(source.ok()) << message_of(source.status());
  return std::move(source).value();
}

// One step of sequences with `lengths` new tokens behind `contexts` cached ones; all rows' logits.
struct Step {
  std::vector<TokenId> ids;
  std::vector<int32_t> positions, logit_rows;
  std::vector<std::vector<BlockId>> blocks;
  std::vector<ops::SequenceSpan> sequences;

  Step(const std::vector<int32_t>& lengths, const std::vector<int32_t>& contexts, int64_t vocab) {
    for (size_t s = 0; s < lengths.size(); ++s) {
      const auto begin = static_cast<int32_t>(ids.size());
      for (int32_t i = 0; i < lengths[s]; ++i) {
        const uint64_t draw = base::random_bits(s + 1, static_cast<uint64_t>(contexts[s] + i));
        ids.push_back(static_cast<TokenId>(draw % static_cast<uint64_t>(vocab)));
        positions.push_back(contexts[s] + i);
      }
      logit_rows.push_back(begin + lengths[s] - 1);
      auto& table = blocks.emplace_back(static_cast<size_t>(kBlocks / kMaxSequences));
      std::iota(table.begin(), table.end(), static_cast<BlockId>(s * table.size()));
      sequences.push_back({.query_begin = begin,
                           .query_len = lengths[s],
                           .context_len = contexts[s] + lengths[s],
                           .block_table = {}});
    }
    for (size_t s = 0; s < blocks.size(); ++s) sequences[s].block_table = blocks[s];
  }
  [[nodiscard]] ops::StepInputs inputs() const {
    return {
        .token_ids = ids, .positions = positions, .sequences = sequences, .logit_rows = logit_rows};
  }
};

struct Layout {
  int32_t world = 1;
  ExpertSplit split = ExpertSplit::kTensor;
  ops::CudaRankOptions ranks = {};
  bool deterministic = false;
};

// The model over all ranks of a layout, a thread each.
class RankedModel {
 public:
  RankedModel(const checkpoint::WeightSource& source, const Layout& layout)
      : vocab_(source.config().vocab_size),
        ranks_(static_cast<size_t>(layout.world)),
        group_(layout.world, [this] { abort(); }) {
    const absl::Status made = make(source, layout);
    EXPECT_TRUE(made.ok()) << message_of(made);
    good_ = made.ok();
  }
  [[nodiscard]] bool good() const { return good_; }

  // Rank 0's logits; `lost`: a rank that fails before the step.
  absl::StatusOr<std::vector<float>> run(const Step& step, int32_t lost = -1) {
    std::vector<float> logits(step.logit_rows.size() * static_cast<size_t>(vocab_));
    R1D_RETURN_IF_ERROR(group_.run([&](int32_t r) -> absl::Status {
      if (r == lost) return internal_error("this rank is lost");
      Rank& rank = ranks_[static_cast<size_t>(r)];
      std::atomic<uint64_t> layers{0};
      return rank.model->forward(
          step.inputs(), rank.pages, r == 0 ? logits.data() : nullptr, layers);
    }));
    return logits;
  }
  absl::Status rejoin() {
    return group_.run([&](int32_t r) { return ranks_[static_cast<size_t>(r)].ops->rejoin(); });
  }

 private:
  struct Rank {
    std::unique_ptr<ops::Ops> ops;
    std::unique_ptr<DeepSeekV3> model;
    std::vector<std::unique_ptr<ops::Buffer>> buffers;
    std::vector<ops::LatentPages> pages;
  };

  void abort() {
    for (const Rank& rank : ranks_) rank.ops->abort();
  }

  absl::Status make(const checkpoint::WeightSource& source, const Layout& layout) {
    const checkpoint::ModelConfig& config = source.config();
    std::vector<checkpoint::RankShard> shards;
    std::vector<ops::ModelDims> dims;
    for (int32_t r = 0; r < layout.world; ++r) {
      R1D_ASSIGN_OR_RETURN(auto shard,
                           checkpoint::make_rank_shard(config, r, layout.world, layout.split));
      dims.push_back(make_dims(config, shard));
      shards.push_back(shard);
    }
    R1D_ASSIGN_OR_RETURN(auto ops,
                         ops::make_cuda_ranks(dims,
                                              {.max_tokens = kMaxTokens,
                                               .max_sequences = kMaxSequences,
                                               .max_model_len = kBlockSize * kBlocks,
                                               .block_size = kBlockSize,
                                               .deterministic = layout.deterministic},
                                              layout.ranks));
    for (size_t r = 0; r < ranks_.size(); ++r) ranks_[r].ops = std::move(ops[r]);
    return group_.run([&](int32_t r) -> absl::Status {
      Rank& rank = ranks_[static_cast<size_t>(r)];
      R1D_RETURN_IF_ERROR(rank.ops->attach());
      R1D_ASSIGN_OR_RETURN(
          rank.model,
          DeepSeekV3::load(
              source, shards[static_cast<size_t>(r)], *rank.ops, kMaxTokens, false, [](int64_t) {
                return absl::OkStatus();
              }));
      const int64_t bytes = kBlocks * kBlockSize * config.latent_width() * 2;
      for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
        R1D_ASSIGN_OR_RETURN(
            auto buffer,
            rank.ops->allocate(static_cast<size_t>(bytes), ops::MemoryKind::kLatentCache, "cache"));
        rank.pages.push_back({.data = buffer->data(),
                              .dtype = DType::kBF16,
                              .num_blocks = kBlocks,
                              .block_size = kBlockSize,
                              .width = config.latent_width()});
        rank.buffers.push_back(std::move(buffer));
      }
      return absl::OkStatus();
    });
  }

  const int64_t vocab_;
  bool good_ = false;
  std::vector<Rank> ranks_;
  engine::RankGroup group_;
};

double relative_l2(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(error / norm);
}

// A prefill, then decode steps of one and of three sequences: each size often enough to be
// recorded and replayed; then a second chunk.
std::vector<Step> steps_of(int64_t vocab) {
  std::vector<Step> steps;
  steps.emplace_back(std::vector<int32_t>{40, 3, 70}, std::vector<int32_t>{0, 0, 0}, vocab);
  for (int32_t i = 0; i < 4; ++i)
    steps.emplace_back(std::vector<int32_t>{1}, std::vector<int32_t>{40 + i}, vocab);
  for (int32_t i = 0; i < 4; ++i) {
    steps.emplace_back(
        std::vector<int32_t>{1, 1, 1}, std::vector<int32_t>{44 + i, 3 + i, 70 + i}, vocab);
  }
  steps.emplace_back(std::vector<int32_t>{1, 60, 2}, std::vector<int32_t>{48, 7, 74}, vocab);
  return steps;
}

// bf16 sums of two or more parts instead of one product; with FP8 weights e4m3 activations of
// slices have other scales.
constexpr double kBf16 = 2e-2;
constexpr double kFp8 = 6e-2;

void expect_as_one_rank(const std::string& name, const Layout& layout, double tolerance) {
  const auto source = open_golden(name);
  const int64_t vocab = source->config().vocab_size;
  RankedModel one(*source, {.deterministic = layout.deterministic});
  RankedModel many(*source, layout);
  ASSERT_TRUE(one.good() && many.good());
  double worst = 0;
  for (const Step& step : steps_of(vocab)) {
    const auto want = one.run(step);
    const auto got = many.run(step);
    ASSERT_TRUE(want.ok() && got.ok()) << message_of(want.status()) << message_of(got.status());
    worst = std::max(worst, relative_l2(*got, *want));
    ASSERT_LT(worst, tolerance) << step.ids.size() << " tokens";
  }
  std::printf("%s, %d ranks: relative L2 up to %.1e\n", name.c_str(), layout.world, worst);
}

ops::CudaRankOptions shared(int32_t world) {
  return {.devices = std::vector<int32_t>(static_cast<size_t>(world), 0), .nccl = false};
}

struct Case {
  const char* model;
  double tolerance;
};
class RanksTest : public testing::TestWithParam<Case> {};

TEST_P(RanksTest, TwoRanksThatShareAGpuAreOne) {
  if (gpu_count() < 1) GTEST_SKIP() << "needs a GPU";
  expect_as_one_rank(GetParam().model, {.world = 2, .ranks = shared(2)}, GetParam().tolerance);
}

TEST_P(RanksTest, FourRanksThatShareAGpuAreOne) {
  if (gpu_count() < 1) GTEST_SKIP() << "needs a GPU";
  expect_as_one_rank(GetParam().model, {.world = 4, .ranks = shared(4)}, GetParam().tolerance);
}

TEST_P(RanksTest, WholeExpertsOnRanksThatShareAGpuAreOne) {
  if (gpu_count() < 1) GTEST_SKIP() << "needs a GPU";
  expect_as_one_rank(GetParam().model,
                     {.world = 2, .split = ExpertSplit::kExpert, .ranks = shared(2)},
                     GetParam().tolerance);
}

TEST_P(RanksTest, TwoGpusAreOne) {
  if (gpu_count() < 2) GTEST_SKIP() << "needs two GPUs";
  expect_as_one_rank(GetParam().model, {.world = 2, .ranks = {}}, GetParam().tolerance);
  expect_as_one_rank(GetParam().model,
                     {.world = 2, .split = ExpertSplit::kExpert, .ranks = {}},
                     GetParam().tolerance);
}

TEST_P(RanksTest, TwoGpusWithoutPeerMemoryAreOne) {
  if (gpu_count() < 2) GTEST_SKIP() << "needs two GPUs";
  expect_as_one_rank(
      GetParam().model, {.world = 2, .ranks = {.peer_memory = false}}, GetParam().tolerance);
}

TEST_P(RanksTest, TwoGpusAreOneWhenDeterministic) {
  if (gpu_count() < 2) GTEST_SKIP() << "needs two GPUs";
  expect_as_one_rank(
      GetParam().model, {.world = 2, .ranks = {}, .deterministic = true}, GetParam().tolerance);
}

INSTANTIATE_TEST_SUITE_P(Golden,
                         RanksTest,
                         testing::Values(Case{"v3-generic-bf16", kBf16},
                                         Case{"v3-noqlora-bf16", kBf16},
                                         Case{"v3-ragged-fp8", kFp8},
                                         Case{"v3-r1heads-fp8", kFp8}),
                         [](const auto& tested) {
                           std::string name;
                           for (const char c : std::string(tested.param.model))
                             if (std::isalnum(static_cast<unsigned char>(c)) != 0) name += c;
                           return name;
                         });

// A rank is lost before a step, at first and when graphs are replayed; the others come back, and
// after rejoining the same step gives the same logits: weights and caches are where they were.
void expect_recovers(const ops::CudaRankOptions& ranks) {
  const auto source = open_golden("v3-noqlora-bf16");
  RankedModel model(*source, {.world = 2, .ranks = ranks});
  ASSERT_TRUE(model.good());
  const std::vector<Step> steps = steps_of(source->config().vocab_size);
  const auto& decode = steps[1];
  ASSERT_TRUE(model.run(steps.front()).ok());
  for (int before = 0; before < 4; ++before) {
    absl::StatusOr<std::vector<float>> want;
    for (int i = 0; i <= before; ++i) want = model.run(decode);
    ASSERT_TRUE(want.ok()) << message_of(want.status());
    for (const int32_t lost : {1, 0}) {
      EXPECT_FALSE(model.run(decode, lost).ok());
      EXPECT_EQ(model.run(decode).status().code(), absl::StatusCode::kUnavailable);
      const absl::Status rejoined = model.rejoin();
      ASSERT_TRUE(rejoined.ok()) << message_of(rejoined);
      const auto got = model.run(decode);
      ASSERT_TRUE(got.ok()) << message_of(got.status());
      EXPECT_LT(relative_l2(*got, *want), 1e-2);
    }
  }
}

TEST(RankLossTest, RanksThatShareAGpuRejoin) {
  if (gpu_count() < 1) GTEST_SKIP() << "needs a GPU";
  expect_recovers(shared(2));
}
TEST(RankLossTest, RanksOnTwoGpusRejoin) {
  if (gpu_count() < 2) GTEST_SKIP() << "needs two GPUs";
  expect_recovers({});
}

}  // namespace
}  // namespace r1d::model
