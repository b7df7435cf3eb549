// SPDX-License-Identifier: Apache-2.0
// docs/planning.md shows what `r1d plan` prints; R1D_UPDATE_DOCS=1 makes this test rewrite that.
#include "cli/plan.h"

#include <cstdlib>
#include <fstream>
#include <iterator>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "r1d/base/status.h"

#include "tests/support/test_data.h"

namespace r1d::cli {
namespace {

using testing::HasSubstr;

const std::string kDocument = test::data("../../docs/planning.md");

PlanOptions r1_on(const char* gpu, int32_t world_size) {
  PlanOptions options;
  options.model_config = test::data("configs/deepseek-r1.json");
  options.gpu = gpu;
  options.world_size = world_size;
  options.max_num_batched_tokens = 8192;
  return options;
}

std::string text_of(const PlanOptions& options) {
  const auto report = make_plan_report(options);
  return report.ok() ? plan_text(*report) : "r1d: " + message_of(report.status()) + "\n";
}

nlohmann::json json_of(const PlanOptions& options) {
  const auto report = make_plan_report(options);
  EXPECT_TRUE(report.ok()) << message_of(report.status());
  return report.ok() ? nlohmann::json::parse(plan_json(*report)) : nlohmann::json();
}

std::string refusal(const PlanOptions& options) {
  return message_of(make_plan_report(options).status());
}

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// The code block behind `<!-- plan: name -->`.
void check_document(const std::string& name, const std::string& want) {
  std::string document = read_file(kDocument);
  const std::string mark = "<!-- plan: " + name + " -->\n```text\n";
  const size_t begin = document.find(mark);
  ASSERT_NE(begin, std::string::npos) << kDocument << " lacks " << mark;
  const size_t text = begin + mark.size();
  const size_t end = document.find("```", text);
  ASSERT_NE(end, std::string::npos);
  if (document.substr(text, end - text) == want) return;
  if (std::getenv("R1D_UPDATE_DOCS") != nullptr) {
    document.replace(text, end - text, want);
    std::ofstream(kDocument) << document;
    return;
  }
  EXPECT_EQ(document.substr(text, end - text), want) << "R1D_UPDATE_DOCS=1 rewrites " << kDocument;
}

TEST(PlanTest, TheDocumentShowsWhatIsPrinted) {
  check_document("r1-8xh200", text_of(r1_on("h200", 8)));
  check_document("r1-8xh100", text_of(r1_on("h100-80gb", 8)));
  check_document("r1-16xa100", text_of(r1_on("a100-80gb", 16)));
}

TEST(PlanTest, JsonSaysTheSameInBytesAndSeconds) {
  PlanOptions options = r1_on("h200", 8);
  options.max_model_len = 32768;
  options.context = 1024;
  const nlohmann::json json = json_of(options);
  EXPECT_EQ(json["fits"], true);
  EXPECT_EQ(json["device"]["name"], "h200");
  EXPECT_EQ(json["kv_cache"]["bytes_per_token"], 70272);
  const int64_t blocks = json["kv_cache"]["num_blocks"];
  EXPECT_EQ(json["kv_cache"]["tokens"], blocks * 64);
  EXPECT_EQ(json["kv_cache"]["full_sequences"], blocks * 64 / 32768);
  int64_t sum = 0;
  for (const auto& [part, bytes] : json["rank_bytes"].items()) {
    if (part != "sum") sum += bytes.get<int64_t>();
  }
  EXPECT_EQ(json["rank_bytes"]["sum"], sum);
  EXPECT_LE(sum, json["rank_memory_bytes"].get<int64_t>());
  ASSERT_EQ(json["splits"].size(), 2U);
  const nlohmann::json& sliced = json["splits"][0];
  EXPECT_EQ(sliced["experts"], "tensor_parallel");
  EXPECT_EQ(sliced["weight_bytes"], 85'145'008'512);
  ASSERT_EQ(sliced["decode"].size(), 4U);
  EXPECT_EQ(sliced["decode"][3]["batch"], 256);
  EXPECT_NEAR(sliced["decode"][0]["step_seconds"].get<double>(), 1.35e-3 + 0.65e-3, 2e-5);
  EXPECT_GT(sliced["prefill"]["tokens_per_second"].get<double>(), 40000);
}

TEST(PlanTest, TheWayInForceStandsFirst) {
  PlanOptions options = r1_on("h200", 8);
  options.expert_parallel = true;
  const nlohmann::json json = json_of(options);
  EXPECT_EQ(json["splits"][0]["experts"], "expert_parallel");
  EXPECT_EQ(json["splits"][1]["experts"], "tensor_parallel");
  EXPECT_EQ(json["rank_bytes"]["experts"], json_of(options)["rank_bytes"]["experts"]);
}

TEST(PlanTest, AWayThatDoesNotDivideSaysWhy) {
  PlanOptions options;
  options.model_config = test::data("../../configs/models/v3-1b-fp8.json");
  options.gpu = "h200";
  options.world_size = 8;
  EXPECT_FALSE(json_of(options)["splits"][1].contains("refused"));
  options.world_size = 64;
  EXPECT_THAT(refusal(options), HasSubstr("num_attention_heads 16 cannot be split over 64 ranks"));
}

TEST(PlanTest, OneRankHasNoOtherWay) {
  PlanOptions options;
  options.model_config = test::data("../../configs/models/v3-1b-fp8.json");
  options.gpu = "l40s";
  const nlohmann::json json = json_of(options);
  EXPECT_EQ(json["splits"].size(), 1U);
  EXPECT_EQ(json["rank_bytes"]["collectives"], 0);
  EXPECT_THAT(text_of(options), HasSubstr("sm_89: r1d's FP8 products are made for sm_90a"));
}

TEST(PlanTest, TheCpuHasAPlanAndNoFloors) {
  PlanOptions options;
  options.model = test::data("golden/v3-ragged-fp8");
  options.gpu = "cpu";
  options.max_num_batched_tokens = 64;
  const nlohmann::json json = json_of(options);
  EXPECT_EQ(json["device"]["name"], "cpu");
  EXPECT_FALSE(json["splits"][0].contains("decode"));
  EXPECT_EQ(json["rank_bytes"]["context"], 0);
  EXPECT_THAT(text_of(options), HasSubstr("weights, checked against config.json"));
}

TEST(PlanTest, AConfigurationFileIsPlannedAsItWouldBeServed) {
  const std::string file = testing::TempDir() + "/plan.yaml";
  std::ofstream(file) << "model:\n  load_format: dummy\n  config_file: "
                      << test::data("configs/deepseek-r1.json")
                      << "\nengine:\n  world_size: 8\n  kv_cache_memory: "
                         "10Gi\nscheduler:\n  max_num_batched_tokens: 4096\n";
  PlanOptions options;
  options.config_file = file;
  options.gpu = "h200";
  const nlohmann::json json = json_of(options);
  EXPECT_EQ(json["world_size"], 8);
  EXPECT_EQ(json["kv_cache"]["num_blocks"], (int64_t{10} << 30) / (70272 * 64));
  EXPECT_EQ(json["rank_bytes"]["activations"], 3 * 4096 * 7168 * 2);
  options.max_num_batched_tokens = 1024;
  EXPECT_EQ(json_of(options)["rank_bytes"]["activations"], 3 * 1024 * 7168 * 2) << "a flag wins";
}

TEST(PlanTest, WhatCannotBeAskedForIsNamed) {
  PlanOptions nothing;
  nothing.gpu = "h200";
  EXPECT_THAT(refusal(r1_on("h300", 8)), HasSubstr("--gpu h300: expected h200, h100-80gb"));
  EXPECT_THAT(refusal(nothing), HasSubstr("nothing to plan"));
  PlanOptions missing;
  missing.gpu = "h200";
  missing.model = testing::TempDir() + "/no-such-model";
  EXPECT_THAT(refusal(missing), HasSubstr("no-such-model"));
}

}  // namespace
}  // namespace r1d::cli
