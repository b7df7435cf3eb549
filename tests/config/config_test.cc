// SPDX-License-Identifier: Apache-2.0
#include "r1d/config/config.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::config {
namespace {

using testing::HasSubstr;

// A file that goes with the test.
class TempFile {
 public:
  explicit TempFile(const std::string& text) {
    std::string path = testing::TempDir() + "/r1d-config-XXXXXX";
    const int fd = mkstemp(path.data());
    EXPECT_GE(fd, 0);
    close(fd);
    path_ = path;
    std::ofstream(path_) << text;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string load_error(const std::vector<std::string>& environment, Overrides flags) {
  flags.emplace_back("model.path", "m");
  const auto config = load("", environment, flags);
  return config.ok() ? "accepted" : message_of(config.status());
}

TEST(ConfigTest, FlagWinsOverEnvironmentOverFileOverDefault) {
  const TempFile file(
      "scheduler:\n  max_batch_size: 2\n  block_size: 2\n  max_waiting_requests: 2\n");
  const auto config = load(file.path(),
                           {"R1D_SCHEDULER__BLOCK_SIZE=3", "R1D_SCHEDULER__MAX_WAITING_REQUESTS=3"},
                           {{"scheduler.max_waiting_requests", "4"}, {"model.path", "m"}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->scheduler.max_batch_size, 2);
  EXPECT_EQ(config->scheduler.block_size, 3);
  EXPECT_EQ(config->scheduler.max_waiting_requests, 4);
  EXPECT_EQ(config->scheduler.max_num_batched_tokens, 32768);
}

TEST(ConfigTest, LaterFlagWins) {
  const auto config = load("", {}, {{"model.path", "a"}, {"model.path", "b"}});
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->model.path, "b");
}

TEST(ConfigTest, FillsEveryFieldFromItsKey) {
  const auto config = load("",
                           {},
                           {{"model.path", "/m"},
                            {"model.name", "r1"},
                            {"model.load_format", "safetensors"},
                            {"model.config_file", "/c"},
                            {"model.dummy_seed", "9"},
                            {"engine.world_size", "4"},
                            {"engine.num_threads", "12"},
                            {"engine.expert_parallel", "true"},
                            {"engine.kv_cache_dtype", "bf16"},
                            {"engine.kv_cache_memory", "16Gi"},
                            {"engine.bf16_dot", "true"},
                            {"engine.load_mtp", "true"},
                            {"scheduler.max_batch_size", "8"},
                            {"scheduler.batch_timeout", "0"},
                            {"scheduler.max_num_batched_tokens", "512"},
                            {"scheduler.max_model_len", "2048"},
                            {"scheduler.block_size", "16"},
                            {"scheduler.max_waiting_requests", "5"},
                            {"scheduler.prefix_cache", "false"},
                            {"scheduler.priority_aging", "1m"},
                            {"server.grpc_address", "[::1]:0"},
                            {"server.management_address", "localhost:0"},
                            {"server.reflection", "false"},
                            {"server.max_request_bytes", "1M"},
                            {"server.stream_buffer_tokens", "7"},
                            {"server.max_concurrent_streams", "6"},
                            {"server.drain_timeout", "2s"},
                            {"server.liveness_timeout", "3s"},
                            {"server.max_request_time", "4s"},
                            {"log.level", "debug"},
                            {"log.format", "json"}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.path, "/m");
  EXPECT_EQ(config->model.name, "r1");
  EXPECT_EQ(config->model.load_format, "safetensors");
  EXPECT_EQ(config->model.config_file, "/c");
  EXPECT_EQ(config->model.dummy_seed, 9U);
  EXPECT_EQ(config->engine.world_size, 4);
  EXPECT_EQ(config->engine.num_threads, 12);
  EXPECT_TRUE(config->engine.expert_parallel);
  EXPECT_EQ(config->engine.kv_cache_dtype, "bf16");
  EXPECT_EQ(config->engine.kv_cache_memory_bytes, int64_t{16} << 30);
  EXPECT_TRUE(config->engine.bf16_dot);
  EXPECT_TRUE(config->engine.load_mtp);
  EXPECT_EQ(config->scheduler.max_batch_size, 8);
  EXPECT_EQ(config->scheduler.batch_timeout.count(), 0);
  EXPECT_EQ(config->scheduler.max_num_batched_tokens, 512);
  EXPECT_EQ(config->scheduler.max_model_len, 2048);
  EXPECT_EQ(config->scheduler.block_size, 16);
  EXPECT_EQ(config->scheduler.max_waiting_requests, 5);
  EXPECT_FALSE(config->scheduler.prefix_cache);
  EXPECT_EQ(config->scheduler.priority_aging.count(), 60000);
  EXPECT_EQ(config->server.grpc_address, "[::1]:0");
  EXPECT_EQ(config->server.management_address, "localhost:0");
  EXPECT_FALSE(config->server.reflection);
  EXPECT_EQ(config->server.max_request_bytes, 1000000);
  EXPECT_EQ(config->server.stream_buffer_tokens, 7);
  EXPECT_EQ(config->server.max_concurrent_streams, 6);
  EXPECT_EQ(config->server.drain_timeout.count(), 2000);
  EXPECT_EQ(config->server.liveness_timeout.count(), 3000);
  EXPECT_EQ(config->server.max_request_time.count(), 4000);
  EXPECT_EQ(config->log.level, "debug");
  EXPECT_EQ(config->log.format, "json");
}

TEST(ConfigTest, AsksForAModelOnlyWhenLoading) {
  EXPECT_TRUE(parse_yaml("", "f").ok());
  EXPECT_THAT(message_of(load("", {}, {}).status()),
              HasSubstr("model.path: expected the directory"));
  EXPECT_THAT(message_of(load("", {}, {}).status()), HasSubstr("--model DIR"));
  EXPECT_THAT(message_of(load("", {}, {{"model.load_format", "dummy"}}).status()),
              HasSubstr("model.config_file: load_format dummy needs a config.json"));
  EXPECT_TRUE(load("", {}, {{"model.load_format", "dummy"}, {"model.config_file", "c.json"}}).ok());
}

TEST(ConfigTest, NamesWhereAWrongValueCameFrom) {
  EXPECT_EQ(load_error({}, {{"engine.world_size", "3"}}),
            "flag --world-size: engine.world_size: expected one of 1, 2, 4, 8, found \"3\"");
  EXPECT_EQ(
      load_error({"R1D_LOG__LEVEL=loud"}, {}),
      "environment R1D_LOG__LEVEL: log.level: expected one of trace, debug, info, warn, error, "
      "found \"loud\"");
  const TempFile file("log:\n  level: info\nscheduler:\n  batch_timeout: 1.5s\n");
  EXPECT_EQ(
      message_of(load(file.path(), {}, {}).status()),
      file.path() +
          ":4: scheduler.batch_timeout: expected a duration such as 10ms, 2s, 5m or 1h, found "
          "\"1.5s\"");
}

TEST(ConfigTest, SaysWhatWasExpectedOfEachType) {
  EXPECT_THAT(load_error({}, {{"engine.num_threads", "4097"}}),
              HasSubstr("expected 0 to 4096, found"));
  EXPECT_THAT(load_error({}, {{"engine.num_threads", "many"}}),
              HasSubstr("expected a whole number"));
  EXPECT_THAT(load_error({}, {{"scheduler.batch_timeout", "11s"}}),
              HasSubstr("expected 0ms to 10s"));
  EXPECT_THAT(load_error({}, {{"server.max_request_bytes", "1"}}),
              HasSubstr("expected 1Ki to 1Gi"));
  EXPECT_THAT(load_error({}, {{"server.reflection", "yes"}}), HasSubstr("expected true or false"));
  EXPECT_THAT(load_error({}, {{"server.grpc_address", "50051"}}), HasSubstr("expected host:port"));
  EXPECT_THAT(load_error({}, {{"server.grpc_address", "::1:1"}}), HasSubstr("in brackets"));
  EXPECT_THAT(load_error({}, {{"model.name", "a\nb"}}), HasSubstr("without control characters"));
}

TEST(ConfigTest, ChecksKeysAgainstEachOther) {
  EXPECT_THAT(load_error({}, {{"scheduler.max_num_batched_tokens", "63"}}),
              HasSubstr("expected at least scheduler.max_batch_size (64)"));
  EXPECT_THAT(load_error({}, {{"scheduler.max_model_len", "1"}}), HasSubstr("0 or at least 2"));
  EXPECT_THAT(load_error({}, {{"engine.world_size", "4"}, {"engine.num_threads", "3"}}),
              HasSubstr("at least engine.world_size (4), found 3"));
  EXPECT_THAT(load_error({}, {{"server.management_address", "127.0.0.1:50051"}}),
              HasSubstr("another address than server.grpc_address"));
  EXPECT_EQ(load_error({}, {{"server.management_address", "a:0"}, {"server.grpc_address", "a:0"}}),
            "accepted");
}

TEST(ConfigTest, NamesTheNearestOfUnknownKeys) {
  EXPECT_EQ(load_error({}, {{"engine.word_size", "1"}}),
            "unknown key \"engine.word_size\"; did you mean engine.world_size?");
  EXPECT_EQ(load_error({"R1D_ENGINE__WORD_SIZE=1"}, {}),
            "unknown environment variable \"R1D_ENGINE__WORD_SIZE\"; did you mean "
            "R1D_ENGINE__WORLD_SIZE?");
}

TEST(ConfigTest, LeavesAloneTheVariablesKubernetesSets) {
  EXPECT_EQ(load_error({"R1D_PORT=tcp://10.0.0.1:50051",
                        "R1D_SERVER_SERVICE_HOST=10.0.0.1",
                        "PATH=/bin",
                        "NO_EQUALS",
                        "R1D_ENGINE__WORLD_SIZE_"},
                       {}),
            "accepted");
}

TEST(ConfigTest, RefusesAFileThatCannotBeRead) {
  EXPECT_THAT(message_of(load("/nonexistent/r1d.yaml", {}, {}).status()),
              HasSubstr("/nonexistent/r1d.yaml: cannot read the configuration: No such file"));
  EXPECT_THAT(message_of(load(testing::TempDir(), {}, {}).status()), HasSubstr("cannot read"));
  EXPECT_THAT(message_of(load("/dev/zero", {}, {}).status()), HasSubstr("at most 1048576 bytes"));
}

TEST(ConfigTest, PrintsWhatItReadsBack) {
  Config config;
  config.model.path = R"(/a "b" \c: #d 'e' é)";
  config.model.name = "- &x *y !z {[";
  config.engine.world_size = 8;
  config.engine.kv_cache_memory_bytes = (int64_t{3} << 30) + 1;
  config.scheduler.batch_timeout = std::chrono::milliseconds(1234);
  config.server.grpc_address = "[::1]:0";
  const auto read = parse_yaml(print(config), "printed");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(print(*read), print(config));
  EXPECT_EQ(read->model.path, config.model.path);
  EXPECT_EQ(read->engine.kv_cache_memory_bytes, config.engine.kv_cache_memory_bytes);
  EXPECT_EQ(read->scheduler.batch_timeout, config.scheduler.batch_timeout);
}

}  // namespace
}  // namespace r1d::config
