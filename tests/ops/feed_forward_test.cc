// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/feed_forward.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/ops/cpu_ops.h"

#include "ops/cpu/router.h"
#include "tests/ops/reference.h"

namespace r1d::ops {
namespace {

using test::Guarded;
using test::OneSequence;
using test::random_floats;
using test::TestMatrix;
using test::TestMlp;

// Three products of at most 300 terms; see attention_test.cc.
constexpr double kTolerance = 1e-5;

struct Moe {
  ModelDims dims;
  TestMatrix router;
  std::vector<float> bias;
  std::vector<TestMlp> experts;
  TestMlp shared;
  bool has_shared = true;

  // MoeWeights borrow `mlps`.
  [[nodiscard]] MoeWeights weights(std::vector<MlpWeights>& mlps,
                                   int32_t first,
                                   int32_t count) const {
    mlps.clear();
    for (int32_t e = first; e < first + count; ++e) {
      mlps.push_back(experts[static_cast<size_t>(e)].weights());
    }
    MoeWeights w;
    w.router = router.view;
    w.router_bias = bias.data();
    w.experts = mlps;
    w.first_expert = first;
    if (has_shared) w.shared = shared.weights();
    return w;
  }
};

Moe random_moe(
    const RouterOptions& options, DType dtype, int64_t hidden, int64_t width, uint64_t seed) {
  Moe m;
  m.dims.hidden_size = hidden;
  m.dims.max_intermediate = 2 * width;
  m.dims.num_heads = 1;
  m.dims.vocab_size = 8;
  m.dims.router = options;
  m.router = test::random_matrix(options.num_experts, hidden, DType::kBF16, seed);
  m.bias = random_floats(static_cast<size_t>(options.num_experts), seed + 1, 0.2);
  for (int32_t e = 0; e < options.num_experts; ++e) {
    m.experts.push_back(
        test::random_mlp(hidden, width, dtype, seed + 100 * static_cast<uint64_t>(e + 1)));
  }
  m.shared = test::random_mlp(hidden, 2 * width, dtype, seed + 50);
  return m;
}

std::vector<double> reference(const Moe& m, std::span<const float> x) {
  const auto hidden = static_cast<size_t>(m.dims.hidden_size);
  const RouterOptions& o = m.dims.router;
  std::vector<double> y;
  std::vector<float> scratch(static_cast<size_t>(cpu::router_scratch(o)));
  std::vector<int32_t> chosen(static_cast<size_t>(o.top_k));
  std::vector<float> weight(chosen.size());
  for (size_t t = 0; t < x.size() / hidden; ++t) {
    const std::vector<double> token = test::to_double(x.subspan(t * hidden, hidden));
    const std::vector<double> scores = multiply(token, m.router);
    const std::vector<float> logits(scores.begin(), scores.end());
    cpu::choose_experts(
        logits.data(), m.bias.data(), o, scratch.data(), chosen.data(), weight.data());
    std::vector<double> sum =
        m.has_shared ? mlp(token, m.shared) : std::vector<double>(hidden, 0.0);
    for (size_t i = 0; i < chosen.size(); ++i) {
      const std::vector<double> part = mlp(token, m.experts[static_cast<size_t>(chosen[i])]);
      for (size_t c = 0; c < hidden; ++c) sum[c] += weight[i] * part[c];
    }
    y.insert(y.end(), sum.begin(), sum.end());
  }
  return y;
}

std::vector<float> run_moe(const Moe& m,
                           std::span<const float> x,
                           int32_t first,
                           int32_t count,
                           const CpuOptions& options) {
  auto ops = make_local_cpu_ops({m.dims}, options);
  const auto tokens = static_cast<int32_t>(static_cast<int64_t>(x.size()) / m.dims.hidden_size);
  const OneSequence step(std::vector<TokenId>(static_cast<size_t>(tokens)));
  EXPECT_TRUE(ops[0]->begin_step(step.inputs()).ok());
  std::vector<MlpWeights> mlps;
  std::vector<float> in(x.begin(), x.end());
  Guarded out(x.size());
  EXPECT_TRUE(ops[0]
                  ->moe(m.weights(mlps, first, count),
                        test::tensor_of(in, tokens, m.dims.hidden_size),
                        out.tensor(tokens, m.dims.hidden_size))
                  .ok());
  out.expect_intact();
  return {out.values().begin(), out.values().end()};
}

const RouterOptions kGrouped{18, 4, 6, 3, true, 2.5F};
const RouterOptions kUngrouped{8, 2, 1, 1, false, 1.0F};

TEST(FeedForwardTest, DenseMlpMatchesF64) {
  constexpr size_t kHidden = 150;
  ModelDims dims;
  dims.hidden_size = kHidden;
  dims.max_intermediate = 280;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const TestMlp mlp = test::random_mlp(kHidden, 280, dtype, 1);
    std::vector<float> x = random_floats(40 * kHidden, 2);
    const std::vector<double> want = test::mlp(test::to_double(x), mlp);
    test::for_each_target([&](const std::string& target) {
      auto ops = make_local_cpu_ops({dims}, {.num_threads = 2, .max_tokens = 40});
      for (const size_t tokens : {0U, 1U, 3U, 40U}) {
        SCOPED_TRACE(target + ' ' + dtype_name(dtype) + ' ' + std::to_string(tokens));
        const OneSequence step{std::vector<TokenId>(tokens)};
        ASSERT_TRUE(ops[0]->begin_step(step.inputs()).ok());
        const auto rows = static_cast<int64_t>(tokens);
        Guarded out(tokens * kHidden);
        ASSERT_TRUE(
            ops[0]
                ->mlp(mlp.weights(), test::tensor_of(x, rows, kHidden), out.tensor(rows, kHidden))
                .ok());
        out.expect_intact();
        EXPECT_LT(test::relative_l2(out.values(), std::span(want).first(tokens * kHidden)),
                  kTolerance);
      }
    });
  }
}

TEST(FeedForwardTest, MoeMatchesF64) {
  for (const RouterOptions& router : {kGrouped, kUngrouped}) {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      for (const bool shared : {true, false}) {
        Moe m = random_moe(router, dtype, 140, 72, 5);
        m.has_shared = shared;
        for (const size_t tokens : {0U, 1U, 7U, 60U}) {
          SCOPED_TRACE(std::to_string(router.num_experts) + ' ' + dtype_name(dtype) + ' ' +
                       std::to_string(tokens));
          const std::vector<float> x = random_floats(tokens * 140, 6);
          const auto got =
              run_moe(m, x, 0, router.num_experts, {.num_threads = 2, .max_tokens = 60});
          EXPECT_LT(test::relative_l2(got, reference(m, x)), kTolerance);
        }
      }
    }
  }
}

