// SPDX-License-Identifier: Apache-2.0
#include "engine/step_interrupt.h"

#include <atomic>
#include <future>
#include <thread>

#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::engine {
namespace {

TEST(StepInterruptTest, AbortsTheStepInFlightOnceAndSaysWhyFirst) {
  std::atomic<int> aborts{0};
  StepInterrupt interrupt([&] { ++aborts; });
  interrupt.begin();
  interrupt.interrupt(deadline_exceeded("first"));
  interrupt.interrupt(deadline_exceeded("second"));
  EXPECT_EQ(message_of(interrupt.end()), "first");
  EXPECT_EQ(aborts, 1);
}

TEST(StepInterruptTest, LeavesAloneWhatIsNoStep) {
  std::atomic<int> aborts{0};
  StepInterrupt interrupt([&] { ++aborts; });
  interrupt.interrupt(deadline_exceeded("too early"));
  interrupt.begin();
  EXPECT_TRUE(interrupt.end().ok());
  interrupt.interrupt(deadline_exceeded("too late"));
  interrupt.begin();
  EXPECT_TRUE(interrupt.end().ok()) << "the step after it is not meant";
  EXPECT_EQ(aborts, 0);
}

TEST(StepInterruptTest, TheWatcherDoesNotWaitForTheAbortAndTheStepDoes) {
  std::promise<void> aborting;
  std::promise<void> may_end;
  std::atomic<bool> aborted{false};
  StepInterrupt interrupt([&] {
    aborting.set_value();
    may_end.get_future().wait();
    aborted = true;
  });
  interrupt.begin();
  interrupt.interrupt(deadline_exceeded("it hangs"));
  aborting.get_future().wait();
  std::thread step([&] {
    EXPECT_FALSE(interrupt.end().ok());
    EXPECT_TRUE(aborted) << "no abort reaches the next step";
  });
  may_end.set_value();
  step.join();
}

TEST(StepInterruptTest, RacesWithTheEndOfItsStepHarmlessly) {
  std::atomic<int> aborts{0};
  StepInterrupt interrupt([&] { ++aborts; });
  int told = 0;
  for (int round = 0; round < 200; ++round) {
    interrupt.begin();
    std::thread watcher([&] { interrupt.interrupt(deadline_exceeded("now")); });
    const bool interrupted = !interrupt.end().ok();
    told += interrupted ? 1 : 0;
    EXPECT_EQ(aborts, told);
    watcher.join();
  }
}

}  // namespace
}  // namespace r1d::engine
