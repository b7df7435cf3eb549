// SPDX-License-Identifier: Apache-2.0
#include "ops/rendezvous.h"

#include <cstdint>
#include <future>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::ops {
namespace {

// Runs body(rank) on a thread per rank.
template <class Body>
void on_ranks(int32_t world, const Body& body) {
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < world; ++rank) threads.emplace_back([&body, rank] { body(rank); });
  for (std::thread& thread : threads) thread.join();
}

TEST(RendezvousTest, WhatWasWrittenBeforeAMeetingIsReadBehindIt) {
  constexpr int32_t kWorld = 4;
  Rendezvous rendezvous(kWorld);
  std::vector<int> shown(kWorld, 0);
  on_ranks(kWorld, [&](int32_t rank) {
    for (int round = 1; round <= 200; ++round) {
      shown[static_cast<size_t>(rank)] = round;
      ASSERT_TRUE(rendezvous.meet().ok());
      for (const int value : shown) ASSERT_EQ(value, round);
      ASSERT_TRUE(rendezvous.meet().ok());
    }
  });
}

TEST(RendezvousTest, TheLastToComeActsForAllAndItsErrorIsEverybodys) {
  constexpr int32_t kWorld = 3;
  Rendezvous rendezvous(kWorld);
  int acted = 0;
  on_ranks(kWorld, [&](int32_t) {
    EXPECT_TRUE(rendezvous
                    .meet([&] {
                      ++acted;
                      return absl::OkStatus();
                    })
                    .ok());
    EXPECT_EQ(acted, 1);
    EXPECT_EQ(rendezvous.meet([] { return invalid_argument("no"); }).code(),
              absl::StatusCode::kInvalidArgument);
  });
}

TEST(RendezvousTest, AbortReleasesThoseWhoWaitAndRefusesThoseWhoCome) {
  Rendezvous rendezvous(3);
  std::promise<void> entered;
  std::vector<absl::Status> results(2);
  std::vector<std::thread> waiters;
  for (size_t rank = 0; rank < 2; ++rank) {
    waiters.emplace_back([&, rank] {
      if (rank == 0) entered.set_value();
      results[rank] = rank == 0 ? rendezvous.meet() : rendezvous.wait_for_abort();
    });
  }
  entered.get_future().wait();
  rendezvous.abort();  // rank 2 never comes
  for (std::thread& waiter : waiters) waiter.join();
  for (const absl::Status& result : results)
    EXPECT_EQ(result.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(rendezvous.meet().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(rendezvous.aborted());
}

TEST(RendezvousTest, AfterRejoiningTheRanksMeetAsBefore) {
  constexpr int32_t kWorld = 3;
  Rendezvous rendezvous(kWorld);
  for (int trial = 0; trial < 20; ++trial) {
    on_ranks(kWorld, [&](int32_t rank) {
      // Rank 1 is lost in the second meeting.
      EXPECT_TRUE(rendezvous.meet().ok());
      if (rank == 1) {
        rendezvous.abort();
      } else {
        EXPECT_EQ(rendezvous.meet().code(), absl::StatusCode::kUnavailable);
      }
      EXPECT_TRUE(rendezvous.rejoin(absl::OkStatus()).ok());
      EXPECT_FALSE(rendezvous.aborted());
      EXPECT_TRUE(rendezvous.meet().ok());
    });
  }
}

TEST(RendezvousTest, ARankThatCannotRejoinTellsAll) {
  constexpr int32_t kWorld = 3;
  Rendezvous rendezvous(kWorld);
  rendezvous.abort();
  on_ranks(kWorld, [&](int32_t rank) {
    const absl::Status able = rank == 2 ? internal_error("lost GPU") : absl::OkStatus();
    EXPECT_EQ(rendezvous.rejoin(able).code(), absl::StatusCode::kInternal);
    EXPECT_EQ(rendezvous.meet().code(), absl::StatusCode::kUnavailable);
  });
  on_ranks(kWorld, [&](int32_t) { EXPECT_TRUE(rendezvous.rejoin(absl::OkStatus()).ok()); });
  EXPECT_FALSE(rendezvous.aborted());
}

}  // namespace
}  // namespace r1d::ops