// 400 tokens at 4 experts and the shared one: 2000 assignments, more than one wave of 1024.
TEST(FeedForwardTest, ATokensBitsDoNotDependOnTheBatchNorOnWaves) {
  const Moe m = random_moe(kGrouped, DType::kF8E4M3, 70, 40, 7);
  constexpr size_t kTokens = 400;
  const std::vector<float> x = random_floats(kTokens * 70, 8);
  const auto whole = run_moe(m, x, 0, 18, {.num_threads = 3, .max_tokens = kTokens});
  EXPECT_LT(test::relative_l2(whole, reference(m, x)), kTolerance);
  for (const size_t t : {0U, 57U, 399U}) {
    const auto alone = run_moe(m, std::span(x).subspan(t * 70, 70), 0, 18, {.max_tokens = 1});
    EXPECT_EQ(std::memcmp(alone.data(), whole.data() + t * 70, 70 * 4), 0) << t;
  }
}

TEST(FeedForwardTest, WholeExpertsSplitOverRanksSumToTheWhole) {
  Moe m = random_moe(kGrouped, DType::kF8E4M3, 140, 72, 9);
  m.has_shared = false;
  const std::vector<float> x = random_floats(20 * 140, 10);
  for (const int32_t world : {2, 3}) {
    std::vector<float> sum(x.size());
    for (int32_t rank = 0; rank < world; ++rank) {
      const auto part = run_moe(m, x, rank * 18 / world, 18 / world, {.max_tokens = 20});
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    EXPECT_LT(test::relative_l2(sum, reference(m, x)), kTolerance);
  }
}

TEST(FeedForwardTest, IntermediateSizesSplitOverRanksSumToTheWhole) {
  const Moe m = random_moe(kGrouped, DType::kF8E4M3, 140, 72, 11);
  const std::vector<float> x = random_floats(20 * 140, 12);
  for (const int64_t world : {2, 4}) {
    std::vector<float> sum(x.size());
    for (int64_t rank = 0; rank < world; ++rank) {
      Moe part = m;
      const auto cut = [&](TestMlp& mlp) {
        const int64_t width = mlp.gate.view.rows / world;
        mlp = test::slice(mlp, rank * width, (rank + 1) * width);
      };
      for (TestMlp& expert : part.experts) cut(expert);
      cut(part.shared);
      const auto y = run_moe(part, x, 0, 18, {.num_threads = 2, .max_tokens = 20});
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[i];
    }
    EXPECT_LT(test::relative_l2(sum, reference(m, x)), kTolerance) << world;
  }
}

TEST(FeedForwardTest, ExpertsOfOtherRanksContributeNothing) {
  Moe m = random_moe(kUngrouped, DType::kBF16, 64, 32, 13);
  m.has_shared = false;
  m.bias.assign(8, 0.0F);
  m.bias[0] = m.bias[1] = 100;  // everyone goes to experts 0 and 1
  const std::vector<float> x = random_floats(5 * 64, 14);
  const auto y = run_moe(m, x, 4, 4, {.max_tokens = 5});
  EXPECT_EQ(y, std::vector<float>(5 * 64, 0.0F));
}

}  // namespace
}  // namespace r1d::ops
