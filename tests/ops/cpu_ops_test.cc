// SPDX-License-Identifier: Apache-2.0
#include "r1d/ops/cpu_ops.h"

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "tests/ops/reference.h"

namespace r1d::ops {
namespace {

using test::Guarded;
using test::OneSequence;
using test::random_floats;
using test::TestMatrix;
using ::testing::HasSubstr;

constexpr int64_t kHidden = 72;
constexpr int64_t kVocab = 120;

ModelDims small_dims() {
  ModelDims dims;
  dims.hidden_size = kHidden;
  dims.num_heads = 2;
  dims.max_intermediate = 16;
  dims.vocab_size = kVocab;
  return dims;
}

// Runs body(rank, ops) on a thread per rank.
template <class Body>
void on_ranks(int32_t world, const Body& body) {
  auto ops = make_local_cpu_ops(std::vector<ModelDims>(static_cast<size_t>(world), small_dims()),
                                {.num_threads = 2, .max_tokens = 200});
  std::vector<std::thread> threads;
  for (int32_t r = 0; r < world; ++r) {
    threads.emplace_back([&, r] { body(r, *ops[static_cast<size_t>(r)]); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(CpuOpsTest, EmbedGivesWholeRowsOnEveryRank) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const TestMatrix table = test::random_matrix(kVocab, kHidden, dtype, 1);
    const OneSequence step({0, 119, 60, 59, 30, 29, 0});
    for (const int32_t world : {1, 2, 4}) {
      on_ranks(world, [&](int32_t rank, Ops& ops) {
        const int64_t rows = kVocab / world;
        const TestMatrix own = test::slice(table, rank * rows, (rank + 1) * rows, 0, kHidden);
        Guarded out(step.ids.size() * kHidden);
        ASSERT_TRUE(ops.begin_step(step.inputs()).ok());
        ASSERT_TRUE(ops.embed(own.view, rank * rows, out.tensor(7, kHidden)).ok());
        ASSERT_TRUE(ops.end_step().ok());
        out.expect_intact();
        for (size_t t = 0; t < step.ids.size(); ++t) {
          for (int64_t c = 0; c < kHidden; ++c) {
            ASSERT_EQ(out.values()[t * kHidden + static_cast<size_t>(c)], table.at(step.ids[t], c));
          }
        }
      });
    }
  }
}

TEST(CpuOpsTest, ReduceAddNormSumsInRankOrderAndAgreesOnEveryRank) {
  constexpr size_t kTokens = 130;
  const OneSequence step(std::vector<TokenId>(kTokens, 1));
  const std::vector<float> weight = random_floats(kHidden, 50);
  const std::vector<float> before = random_floats(kTokens * kHidden, 51);
  for (const int32_t world : {1, 2, 4}) {
    std::vector<float> sum = random_floats(kTokens * kHidden, 0);
    for (int32_t r = 1; r < world; ++r) {
      const auto part = random_floats(kTokens * kHidden, static_cast<uint64_t>(r));
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += before[i];
    const std::vector<double> want = test::rms_norm(test::to_double(sum), weight, 1e-6F);
    std::vector<std::vector<float>> outs(static_cast<size_t>(world));
    on_ranks(world, [&](int32_t rank, Ops& ops) {
      std::vector<float> partial = random_floats(kTokens * kHidden, static_cast<uint64_t>(rank));
      std::vector<float> residual = before;
      Guarded out(kTokens * kHidden);
      ASSERT_TRUE(ops.begin_step(step.inputs()).ok());
      ASSERT_TRUE(ops.reduce_add_norm(test::tensor_of(partial, kTokens, kHidden),
                                      test::tensor_of(residual, kTokens, kHidden),
                                      weight.data(),
                                      out.tensor(kTokens, kHidden),
                                      NormReader::kMlp)
                      .ok());
      out.expect_intact();
      EXPECT_EQ(std::memcmp(residual.data(), sum.data(), sum.size() * 4), 0);
      outs[static_cast<size_t>(rank)].assign(out.values().begin(), out.values().end());
    });
    for (const auto& out : outs) {
      EXPECT_LT(test::relative_l2(out, want), 1e-6);
      EXPECT_EQ(out, outs[0]);
    }
  }
}

TEST(CpuOpsTest, ReduceAddNormTakesStridedTensors) {
  on_ranks(2, [](int32_t, Ops& ops) {
    const OneSequence step({1, 2});
    std::vector<float> partial(2 * 100, 1.0F);
    std::vector<float> residual(2 * 80, 1.0F);
    const std::vector<float> weight(kHidden, 2.0F);
    std::vector<float> out(2 * kHidden);
    Tensor p = test::tensor_of(partial, 2, kHidden);
    Tensor r = test::tensor_of(residual, 2, kHidden);
    p.stride = 100;
    r.stride = 80;
    ASSERT_TRUE(ops.begin_step(step.inputs()).ok());
    ASSERT_TRUE(
        ops.reduce_add_norm(p, r, weight.data(), test::tensor_of(out, 2, kHidden), NormReader::kMlp)
            .ok());
    for (const float v : out) EXPECT_NEAR(v, 2.0F, 1e-6);  // all 3, normed to 1, times 2
    EXPECT_EQ(partial[kHidden], 1.0F);
    EXPECT_EQ(residual[kHidden], 1.0F);
    EXPECT_EQ(residual[80], 3.0F);
  });
}

TEST(CpuOpsTest, LogitsReachRankZeroInTheRightColumns) {
  const TestMatrix head = test::random_matrix(kVocab, kHidden, DType::kBF16, 2);
  constexpr size_t kTokens = 160;
  OneSequence step(std::vector<TokenId>(kTokens, 1));
  for (int32_t row = 0; row < static_cast<int32_t>(kTokens); row += 2)
    step.logit_rows.push_back(row);
  std::vector<float> x = random_floats(kTokens * kHidden, 3);
  const std::vector<double> want = multiply(test::to_double(x), head);
  std::vector<std::vector<float>> results;
  for (const int32_t world : {1, 2, 4}) {
    Guarded logits(step.logit_rows.size() * kVocab);
    on_ranks(world, [&](int32_t rank, Ops& ops) {
      const int64_t rows = kVocab / world;
      const TestMatrix own = test::slice(head, rank * rows, (rank + 1) * rows, 0, kHidden);
      ASSERT_TRUE(ops.begin_step(step.inputs()).ok());
      ASSERT_TRUE(ops.logits(own.view,
                             rank * rows,
                             test::tensor_of(x, kTokens, kHidden),
                             rank == 0 ? logits.data() : nullptr)
                      .ok());
      ASSERT_TRUE(ops.end_step().ok());
    });
    logits.expect_intact();
    for (size_t b = 0; b < step.logit_rows.size(); ++b) {
      for (size_t v = 0; v < kVocab; ++v) {
        ASSERT_NEAR(logits.values()[b * kVocab + v],
                    want[static_cast<size_t>(step.logit_rows[b]) * kVocab + v],
                    1e-5);
      }
    }
    results.emplace_back(logits.values().begin(), logits.values().end());
  }
  EXPECT_EQ(results[1], results[0]);  // a vocabulary split changes no bit
  EXPECT_EQ(results[2], results[0]);
}

TEST(CpuOpsTest, NoTokensAndNoLogitRowsAreFine) {
  on_ranks(2, [](int32_t, Ops& ops) {
    const TestMatrix table = test::random_matrix(kVocab / 2, kHidden, DType::kBF16, 2);
    std::vector<float> none;
    const std::vector<float> weight(kHidden, 1.0F);
    const Tensor empty = test::tensor_of(none, 0, kHidden);
    EXPECT_TRUE(ops.begin_step({}).ok());
    EXPECT_TRUE(ops.embed(table.view, 0, empty).ok());
    EXPECT_TRUE(ops.norm(empty, weight.data(), empty, NormReader::kMlp).ok());
    EXPECT_TRUE(ops.reduce_add_norm(empty, empty, weight.data(), empty, NormReader::kMlp).ok());
    EXPECT_TRUE(ops.logits(table.view, 0, empty, nullptr).ok());
    EXPECT_TRUE(ops.end_step().ok());
  });
}

TEST(CpuOpsTest, AnAbortedRankNamesTheCommunicator) {
  auto ops = make_local_cpu_ops({small_dims(), small_dims()}, {.max_tokens = 4});
  const OneSequence step({1, 2});
  absl::Status status;
  std::thread rank0([&] {
    const TestMatrix table = test::random_matrix(60, kHidden, DType::kBF16, 2);
    std::vector<float> out(2 * kHidden);
    ASSERT_TRUE(ops[0]->begin_step(step.inputs()).ok());
    status = ops[0]->embed(table.view, 0, test::tensor_of(out, 2, kHidden));  // rank 1 never comes
  });
  ops[1]->abort();
  rank0.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(message_of(status), HasSubstr("communicator"));
}

TEST(CpuOpsTest, BeginStepRefusesInputsThatDoNotFit) {
  ModelDims dims = small_dims();
  auto ops = make_local_cpu_ops({dims}, {.max_tokens = 3});
  const auto message = [&](const StepInputs& inputs) {
    const absl::Status status = ops[0]->begin_step(inputs);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return message_of(status);
  };
  EXPECT_THAT(message(OneSequence({1, 2, 3, 4}).inputs()), HasSubstr("4 tokens"));
  OneSequence step({1, 2, 3});
  step.positions.pop_back();
  EXPECT_THAT(message(step.inputs()), HasSubstr("2 positions"));
  step = OneSequence({1, 2, 3});
  step.positions[1] = 7;
  EXPECT_THAT(message(step.inputs()), HasSubstr("token 1"));
  step = OneSequence({1, 2, 3});
  step.span.query_len = 2;
  step.span.context_len = 2;
  EXPECT_THAT(message(step.inputs()), HasSubstr("token 2 belongs to no sequence"));
  step.span.query_begin = 2;
  EXPECT_THAT(message(step.inputs()), HasSubstr("spans tokens 2 + 2"));
  step = OneSequence({1, 2, 3});
  step.logit_rows = {3};
  EXPECT_THAT(message(step.inputs()), HasSubstr("logit row 3"));
  EXPECT_TRUE(ops[0]->begin_step(OneSequence({1, 2, 3}).inputs()).ok());
}

TEST(CpuOpsTest, BuffersAreAlignedAndZeroed) {
  auto ops = make_local_cpu_ops({small_dims()}, {.max_tokens = 1});
  for (const size_t bytes : {0UL, 1UL, 1000UL, 5UL << 20}) {
    auto buffer = ops[0]->allocate(bytes, MemoryKind::kWeights, "test");
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ((*buffer)->size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*buffer)->data()) % 64, 0U);
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ((*buffer)->data()[i], std::byte{0});
  }
  const auto refused =
      ops[0]->allocate(size_t{1} << 60, MemoryKind::kLatentCache, "KV cache of layer 7");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(message_of(refused.status()), HasSubstr("KV cache of layer 7"));
}

TEST(CpuOpsTest, UploadCopiesAndSkipsItself) {
  auto ops = make_local_cpu_ops({small_dims()}, {.max_tokens = 1});
  EXPECT_TRUE(ops[0]->host_addressable());
  EXPECT_EQ(ops[0]->activation_dtype(), DType::kF32);
  const std::vector<std::byte> source(100, std::byte{7});
  auto buffer = ops[0]->allocate(100, MemoryKind::kWeights, "test").value();
  ASSERT_TRUE(ops[0]->upload(buffer->data(), source).ok());
  EXPECT_EQ(std::memcmp(buffer->data(), source.data(), 100), 0);
  EXPECT_TRUE(ops[0]->upload(buffer->data(), {buffer->data(), 100}).ok());
  EXPECT_TRUE(ops[0]->upload(nullptr, {}).ok());
}

TEST(CpuOpsTest, ScratchThatCannotBeHadIsReportedBeforeTheFirstStep) {
  ModelDims dims = small_dims();
  dims.hidden_size = int64_t{1} << 50;
  auto ops = make_local_cpu_ops({dims}, {.max_tokens = 8});
  EXPECT_EQ(ops[0]->begin_step({}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ops[0]->allocate(1, MemoryKind::kWeights, "x").status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(CpuOpsTest, TheTargetIsNamed) {
  test::for_each_target([](const std::string& target) { EXPECT_EQ(cpu_target(false), target); });
  EXPECT_THAT(cpu_target(true), HasSubstr(cpu_target(false)));
}

}  // namespace
}  // namespace r1d::ops
