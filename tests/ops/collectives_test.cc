// SPDX-License-Identifier: Apache-2.0
// What needs no GPU: the choice of a way, how messages are cut, where data stands.
#include "r1d/ops/collectives.h"

#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/all_reduce/all_reduce_plan.h"

namespace r1d::ops {
namespace {

using kernels::FusedPlan;
using kernels::PeerFlag;
using kernels::PeerLayout;
using kernels::TwoShotPlan;

constexpr CollectiveTable kTable{.one_shot_bytes = 1000, .two_shot_bytes = 10000};

TEST(CollectiveChoiceTest, SmallMessagesTakeOneTripLargeOnesNccl) {
  EXPECT_EQ(choose_way(kTable, {.bytes = 1}), CollectiveWay::kOneShot);
  EXPECT_EQ(choose_way(kTable, {.bytes = 1000}), CollectiveWay::kOneShot);
  EXPECT_EQ(choose_way(kTable, {.bytes = 1001}), CollectiveWay::kTwoShot);
  EXPECT_EQ(choose_way(kTable, {.bytes = 10000}), CollectiveWay::kTwoShot);
  EXPECT_EQ(choose_way(kTable, {.bytes = 10001}), CollectiveWay::kNccl);
}

TEST(CollectiveChoiceTest, NcclIsNeverRecordedNorTakenWhereBitsMayNotDependOnTheSize) {
  EXPECT_EQ(choose_way(kTable, {.bytes = 1 << 30, .recorded = true}), CollectiveWay::kTwoShot);
  EXPECT_EQ(choose_way(kTable, {.bytes = 1 << 30, .deterministic = true}), CollectiveWay::kTwoShot);
}

TEST(CollectiveChoiceTest, WithoutPeerMemoryThereIsNcclAlone) {
  for (const int64_t bytes : {int64_t{1}, int64_t{5000}, int64_t{1} << 30}) {
    EXPECT_EQ(choose_way(kTable, {.bytes = bytes, .peer_memory = false}), CollectiveWay::kNccl);
  }
}

TEST(CollectiveChoiceTest, MoreRanksLeaveOneShotSooner) {
  int64_t before = INT64_MAX;
  for (const int32_t world : {2, 4, 8}) {
    const CollectiveTable table = collective_table(world);
    EXPECT_LT(table.one_shot_bytes, before);
    EXPECT_GE(table.one_shot_bytes, 14336);                 // a token of R1
    EXPECT_GE(table.two_shot_bytes, 256 * int64_t{14336});  // the largest recorded step
    before = table.one_shot_bytes;
  }
}

CollectiveRow row(int64_t bytes, double one_shot, double two_shot, double nccl) {
  return {.bytes = bytes,
          .chosen = {},
          .timings = {{.way = "NCCL", .graph_micros = nccl, .single_micros = {}},
                      {.way = "two-shot", .graph_micros = two_shot, .single_micros = {}},
                      {.way = "one-shot", .graph_micros = one_shot, .single_micros = {}}}};
}

TEST(CollectiveChoiceTest, MeasurementsGiveATable) {
  const std::vector<CollectiveRow> rows = {row(400, 9, 4, 5),
                                           row(100, 2, 3, 7),
                                           row(200, 3, 3, 7),
                                           row(800, 20, 9, 8),
                                           row(1600, 1, 1, 9)};
  const CollectiveTable table = fastest_table(rows);
  EXPECT_EQ(table.one_shot_bytes, 200);
  EXPECT_EQ(table.two_shot_bytes, 400);
  EXPECT_TRUE(table.measured);
  EXPECT_EQ(fastest_table({}).two_shot_bytes, 0);
}

// Every word, vector and flag of a region has bytes of its own, inside the region.
TEST(PeerLayoutTest, NothingOverlaps) {
  for (const int32_t world : {2, 3, 8}) {
    const PeerLayout layout = kernels::plan_peer_layout(world, 1000, 5000);
    std::set<int64_t> taken;
    const auto take = [&](int64_t at, int64_t size) {
      EXPECT_EQ(at % size, 0);
      for (int64_t byte = at; byte < at + size; byte += 4) {
        EXPECT_TRUE(taken.insert(byte).second) << byte;
        EXPECT_LT(byte, layout.bytes);
      }
    };
    for (const uint32_t epoch : {6U, 7U}) {
      for (int32_t sender = 0; sender < world; ++sender) {
        for (int64_t i = 0; i < layout.words_each; ++i) take(layout.word_at(epoch, sender, i), 16);
        for (int32_t phase = 0; phase < 2; ++phase) {
          for (int64_t i = 0; i < layout.vectors_each; ++i)
            take(layout.vector_at(phase, epoch, sender, i), 16);
        }
      }
    }
    for (int32_t kind = 0; kind < static_cast<int32_t>(PeerFlag::kCount); ++kind) {
      for (int32_t sender = 0; sender < world; ++sender) {
        for (int32_t block = 0; block < kernels::kMaxPeerBlocks; ++block)
          take(layout.flag_at(static_cast<PeerFlag>(kind), sender, block), 4);
      }
    }
    EXPECT_EQ(layout.word_at(8, 1, 2), layout.word_at(6, 1, 2));  // two parities
  }
}

TEST(PeerLayoutTest, HoldsWhatItWasPlannedFor) {
  for (const int32_t world : {2, 3, 5, 8}) {
    for (const int64_t bytes : {int64_t{2}, int64_t{14336}, int64_t{1000002}, int64_t{4} << 20}) {
      const PeerLayout layout = kernels::plan_peer_layout(world, bytes, bytes);
      EXPECT_GE(layout.one_shot_values() * 2, bytes);
      EXPECT_GE(layout.two_shot_values() * 2, bytes);
      EXPECT_EQ(layout.two_shot_values() % kernels::kPeerVector, 0);  // so pieces stay aligned
    }
  }
}

// Blocks and shards cover every vector once, and what a block keeps fits its buffers.
TEST(TwoShotPlanTest, EveryVectorHasOneOwner) {
  for (const int32_t world : {2, 3, 8}) {
    for (const int64_t values : {1L, 8L, 9L, 7168L, 100001L, 2097152L}) {
      for (const int32_t most : {1, 7, kernels::kMaxPeerBlocks}) {
        const TwoShotPlan plan = kernels::plan_two_shot(values, world, most);
        const int64_t vectors = (values + 7) / 8;
        EXPECT_GE(plan.blocks, 1);
        EXPECT_LE(plan.blocks, most);
        EXPECT_GE(plan.blocks * plan.per_shard * world, vectors);
        const PeerLayout layout = kernels::plan_peer_layout(world, 16, values * 2);
        EXPECT_LE(plan.blocks * plan.per_shard, layout.vectors_each);
      }
    }
  }
}

TEST(FusedPlanTest, CoversARowWithOneVectorAThread) {
  for (const int64_t tokens : {1L, 16L, 17L, 32L, 33L, 132L}) {
    for (const int64_t cols : {8L, 128L, 2048L, 7168L, 8192L}) {
      for (const int capability : {80, 90}) {
        const FusedPlan plan = kernels::plan_fused(tokens, cols, capability);
        ASSERT_GT(plan.threads, 0) << tokens << " " << cols;
        EXPECT_LE(plan.threads, 1024);
        EXPECT_EQ(plan.threads % 32, 0);
        EXPECT_GE(plan.threads, plan.segment);
        EXPECT_EQ(plan.segment % 16, 0);  // a group of 128 never lies in two CTAs
        EXPECT_GE(int64_t{plan.cluster} * plan.segment, cols / 8);
        if (capability < 90) {
          EXPECT_EQ(plan.cluster, 1);
        }
      }
    }
  }
}

TEST(FusedPlanTest, LeavesWhatItDoesNotServe) {
  EXPECT_EQ(kernels::plan_fused(1, 100, 90).threads, 0);  // no whole vectors
  EXPECT_EQ(kernels::plan_fused(0, 7168, 90).threads, 0);
  EXPECT_EQ(kernels::plan_fused(33, 16384, 90).threads, 0);  // more vectors than threads
  EXPECT_GT(kernels::plan_fused(32, 16384, 90).threads, 0);
}

TEST(GatherBlocksTest, StayBelowTheFlags) {
  EXPECT_EQ(kernels::gather_blocks(1, 1), 1);
  EXPECT_EQ(kernels::gather_blocks(1, 16160), 4);
  EXPECT_EQ(kernels::gather_blocks(256, 64640), kernels::kMaxPeerBlocks);
}

TEST(CollectiveBenchTest, TheCpusRanksHaveTheSum) {
  for (const int32_t world : {2, 3, 8}) {
    const auto rows = bench_collectives(
        {.cuda = false, .world_size = world, .bytes = {4, 14336, 1048580}, .repeats = 2});
    ASSERT_TRUE(rows.ok());
    ASSERT_EQ(rows->size(), 3U);
    for (const CollectiveRow& row : *rows) {
      ASSERT_EQ(row.timings.size(), 1U);
      EXPECT_TRUE(row.timings.front().correct);
      EXPECT_GT(row.timings.front().single_micros.value_or(0), 0);
    }
  }
}

TEST(CollectiveBenchTest, OneRankHasNothingToSum) {
  EXPECT_EQ(bench_collectives({.world_size = 1, .bytes = {4}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace r1d::ops
