// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/local_group.h"

#include <cstdint>
#include <future>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "tests/ops/reference.h"

namespace r1d::ops::cpu {
namespace {

// Runs body(rank) on a thread per rank.
template <class Body>
void on_ranks(int32_t world, const Body& body) {
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < world; ++rank) threads.emplace_back([&body, rank] { body(rank); });
  for (std::thread& thread : threads) thread.join();
}

TEST(LocalGroupTest, EveryRankGetsTheSumInRankOrder) {
  for (const int32_t world : {1, 2, 3, 8}) {
    for (const size_t count : {0U, 1U, 1000U, 600000U}) {  // the last takes three rounds
      LocalGroup group(world);
      std::vector<std::vector<float>> data;
      for (int32_t r = 0; r < world; ++r) {
        data.push_back(test::random_floats(count, static_cast<uint64_t>(r)));
      }
      std::vector<float> want = data[0];
      for (size_t r = 1; r < data.size(); ++r) {
        for (size_t i = 0; i < count; ++i) want[i] += data[r][i];
      }
      on_ranks(world, [&](int32_t rank) {
        EXPECT_TRUE(group.all_reduce_sum(rank, data[static_cast<size_t>(rank)]).ok());
      });
      for (const auto& got : data) EXPECT_EQ(got, want);
    }
  }
}

TEST(LocalGroupTest, ManyRoundsInARowStayInStep) {
  constexpr int32_t kWorld = 4;
  LocalGroup group(kWorld);
  on_ranks(kWorld, [&](int32_t rank) {
    for (int round = 0; round < 500; ++round) {
      std::vector<float> data(static_cast<size_t>(1 + round % 7), static_cast<float>(rank + round));
      ASSERT_TRUE(group.all_reduce_sum(rank, data).ok());
      for (const float v : data) ASSERT_EQ(v, static_cast<float>(6 + kWorld * round));
    }
  });
}

TEST(LocalGroupTest, GatherPlacesUnevenColumns) {
  constexpr int32_t kWorld = 3;
  constexpr int64_t kRows = 300;
  const int64_t cols[] = {1000, 0, 1700};  // ranks of two, one and two rounds
  const int64_t first_col[] = {0, 1000, 1000};
  LocalGroup group(kWorld);
  test::Guarded out(static_cast<size_t>(kRows * 2700));
  on_ranks(kWorld, [&](int32_t rank) {
    std::vector<float> own(static_cast<size_t>(kRows * cols[rank]));
    for (size_t i = 0; i < own.size(); ++i) {
      const auto col = static_cast<int64_t>(i) % cols[rank] + first_col[rank];
      const auto row = static_cast<int64_t>(i) / cols[rank];
      own[i] = static_cast<float>(row * 2700 + col);
    }
    EXPECT_TRUE(group
                    .gather_columns(rank,
                                    {.data = own, .cols = cols[rank], .first_col = first_col[rank]},
                                    rank == 0 ? out.data() : nullptr,
                                    2700)
                    .ok());
  });
  out.expect_intact();
  for (size_t i = 0; i < out.values().size(); ++i) {
    ASSERT_EQ(out.values()[i], static_cast<float>(i));
  }
}

TEST(LocalGroupTest, AbortReleasesWaitersAndStays) {
  LocalGroup group(3);
  std::promise<void> entered;
  std::vector<std::thread> waiters;
  std::vector<absl::Status> results(2);
  for (size_t rank = 0; rank < 2; ++rank) {
    waiters.emplace_back([&, rank] {
      std::vector<float> data(10, 1.0F);
      if (rank == 0) entered.set_value();
      results[rank] = group.all_reduce_sum(static_cast<int32_t>(rank), data);
    });
  }
  entered.get_future().wait();
  group.abort();  // rank 2 never comes
  for (std::thread& waiter : waiters) waiter.join();
  for (const absl::Status& status : results)
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  std::vector<float> data(1);
  EXPECT_EQ(group.all_reduce_sum(2, data).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group.barrier().code(), absl::StatusCode::kUnavailable);
}

// Ranks leave in different rounds, which the group must not remember.
TEST(LocalGroupTest, AbortDuringTrafficLeavesNobodyBehindAndRejoinMakesItAsNew) {
  constexpr int32_t kWorld = 4;
  LocalGroup group(kWorld);
  for (int trial = 0; trial < 20; ++trial) {
    on_ranks(kWorld, [&](int32_t rank) {
      std::vector<float> data(static_cast<size_t>(100 + trial), 1.0F);
      for (int round = 0;; ++round) {
        if (rank == 1 && round == 10 + trial) group.abort();
        const absl::Status status = group.all_reduce_sum(rank, data);
        if (status.ok()) continue;
        EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
        return;
      }
    });
    on_ranks(kWorld, [&](int32_t rank) {
      group.rejoin(rank);
      for (int round = 0; round < 3; ++round) {
        std::vector<float> data(50, static_cast<float>(rank + round));
        ASSERT_TRUE(group.all_reduce_sum(rank, data).ok());
        ASSERT_EQ(data, std::vector<float>(50, static_cast<float>(6 + kWorld * round)));
      }
    });
  }
}

TEST(LocalGroupTest, ARankWhosePartIsLostWaitsForTheAbort) {
  LocalGroup group(2);
  std::promise<void> entered;
  on_ranks(3, [&](int32_t rank) {
    std::vector<float> data(10, 1.0F);
    if (rank == 0) {
      entered.set_value();
      EXPECT_EQ(group.all_reduce_sum(0, data).code(), absl::StatusCode::kUnavailable);
    } else if (rank == 1) {
      EXPECT_EQ(group.wait_for_abort().code(), absl::StatusCode::kUnavailable);
    } else {
      entered.get_future().wait();
      group.abort();
    }
  });
}

TEST(LocalGroupTest, ASingleRankNoticesAbortToo) {
  LocalGroup group(1);
  std::vector<float> data = {1, 2};
  EXPECT_TRUE(group.all_reduce_sum(0, data).ok());
  EXPECT_EQ(data, (std::vector<float>{1, 2}));
  group.abort();
  EXPECT_EQ(group.all_reduce_sum(0, data).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace r1d::ops::cpu
