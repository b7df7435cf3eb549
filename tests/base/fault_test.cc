// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/fault.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <future>
#include <new>
#include <set>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/exceptions.h"
#include "r1d/base/status.h"

namespace r1d::base {
namespace {

using ::testing::HasSubstr;

class FaultTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kFaultsCompiledIn) GTEST_SKIP() << "no fault points in this build";
  }
  void TearDown() override { clear_faults(); }

  static void arm(std::string_view specs) { ASSERT_TRUE(arm_faults(specs).ok()) << specs; }
  // Which of the next `count` hits of engine.step fail.
  static std::string hits(int count) {
    std::string pattern;
    for (int i = 0; i < count; ++i) {
      pattern += fault_status(FaultPoint::kStep).ok() ? '.' : 'x';
    }
    return pattern;
  }
};

TEST_F(FaultTest, NothingHappensUnlessArmed) {
  EXPECT_EQ(armed_fault_specs(), "");
  EXPECT_EQ(hits(3), "...");
  arm("engine.sample");
  EXPECT_EQ(hits(3), "...") << "another point is armed";
  EXPECT_EQ(hit_fault(FaultPoint::kSample), FaultAction::kNan) << "the first action is the default";
}

TEST_F(FaultTest, CountsAndSkipsHits) {
  arm("engine.step=error@2");
  EXPECT_EQ(hits(5), "xx...");
  arm("engine.step@3+1");
  EXPECT_EQ(hits(6), "...x..");
  arm("engine.step");
  EXPECT_EQ(hits(3), "xxx");
}

TEST_F(FaultTest, AProbabilityDrawsTheSameInEveryRun) {
  arm("engine.step@0.25");
  const std::string first = hits(400);
  clear_faults();
  arm("engine.step@0.25");
  EXPECT_EQ(hits(400), first);
  const auto fired = std::count(first.begin(), first.end(), 'x');
  EXPECT_GT(fired, 60);
  EXPECT_LT(fired, 140);
  arm("engine.step@0.0");
  EXPECT_EQ(hits(50).find('x'), std::string::npos);
  arm("engine.step@1.0");
  EXPECT_EQ(hits(50).find('.'), std::string::npos);
}

TEST_F(FaultTest, ThrowsWhatLibrariesThrow) {
  arm("engine.step=throw, admission.submit=oom");
  EXPECT_THROW(hit_fault(FaultPoint::kStep), std::runtime_error);
  EXPECT_THROW(hit_fault(FaultPoint::kSubmit), std::bad_alloc);
  EXPECT_EQ(armed_fault_specs(), "engine.step=throw, admission.submit=oom");
}

TEST_F(FaultTest, WhatIsThrownBecomesAStatus) {
  arm("engine.step=throw,admission.submit=oom");
  const auto status_of = [](FaultPoint point) {
    return without_exceptions([point] { return fault_status(point); });
  };
  EXPECT_EQ(status_of(FaultPoint::kStep).code(), absl::StatusCode::kInternal);
  EXPECT_THAT(message_of(status_of(FaultPoint::kStep)), HasSubstr("fault point engine.step"));
  EXPECT_EQ(status_of(FaultPoint::kSubmit).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(status_of(FaultPoint::kLayer).ok());
}

TEST_F(FaultTest, AHangLastsUntilTheFaultsAreCleared) {
  arm("engine.step=hang@1");
  std::future<FaultAction> hung =
      std::async(std::launch::async, [] { return hit_fault(FaultPoint::kStep); });
  EXPECT_EQ(hung.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  clear_faults();
  EXPECT_EQ(hung.get(), FaultAction::kNone);
}

TEST_F(FaultTest, ADelayTakesItsTime) {
  arm("engine.step=delay:20ms@1");
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(hits(1), ".");
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(20));
}

TEST_F(FaultTest, ARankIsPickedAndItsHitsAloneCount) {
  arm("model.layer=error@rank1@1+1");
  EXPECT_TRUE(fault_status(FaultPoint::kLayer, 1).ok()) << "the first is skipped";
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(fault_status(FaultPoint::kLayer, 0).ok());
  EXPECT_FALSE(fault_status(FaultPoint::kLayer, 1).ok());
  EXPECT_TRUE(fault_status(FaultPoint::kLayer, 1).ok());
  arm("model.layer@rank2");
  EXPECT_TRUE(fault_status(FaultPoint::kLayer, 1).ok());
  EXPECT_FALSE(fault_status(FaultPoint::kLayer, 2).ok());
}

TEST_F(FaultTest, APlaceThatHangsByItselfIsToldTo) {
  arm("ops.collective=hang@1");
  EXPECT_EQ(hit_fault(FaultPoint::kCollective), FaultAction::kHang);
  EXPECT_EQ(hit_fault(FaultPoint::kCollective), FaultAction::kNone);
}

TEST_F(FaultTest, AKillEndsTheProcessAsSigkillDoes) {
  EXPECT_EXIT(
      {
        arm("model.layer=kill");
        hit_fault(FaultPoint::kLayer);
      },
      ::testing::KilledBySignal(SIGKILL),
      "");
}

TEST_F(FaultTest, RefusesWhatItDoesNotKnow) {
  for (const auto& [spec, complaint] : {std::pair{"engine.stop", "no such fault point"},
                                        {"engine.step=nan", "expected one of error, throw"},
                                        {"engine.step=delay", "expected delay:TIME"},
                                        {"engine.step=delay:5", "expected delay:TIME"},
                                        {"engine.step=hang:5s", "expected hang"},
                                        {"engine.step@", "expected COUNT"},
                                        {"engine.step@x", "expected COUNT"},
                                        {"engine.step@-1", "expected COUNT"},
                                        {"engine.step@1.5", "a probability between"},
                                        {"engine.step=error@rank1", "no rank hits it"},
                                        {"model.layer@rank", "expected rankN"},
                                        {"model.layer@rank-1", "expected rankN"},
                                        {"model.layer@rank1@", "expected COUNT"},
                                        {"engine.step,", "no such fault point"}}) {
    const absl::Status status = arm_faults(spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << spec;
    EXPECT_THAT(message_of(status), HasSubstr(complaint)) << spec;
    clear_faults();
  }
}

TEST(FaultPointsTest, EveryPointIsListedOnceAndCanBeArmedWithEachOfItsActions) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < fault_points().size(); ++i) {
    const FaultInfo& info = fault_points()[i];
    EXPECT_EQ(static_cast<size_t>(info.point), i) << info.name;
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_FALSE(info.where.empty() || info.effect.empty()) << info.name;
    std::string_view rest = info.actions;
    while (!rest.empty()) {
      const size_t comma = rest.find(", ");
      std::string action(rest.substr(0, comma));
      if (action == "delay:TIME") action = "delay:1ms";
      const absl::Status status = arm_faults(std::string(info.name) + "=" + action);
      EXPECT_EQ(status.code(),
                kFaultsCompiledIn ? absl::StatusCode::kOk : absl::StatusCode::kFailedPrecondition)
          << status;
      rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 2);
    }
  }
  clear_faults();
}

}  // namespace
}  // namespace r1d::base
