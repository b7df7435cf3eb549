// SPDX-License-Identifier: Apache-2.0
#include "model/rope.h"

#include <cmath>

#include <gtest/gtest.h>

namespace r1d::model {
namespace {

checkpoint::ModelConfig r1_config() {
  checkpoint::ModelConfig config;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.rope_theta = 10000;
  config.yarn = checkpoint::YarnConfig{.factor = 40,
                                       .original_max_position_embeddings = 4096,
                                       .beta_fast = 32,
                                       .beta_slow = 1,
                                       .mscale = 1,
                                       .mscale_all_dim = 1};
  return config;
}

// Values of R1's own configuration, computed apart in double precision.
TEST(RopeConstantsTest, YarnFrequenciesOfR1) {
  const RopeConstants rope = make_rope_constants(r1_config());
  ASSERT_EQ(rope.inv_freq.size(), 32U);
  const std::pair<size_t, double> expected[] = {{0, 1.0},
                                                {10, 5.623413252e-2},
                                                {11, 3.900692657e-2},
                                                {16, 5.5e-3},
                                                {21, 4.149903985e-4},
                                                {22, 1.778279410e-4},
                                                {23, 3.333803580e-5},
                                                {31, 3.333803580e-6}};
  for (const auto& [pair, value] : expected) {
    EXPECT_NEAR(rope.inv_freq[pair] / value, 1, 1e-6) << "pair " << pair;
  }
}

TEST(RopeConstantsTest, SoftmaxScaleCarriesMscaleSquaredAndCosSinOne) {
  const RopeConstants rope = make_rope_constants(r1_config());
  EXPECT_NEAR(rope.softmax_scale, 0.1352337789, 1e-8);
  EXPECT_FLOAT_EQ(rope.cos_sin_scale, 1);
}

TEST(RopeConstantsTest, WithoutMscaleAllDimCosSinCarriesTheCorrection) {
  checkpoint::ModelConfig config = r1_config();
  config.yarn->mscale_all_dim = 0;
  const RopeConstants rope = make_rope_constants(config);
  EXPECT_NEAR(rope.softmax_scale, 1 / std::sqrt(192.0), 1e-8);
  EXPECT_NEAR(rope.cos_sin_scale, 0.1 * std::log(40.0) + 1, 1e-6);
}

TEST(RopeConstantsTest, WithoutYarnFrequenciesArePlain) {
  checkpoint::ModelConfig config = r1_config();
  config.yarn.reset();
  const RopeConstants rope = make_rope_constants(config);
  EXPECT_NEAR(rope.inv_freq[31], std::pow(10000.0, -62.0 / 64), 1e-9);
  EXPECT_NEAR(rope.softmax_scale, 1 / std::sqrt(192.0), 1e-8);
}

}  // namespace
}  // namespace r1d::model
