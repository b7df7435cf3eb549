// SPDX-License-Identifier: Apache-2.0
#include "cli/stall_watch.h"

#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/mutex.h"

namespace r1d::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// An engine whose movement a test decides, and what the watch said about it. Thread-safe.
class Watched {
 public:
  [[nodiscard]] StallWatch::Callbacks callbacks() {
    return {.look =
                [this](Duration patience) {
                  const base::MutexLock lock(mu_);
                  patience_ = patience;
                  return moves_;
                },
            .changed =
                [this](bool moves) {
                  const base::MutexLock lock(mu_);
                  changes_.push_back(moves);
                  beats_at_changes_.push_back(num_beats_);
                  changed_.notify_all();
                },
            .give_up =
                [this] {
                  const base::MutexLock lock(mu_);
                  ++num_given_up_;
                  changed_.notify_all();
                },
            .beat =
                [this] {
                  const base::MutexLock lock(mu_);
                  ++num_beats_;
                  changed_.notify_all();
                }};
  }
  void set_moves(bool moves) {
    const base::MutexLock lock(mu_);
    moves_ = moves;
  }
  void wait_for_changes(size_t count) {
    const base::MutexLock lock(mu_);
    while (changes_.size() < count) changed_.wait(mu_);
  }
  void wait_for_beats(int more) {
    const base::MutexLock lock(mu_);
    const int wanted = num_beats_ + more;
    while (num_beats_ < wanted) changed_.wait(mu_);
  }
  void wait_until_given_up() {
    const base::MutexLock lock(mu_);
    while (num_given_up_ == 0) changed_.wait(mu_);
  }
  [[nodiscard]] int num_given_up() {
    const base::MutexLock lock(mu_);
    return num_given_up_;
  }
  // How many there had been when each change was told.
  [[nodiscard]] std::vector<int> beats_at_changes() {
    const base::MutexLock lock(mu_);
    return beats_at_changes_;
  }
  [[nodiscard]] std::vector<bool> changes() {
    const base::MutexLock lock(mu_);
    return changes_;
  }
  [[nodiscard]] Duration patience() {
    const base::MutexLock lock(mu_);
    return patience_;
  }

 private:
  base::Mutex mu_;
  base::CondVar changed_;
  bool moves_ ABSL_GUARDED_BY(mu_) = true;
  int num_beats_ ABSL_GUARDED_BY(mu_) = 0;
  int num_given_up_ ABSL_GUARDED_BY(mu_) = 0;
  Duration patience_ ABSL_GUARDED_BY(mu_){};
  std::vector<bool> changes_ ABSL_GUARDED_BY(mu_);
  std::vector<int> beats_at_changes_ ABSL_GUARDED_BY(mu_);
};

TEST(StallWatchTest, BeatsWhileTheEngineMovesAndSaysEachChangeOnce) {
  Watched watched;
  StallWatch watch({milliseconds(20), seconds(3600)}, std::nullopt, watched.callbacks());
  watched.wait_for_beats(3);
  EXPECT_TRUE(watch.moves());
  EXPECT_TRUE(watched.changes().empty());
  watched.set_moves(false);
  watched.wait_for_changes(1);
  EXPECT_FALSE(watch.moves());
  watched.set_moves(true);
  watched.wait_for_changes(2);
  const std::vector<int> beats = watched.beats_at_changes();
  EXPECT_EQ(beats[1], beats[0]) << "no beat while it stood still";
  watched.wait_for_beats(2);
  EXPECT_EQ(watched.changes(), (std::vector<bool>{false, true}));
}

TEST(StallWatchTest, GivesUpOnceOnWhatDoesNotMoveAgain) {
  Watched watched;
  StallWatch watch({milliseconds(20), milliseconds(60)}, std::nullopt, watched.callbacks());
  watched.set_moves(false);
  const auto begin = std::chrono::steady_clock::now();
  watched.wait_until_given_up();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, milliseconds(60));
  EXPECT_EQ(watched.changes(), std::vector<bool>{false});
  watched.set_moves(true);
  watched.wait_for_beats(1);
  watched.set_moves(false);
  watched.wait_for_changes(3);
  watched.set_moves(true);
  watched.wait_for_beats(1);
  EXPECT_EQ(watched.num_given_up(), 1);
}

TEST(StallWatchTest, DoesNotGiveUpOnWhatMovesAgainInTime) {
  Watched watched;
  StallWatch watch({milliseconds(20), seconds(3600)}, std::nullopt, watched.callbacks());
  for (size_t stall = 1; stall <= 5; ++stall) {
    watched.set_moves(false);
    watched.wait_for_changes(2 * stall - 1);
    watched.set_moves(true);
    watched.wait_for_changes(2 * stall);
  }
  EXPECT_EQ(watched.num_given_up(), 0);
}

TEST(StallWatchTest, LooksAsOftenAsTheWatchdogWants) {
  Watched watched;
  // By the timeout alone the first look would come after six minutes.
  StallWatch watch({seconds(3600), seconds(3600)}, milliseconds(40), watched.callbacks());
  watched.wait_for_beats(4);
  EXPECT_EQ(watched.patience(), seconds(2700));
}

TEST(StallWatchTest, ANewTimeoutHoldsAtOnce) {
  Watched watched;
  StallWatch watch({seconds(3600), seconds(3600)}, std::nullopt, watched.callbacks());
  watch.set_limits({milliseconds(40), seconds(3600)});
  watched.wait_for_beats(2);
  EXPECT_EQ(watched.patience(), milliseconds(30));
}

TEST(StallWatchTest, EndsAtOnceBetweenTwoLooks) {
  Watched watched;
  const StallWatch watch({seconds(3600), seconds(3600)}, std::nullopt, watched.callbacks());
}

}  // namespace
}  // namespace r1d::cli
