// SPDX-License-Identifier: Apache-2.0
// pack_checkpoint(): all or nothing.
#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <set>
#include <string>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"

#include "checkpoint/pack_directory.h"
#include "tests/support/packed.h"

namespace r1d::checkpoint {
namespace {

namespace fs = std::filesystem;

using test::TempDir;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;

class PackWriterTest : public testing::Test {
 protected:
  void SetUp() override {
    test::make_checkpoint(test::packable_config(true), false, 1).write(model_);
  }

  absl::StatusOr<Packed> pack(const PackProgress& progress = nullptr, int32_t threads = 1) {
    return pack_checkpoint(
        model_.path(), dir(), {.world_size = 2, .num_threads = threads, .progress = progress});
  }
  [[nodiscard]] std::string dir() const { return out_.path() + "/packed"; }

  // How often a packing reports.
  int count_reports() {
    int reports = 0;
    const TempDir other;
    const auto packed = pack_checkpoint(
        model_.path(), other.path(), {.world_size = 2, .progress = [&](double /*fraction*/) {
                                        ++reports;
                                        return absl::OkStatus();
                                      }});
    EXPECT_TRUE(packed.ok()) << packed.status();
    return reports;
  }

  TempDir model_;
  TempDir out_;
};

TEST_F(PackWriterTest, ReportsProgressUpToTheEnd) {
  double last = 0;
  const auto packed = pack(
      [&](double fraction) {
        EXPECT_GT(fraction, last);
        last = fraction;
        return absl::OkStatus();
      },
      3);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_DOUBLE_EQ(last, 1);
}

// Killed by a signal that nothing can catch, at the first, a middle and the last report.
TEST_F(PackWriterTest, KilledInTheMiddleItLeavesNothingThatOpensAndNothingThatHinders) {
  const int reports = count_reports();
  for (const int fatal : {1, reports / 2, reports}) {
    EXPECT_EXIT(
        {
          int report = 0;
          (void)pack([&](double /*fraction*/) {
            if (++report == fatal) ::raise(SIGKILL);
            return absl::OkStatus();
          });
        },
        testing::KilledBySignal(SIGKILL),
        "");
    const std::set<std::string> left = test::files_in(dir());
    EXPECT_FALSE(left.empty());
    EXPECT_THAT(left, Each(testing::EndsWith(".r1d-partial")));
    EXPECT_FALSE(is_packed(dir()));
    EXPECT_FALSE(open_checkpoint(dir(), {}).ok());
    for (const std::string& name : left) {  // not under its right name either
      const std::string whole = name.substr(0, name.size() - std::string(".r1d-partial").size());
      fs::copy_file(dir() + "/" + name, dir() + "/" + whole);
    }
    fs::copy_file(model_.path() + "/config.json", dir() + "/config.json");
    const auto opened = open_checkpoint(dir(), {});
    EXPECT_THAT(message_of(opened.status()), HasSubstr("no packed file, or one whose packing"));
    for (const std::string& name : test::files_in(dir())) {
      if (!name.ends_with(".r1d-partial")) fs::remove(dir() + "/" + name);
    }
  }
  const auto again = pack();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(open_checkpoint(dir(), {}).ok());
  EXPECT_EQ(
      test::files_in(dir()),
      (std::set<std::string>{"config.json", "rank-00-of-02.r1dpack", "rank-01-of-02.r1dpack"}));
}

TEST_F(PackWriterTest, CancelledItRemovesAllThatItBegan) {
  const int reports = count_reports();
  for (const int32_t threads : {1, 3}) {
    for (const int last : {1, reports / 2, reports}) {
      int report = 0;
      const auto packed = pack(
          [&](double /*fraction*/) {
            return ++report == last ? cancelled("enough") : absl::OkStatus();
          },
          threads);
      EXPECT_TRUE(absl::IsCancelled(packed.status())) << packed.status();
      EXPECT_FALSE(fs::exists(dir()));
    }
  }
}

TEST_F(PackWriterTest, OverwritesNothing) {
  fs::create_directory(dir());
  for (const std::string name : {"notes.txt", "download.partial"}) {
    test::write_file(dir() + "/" + name, "mine");
    const auto packed = pack();
    EXPECT_EQ(packed.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(message_of(packed.status()),
                AllOf(HasSubstr(dir()), HasSubstr("not empty"), HasSubstr(name)));
    EXPECT_EQ(test::files_in(dir()), std::set<std::string>{name});
    fs::remove(dir() + "/" + name);
  }
  ASSERT_TRUE(pack().ok());
  EXPECT_THAT(message_of(pack().status()), HasSubstr("not empty"));
  EXPECT_TRUE(open_checkpoint(dir(), {}).ok());
}

TEST_F(PackWriterTest, KeepsOutASecondProcess) {
  fs::create_directory(dir());
  const int other = ::open(dir().c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::flock(other, LOCK_EX | LOCK_NB), 0);
  const auto packed = pack();
  EXPECT_EQ(packed.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(message_of(packed.status()), HasSubstr("another process"));
  ::close(other);
  EXPECT_TRUE(pack().ok());
}

TEST_F(PackWriterTest, TellsTheSumWhenTheDiskIsTooSmall) {
  const auto directory = PackDirectory::open(dir());
  ASSERT_TRUE(directory.ok()) << directory.status();
  const std::vector<int64_t> ranks{int64_t{1} << 59, 5};
  const absl::Status status = (*directory)->check_space(ranks, 7);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(message_of(status),
              AllOf(HasSubstr(dir()),
                    HasSubstr("576,460,752,303,423,500 bytes are needed (2 rank files of up to "
                              "576,460,752,303,423,488, and 7 of copied files)"),
                    HasSubstr("are free")));
  EXPECT_TRUE((*directory)->check_space(std::vector<int64_t>{1, 1}, 1).ok());
}

// A limit on the size of files stands for a disk that has no more room.
TEST_F(PackWriterTest, RemovesWhatItBeganWhenAWriteFails) {
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 50'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto packed = pack(nullptr, 2);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(packed.ok());
  EXPECT_THAT(message_of(packed.status()), HasSubstr("rank-00-of-02.r1dpack.r1d-partial"));
  EXPECT_FALSE(fs::exists(dir()));
}

TEST_F(PackWriterTest, RefusesWhatCannotBePacked) {
  const auto refused = [&](const std::string& model, const PackOptions& options) {
    return message_of(pack_checkpoint(model, dir(), options).status());
  };
  EXPECT_THAT(refused(model_.path(), {.world_size = 3}), HasSubstr("num_attention_heads"));
  EXPECT_THAT(refused(model_.path(), {.world_size = 65}), HasSubstr("world_size"));
  EXPECT_THAT(refused(model_.path(), {.piece_bytes = 5000}), HasSubstr("piece_bytes"));
  EXPECT_THAT(refused(out_.path(), {}), HasSubstr("config.json"));
  EXPECT_FALSE(fs::exists(dir()));
  ASSERT_TRUE(pack().ok());
  const auto again = pack_checkpoint(dir(), out_.path() + "/twice", {.world_size = 2});
  EXPECT_THAT(message_of(again.status()), HasSubstr("packed already"));
}

}  // namespace
}  // namespace r1d::checkpoint
