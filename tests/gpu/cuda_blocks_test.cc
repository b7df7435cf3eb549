// SPDX-License-Identifier: Apache-2.0
// Every block of the model on the GPU against the CPU's operators: same weights, same inputs.
// Blocks are compared one by one, so that an error names its block and a router that chooses
// differently after rounding cannot hide or cause one.
#include <algorithm>
#include <atomic>
#include <cmath>
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
#include "r1d/ops/cpu_ops.h"
#include "r1d/ops/cuda_ops.h"

#include "tests/support/test_data.h"

namespace r1d::model {
namespace {

constexpr uint64_t kSeed = 5;
constexpr int32_t kMaxTokens = 320;
constexpr int32_t kBlockSize = 64;
constexpr int64_t kBlocks = 16;

bool has_gpu() {
  const auto gpus = device::list_gpus();
  return gpus.ok() && !gpus->empty();
}

// R1's head sizes and formats at a small width: the kernels made for sm_90a serve it.
checkpoint::ModelConfig tiled_config() {
  auto config = checkpoint::ModelConfig::load(test::data("golden/v3-r1heads-fp8/config.json"));
  EXPECT_TRUE(config.ok()) << message_of(config.status());
  return *config;
}

// A full-width slice of R1: one dense and one MoE layer of a rank of eight, with 32 experts.
checkpoint::ModelConfig wide_config() {
  auto config = checkpoint::ModelConfig::load(test::data("../../configs/models/deepseek-r1.json"));
  EXPECT_TRUE(config.ok()) << message_of(config.status());
  config->num_hidden_layers = 2;
  config->first_k_dense_replace = 1;
  config->n_routed_experts = 32;
  config->vocab_size = 1024;
  return *config;
}

checkpoint::ModelConfig named_config(const std::string& name) {
  auto config = checkpoint::ModelConfig::load(test::data("golden/" + name + "/config.json"));
  EXPECT_TRUE(config.ok()) << message_of(config.status());
  return *config;
}

// bf16 values, so that both sides read the same.
std::vector<float> random_rows(int64_t count, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    double sum = 0;
    for (uint64_t k = 0; k < 4; ++k) sum += base::random_unit(seed, 4 * i + k) - 0.5;
    values[i] = bf16_to_f32(f32_to_bf16(static_cast<float>(sum * std::sqrt(3.0))));
  }
  return values;
}

// A step of sequences with `lengths` new tokens behind `contexts` cached ones.
struct Step {
  std::vector<TokenId> ids;
  std::vector<int32_t> positions;
  std::vector<std::vector<BlockId>> blocks;
  std::vector<ops::SequenceSpan> sequences;

  Step(const std::vector<int32_t>& lengths, const std::vector<int32_t>& contexts) {
    BlockId next = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      const int32_t total = contexts[s] + lengths[s];
      auto& table = blocks.emplace_back(static_cast<size_t>((total + kBlockSize - 1) / kBlockSize));
      std::iota(table.begin(), table.end(), next);
      next += static_cast<BlockId>(table.size());
      const auto begin = static_cast<int32_t>(ids.size());
      for (int32_t i = 0; i < lengths[s]; ++i) {
        ids.push_back(0);
        positions.push_back(contexts[s] + i);
      }
      sequences.push_back(
          {.query_begin = begin, .query_len = lengths[s], .context_len = total, .block_table = {}});
    }
    for (size_t s = 0; s < blocks.size(); ++s) sequences[s].block_table = blocks[s];
  }
  [[nodiscard]] ops::StepInputs inputs() const {
    return {.token_ids = ids, .positions = positions, .sequences = sequences, .logit_rows = {}};
  }
  [[nodiscard]] int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
};

