// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/thread_pool.h"

#include <atomic>
#include <cstdint>
#include <new>
#include <numeric>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/mutex.h"

namespace r1d::base {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnceOnAThreadOfThePool) {
  for (const int32_t threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      std::atomic<bool> bad_thread{false};
      pool.parallel_for(tasks, [&](int64_t task, int32_t thread) {
        ++runs[static_cast<size_t>(task)];
        if (thread < 0 || thread >= threads) bad_thread = true;
      });
      for (const auto& count : runs) EXPECT_EQ(count, 1);
      EXPECT_FALSE(bad_thread);
    }
  }
}

TEST(ThreadPoolTest, WritesOfTasksAreSeenAfterTheLoop) {
  ThreadPool pool(4);
  std::vector<int64_t> values(512);
  for (int64_t round = 1; round <= 200; ++round) {
    pool.parallel_for(512,
                      [&](int64_t task, int32_t) { values[static_cast<size_t>(task)] = round; });
    EXPECT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), 512 * round);
  }
}

// The caller does all the work of most of these loops before the others wake up, and does not wait
// for them: they must not touch a loop that is over.
TEST(ThreadPoolTest, AThreadThatWakesLateFindsNothingToDo) {
  ThreadPool pool(4);
  for (int64_t round = 0; round < 5000; ++round) {
    std::vector<std::atomic<int>> runs(2);
    pool.parallel_for(2, [&](int64_t task, int32_t) { ++runs[static_cast<size_t>(task)]; });
    ASSERT_EQ(runs[0], 1) << round;
    ASSERT_EQ(runs[1], 1) << round;
  }
}

TEST(ThreadPoolTest, WhatATaskThrowsReachesTheCallerOnceAllTasksAreDone) {
  for (const int32_t threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 100; ++round) {
      std::atomic<int> runs{0};
      const auto body = [&](int64_t task, int32_t) {
        ++runs;
        if (task % 10 == 3) throw std::bad_alloc();
      };
      ASSERT_THROW(pool.parallel_for(100, body), std::bad_alloc);
      if (threads > 1) {
        ASSERT_EQ(runs, 100);
      }
      pool.parallel_for(100, [&](int64_t, int32_t) { ++runs; });  // the pool is as before
    }
  }
}

TEST(ThreadPoolTest, OneThreadIndexIsNeverUsedTwiceAtOnce) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<bool> overlap{false};
  pool.parallel_for(2000, [&](int64_t, int32_t thread) {
    auto& mine = inside[static_cast<size_t>(thread)];
    if (mine.fetch_add(1) != 0) overlap = true;
    mine.fetch_sub(1);
  });
  EXPECT_FALSE(overlap);
}

TEST(ThreadPoolTest, ProgressGrowsWithEveryTaskAndNeverFalls) {
  for (const int32_t threads : {1, 3}) {
    ThreadPool pool(threads);
    uint64_t last = pool.progress();
    for (int round = 0; round < 3; ++round) {
      pool.parallel_for(8, [](int64_t, int32_t) {});
      EXPECT_GE(pool.progress(), last + 8);
      last = pool.progress();
    }
  }
}

TEST(ThreadPoolTest, AllThreadsWorkAtTheSameTime) {
  constexpr int32_t kThreads = 3;
  ThreadPool pool(kThreads);
  Mutex mu;
  CondVar all_here;
  int32_t here = 0;
  // Each task waits for the others: this returns only when three threads run together.
  pool.parallel_for(kThreads, [&](int64_t, int32_t) {
    MutexLock lock(mu);
    if (++here == kThreads) all_here.notify_all();
    while (here < kThreads) all_here.wait(mu);
  });
  EXPECT_EQ(here, kThreads);
}

TEST(ThreadPoolTest, APoolOfOneRunsOnTheCallerInOrder) {
  ThreadPool pool(1);
  std::vector<int64_t> order;
  const auto caller = std::this_thread::get_id();
  pool.parallel_for(5, [&](int64_t task, int32_t) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(task);
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

}  // namespace
}  // namespace r1d::base
