// SPDX-License-Identifier: Apache-2.0
#include "engine/rank_ops.h"

#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::engine {
namespace {

TEST(RankOpsTest, AGpuHasNoF32Cache) {
  EngineOptions options;
  options.device = Device::kCuda;
  options.kv_cache_dtype = DType::kF32;
  const auto budget = cache_budget(options, {}, 0, 1024);
  ASSERT_FALSE(budget.ok());
  EXPECT_NE(message_of(budget.status()).find("engine.kv_cache_dtype"), std::string::npos);
}

}  // namespace
}  // namespace r1d::engine
