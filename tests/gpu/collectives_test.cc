// SPDX-License-Identifier: Apache-2.0
// Collectives of ranks as the operators call them: choice, epochs, abort and rejoin. On one GPU
// that two ranks share (our kernels alone), and on two with NCCL.
#include "ops/cuda/collectives.h"

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/dtype.h"
#include "r1d/base/status.h"
#include "r1d/device/gpu_info.h"
#include "r1d/device/nccl_info.h"
#include "r1d/engine/rank_group.h"

#include "ops/collective_samples.h"

namespace r1d::ops::cuda {
namespace {

constexpr int32_t kWorld = 2;

struct Setting {
  const char* name;
  int32_t gpus;
  bool peer_memory = true;
};

size_t gpu_count() {
  const auto gpus = device::list_gpus();
  return gpus.ok() ? gpus->size() : 0;
}

// Ranks on threads of their own, with collectives that have joined.
class Ranks {
 public:
  explicit Ranks(const Setting& setting, int64_t clear_after = 1 << 30)
      : group_(kWorld, [this] { abort(); }) {
    CollectiveOptions options{.devices = {0, setting.gpus - 1},
                              .table = collective_table(kWorld),
                              .peer_memory = setting.peer_memory,
                              .nccl = setting.gpus > 1,
                              .always_careful = setting.gpus == 1,
                              .max_blocks = setting.gpus > 1 ? kernels::kMaxPeerBlocks : 16,
                              .clear_after = clear_after};
    auto group = CollectiveGroup::create(options);
    EXPECT_TRUE(group.ok()) << message_of(group.status());
    const int capability = 10 * device::list_gpus()->front().compute_major;
    for (int32_t rank = 0; rank < kWorld; ++rank)
      ranks_.push_back(std::make_unique<Rank>(*group, rank, capability));
    const absl::Status joined = run([&](int32_t rank) -> absl::Status {
      Rank& r = at(rank);
      R1D_RETURN_IF_ERROR(device::use_device(options.devices[static_cast<size_t>(rank)]));
      R1D_ASSIGN_OR_RETURN(r.stream, device::Stream::create());
      return r.collectives.attach(nullptr);
    });
    EXPECT_TRUE(joined.ok()) << message_of(joined);
  }

  absl::Status run(const engine::RankGroup::Job& job) { return group_.run(job); }
  void abort() {
    for (const auto& rank : ranks_) rank->collectives.abort();
  }
  Collectives& collectives(int32_t rank) { return at(rank).collectives; }
  device::Stream& stream(int32_t rank) { return at(rank).stream; }

  // Sums `count` samples on every rank, as one step, and looks at every value.
  absl::Status sum(int32_t rank,
                   int64_t count,
                   std::optional<CollectiveWay> way = {},
                   Collectives::Mode mode = Collectives::Mode::kCareful) {
    Rank& r = at(rank);
    const auto bytes = static_cast<size_t>(2 * count);
    R1D_ASSIGN_OR_RETURN(const auto memory, device::DeviceMemory::allocate(bytes, "test"));
    std::vector<uint16_t> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      values[static_cast<size_t>(i)] = f32_to_bf16(collective_sample(i, rank));
    R1D_RETURN_IF_ERROR(r.stream.copy_in(memory.data(), values.data(), bytes));
    auto* data = reinterpret_cast<__nv_bfloat16*>(memory.data());
    R1D_RETURN_IF_ERROR(r.collectives.begin_step(mode));
    R1D_RETURN_IF_ERROR(r.collectives.all_reduce({.in = data, .out = data, .count = count}, way));
    R1D_ASSIGN_OR_RETURN(const uint32_t collectives, r.collectives.end_step());
    R1D_RETURN_IF_ERROR(r.stream.copy_out(values.data(), memory.data(), bytes));
    R1D_RETURN_IF_ERROR(r.stream.synchronize());
    R1D_RETURN_IF_ERROR(r.collectives.finish_step(collectives));
    for (int64_t i = 0; i < count; ++i) {
      const float got = bf16_to_f32(values[static_cast<size_t>(i)]);
      if (got != collective_sample_sum(i, kWorld))
        return internal_error("rank {}: {} at {} of {}", rank, got, i, count);
    }
    // Memory goes only when no other rank's kernel waits for this one.
    return r.collectives.meet();
  }

