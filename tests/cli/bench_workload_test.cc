// SPDX-License-Identifier: Apache-2.0
#include <fstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "cli/bench/workload.h"

namespace r1d::cli::bench {
namespace {

using ::testing::HasSubstr;

std::string file_of(const std::string& text) {
  const std::string path = ::testing::TempDir() + "bench_workload_" +
                           ::testing::UnitTest::GetInstance()->current_test_info()->name();
  std::ofstream(path) << text;
  return path;
}

WorkloadOptions options() {
  WorkloadOptions some;
  some.input = Lengths::parse("uniform:5:50").value();
  some.output = Lengths::parse("uniform:1:9").value();
  return some;
}

std::string generate(const Workload& workload, int64_t index) {
  return std::get<v1::GenerateRequest>(workload.ask(index)).SerializeAsString();
}

TEST(BenchWorkloadTest, RequestsRepeatBySeedAndDifferByIndex) {
  const Workload one = Workload::open(options(), 511).value();
  const Workload same = Workload::open(options(), 511).value();
  WorkloadOptions other_seed = options();
  other_seed.seed = 2;
  const Workload other = Workload::open(other_seed, 511).value();
  EXPECT_EQ(generate(one, 3), generate(same, 3));
  EXPECT_NE(generate(one, 3), generate(one, 4));
  EXPECT_NE(generate(one, 3), generate(other, 3));
}

TEST(BenchWorkloadTest, RandomTokensStayInTheVocabularyAndEndWhenAsked) {
  const Workload workload = Workload::open(options(), 7).value();
  for (int64_t i = 0; i < 50; ++i) {
    const auto request = std::get<v1::GenerateRequest>(workload.ask(i));
    for (const int32_t id : request.prompt().token_ids().ids()) EXPECT_LE(id, 7);
    EXPECT_TRUE(request.sampling().ignore_eos());
    EXPECT_GE(request.sampling().max_tokens(), 1);
    EXPECT_LE(request.sampling().max_tokens(), 9);
  }
}

TEST(BenchWorkloadTest, PromptsShareTheirPrefixAndNothingElse) {
  WorkloadOptions shared = options();
  shared.shared_prefix = 20;
  const Workload workload = Workload::open(shared, 100'000).value();
  const auto a = std::get<v1::GenerateRequest>(workload.ask(0)).prompt().token_ids();
  const auto b = std::get<v1::GenerateRequest>(workload.ask(1)).prompt().token_ids();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(a.ids(i), b.ids(i));
  EXPECT_GE(a.ids_size(), 25);
  EXPECT_NE(a.ids(20), b.ids(20));
}

TEST(BenchWorkloadTest, LengthsComeFromAFileInTurn) {
  WorkloadOptions listed = options();
  listed.lengths_file = file_of("# input output\n10 2\n\n20,3\n");
  const Workload workload = Workload::open(listed, 511).value();
  for (const auto& [index, input, output] : {std::tuple(0, 10, 2), {1, 20, 3}, {2, 10, 2}}) {
    const auto request = std::get<v1::GenerateRequest>(workload.ask(index));
    EXPECT_EQ(request.prompt().token_ids().ids_size(), input);
    EXPECT_EQ(request.sampling().max_tokens(), output);
  }
}

TEST(BenchWorkloadTest, RequestsComeFromAFileInTurn) {
  WorkloadOptions listed = options();
  listed.requests_file = file_of(
      "{\"text\": \"hello\", \"max_tokens\": 4}\n"
      "{\"token_ids\": [1, 2]}\n"
      "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n");
  const Workload workload = Workload::open(listed, 511).value();
  const auto text = std::get<v1::GenerateRequest>(workload.ask(0));
  EXPECT_EQ(text.prompt().text(), "hello");
  EXPECT_EQ(text.sampling().max_tokens(), 4);
  EXPECT_FALSE(text.sampling().ignore_eos());
  EXPECT_EQ(std::get<v1::GenerateRequest>(workload.ask(1)).prompt().token_ids().ids(1), 2);
  EXPECT_EQ(std::get<v1::ChatRequest>(workload.ask(2)).messages(0).content(), "hi");
  EXPECT_EQ(std::get<v1::GenerateRequest>(workload.ask(3)).prompt().text(), "hello");
}

TEST(BenchWorkloadTest, ABadLineIsNamed) {
  for (const char* const line : {"10", "10 x", "0 5", "10 5 7", "ten five"}) {
    WorkloadOptions listed = options();
    listed.lengths_file = file_of(std::string("1 1\n") + line + "\n");
    const auto workload = Workload::open(listed, 511);
    ASSERT_FALSE(workload.ok()) << line;
    EXPECT_THAT(message_of(workload.status()), HasSubstr(listed.lengths_file + ":2")) << line;
  }
  for (const char* const line : {"[]",
                                 "{",
                                 "{\"text\": 5}",
                                 "{\"text\": \"a\", \"token_ids\": [1]}",
                                 "{\"token_ids\": [512]}",
                                 "{\"token_ids\": []}",
                                 "{\"messages\": [{\"role\": \"user\"}]}",
                                 "{\"text\": \"a\", \"max_tokens\": 0}"}) {
    WorkloadOptions listed = options();
    listed.requests_file = file_of(std::string(line) + "\n");
    const auto workload = Workload::open(listed, 511);
    ASSERT_FALSE(workload.ok()) << line;
    EXPECT_THAT(message_of(workload.status()), HasSubstr(listed.requests_file + ":1")) << line;
  }
}

TEST(BenchWorkloadTest, AnEmptyFileIsRefused) {
  WorkloadOptions listed = options();
  listed.requests_file = file_of("# nothing\n");
  EXPECT_FALSE(Workload::open(listed, 511).ok());
}

}  // namespace
}  // namespace r1d::cli::bench