// One implementation with the model's weights and a latent cache.
class Side {
 public:
  Side(std::unique_ptr<ops::Ops> ops,
       const checkpoint::WeightSource& source,
       int32_t world,
       DType cache)
      : ops_(std::move(ops)), width_(source.config().hidden_size) {
    const auto shard =
        checkpoint::make_rank_shard(source.config(), 0, world, checkpoint::ExpertSplit::kTensor);
    must(shard.status());
    must(ops_->attach());
    auto model = DeepSeekV3::load(
        source, *shard, *ops_, kMaxTokens, false, [](int64_t) { return absl::OkStatus(); });
    must(model.status());
    model_ = std::move(*model);
    const ops::LatentFormat format{.dtype = cache,
                                   .latent = source.config().kv_lora_rank,
                                   .rope = source.config().qk_rope_head_dim};
    auto pages =
        ops_->allocate(static_cast<size_t>(kBlocks * kBlockSize * format.bytes_per_token()),
                       ops::MemoryKind::kLatentCache,
                       "pages");
    must(pages.status());
    pages_memory_ = std::move(*pages);
    pages_ = {.data = pages_memory_->data(),
              .dtype = cache,
              .num_blocks = kBlocks,
              .block_size = kBlockSize,
              .width = source.config().latent_width()};
    in_ = take();
    out_ = take();
  }

  enum class Block : uint8_t { kAttention, kFeedForward };

  std::vector<float> run(Block block, size_t layer, const Step& step, const std::vector<float>& x) {
    put(x);
    must(ops_->begin_step(step.inputs()));
    const Layer& weights = model_->weights().layers[layer];
    const ops::Tensor from = view(*in_, step.tokens());
    const ops::Tensor to = view(*out_, step.tokens());
    if (block == Block::kAttention) {
      must(ops_->attention(weights.attention, pages_, from, to));
    } else if (weights.is_moe) {
      must(ops_->moe(weights.moe, from, to));
    } else {
      must(ops_->mlp(weights.mlp, from, to));
    }
    must(ops_->end_step());
    return get(x.size());
  }

 private:
  static void must(const absl::Status& status) { ASSERT_TRUE(status.ok()) << message_of(status); }

  std::unique_ptr<ops::Buffer> take() {
    auto buffer = ops_->allocate(static_cast<size_t>(kMaxTokens * width_) * sizeof(float),
                                 ops::MemoryKind::kActivations,
                                 "rows");
    must(buffer.status());
    return std::move(*buffer);
  }
  ops::Tensor view(ops::Buffer& buffer, int64_t rows) {
    return {.data = buffer.data(),
            .dtype = ops_->activation_dtype(),
            .rows = rows,
            .cols = width_,
            .stride = width_};
  }
  void put(const std::vector<float>& x) {
    if (ops_->activation_dtype() == DType::kF32) {
      must(ops_->upload(in_->data(), std::as_bytes(std::span(x))));
      return;
    }
    std::vector<uint16_t> bits(x.size());
    std::transform(x.begin(), x.end(), bits.begin(), [](float v) { return f32_to_bf16(v); });
    must(ops_->upload(in_->data(), std::as_bytes(std::span(bits))));
  }
  std::vector<float> get(size_t count) {
    std::vector<float> values(count);
    if (ops_->activation_dtype() == DType::kF32) {
      must(ops_->download(std::as_writable_bytes(std::span(values)), out_->data()));
      return values;
    }
    std::vector<uint16_t> bits(count);
    must(ops_->download(std::as_writable_bytes(std::span(bits)), out_->data()));
    std::transform(
        bits.begin(), bits.end(), values.begin(), [](uint16_t b) { return bf16_to_f32(b); });
    return values;
  }

  std::unique_ptr<ops::Ops> ops_;
  std::unique_ptr<DeepSeekV3> model_;
  std::unique_ptr<ops::Buffer> pages_memory_;
  ops::LatentPages pages_;
  std::unique_ptr<ops::Buffer> in_;
  std::unique_ptr<ops::Buffer> out_;
  const int64_t width_;
};

