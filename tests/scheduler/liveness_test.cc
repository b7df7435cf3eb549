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
  // Looks four times a second; what the last look says.
  bool alive_after(Duration wait, uint64_t progress = 0) {
    constexpr Duration kInterval = std::chrono::milliseconds(250);
    bool last = false;
    for (Duration passed{}; passed < wait; passed += kInterval) {
      clock_.advance(kInterval);
      last = alive(progress);
    }
    return last;
  }
  Liveness liveness_;
  ManualClock clock_;
};

TEST_F(LivenessTest, ALoopAtRestIsAliveForEver) {
  EXPECT_TRUE(alive());
  EXPECT_TRUE(alive_after(4 * kPatience));
  liveness_.begin_turn();
  liveness_.rest();
  EXPECT_TRUE(alive_after(4 * kPatience));
}

TEST_F(LivenessTest, AStuckTurnIsDeadOnceThePatienceHasPassed) {
  liveness_.begin_turn();
  EXPECT_TRUE(alive());
  EXPECT_TRUE(alive_after(kPatience - std::chrono::milliseconds(250)));
  EXPECT_FALSE(alive_after(std::chrono::milliseconds(250)));
  liveness_.begin_turn();
  EXPECT_TRUE(alive()) << "it moves again";
}

TEST_F(LivenessTest, ATurnThatStartedAfterALongRestHasItsWholePatience) {
  EXPECT_TRUE(alive());
  EXPECT_TRUE(alive_after(std::chrono::hours(1)));
  liveness_.begin_turn();
  EXPECT_TRUE(alive_after(kPatience));
  EXPECT_FALSE(alive_after(std::chrono::milliseconds(250)));
}

TEST_F(LivenessTest, ProgressWithinATurnCounts) {
  liveness_.begin_turn();
  for (uint64_t layer = 0; layer < 10; ++layer) EXPECT_TRUE(alive_after(kPatience, layer));
  EXPECT_FALSE(alive_after(std::chrono::milliseconds(250), 9));
}

TEST_F(LivenessTest, AProcessThatWasItselfStoppedIsNotDeadWhenItWakes) {
  liveness_.begin_turn();
  EXPECT_TRUE(alive());
  clock_.advance(std::chrono::hours(1));
  EXPECT_TRUE(alive()) << "one look";
  EXPECT_TRUE(alive_after(kPatience / 2)) << "time to show that it moves";
  EXPECT_FALSE(alive_after(kPatience)) << "it does not";
}

}  // namespace
}  // namespace r1d::scheduler
