// SPDX-License-Identifier: Apache-2.0
// A model on several ranks gives what it gives on one: logits of prefill and decode steps, eager,
// recorded and replayed. Ranks share one GPU (our collectives alone), or have one each.
//
// Random weights have routers whose experts nearly tie: a sum that is rounded elsewhere, as several
// ranks do, takes another expert for one token in ten, and its logits are others, by 2 to 60 %.
// That says nothing about ranks. So the comparison with one rank fixes which experts are chosen
// (SettledRouters) and leaves how they are weighted to the input. As the routers choose by
// themselves, what can be compared is what has the same bits: two ranks on one GPU and on two.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/random.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/device/gpu_info.h"
#include "r1d/engine/rank_group.h"
#include "r1d/model/deepseek_v3.h"
#include "r1d/ops/cuda_ops.h"

#include "tests/support/test_data.h"

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
  auto source = checkpoint::open_hugging_face(test::data("golden/" + name));
  EXPECT_TRUE(source.ok()) << message_of(source.status());
  return std::move(source).value();
}

// A source whose routers choose the same experts for every token: correction biases, which choose
// and never weigh, are powers of two far above any score, so that neither experts nor sums of two
// for a group's score come near each other. An expert's place in the order is scattered, anew in
// each layer, over groups and over both halves of the experts.
class SettledRouters final : public checkpoint::WeightSource {
 public:
  explicit SettledRouters(std::unique_ptr<checkpoint::WeightSource> source)
      : source_(std::move(source)) {}

  [[nodiscard]] const checkpoint::ModelConfig& config() const override { return source_->config(); }
  [[nodiscard]] bool has_mtp() const override { return source_->has_mtp(); }
  [[nodiscard]] absl::StatusOr<checkpoint::StoredTensor> find(
      const std::string& name) const override {
    return source_->find(name);
  }
  [[nodiscard]] absl::Status read(const std::string& name,
                                  const checkpoint::TensorSlice& slice,
                                  std::span<std::byte> dest) const override {
    if (!is_bias(name)) return source_->read(name, slice, dest);
    R1D_ASSIGN_OR_RETURN(const checkpoint::StoredTensor stored, source_->find(name));
    if (stored.dtype != DType::kF32) return failed_precondition("{}: not f32", name);
    const auto count = static_cast<size_t>(slice.rows.size());
    if (dest.size() != count * sizeof(float)) return failed_precondition("{}: other sizes", name);
    for (size_t i = 0; i < count; ++i) {
      const float bias = bias_of(name, slice.rows.begin + static_cast<int64_t>(i));
      std::memcpy(&dest[i * sizeof(float)], &bias, sizeof(float));
    }
    return absl::OkStatus();
  }
  [[nodiscard]] std::optional<checkpoint::TensorBytes> locate(
      const std::string& name, const checkpoint::TensorSlice& slice) const override {
    return is_bias(name) ? std::nullopt : source_->locate(name, slice);
  }

 private:
  static bool is_bias(const std::string& name) {
    return name.ends_with(".e_score_correction_bias");
  }
  [[nodiscard]] float bias_of(const std::string& name, int64_t expert) const {
    const int64_t layer = std::stoll(name.substr(name.find("layers.") + 7));
    const int64_t place = (7 * expert + 5 * layer) % config().n_routed_experts;
    return std::ldexp(4.F, static_cast<int>(place));
  }

  const std::unique_ptr<checkpoint::WeightSource> source_;
};

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

// One rank's logits are up to 1.9e-2 from those in f32 (`r1d golden`), each set of ranks with other
// roundings: so two of them are up to twice that apart. Activations in e4m3, which slices scale
// anew, put a block of layers 4e-2 to 1.5e-1 from f32 (CudaBlocksTest). A part that is missing,
// doubled or taken from another step is half of the logits or more.
constexpr double kBf16 = 4e-2;
constexpr double kE4m3 = 1.5e-1;

void expect_as_one_rank(const std::string& name, const Layout& layout, double tolerance) {
  const SettledRouters source(open_golden(name));
  const int64_t vocab = source.config().vocab_size;
  RankedModel one(source, {.deterministic = layout.deterministic});
  RankedModel many(source, layout);
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

// With the routers' own choice. The same sums in the same order, wherever the ranks are.
TEST_P(RanksTest, TwoGpusAreTwoRanksThatShareAGpuToTheBit) {
  if (gpu_count() < 2) GTEST_SKIP() << "needs two GPUs";
  const auto source = open_golden(GetParam().model);
  for (const ExpertSplit split : {ExpertSplit::kTensor, ExpertSplit::kExpert}) {
    RankedModel one_gpu(*source,
                        {.world = 2, .split = split, .ranks = shared(2), .deterministic = true});
    RankedModel two_gpus(*source, {.world = 2, .split = split, .ranks = {}, .deterministic = true});
    ASSERT_TRUE(one_gpu.good() && two_gpus.good());
    for (const Step& step : steps_of(source->config().vocab_size)) {
      const auto want = one_gpu.run(step);
      const auto got = two_gpus.run(step);
      ASSERT_TRUE(want.ok() && got.ok()) << message_of(want.status()) << message_of(got.status());
      ASSERT_EQ(*got, *want) << step.ids.size() << " tokens";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden,
                         RanksTest,
                         testing::Values(Case{"v3-generic-bf16", kBf16},
                                         Case{"v3-noqlora-bf16", kBf16},
                                         Case{"v3-ragged-fp8", kBf16},
                                         Case{"v3-r1heads-fp8", kE4m3}),
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