 private:
  struct Rank {
    Rank(std::shared_ptr<CollectiveGroup> group, int32_t rank, int capability)
        : launches(stream, /*dependent=*/capability == 90),
          collectives(std::move(group), rank, capability, stream, launches) {}
    device::Stream stream;
    Launches launches;
    Collectives collectives;
  };
  Rank& at(int32_t rank) { return *ranks_[static_cast<size_t>(rank)]; }

  std::vector<std::unique_ptr<Rank>> ranks_;
  engine::RankGroup group_;
};

class CollectivesTest : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    const auto needed = static_cast<size_t>(GetParam().gpus);
    if (gpu_count() < needed) GTEST_SKIP() << "needs " << needed << " GPUs";
    const auto nccl = device::nccl_version();
    ASSERT_TRUE(needed == 1 || nccl.ok()) << message_of(nccl.status());
  }
};

TEST_P(CollectivesTest, SumsOfEverySizeAreRight) {
  Ranks ranks(GetParam());
  for (const int64_t count :
       {8L, 9L, 1000L, 7168L, 100003L, 262144L, 786433L, 2097153L, 33554432L}) {
    const absl::Status status = ranks.run([&](int32_t rank) { return ranks.sum(rank, count); });
    ASSERT_TRUE(status.ok()) << message_of(status);
  }
}

TEST_P(CollectivesTest, EveryWayIsRightAtEverySizeItServes) {
  Ranks ranks(GetParam());
  // Blocks of all ranks must fit a GPU that they share.
  const int64_t most = GetParam().gpus > 1 ? 786432 : 262144;
  for (const int64_t count : {1L, 8L, 7168L, 100003L, 262144L, 786432L, 3000001L}) {
    for (const CollectiveWay way :
         {CollectiveWay::kOneShot, CollectiveWay::kTwoShot, CollectiveWay::kNccl}) {
      const bool ours = way != CollectiveWay::kNccl;
      if (ours && !GetParam().peer_memory) continue;
      if (!ours && GetParam().gpus == 1) continue;
      if (way == CollectiveWay::kOneShot && count > most) continue;
      const absl::Status status =
          ranks.run([&](int32_t rank) { return ranks.sum(rank, count, way); });
      ASSERT_TRUE(status.ok()) << way_name(way) << ": " << message_of(status);
    }
  }
}

TEST_P(CollectivesTest, EpochsBeginAnewLongBeforeTheyComeRound) {
  Ranks ranks(GetParam(), /*clear_after=*/7);
  for (int step = 0; step < 60; ++step) {
    const int64_t count = 1 + step * 997;
    const absl::Status status = ranks.run([&](int32_t rank) { return ranks.sum(rank, count); });
    ASSERT_TRUE(status.ok()) << "step " << step << ": " << message_of(status);
  }
}

// Rank 1 does not come: rank 0 waits on the host or on its GPU, until somebody aborts.
TEST_P(CollectivesTest, AbortEndsTheWaitAndRejoinedRanksSumAsBefore) {
  Ranks ranks(GetParam());
  for (const int64_t count : {1000L, 1000003L}) {
    for (const auto mode : {Collectives::Mode::kCareful, Collectives::Mode::kFree}) {
      ASSERT_TRUE(ranks.run([&](int32_t rank) { return ranks.sum(rank, count); }).ok());
      const absl::Status lost = ranks.run([&](int32_t rank) -> absl::Status {
        if (rank == 1) return internal_error("this rank is lost");  // so that all are aborted
        const absl::Status status = ranks.sum(rank, count, {}, mode);
        EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << message_of(status);
        return status;
      });
      EXPECT_FALSE(lost.ok());
      const absl::Status refused = ranks.run([&](int32_t rank) { return ranks.sum(rank, count); });
      EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
      const absl::Status rejoined =
          ranks.run([&](int32_t rank) { return ranks.collectives(rank).rejoin(); });
      ASSERT_TRUE(rejoined.ok()) << message_of(rejoined);
      const absl::Status again = ranks.run([&](int32_t rank) { return ranks.sum(rank, count); });
      ASSERT_TRUE(again.ok()) << message_of(again);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks,
                         CollectivesTest,
                         testing::Values(Setting{"OneGpu", 1},
                                         Setting{"TwoGpus", 2},
                                         Setting{"TwoGpusWithoutPeerMemory", 2, false}),
                         [](const auto& tested) { return tested.param.name; });

TEST(CollectiveGroupTest, RanksThatShareAGpuCannotHaveNccl) {
  const auto group = CollectiveGroup::create({.devices = {0, 0}, .table = collective_table(2)});
  EXPECT_EQ(group.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace r1d::ops::cuda
