// SPDX-License-Identifier: Apache-2.0
// Against figures worked out apart, for a rank of eight of R1 on an H200 at 4.3 TB/s, 790 TFLOPS
// bf16, 1500 FP8, 400 GB/s and 5 us an all-reduce.
#include "r1d/engine/roofline.h"

#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "tests/support/test_data.h"

namespace r1d::engine {
namespace {

using checkpoint::ExpertSplit;

struct R1 {
  explicit R1(int32_t world_size, ExpertSplit split = ExpertSplit::kTensor)
      : config(*checkpoint::ModelConfig::load(test::data("configs/deepseek-r1.json"))),
        shard(*checkpoint::make_rank_shard(config, 0, world_size, split)) {}
  [[nodiscard]] RooflineModel model() const {
    return {
        .config = config, .shard = shard, .fp8_weights = true, .cache_token_bytes = cache_bytes};
  }
  checkpoint::ModelConfig config;
  checkpoint::RankShard shard;
  int64_t cache_bytes = 1152;
};

Rates h200() {
  return reachable_rates(*device::find_gpu_model("h200"), 5e-6);
}

TEST(RooflineTest, AnH200ReachesWhatWasMeasured) {
  EXPECT_NEAR(h200().memory, 4.3e12, 1e9);
  EXPECT_NEAR(h200().bf16, 790e12, 1e12);
  EXPECT_NEAR(h200().fp8, 1500e12, 1e12);
  EXPECT_NEAR(h200().link, 400e9, 1e9);
}

TEST(RooflineTest, DecodeStepsOfR1) {
  const R1 r1(8);
  struct Case {
    int64_t batch;
    int64_t context;
    double gpu_ms;
    double collective_ms;
  };
  for (const Case& c : {Case{1, 1024, 1.35, 0.65},
                        Case{1, 8192, 1.46, 0.65},
                        Case{8, 1024, 5.16, 0.86},
                        Case{8, 8192, 6.09, 0.86},
                        Case{32, 1024, 13.5, 1.60},
                        Case{32, 8192, 17.3, 1.60},
                        Case{128, 1024, 22.0, 1.60},
                        Case{128, 8192, 37.0, 1.60}}) {
    const StepFloor floor = decode_floor(r1.model(), h200(), c.batch, c.context);
    EXPECT_NEAR(floor.gpu_seconds * 1e3, c.gpu_ms, c.gpu_ms * 0.006) << c.batch << " " << c.context;
    EXPECT_NEAR(floor.collective_seconds * 1e3, c.collective_ms, 0.006) << c.batch;
    EXPECT_DOUBLE_EQ(floor.seconds(), floor.gpu_seconds + floor.collective_seconds);
  }
}

TEST(RooflineTest, PrefillStepsOfR1) {
  const R1 r1(8);
  const StepFloor short_step = prefill_floor(r1.model(), h200(), 2048);
  EXPECT_NEAR(short_step.gpu_seconds * 1e3, 39.3, 0.4);
  EXPECT_NEAR(short_step.collective_seconds * 1e3, 16.3, 0.2);
  const StepFloor long_step = prefill_floor(r1.model(), h200(), 8192);
  EXPECT_NEAR(long_step.gpu_seconds * 1e3, 119.8, 1.2);
  EXPECT_NEAR(long_step.collective_seconds * 1e3, 63.3, 0.4);
}

TEST(RooflineTest, ExpertsAreReadAsOftenAsEquallyLikelyChoicesFindThem) {
  const R1 r1(8);
  EXPECT_NEAR(decode_floor(r1.model(), h200(), 1, 1).active_experts, 8, 1e-9);
  EXPECT_NEAR(decode_floor(r1.model(), h200(), 8, 1).active_experts, 57.4, 0.05);
  EXPECT_NEAR(decode_floor(r1.model(), h200(), 128, 1).active_experts, 251.6, 0.05);
}

// At batch 1 the rank with most experts has about 2.5 of 8 whole ones, 44 MB each: more than a
// slice of all. Where all experts are in use, both ways read the same.
TEST(RooflineTest, WholeExpertsReadMoreInSmallBatches) {
  const R1 sliced(8);
  const R1 whole(8, ExpertSplit::kExpert);
  const StepFloor one = decode_floor(whole.model(), h200(), 1, 1024);
  EXPECT_NEAR(one.active_experts, 2.54, 0.01);
  EXPECT_GT(one.gpu_seconds, 1.5 * decode_floor(sliced.model(), h200(), 1, 1024).gpu_seconds);
  const double many = decode_floor(whole.model(), h200(), 4096, 1024).gpu_seconds;
  EXPECT_NEAR(many, decode_floor(sliced.model(), h200(), 4096, 1024).gpu_seconds, many * 0.01);
}

TEST(RooflineTest, OneRankHasNoCollectives) {
  const R1 r1(1);
  EXPECT_EQ(decode_floor(r1.model(), h200(), 1, 1).collective_seconds, 0);
  EXPECT_EQ(prefill_floor(r1.model(), h200(), 100).collective_seconds, 0);
}

TEST(RooflineTest, WeightsThatAreWidenedMultiplyAtTheRateOfBf16) {
  for (const device::GpuModel& gpu : device::gpu_models()) {
    const Rates rates = reachable_rates(gpu, 0);
    EXPECT_EQ(rates.fp8 > rates.bf16, gpu.compute_capability == 90) << gpu.name;
  }
}

TEST(RooflineTest, AnFp8CacheIsReadInLessTime) {
  R1 r1(8);
  const double bf16 = decode_floor(r1.model(), h200(), 256, 2048).gpu_seconds;
  r1.cache_bytes = 656;
  const double fp8 = decode_floor(r1.model(), h200(), 256, 2048).gpu_seconds;
  EXPECT_NEAR(bf16 - fp8, 61 * 256 * 2049.0 * (1152 - 656) / 4.3e12, 1e-5);
}

TEST(RooflineTest, Bf16WeightsAreTwiceTheBytes) {
  const R1 r1(8);
  RooflineModel bf16 = r1.model();
  bf16.fp8_weights = false;
  const double fp8_seconds = decode_floor(r1.model(), h200(), 1, 1).gpu_seconds;
  const double bf16_seconds = decode_floor(bf16, h200(), 1, 1).gpu_seconds;
  EXPECT_GT(bf16_seconds, 1.8 * fp8_seconds);
  EXPECT_LT(bf16_seconds, 2.0 * fp8_seconds) << "head and router are bf16 either way";
}

}  // namespace
}  // namespace r1d::engine
