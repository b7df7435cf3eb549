// SPDX-License-Identifier: Apache-2.0
#include "cli/stop_grace.h"

#include <future>

#include <gtest/gtest.h>

namespace r1d::cli {
namespace {

TEST(StopGraceTest, ExpiresWhenItsScopeOutlivesAStop) {
  std::stop_source stop;
  std::promise<void> expired;
  const StopGrace grace(
      stop.get_token(), std::chrono::milliseconds(1), [&] { expired.set_value(); });
  stop.request_stop();
  expired.get_future().wait();
}

TEST(StopGraceTest, AScopeThatEndsInTimeExpiresNothing) {
  bool expired = false;
  std::stop_source stop;
  {
    const StopGrace grace(stop.get_token(), std::chrono::hours(1), [&] { expired = true; });
    stop.request_stop();
  }
  EXPECT_FALSE(expired);
}

TEST(StopGraceTest, NothingExpiresWithoutAStop) {
  bool expired = false;
  std::stop_source stop;
  {
    const StopGrace grace(stop.get_token(), Duration(0), [&] { expired = true; });
  }
  EXPECT_FALSE(expired);
}

}  // namespace
}  // namespace r1d::cli
