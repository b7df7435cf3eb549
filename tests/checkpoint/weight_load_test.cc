// SPDX-License-Identifier: Apache-2.0
// Weights of all ranks read together, against WeightSource::read() slice by slice.
#include "r1d/checkpoint/weight_load.h"

#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/fault.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"

#include "tests/support/packed.h"

namespace r1d::checkpoint {
namespace {

absl::Status ignore_bytes(int64_t /*bytes*/) {
  return absl::OkStatus();
}

// A device whose copies happen at the last moment that is allowed: a slot that is written to too
// early shows.
class LateCopy final : public StagedCopy {
 public:
  absl::StatusOr<std::byte*> allocate(size_t bytes) override {
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)));
    size_ = bytes;
    return memory_.get();
  }
  absl::StatusOr<uint64_t> copy(std::byte* device, std::span<const std::byte> staged) override {
    EXPECT_GE(staged.data(), memory_.get());
    EXPECT_LE(staged.data() + staged.size(), memory_.get() + size_);
    started_.push_back({device, staged});
    return ++last_;
  }
  absl::Status wait(uint64_t ticket) override {
    for (; done_ < ticket; ++done_) {
      const Copy copy = started_.front();
      started_.pop_front();
      std::memcpy(copy.device, copy.staged.data(), copy.staged.size());
    }
    return absl::OkStatus();
  }

 private:
  struct Copy {
    std::byte* device;
    std::span<const std::byte> staged;
  };
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
  std::deque<Copy> started_;
  uint64_t last_ = 0;
  uint64_t done_ = 0;
};

// What one rank wants and the memory for it.
struct RankMemory {
  std::vector<WeightTarget> targets;
  std::vector<std::string> memory;
  int64_t bytes = 0;
  int64_t arrived = 0;
  absl::Status status;
};

void add_target(const WeightSource& source,
                const std::string& name,
                const TensorSlice& slice,
                bool staged,
                RankMemory& rank) {
  const StoredTensor stored = source.find(name).value();
  const int64_t bytes = slice.rows.size() * slice.cols.size() * dtype_bytes(stored.dtype);
  rank.memory.emplace_back(static_cast<size_t>(bytes), '?');
  rank.bytes += bytes;
  rank.targets.push_back({.name = name,
                          .bytes = source.locate(name, slice).value(),
                          .dtype = stored.dtype,
                          .slice = slice,
                          .staged = staged});
}

RankMemory memory_of(const WeightSource& source, const RankShard& shard, bool staged) {
  RankMemory rank;
  for (const TensorSpec& spec : expected_tensors(source.config(), source.has_mtp())) {
    const TensorSlice slice = slice_of(spec, shard);
    if (slice.empty() || spec.duplicate) continue;
    add_target(source, spec.name, slice, staged && !spec.rank_1, rank);
    if (!source.find(scale_name(spec.name)).ok()) continue;
    add_target(source,
               scale_name(spec.name),
               scale_slice_of(slice, *source.config().quantization),
               staged,
               rank);
  }
  for (size_t i = 0; i < rank.targets.size(); ++i) {
    rank.targets[i].dest = reinterpret_cast<std::byte*>(rank.memory[i].data());
  }
  return rank;
}

std::vector<RankMemory> all_ranks(const WeightSource& source,
                                  int32_t world_size,
                                  ExpertSplit split,
                                  bool staged) {
  std::vector<RankMemory> ranks;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    ranks.push_back(memory_of(
        source, make_rank_shard(source.config(), rank, world_size, split).value(), staged));
  }
  return ranks;
}

