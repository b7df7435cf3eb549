// SPDX-License-Identifier: Apache-2.0
// What an Ops object takes is what was planned for it.
#include "r1d/ops/memory.h"

#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/device/gpu_info.h"
#include "r1d/ops/cpu_ops.h"
#include "r1d/ops/cuda_ops.h"

#include "ops/cuda_memory.h"

namespace r1d::ops {
namespace {

// A rank of eight of R1.
ModelDims r1_dims(int32_t world_size) {
  ModelDims dims;
  dims.hidden_size = 7168;
  dims.num_heads = 128 / world_size;
  dims.q_lora_rank = 1536;
  dims.kv_lora_rank = 512;
  dims.qk_nope_head_dim = 128;
  dims.qk_rope_head_dim = 64;
  dims.v_head_dim = 128;
  dims.max_intermediate = 18432 / world_size;
  dims.vocab_size = 129280;
  dims.rope_inv_freq.resize(32);
  dims.router = {.num_experts = 256, .top_k = 8, .num_groups = 8, .kept_groups = 4};
  return dims;
}

ModelDims small_dims() {
  ModelDims dims;
  dims.hidden_size = 96;
  dims.num_heads = 3;
  dims.kv_lora_rank = 40;
  dims.qk_nope_head_dim = 24;
  dims.qk_rope_head_dim = 8;
  dims.v_head_dim = 20;
  dims.max_intermediate = 100;
  dims.vocab_size = 130;
  dims.rope_inv_freq.resize(4);
  dims.router = {.num_experts = 6, .top_k = 2};
  return dims;
}

TEST(MemoryMeterTest, CountsUntilTheShareGoes) {
  MemoryMeter meter;
  {
    MemoryMeter::Share first(meter, MemoryKind::kWeights, 100);
    MemoryMeter::Share second(meter, MemoryKind::kLatentCache, 30);
    MemoryMeter::Share moved = std::move(first);
    EXPECT_EQ(meter.use()[MemoryKind::kWeights], 100);
    EXPECT_EQ(meter.use().total(), 130);
    moved = MemoryMeter::Share();
    EXPECT_EQ(meter.use()[MemoryKind::kWeights], 0);
  }
  EXPECT_EQ(meter.use(), MemoryUse());
}

TEST(CpuMemoryTest, TheRanksTakeWhatIsPlanned) {
  for (const int32_t world : {1, 2, 4}) {
    for (const int32_t threads : {1, 3}) {
      const CpuOptions options{.num_threads = threads, .max_tokens = 70};
      const MemoryUse planned = plan_cpu_memory(small_dims(), options, world);
      EXPECT_GT(planned[MemoryKind::kWorkspaces], 0);
      EXPECT_EQ(planned[MemoryKind::kCollectives] > 0, world > 1);
      const auto ops = make_local_cpu_ops(
          std::vector<ModelDims>(static_cast<size_t>(world), small_dims()), options);
      for (const auto& rank : ops) EXPECT_EQ(rank->memory_use(), planned) << world;
    }
  }
}

TEST(CpuMemoryTest, ABufferIsCountedUnderItsKindWhileItLives) {
  const auto ops = make_local_cpu_ops({small_dims()}, {.max_tokens = 4});
  const MemoryUse before = ops[0]->memory_use();
  {
    const auto buffer = ops[0]->allocate(12345, MemoryKind::kLatentCache, "pages");
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(ops[0]->memory_use()[MemoryKind::kLatentCache], 12345);
  }
  EXPECT_EQ(ops[0]->memory_use(), before);
}

TEST(CpuMemoryTest, ACollectiveTakesNoMoreThanARound) {
  // 32768 tokens of 7168 values pass in rounds of 2^18 elements, two rounds' slots a rank.
  const MemoryUse use = plan_cpu_memory(r1_dims(8), {.max_tokens = 32768}, 8);
  EXPECT_EQ(use[MemoryKind::kCollectives], 2 * (1 << 18) * 4);
}

CudaOptions cuda_options(int32_t tokens, int32_t sequences, int32_t length) {
  return {.max_tokens = tokens, .max_sequences = sequences, .max_model_len = length};
}

TEST(CudaMemoryTest, TheFormulaIsWhatTheKernelsLayOut) {
  if (!device::built_with_cuda()) GTEST_SKIP() << "built without CUDA: there is no layout";
  for (const ModelDims& dims : {r1_dims(1), r1_dims(8), r1_dims(32), small_dims()}) {
    for (const GpuTarget gpu : {GpuTarget{.compute_capability = 90, .num_multiprocessors = 132},
                                GpuTarget{.compute_capability = 90, .num_multiprocessors = 78},
                                GpuTarget{.compute_capability = 80, .num_multiprocessors = 108},
                                GpuTarget{.compute_capability = 100, .num_multiprocessors = 148}}) {
      for (CudaOptions options : {cuda_options(32768, 64, 163840),
                                  cuda_options(8192, 256, 8192),
                                  cuda_options(300, 1000, 777),
                                  cuda_options(1, 1, 2)}) {
        for (const bool deterministic : {false, true}) {
          options.deterministic = deterministic;
          EXPECT_EQ(cuda_workspace_formula(dims, options, gpu),
                    cuda_workspace_bytes(dims, options, gpu))
              << dims.num_heads << " heads, sm_" << gpu.compute_capability << ", "
              << options.max_tokens << " tokens, deterministic " << deterministic;
        }
      }
    }
  }
}

TEST(CudaMemoryTest, TheLargestWorkspacesOfR1AreTheRowsOfItsExperts) {
  const CudaOptions options = cuda_options(8192, 64, 32768);
  const int64_t bytes = cuda_workspace_bytes(r1_dims(8), options, {});
  // 8192 tokens of 8 choices: bf16 rows of 7168 and twice 2304 wide, and FP8 rows of 2304.
  const int64_t rows = int64_t{8192} * 8 * (2 * 7168 + 2 * 2 * 2304 + 2304);
  EXPECT_GT(bytes, rows);
  EXPECT_LT(bytes, rows * 2);
}

TEST(CudaMemoryTest, AttentionWeightsAreKeptTwiceWhereTheirKernelsWantThem) {
  const CudaOptions options = cuda_options(8192, 64, 32768);
  const CudaLayers layers{.attention = 61, .moe = 58, .local_experts = 256, .fp8 = true};
  // 16 heads of 256 rows of 512 values in bf16, and the scales of q_a and kv_a, 17 x 56, together.
  EXPECT_EQ(plan_cuda_memory(r1_dims(8), options, {}, layers)[MemoryKind::kWeights],
            61 * (16 * 256 * 512 * 2 + 17 * 56 * 4));
  // Elsewhere a table of every expert's three matrices.
  const GpuTarget a100{.compute_capability = 80, .num_multiprocessors = 108};
  EXPECT_EQ(plan_cuda_memory(r1_dims(8), options, a100, layers)[MemoryKind::kWeights],
            static_cast<int64_t>(58 * 3 * 256 * sizeof(Matrix)));
}

TEST(CudaMemoryTest, GraphsAreThoseOfTheBatchSizesThatCanCome) {
  const CudaLayers layers{.attention = 10};
  CudaOptions options = cuda_options(512, 1, 100);
  const int64_t one = cuda_graph_bytes(options, layers);
  EXPECT_GT(one, 0);
  options.max_sequences = 5;  // 1, 2, 3, 4, 6
  EXPECT_EQ(cuda_graph_bytes(options, layers), 5 * one);
  options.max_sequences = 1000;
  EXPECT_EQ(cuda_graph_bytes(options, layers), 15 * one);
  options.graphs = false;
  EXPECT_EQ(cuda_graph_bytes(options, layers), 0);
}

}  // namespace
}  // namespace r1d::ops