// The CPU and the GPU with the same weights.
struct Pair {
  Pair(const checkpoint::ModelConfig& config, int32_t world, bool deterministic, DType cache) {
    const auto source = checkpoint::make_dummy_source(config, kSeed);
    const auto shard =
        checkpoint::make_rank_shard(config, 0, world, checkpoint::ExpertSplit::kTensor);
    EXPECT_TRUE(shard.ok()) << message_of(shard.status());
    const ops::ModelDims dims = make_dims(config, *shard);
    cpu = std::make_unique<Side>(
        std::move(
            ops::make_local_cpu_ops({dims}, {.num_threads = 8, .max_tokens = kMaxTokens}).front()),
        *source,
        world,
        cache);
    auto made = ops::make_cuda_ops(dims,
                                   {.max_tokens = kMaxTokens,
                                    .max_sequences = 64,
                                    .max_model_len = 1024,
                                    .block_size = kBlockSize,
                                    .deterministic = deterministic,
                                    .graphs = false});
    EXPECT_TRUE(made.ok()) << message_of(made.status());
    gpu = std::make_unique<Side>(std::move(*made), *source, world, cache);
  }
  std::unique_ptr<Side> cpu;
  std::unique_ptr<Side> gpu;
};

// ||got - want|| / ||want|| of the worst row, with its index.
std::pair<double, int64_t> worst_row(const std::vector<float>& got,
                                     const std::vector<float>& want,
                                     int64_t tokens) {
  const size_t width = got.size() / static_cast<size_t>(tokens);
  std::pair<double, int64_t> worst{0, -1};
  for (int64_t t = 0; t < tokens; ++t) {
    double error = 0;
    double norm = 0;
    for (size_t i = static_cast<size_t>(t) * width; i < static_cast<size_t>(t + 1) * width; ++i) {
      const double d = static_cast<double>(got[i]) - want[i];
      error += d * d;
      norm += static_cast<double>(want[i]) * want[i];
    }
    const double relative = std::sqrt(error / norm);
    if (!(relative <= worst.first)) worst = {relative, t};
  }
  return worst;
}

void expect_blocks_agree(const checkpoint::ModelConfig& config,
                         int32_t world,
                         double feed_forward_tolerance,
                         double attention_tolerance,
                         bool deterministic = false,
                         DType cache = DType::kBF16) {
  if (!has_gpu()) GTEST_SKIP() << "needs a GPU";
  Pair pair(config, world, deterministic, cache);
  if (testing::Test::HasFatalFailure()) return;
  uint64_t seed = 100;
  const auto compare =
      [&](Side::Block block, size_t layer, const Step& step, const std::string& what) {
        const auto x = random_rows(step.tokens() * config.hidden_size, ++seed);
        const auto want = pair.cpu->run(block, layer, step, x);
        const auto got = pair.gpu->run(block, layer, step, x);
        const auto [error, row] = worst_row(got, want, step.tokens());
        const double tolerance =
            block == Side::Block::kAttention ? attention_tolerance : feed_forward_tolerance;
        EXPECT_LT(error, tolerance) << what << ", layer " << layer << ", " << step.tokens()
                                    << " tokens, worst at row " << row << ", seed " << seed;
        std::printf("%-12s layer %zu, %3ld tokens: %.2e\n",
                    what.c_str(),
                    layer,
                    static_cast<long>(step.tokens()),
                    error);
      };
  for (size_t layer = 0; layer < static_cast<size_t>(config.num_hidden_layers); ++layer) {
    for (const int32_t tokens : {1, 2, 7, 16, 33, 64, 65, 130, 300}) {
      compare(Side::Block::kFeedForward, layer, Step({tokens}, {0}), "feed-forward");
    }
  }
  for (size_t layer = 0; layer < static_cast<size_t>(config.num_hidden_layers); ++layer) {
    // A prefill, then decode, verification and a second chunk behind what it cached; then ragged.
    compare(Side::Block::kAttention, layer, Step({300}, {0}), "prefill");
    compare(Side::Block::kAttention, layer, Step({1}, {300}), "decode");
    compare(Side::Block::kAttention, layer, Step({4}, {301}), "verify");
    compare(Side::Block::kAttention, layer, Step({150}, {305}), "chunk");
    // Short sequences first: the order that an Ops may bring a step into.
    compare(Side::Block::kAttention, layer, Step({1, 3, 1, 70, 90}, {0, 0, 0, 0, 0}), "ragged");
    compare(Side::Block::kAttention, layer, Step({1, 1, 2, 60, 9}, {1, 3, 1, 70, 90}), "mixed");
  }
}

