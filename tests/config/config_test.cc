// SPDX-License-Identifier: Apache-2.0
#include "r1d/config/config.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "config/schema.h"

namespace r1d::config {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

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

std::string load_error(const std::vector<std::string>& environment,
                       const Overrides& flags,
                       const std::string& file = "") {
  const auto loaded = load({.file = file, .environment = environment, .flags = flags});
  return loaded.ok() ? "accepted" : message_of(loaded.status());
}

// As `r1d config show` would tell it: "4 (flag --max-waiting-requests)".
std::string shown(const Loaded& loaded, const std::string& name) {
  const Key& key = *find_key(name);
  return fmt::format("{} ({})", get_value(key, loaded.config), loaded.origins[index_of(key)]);
}

TEST(ConfigTest, FlagWinsOverEnvironmentOverFileOverDefault) {
  const TempFile file(
      "scheduler:\n  max_batch_size: 2\n  block_size: 2\n  max_waiting_requests: 2\n");
  const auto loaded =
      load({.file = file.path(),
            .environment = {"R1D_SCHEDULER__BLOCK_SIZE=3", "R1D_SCHEDULER__MAX_WAITING_REQUESTS=3"},
            .flags = {{"scheduler.max_waiting_requests", "4"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(shown(*loaded, "scheduler.max_batch_size"), "2 (" + file.path() + ":2)");
  EXPECT_EQ(shown(*loaded, "scheduler.block_size"), "3 (environment R1D_SCHEDULER__BLOCK_SIZE)");
  EXPECT_EQ(shown(*loaded, "scheduler.max_waiting_requests"), "4 (flag --max-waiting-requests)");
  EXPECT_EQ(shown(*loaded, "scheduler.max_num_batched_tokens"), "32768 (default)");
}

TEST(ConfigTest, LaterFlagWins) {
  const auto loaded = load({.flags = {{"model.path", "a"}, {"model.path", "b"}}});
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->config.model.path, "b");
}

TEST(ConfigTest, FillsEveryFieldFromItsKey) {
  const auto loaded = load({.flags = {{"model.path", "/m"},
                                      {"model.name", "r1"},
                                      {"model.load_format", "safetensors"},
                                      {"model.config_file", "/c"},
                                      {"model.dummy_seed", "9"},
                                      {"model.verify_checksums", "false"},
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
                                      {"server.recovery_timeout", "5s"},
                                      {"server.max_request_time", "4s"},
                                      {"log.level", "debug"},
                                      {"log.format", "json"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Config* config = &loaded->config;
  EXPECT_EQ(config->model.path, "/m");
  EXPECT_EQ(config->model.name, "r1");
  EXPECT_EQ(config->model.load_format, "safetensors");
  EXPECT_EQ(config->model.config_file, "/c");
  EXPECT_EQ(config->model.dummy_seed, 9U);
  EXPECT_FALSE(config->model.verify_checksums);
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
  EXPECT_EQ(config->server.recovery_timeout.count(), 5000);
  EXPECT_EQ(config->server.max_request_time.count(), 4000);
  EXPECT_EQ(config->log.level, "debug");
  EXPECT_EQ(config->log.format, "json");
}

TEST(ConfigTest, AsksForAModelOnlyWhereOneIsServed) {
  const auto loaded = load({});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(
      message_of(require_model(loaded->config)),
      HasSubstr("model.path: expected the directory of a checkpoint; give it with --model"));
  Config config;
  config.model.path = "m";
  EXPECT_TRUE(require_model(config).ok());
  config = {};
  config.model.load_format = "dummy";
  EXPECT_TRUE(require_model(config).ok());
}

TEST(ConfigTest, TakesTheNamesThatOperatorsUse) {
  const auto loaded = load(
      {.environment = {
           "MODEL_PATH=/m", "INFERENCE_MODE=tensor_parallel", "R1D_SCHEDULER__MAX_TOKENS=512"}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(shown(*loaded, "model.path"), "/m (environment MODEL_PATH)");
  EXPECT_EQ(shown(*loaded, "engine.inference_mode"),
            "tensor_parallel (environment INFERENCE_MODE)");
  EXPECT_EQ(shown(*loaded, "scheduler.max_num_batched_tokens"),
            "512 (environment R1D_SCHEDULER__MAX_TOKENS)");
  const TempFile file("scheduler:\n  max_tokens: 1024\n");
  const auto from_file = load({.file = file.path()});
  ASSERT_TRUE(from_file.ok()) << from_file.status();
  EXPECT_EQ(shown(*from_file, "scheduler.max_num_batched_tokens"), "1024 (" + file.path() + ":2)");
  const auto from_flag = load({.file = file.path(), .flags = {{"scheduler.max_tokens", "99"}}});
  ASSERT_TRUE(from_flag.ok()) << from_flag.status();
  EXPECT_EQ(shown(*from_flag, "scheduler.max_num_batched_tokens"), "99 (flag --max-tokens)");
}

TEST(ConfigTest, TakesAnEmptyNameFromOutsideForNone) {
  EXPECT_EQ(load_error({"MODEL_PATH=", "INFERENCE_MODE="}, {}), "accepted");
  EXPECT_THAT(load_error({"R1D_ENGINE__INFERENCE_MODE="}, {}),
              HasSubstr("expected tensor_parallel"));
}

TEST(ConfigTest, RefusesOtherInferenceModesNamingTheOneThereIs) {
  EXPECT_EQ(load_error({"INFERENCE_MODE=pipeline_parallel"}, {}),
            "environment INFERENCE_MODE: engine.inference_mode: expected tensor_parallel, found "
            "\"pipeline_parallel\"");
}

TEST(ConfigTest, RefusesNamesOfOneKeyThatDisagree) {
  EXPECT_EQ(load_error({"R1D_MODEL__PATH=/a", "MODEL_PATH=/b"}, {}),
            "environment MODEL_PATH: two names of model.path disagree: expected \"/a\" as in "
            "environment R1D_MODEL__PATH, found \"/b\"");
  EXPECT_EQ(load_error({"R1D_MODEL__PATH=/a", "MODEL_PATH=/a"}, {}), "accepted");
  const TempFile file("scheduler:\n  max_tokens: 512\n  max_num_batched_tokens: 513\n");
  EXPECT_EQ(load_error({}, {}, file.path()),
            file.path() +
                ":3: two names of scheduler.max_num_batched_tokens disagree: expected "
                "\"512\" as in " +
                file.path() + ":2, found \"513\"");
  const TempFile same("scheduler:\n  max_tokens: 512\n  max_num_batched_tokens: 512\n");
  EXPECT_EQ(load_error({}, {}, same.path()), "accepted");
  EXPECT_THAT(
      load_error({},
                 {{"scheduler.max_tokens", "512"}, {"scheduler.max_num_batched_tokens", "513"}}),
      HasSubstr("flag --max-num-batched-tokens: two names of"));
  // From different sources they are no contradiction: the stronger source wins.
  EXPECT_EQ(load_error({"MODEL_PATH=/b"}, {{"model.path", "/a"}}, file.path()).find("two names"),
            file.path().size() + 4);
  EXPECT_EQ(load_error({"R1D_SCHEDULER__MAX_NUM_BATCHED_TOKENS=600"}, {}, same.path()), "accepted");
}

TEST(ConfigTest, NamesWhereAWrongValueCameFrom) {
  EXPECT_EQ(load_error({}, {{"engine.world_size", "3"}}),
            "flag --world-size: engine.world_size: expected one of 1, 2, 4, 8 ranks, found \"3\"");
  EXPECT_EQ(
      load_error({"R1D_LOG__LEVEL=loud"}, {}),
      "environment R1D_LOG__LEVEL: log.level: expected one of trace, debug, info, warn, error, "
      "found \"loud\"");
  const TempFile file("log:\n  level: info\nscheduler:\n  batch_timeout: 1.5s\n");
  EXPECT_EQ(
      load_error({}, {}, file.path()),
      file.path() +
          ":4: scheduler.batch_timeout: expected a duration such as 10ms, 2s, 5m or 1h, found "
          "\"1.5s\"");
}

TEST(ConfigTest, SaysWhatWasExpectedOfEachType) {
  EXPECT_THAT(load_error({}, {{"engine.num_threads", "4097"}}),
              HasSubstr("expected 0 to 4096 threads, found"));
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

TEST(ConfigTest, NamesBothKeysThatDoNotGoTogetherAndWhereTheyCameFrom) {
  const TempFile file("scheduler:\n  max_num_batched_tokens: 63\n");
  EXPECT_EQ(
      load_error({}, {}, file.path()),
      file.path() +
          ":2: scheduler.max_num_batched_tokens: expected at least scheduler.max_batch_size, so "
          "that every running sequence can decode in each step, found \"63\"; "
          "scheduler.max_batch_size is \"64\" (default)");
  EXPECT_EQ(load_error({"R1D_ENGINE__WORLD_SIZE=4"}, {{"engine.num_threads", "3"}}),
            "flag --num-threads: engine.num_threads: expected 0 or at least engine.world_size, a "
            "thread for every rank, found \"3\"; engine.world_size is \"4\" (environment "
            "R1D_ENGINE__WORLD_SIZE)");
  EXPECT_EQ(
      load_error({}, {{"engine.device", "cuda"}, {"engine.kv_cache_dtype", "f32"}}),
      "flag --kv-cache-dtype: engine.kv_cache_dtype: expected auto, bf16 or fp8, the formats of a "
      "GPU's cache, found \"f32\"; engine.device is \"cuda\" (flag --device)");
  EXPECT_EQ(
      load_error({}, {{"model.load_format", "dummy"}}),
      "flag --load-format: model.config_file: expected the config.json that dummy weights are "
      "made for (--model-config FILE), found \"\" (default); model.load_format is \"dummy\" "
      "(flag --load-format)");
  EXPECT_EQ(load_error({}, {{"model.load_format", "dummy"}, {"model.config_file", "c"}}),
            "accepted");
  EXPECT_THAT(load_error({},
                         {{"model.load_format", "dummy"},
                          {"model.config_file", "c"},
                          {"chat.template_file", "t"}}),
              HasSubstr("model.tokenizer: expected a tokenizer"));
  EXPECT_THAT(load_error({}, {{"scheduler.max_model_len", "1"}}),
              HasSubstr("flag --max-model-len: scheduler.max_model_len: expected 0 or at least 2"));
}

TEST(ConfigTest, RefusesTwoListenersOnOneAddress) {
  const std::string expected = "another address than server.grpc_address";
  EXPECT_THAT(load_error({}, {{"server.management_address", "127.0.0.1:50051"}}),
              HasSubstr(expected));
  EXPECT_THAT(load_error({}, {{"server.grpc_address", "0.0.0.0:8081"}}), HasSubstr(expected));
  EXPECT_THAT(load_error({}, {{"server.grpc_address", "[::]:8081"}}), HasSubstr(expected));
  EXPECT_EQ(load_error({}, {{"server.management_address", "a:0"}, {"server.grpc_address", "a:0"}}),
            "accepted");
  EXPECT_EQ(load_error({}, {{"server.management_address", "a:1"}, {"server.grpc_address", "b:1"}}),
            "accepted");
}

TEST(ConfigTest, NamesTheNearestOfUnknownKeys) {
  EXPECT_EQ(load_error({}, {{"engine.word_size", "1"}}),
            "unknown key \"engine.word_size\"; did you mean engine.world_size?");
  EXPECT_EQ(load_error({"R1D_ENGINE__WORD_SIZE=1"}, {}),
            "unknown environment variable \"R1D_ENGINE__WORD_SIZE\"; did you mean "
            "R1D_ENGINE__WORLD_SIZE?");
}

TEST(ConfigTest, TellsEveryProblemInItsOrder) {
  const TempFile file(
      "log:\n"
      "  level: loud\n"
      "engin:\n"
      "  world_size: 3\n"
      "scheduler:\n"
      "  max_batch_sise: 4\n"
      "  block_size: [16]\n"
      "  batch_timeout: soon\n"
      "server:\n"
      "  grpc_address: 0.0.0.0:8081\n");
  const auto found = problems({.file = file.path(),
                               .environment = {"R1D_CHAT__TEMPLATE=x", "R1D_MODEL__DUMMY_SEED=-"},
                               .flags = {{"engine.num_threads", "many"}}});
  const std::string& name = file.path();
  EXPECT_THAT(found,
              testing::ElementsAre(
                  StartsWith(name + ":2: log.level: expected one of trace, "),
                  name + ":3: unknown key \"engin\"; did you mean engine?",
                  name + ":6: unknown key \"scheduler.max_batch_sise\"; did you mean "
                         "scheduler.max_batch_size?",
                  name + ":7: scheduler.block_size: expected a plain value, found a list",
                  StartsWith(name + ":8: scheduler.batch_timeout: expected a duration "),
                  "unknown environment variable \"R1D_CHAT__TEMPLATE\"; did you mean "
                  "R1D_CHAT__TEMPLATE_FILE?",
                  StartsWith("environment R1D_MODEL__DUMMY_SEED: model.dummy_seed: expected "),
                  "flag --num-threads: engine.num_threads: expected a whole number, found \"many\"",
                  StartsWith(name + ":10: server.management_address: expected another address ")))
      << testing::PrintToString(found);
  EXPECT_EQ(message_of(load({.file = file.path()}).status()), found.front());
}

TEST(ConfigTest, TellsNoProblemOfAGoodConfiguration) {
  EXPECT_THAT(problems({.flags = {{"engine.world_size", "2"}}}), testing::IsEmpty());
}

TEST(ConfigTest, ConcludesNothingFromAValueInDoubt) {
  // Each leaves max_batch_size at 64, which does not go with 8 tokens a step; none means it so.
  for (const char* text : {"  max_batch_sise: 4\n",
                           "  max_batch_size: four\n",
                           "  max_batch_size: [4]\n",
                           "  max_batch_size:\n",
                           "  max_batch_size: \"4\n"}) {
    const TempFile file(std::string("scheduler:\n  max_num_batched_tokens: 8\n") + text);
    EXPECT_THAT(problems({.file = file.path()}),
                testing::ElementsAre(StartsWith(file.path() + ":")))
        << text;
  }
  const TempFile unread("scheduler:\n  max_num_batched_tokens: 8\n");
  EXPECT_THAT(problems({.file = unread.path(), .environment = {"R1D_SCHEDULER__MAX_BATCH_SISE=4"}}),
              testing::ElementsAre(HasSubstr("unknown environment variable")));
  EXPECT_THAT(problems({.file = "/nonexistent/r1d.yaml"}),
              testing::ElementsAre(HasSubstr("cannot read the configuration")));
}

TEST(ConfigTest, RefusesAVariableThatLacksAnUnderscore) {
  EXPECT_EQ(load_error({"R1D_LOG_LEVEL=debug"}, {}),
            "unknown environment variable \"R1D_LOG_LEVEL\"; did you mean R1D_LOG__LEVEL?");
  EXPECT_EQ(load_error({"R1D_ENGINE_WORLD_SIZE=2"}, {}),
            "unknown environment variable \"R1D_ENGINE_WORLD_SIZE\"; did you mean "
            "R1D_ENGINE__WORLD_SIZE?");
}

TEST(ConfigTest, LeavesAloneTheVariablesKubernetesSets) {
  EXPECT_EQ(load_error({"R1D_PORT=tcp://10.0.0.1:50051",
                        "R1D_SERVER_SERVICE_HOST=10.0.0.1",
                        "R1D_SERVER_PORT_50051_TCP=tcp://10.0.0.1:50051",
                        "PATH=/bin",
                        "NO_EQUALS",
                        "R1D_ENGINE__WORLD_SIZE_"},
                       {}),
            "accepted");
}

TEST(ConfigTest, RefusesAFileThatCannotBeRead) {
  EXPECT_THAT(load_error({}, {}, "/nonexistent/r1d.yaml"),
              HasSubstr("/nonexistent/r1d.yaml: cannot read the configuration: No such file"));
  EXPECT_THAT(load_error({}, {}, testing::TempDir()), HasSubstr("cannot read"));
  EXPECT_THAT(load_error({}, {}, "/dev/zero"), HasSubstr("at most 1048576 bytes"));
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

TEST(ConfigTest, PrintsWhereEachValueCameFromAndReadsThatBackToo) {
  const TempFile file("log:\n  level: warn\nserver: {reflection: false}\n");
  const auto loaded = load({.file = file.path(),
                            .environment = {"R1D_SERVER__MAX_REQUEST_TIME=90"},
                            .flags = {{"model.path", "#m"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const std::string text = print(*loaded);
  for (const std::string& line : std::vector<std::string>{
           "  path: \"#m\"  # flag --model\n",
           "  max_request_time: 90ms  # environment R1D_SERVER__MAX_REQUEST_TIME\n",
           "  block_size: 64  # default\n",
           "  level: warn  # " + file.path() + ":2\n",
           "  reflection: false  # " + file.path() + ":3\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  const auto read = parse_yaml(text, "shown");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(print(*read), print(loaded->config));
}

}  // namespace
}  // namespace r1d::config