// A thread a rank.
void read_all(WeightLoad& load, std::vector<RankMemory>& ranks) {
  std::vector<std::thread> threads;
  for (RankMemory& rank : ranks) {
    threads.emplace_back([&load, &rank] {
      LateCopy copy;
      rank.status = load.read(rank.targets, &copy, [&rank](int64_t bytes) {
        rank.arrived += bytes;
        return absl::OkStatus();
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void expect_what_the_source_reads(const WeightSource& source, const RankMemory& rank) {
  EXPECT_EQ(rank.arrived, rank.bytes);
  for (size_t i = 0; i < rank.targets.size(); ++i) {
    const WeightTarget& target = rank.targets[i];
    std::string expected(rank.memory[i].size(), '\0');
    const absl::Status read =
        source.read(target.name, target.slice, std::as_writable_bytes(std::span(expected)));
    ASSERT_TRUE(read.ok()) << read;
    EXPECT_TRUE(rank.memory[i] == expected) << target.name;
  }
}

void expect_same_bytes(const WeightSource& source, int32_t world_size, ExpertSplit split) {
  for (const bool direct : {false, true}) {
    for (const bool staged : {false, true}) {
      SCOPED_TRACE(fmt::format("{} ranks, split {}, direct {}, staged {}",
                               world_size,
                               static_cast<int>(split),
                               direct,
                               staged));
      std::vector<RankMemory> ranks = all_ranks(source, world_size, split, staged);
      WeightLoad load({.direct = direct, .num_threads = 3}, world_size);
      read_all(load, ranks);
      for (const RankMemory& rank : ranks) {
        ASSERT_TRUE(rank.status.ok()) << rank.status;
        expect_what_the_source_reads(source, rank);
      }
    }
  }
}

// DeepSeek-V3 that eight ranks can share, with sizes that fit neither blocks nor pages.
test::Json config_for_eight(bool fp8) {
  test::Json config = test::small_config(fp8);
  config["num_attention_heads"] = 8;
  config["num_key_value_heads"] = 8;
  config["n_routed_experts"] = 8;
  config["hidden_size"] = 360;
  config["intermediate_size"] = 1096;
  config["moe_intermediate_size"] = 328;
  return config;
}

TEST(WeightLoadTest, AnyWayOfReadingGivesTheBytesOfTheSource) {
  for (const bool fp8 : {false, true}) {
    const test::TempDir dir;
    test::make_checkpoint(config_for_eight(fp8), /*with_mtp=*/true, 3).write(dir);
    const auto source = open_hugging_face(dir.path());
    ASSERT_TRUE(source.ok()) << source.status();
    for (const int32_t world_size : {1, 2, 4, 8}) {
      expect_same_bytes(**source, world_size, ExpertSplit::kTensor);
      expect_same_bytes(**source, world_size, ExpertSplit::kExpert);
    }
  }
}

// Tensors of megabytes: reads that one device takes whole, rows that end within a read.
TEST(WeightLoadTest, LargeTensorsTakeTheSameWay) {
  test::Json config = config_for_eight(true);
  config["hidden_size"] = 1544;
  config["intermediate_size"] = 2312;
  config["vocab_size"] = 1024;
  const test::TempDir dir;
  test::make_checkpoint(config, /*with_mtp=*/false, 2).write(dir);
  const auto source = open_hugging_face(dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  for (const int32_t world_size : {1, 8}) {
    expect_same_bytes(**source, world_size, ExpertSplit::kTensor);
  }
}

// A checkpoint of one file and all that one rank wants of it.
class OneRankLoad : public testing::Test {
 protected:
  OneRankLoad() {
    test::make_checkpoint(config_for_eight(true), /*with_mtp=*/false, 0).write(dir_);
    source_ = open_hugging_face(dir_.path()).value();
    ranks_ = all_ranks(*source_, 1, ExpertSplit::kTensor, /*staged=*/false);
  }
  ~OneRankLoad() override { base::clear_faults(); }

  [[nodiscard]] std::string file() const { return dir_.path() + "/model.safetensors"; }
  [[nodiscard]] absl::Status read(WeightLoad& load) {
    read_all(load, ranks_);
    return ranks_.front().status;
  }
  [[nodiscard]] std::string error_of(WeightLoad& load) {
    const absl::Status status = read(load);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    return message_of(status);
  }

  test::TempDir dir_;
  std::unique_ptr<WeightSource> source_;
  std::vector<RankMemory> ranks_;
};

TEST_F(OneRankLoad, NoByteIsReadTwiceHoweverManyRanksShareIt) {
  std::vector<int64_t> bytes_read;
  for (const int32_t world_size : {1, 8}) {
    ranks_ = all_ranks(*source_, world_size, ExpertSplit::kTensor, false);
    WeightLoad load({}, world_size);
    ASSERT_TRUE(read(load).ok());
    bytes_read.push_back(load.report().bytes_read);
    EXPECT_LE(bytes_read.back(), static_cast<int64_t>(std::filesystem::file_size(file())));
  }
  EXPECT_EQ(bytes_read[0], bytes_read[1]);
}

TEST_F(OneRankLoad, ReportsHowItRead) {
  WeightLoad load({.num_threads = 2}, 1);
  ASSERT_TRUE(read(load).ok());
  const LoadReport report = load.report();
  EXPECT_EQ(report.num_threads, 2);
  EXPECT_EQ(report.num_files, 1);
  EXPECT_EQ(report.num_direct_files, 0);
  EXPECT_GT(report.seconds, 0);
  EXPECT_GE(report.bytes_read, ranks_.front().bytes);
}

TEST_F(OneRankLoad, AReadThatFailsAndThenWorksIsTriedAgain) {
  for (const bool direct : {false, true}) {
    ASSERT_TRUE(base::arm_faults("checkpoint.read=error@1+3").ok());
    WeightLoad load({.direct = direct, .first_retry = std::chrono::milliseconds(1)}, 1);
    ASSERT_TRUE(read(load).ok());
    expect_what_the_source_reads(*source_, ranks_.front());
    EXPECT_EQ(load.report().retries[static_cast<size_t>(RetryCause::kIo)], 3);
    base::clear_faults();
    ranks_ = all_ranks(*source_, 1, ExpertSplit::kTensor, false);
  }
}

TEST_F(OneRankLoad, AReadThatGoesOnFailingIsRefusedWithFileTensorByteAndReason) {
  ASSERT_TRUE(base::arm_faults("checkpoint.read=error").ok());
  WeightLoad load(
      {.num_threads = 1, .first_retry = std::chrono::milliseconds(1), .max_attempts = 3}, 1);
  const std::string error = error_of(load);
  EXPECT_EQ(error.find("model.safetensors: tensor "), 0U) << error;
  EXPECT_NE(error.find(": read at byte "), std::string::npos) << error;
  EXPECT_NE(error.find("failed (3 times): Input/output error"), std::string::npos) << error;
  EXPECT_EQ(load.report().retries[static_cast<size_t>(RetryCause::kIo)], 2);
}

TEST_F(OneRankLoad, AStopEndsItAlsoWhileItWaitsToTryAgain) {
  ASSERT_TRUE(base::arm_faults("checkpoint.read=error").ok());
  std::stop_source stop;
  WeightLoad load({.first_retry = std::chrono::hours(1)}, 1, stop.get_token());
  std::thread stopper([&] { stop.request_stop(); });
  EXPECT_EQ(read(load).code(), absl::StatusCode::kCancelled);
  stopper.join();
}

TEST_F(OneRankLoad, AFileThatShrinksIsNamed) {
  for (const bool direct : {false, true}) {
    std::filesystem::resize_file(file(), std::filesystem::file_size(file()) - 5000);
    WeightLoad load({.direct = direct}, 1);
    const std::string error = error_of(load);
    EXPECT_EQ(error.find("model.safetensors: tensor "), 0U) << error;
    EXPECT_NE(error.find("file ends at byte "), std::string::npos) << error;
    EXPECT_NE(error.find(" bytes too early"), std::string::npos) << error;
  }
}

TEST_F(OneRankLoad, AFileThatIsWrittenToMeanwhileIsNamed) {
  std::filesystem::last_write_time(file(), std::filesystem::file_time_type::clock::now());
  WeightLoad load({}, 1);
  EXPECT_EQ(error_of(load), "model.safetensors: was written to while it was read");
}

TEST_F(OneRankLoad, AFileThatGrowsIsNamed) {
  std::filesystem::resize_file(file(), std::filesystem::file_size(file()) + 1);
  WeightLoad load({}, 1);
  EXPECT_NE(error_of(load).find("model.safetensors: was "), std::string::npos);
}

TEST_F(OneRankLoad, AnErrorOfTheCallerStopsIt) {
  WeightLoad load({}, 1);
  const absl::Status status =
      load.read(ranks_.front().targets, nullptr, [](int64_t) { return cancelled("enough"); });
  EXPECT_EQ(message_of(status), "enough");
}

TEST_F(OneRankLoad, ARankThatDoesNotComeLetsTheOthersGo) {
  WeightLoad load({}, 2);
  std::thread other([&] { load.abort(resource_exhausted("no memory on rank 1")); });
  EXPECT_EQ(message_of(read(load)), "no memory on rank 1");
  other.join();
}

TEST_F(OneRankLoad, AFailureOfOneRankEndsAll) {
  ranks_ = all_ranks(*source_, 2, ExpertSplit::kTensor, false);
  WeightLoad load({}, 2);
  std::promise<void> failed;
  std::thread other([&] {
    const absl::Status status = load.read(ranks_[1].targets, nullptr, [&](int64_t) {
      load.abort(cancelled("rank 1 has enough"));
      failed.set_value();
      return cancelled("rank 1 has enough");
    });
    EXPECT_EQ(message_of(status), "rank 1 has enough");
  });
  const absl::Status status = load.read(ranks_[0].targets, nullptr, [&](int64_t) {
    failed.get_future().wait();
    return absl::OkStatus();
  });
  EXPECT_EQ(message_of(status), "rank 1 has enough");
  other.join();
}

TEST_F(OneRankLoad, AnExceptionInAReadIsAnError) {
  ASSERT_TRUE(base::arm_faults("checkpoint.read=oom").ok());
  WeightLoad load({}, 1);
  EXPECT_EQ(read(load).code(), absl::StatusCode::kResourceExhausted);
}

// Packed for two ranks; what is read is compared by the threads that read it.
class CheckedLoad : public testing::TestWithParam<int64_t> {
 protected:
  CheckedLoad() {
    test::Json config = config_for_eight(true);
    config["hidden_size"] = 1544;
    config["vocab_size"] = 2048;
    test::make_checkpoint(config, /*with_mtp=*/false, 1).write(dir_);
    const auto packed =
        pack_checkpoint(dir_.path(), out(), {.world_size = 2, .piece_bytes = GetParam()});
    EXPECT_TRUE(packed.ok()) << packed.status();
    source_ = open_packed(out(), {}).value();
  }
  [[nodiscard]] std::string out() const { return dir_.path() + "/packed"; }

  [[nodiscard]] std::vector<RankMemory> ranks(bool staged) const {
    std::vector<RankMemory> ranks;
    for (const int32_t rank : {0, 1}) {
      const auto shard = make_rank_shard(source_->config(), rank, 2, ExpertSplit::kTensor);
      ranks.push_back(memory_of(source_->for_rank(rank), shard.value(), staged));
    }
    return ranks;
  }

  // Of rank 1's file; a second time: as it was.
  void flip_byte(int64_t offset) const {
    std::fstream file(out() + "/rank-01-of-02.r1dpack",
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offset);
    const int byte = file.get();
    file.seekp(offset);
    file.put(static_cast<char>(byte ^ 0x20));
    ASSERT_TRUE(file.good());
  }

  // How the load ends where this byte of rank 1's file is another one.
  [[nodiscard]] std::string end_with_altered(int64_t offset, bool direct, bool staged) const {
    flip_byte(offset);
    const auto opened = open_packed(out(), {}).value();
    std::vector<RankMemory> all = ranks(staged);
    for (size_t rank = 0; rank < 2; ++rank) {
      for (WeightTarget& target : all[rank].targets) {
        target.bytes =
            *opened->for_rank(static_cast<int32_t>(rank)).locate(target.name, target.slice);
      }
    }
    WeightLoad load({.direct = direct, .num_threads = 3}, 2);
    read_all(load, all);
    flip_byte(offset);
    EXPECT_EQ(all[0].status, all[1].status);
    return message_of(all[1].status);
  }

  test::TempDir dir_;
  std::unique_ptr<WeightSource> source_;
};

TEST_P(CheckedLoad, GivesTheBytesThatWerePacked) {
  for (const bool direct : {false, true}) {
    for (const bool staged : {false, true}) {
      std::vector<RankMemory> all = ranks(staged);
      WeightLoad load({.direct = direct, .num_threads = 3}, 2);
      read_all(load, all);
      for (const int32_t rank : {0, 1}) {
        const RankMemory& memory = all[static_cast<size_t>(rank)];
        ASSERT_TRUE(memory.status.ok()) << memory.status;
        expect_what_the_source_reads(source_->for_rank(rank), memory);
      }
    }
  }
}

TEST_P(CheckedLoad, FindsAnAlteredByteAndNamesItsTensor) {
  const std::vector<RankMemory> all = ranks(false);
  const size_t step = all[1].targets.size() / 6;
  for (size_t i = 0; i < all[1].targets.size(); i += step) {
    const WeightTarget& target = all[1].targets[i];
    const int64_t bytes =
        target.slice.rows.size() * target.slice.cols.size() * dtype_bytes(target.dtype);
    const bool direct = i / step % 2 == 0;
    const bool staged = i / step % 4 < 2;
    for (const int64_t at : {int64_t{0}, bytes - 1}) {
      const std::string message = end_with_altered(target.bytes.begin + at, direct, staged);
      EXPECT_TRUE(message.starts_with("rank-01-of-02.r1dpack: section ")) << message;
      EXPECT_NE(message.find("tensor " + target.name + ": bytes "), std::string::npos) << message;
      EXPECT_TRUE(message.ends_with("altered since they were packed")) << message;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(PieceSizes, CheckedLoad, testing::Values(4 << 10, 1 << 20, 4 << 20));

TEST_F(OneRankLoad, RanksThatWantNothingAreDoneAtOnce) {
  WeightLoad load({}, 1);
  EXPECT_TRUE(load.read({}, nullptr, ignore_bytes).ok());
  EXPECT_EQ(load.report().bytes_read, 0);
}

}  // namespace
}  // namespace r1d::checkpoint