// The worst row of a step. bf16: one rounding (2^-9) between each of a handful of products.
constexpr double kBf16 = 2.5e-2;
// e4m3 activations: 2.6e-2 in the mean square on every product's input. Feed-forward has two in a
// row, attention four, of which scores make more: softmax turns an absolute error into a relative
// one.
constexpr double kFp8 = 9e-2;
constexpr double kFp8Attention = 2e-1;
// An e4m3 cache whose values came out 2^-9 apart before they were rounded: of a step of 2^-4 that
// is one value in thirty on the other side, so 2^-4 / sqrt(30) = 1.1e-2 in the mean square, of
// scores and of values. A row whose softmax hangs on a few keys sees more of it: the worst of 300
// was 7.4e-2 on an H200, single rows 1.3e-2 to 2.2e-2. Whether codes are right to the bit is for
// the kernels' tests.
constexpr double kBf16WithFp8Cache = 1e-1;

TEST(CudaBlocksTest, AgreeWithTheCpuOnBf16WeightsOfAnySize) {
  expect_blocks_agree(named_config("v3-generic-bf16"), 1, kBf16, kBf16);
}
TEST(CudaBlocksTest, AgreeWithTheCpuWithoutALowRankQuery) {
  expect_blocks_agree(named_config("v3-noqlora-bf16"), 1, kBf16, kBf16);
}
TEST(CudaBlocksTest, AgreeWithTheCpuOnRaggedFp8) {
  expect_blocks_agree(named_config("v3-ragged-fp8"), 1, kBf16, kBf16);
}
TEST(CudaBlocksTest, AgreeWithTheCpuOnASliceOfRaggedFp8) {
  expect_blocks_agree(named_config("v3-ragged-fp8"), 2, kBf16, kBf16);
}
TEST(CudaBlocksTest, AgreeWithTheCpuOnTiledFp8) {
  expect_blocks_agree(tiled_config(), 1, kFp8, kFp8Attention);
}
TEST(CudaBlocksTest, AgreeWithTheCpuWhenDeterministic) {
  expect_blocks_agree(tiled_config(), 1, kFp8, kFp8Attention, /*deterministic=*/true);
}
TEST(CudaBlocksTest, AgreeWithTheCpuAtTheWidthOfARankOfR1) {
  expect_blocks_agree(wide_config(), 8, kFp8, kFp8Attention);
}
TEST(CudaBlocksTest, AgreeWithTheCpuOnAnFp8CacheOfAnySize) {
  for (const char* name : {"v3-generic-bf16", "v3-ragged-fp8"}) {
    expect_blocks_agree(
        named_config(name), 1, kBf16, kBf16WithFp8Cache, /*deterministic=*/false, DType::kF8E4M3);
  }
}
TEST(CudaBlocksTest, AgreeWithTheCpuOnAnFp8CacheOfR1sHeads) {
  for (const bool deterministic : {false, true}) {
    expect_blocks_agree(tiled_config(), 1, kFp8, kFp8Attention, deterministic, DType::kF8E4M3);
  }
}
TEST(CudaBlocksTest, AgreeWithTheCpuAtTheWholeWidthOfR1) {
  checkpoint::ModelConfig config = wide_config();
  config.n_routed_experts = 16;
  expect_blocks_agree(config, 1, kFp8, kFp8Attention);
}

}  // namespace
}  // namespace r1d::model
