// SPDX-License-Identifier: Apache-2.0
#include "scheduler/liveness.h"

#include <gtest/gtest.h>

#include "tests/scheduler/fakes.h"

namespace r1d::scheduler {
namespace {

constexpr Duration kPatience = std::chrono::seconds(5);

class LivenessTest : public ::testing::Test {
 protected:
  bool alive(uint64_t progress = 0) { return liveness_.alive(progress, clock_.now(), kPatience); }
  Liveness liveness_;
  ManualClock clock_;
};

TEST_F(LivenessTest, ALoopAtRestIsAliveForEver) {
  EXPECT_TRUE(alive());
  clock_.advance(std::chrono::hours(10));
  EXPECT_TRUE(alive());
  liveness_.begin_turn();
  liveness_.rest();
  clock_.advance(std::chrono::hours(10));
  EXPECT_TRUE(alive());
}

TEST_F(LivenessTest, AStuckTurnIsDeadOnceThePatienceHasPassed) {
  liveness_.begin_turn();
  EXPECT_TRUE(alive());
  clock_.advance(kPatience);
  EXPECT_TRUE(alive());
  clock_.advance(std::chrono::milliseconds(1));
  EXPECT_FALSE(alive());
  liveness_.begin_turn();
  EXPECT_TRUE(alive()) << "it moves again";
}

TEST_F(LivenessTest, ATurnThatStartedAfterALongRestHasItsWholePatience) {
  EXPECT_TRUE(alive());
  clock_.advance(std::chrono::hours(1));
  liveness_.begin_turn();
  EXPECT_TRUE(alive());
  clock_.advance(kPatience);
  EXPECT_TRUE(alive());
}

TEST_F(LivenessTest, ProgressWithinATurnCounts) {
  liveness_.begin_turn();
  for (uint64_t layer = 0; layer < 10; ++layer) {
    clock_.advance(kPatience);
    EXPECT_TRUE(alive(layer));
  }
  clock_.advance(kPatience + std::chrono::milliseconds(1));
  EXPECT_FALSE(alive(9));
}

}  // namespace
}  // namespace r1d::scheduler
