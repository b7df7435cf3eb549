// SPDX-License-Identifier: Apache-2.0
// write_checkpoint(): what was written opens and reads as the source it came from.
#include "r1d/checkpoint/checkpoint_writer.h"

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <sys/resource.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "tests/support/checkpoint_writer.h"

namespace r1d::checkpoint {
namespace {

using test::Json;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;

struct Model {
  std::string text;
  std::unique_ptr<WeightSource> source;
};

Model small_model(bool fp8, uint64_t seed = 7) {
  const std::string text = test::small_config(fp8).dump(2);
  return {text, make_dummy_source(ModelConfig::parse(text).value(), seed)};
}

void expect_same(const WeightSource& written, const WeightSource& source) {
  ASSERT_EQ(written.has_mtp(), source.has_mtp());
  for (const TensorSpec& spec : expected_tensors(source.config(), source.has_mtp())) {
    if (spec.duplicate) continue;
    for (const std::string& name : {spec.name, scale_name(spec.name)}) {
      ASSERT_EQ(written.find(name).ok(), source.find(name).ok()) << name;
      if (!source.find(name).ok()) continue;
      const test::TensorData found = test::read_whole(written, name, spec.rank_1);
      const test::TensorData expected = test::read_whole(source, name, spec.rank_1);
      EXPECT_EQ(found.dtype, expected.dtype) << name;
      EXPECT_EQ(found.shape, expected.shape) << name;
      EXPECT_EQ(found.bytes, expected.bytes) << name;
    }
  }
}

TEST(WriteCheckpointTest, OpensAsTheSourceItCameFromWhateverTheThreadsAndTheSizeOfItsFiles) {
  for (const bool fp8 : {true, false}) {
    for (const int64_t shard_bytes : {int64_t{1}, int64_t{40'000}, int64_t{5'000'000'000}}) {
      const Model model = small_model(fp8);
      const TempDir dir;
      const auto written =
          write_checkpoint(*model.source,
                           model.text,
                           dir.path() + "/new/model",
                           {.shard_bytes = shard_bytes, .num_threads = fp8 ? 3 : 1});
      ASSERT_TRUE(written.ok()) << written.status();
      const auto opened = open_hugging_face(dir.path() + "/new/model");
      ASSERT_TRUE(opened.ok()) << opened.status();
      expect_same(**opened, *model.source);
      EXPECT_EQ(test::files_in(dir.path() + "/new/model").size(),
                static_cast<size_t>(written->num_files) + 2);
      if (shard_bytes == 1) {
        EXPECT_EQ(written->num_files, written->num_tensors);
      }
      if (shard_bytes > 1'000'000) {
        EXPECT_EQ(written->num_files, 1);
      }
    }
  }
}

TEST(WriteCheckpointTest, WritesTensorsLargerThanAPieceWhole) {
  Json config = test::small_config(false);
  config["vocab_size"] = 120'000;  // of 160 bf16 values each: 38.4 MB
  const std::string text = config.dump();
  const auto source = make_dummy_source(ModelConfig::parse(text).value(), 1);
  const TempDir dir;
  const auto written = write_checkpoint(*source, text, dir.path(), {.num_threads = 4});
  ASSERT_TRUE(written.ok()) << written.status();
  expect_same(**open_hugging_face(dir.path()), *source);
}

TEST(WriteCheckpointTest, NamesFilesAsR1DoesAndWritesTheConfigAsGiven) {
  const Model model = small_model(true);
  const TempDir dir;
  const auto written =
      write_checkpoint(*model.source, model.text, dir.path(), {.shard_bytes = 120'000});
  ASSERT_TRUE(written.ok()) << written.status();
  const std::set<std::string> files = test::files_in(dir.path());
  EXPECT_TRUE(files.contains(fmt::format("model-00001-of-{:06}.safetensors", written->num_files)));
  EXPECT_TRUE(files.contains("model.safetensors.index.json"));
  std::ifstream config(dir.path() + "/config.json");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(config), {}), model.text);
}

TEST(WriteCheckpointTest, RefusesADirectoryThatIsNotEmptyAndLeavesItAlone) {
  const Model model = small_model(false);
  const TempDir dir;
  dir.write("notes.txt", "mine");
  const auto written = write_checkpoint(*model.source, model.text, dir.path(), {});
  EXPECT_EQ(written.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(message_of(written.status()), AllOf(HasSubstr(dir.path()), HasSubstr("not empty")));
  EXPECT_EQ(test::files_in(dir.path()), std::set<std::string>{"notes.txt"});
}

TEST(WriteCheckpointTest, NamesTheBytesWhenTheDiskIsTooSmall) {
  Json config = test::small_config(false);
  config["vocab_size"] = 1 << 24;
  config["hidden_size"] = 1 << 17;  // 8.8 TB
  const std::string text = config.dump();
  const auto parsed = ModelConfig::parse(text);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const TempDir dir;
  const auto written = write_checkpoint(*make_dummy_source(*parsed, 1), text, dir.path(), {});
  EXPECT_EQ(written.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(message_of(written.status()),
              AllOf(HasSubstr(dir.path()), HasSubstr("bytes are needed"), HasSubstr("are free")));
  EXPECT_TRUE(test::files_in(dir.path()).empty());
}

// A limit on the size of files stands for a disk that fills up while it is written.
TEST(WriteCheckpointTest, RemovesWhatItBeganWhenAWriteFails) {
  const Model model = small_model(true);
  const TempDir dir;
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 50'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto written = write_checkpoint(*model.source, model.text, dir.path(), {.num_threads = 2});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(written.ok());
  EXPECT_THAT(message_of(written.status()),
              AllOf(HasSubstr("model-00001-of-000001.safetensors"), HasSubstr("bytes at byte")));
  EXPECT_TRUE(test::files_in(dir.path()).empty());
}

}  // namespace
}  // namespace r1d::checkpoint
