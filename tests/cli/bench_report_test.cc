// SPDX-License-Identifier: Apache-2.0
// What `r1d bench serve` leaves behind: JSON and pages.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "cli/bench/chart.h"
#include "cli/bench/report.h"
#include "cli/bench/result.h"

namespace r1d::cli::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

Result some_result(const std::string& label, double pace) {
  RunLog log;
  log.seconds = 4;
  log.tokens_by_bin.assign(40, 6);
  for (int i = 0; i < 12; ++i) {
    Record record{.intended = i * 0.3, .sent = i * 0.3 + 0.001, .num_output_tokens = 3};
    record.first_token = record.sent + pace * (1 + i);
    record.last_token = *record.first_token + 2 * pace;
    record.end = *record.last_token;
    record.gaps = {static_cast<float>(pace), static_cast<float>(pace)};
    record.queue = pace / 10;
    record.num_input_tokens = 7;
    if (i == 5) record.code = "RESOURCE_EXHAUSTED";
    log.records.push_back(record);
  }
  Result result = summarize(log, Goal::parse("ttft:50ms,e2e:2s").value());
  result.label = label;
  result.started_at = "2026-01-02T03:04:05Z";
  result.version = "0.1.0";
  result.server = {{"address", "127.0.0.1:1"}, {"model", "m"}};
  result.workload = {{"rate", "5/s poisson"}};
  result.server_cost = ServerCost{1.5, 2e8};
  return result;
}

TEST(BenchJsonTest, AResultComesBackWhole) {
  const Result result = some_result("a \"quoted\" <run>", 0.01);
  const std::string text = to_json(result).dump();
  const auto again = result_from_json(text);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(to_json(*again).dump(), text);
  EXPECT_EQ(again->num_failed(), 1);
  EXPECT_EQ(again->goodput->goal.limits.at("ttft"), 0.05);
}

TEST(BenchJsonTest, WhatWasNotMeasuredIsNull) {
  Result result = some_result("bare", 0.01);
  result.goodput.reset();
  result.server_cost.reset();
  const nlohmann::json json = to_json(result);
  EXPECT_TRUE(json["goodput"].is_null());
  EXPECT_TRUE(json["server_cost"].is_null());
  EXPECT_FALSE(result_from_json(json.dump())->goodput.has_value());
}

TEST(BenchJsonTest, FilesOfOthersAreRefusedByField) {
  const nlohmann::json good = to_json(some_result("x", 0.01));
  const auto message = [&good](const char* pointer, const nlohmann::json& value) {
    nlohmann::json bad = good;
    bad[nlohmann::json::json_pointer(pointer)] = value;
    return message_of(result_from_json(bad.dump()).status());
  };
  EXPECT_THAT(message("/schema", "other/1"), HasSubstr("other/1"));
  EXPECT_THAT(message("/seconds", "long"), HasSubstr("/seconds"));
  EXPECT_THAT(message("/errors", nlohmann::json{{"X", "y"}}), HasSubstr("/errors"));
  EXPECT_THAT(message("/latency_seconds/ttft/quantiles", {1, 2}), HasSubstr("ttft"));
  EXPECT_THAT(message("/series/in_flight", nlohmann::json::array()), HasSubstr("/series"));
  nlohmann::json without = good;
  without.erase("latency_seconds");
  EXPECT_THAT(message_of(result_from_json(without.dump()).status()), HasSubstr("missing"));
  EXPECT_FALSE(result_from_json("[]").ok());
  EXPECT_FALSE(result_from_json("{").ok());
}

// Every element that is opened is closed, in order. What the page's writer produces has no comments
// and no `>` inside attributes.
std::string unbalanced(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at + 1)) {
    const size_t end = html.find('>', at);
    if (end == std::string::npos) return html.substr(at, 40);
    const std::string tag = html.substr(at + 1, end - at - 1);
    if (tag.starts_with('!') || tag.ends_with('/')) continue;
    if (!tag.starts_with('/')) {
      open.push_back(tag.substr(0, tag.find_first_of(" \n")));
    } else if (open.empty() || open.back() != tag.substr(1)) {
      return tag;
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : open.back();
}

TEST(BenchHtmlTest, ThePageIsWellFormedAndNeedsNothingElse) {
  const std::vector<Result> results = {some_result("slow & <b>old</b>", 0.02),
                                       some_result("fast", 0.001)};
  for (const size_t count : {1U, 2U}) {
    const std::string html = render_html(std::span(results).first(count));
    EXPECT_EQ(unbalanced(html), "");
    EXPECT_THAT(html, HasSubstr("slow &amp; &lt;b&gt;old"));
    EXPECT_THAT(html, HasSubstr("<polyline"));
    for (const char* const reference :
         {"http:", "https:", "src=", "href=", "url(", "@import", "<script"})
      EXPECT_THAT(html, Not(HasSubstr(reference)));
  }
}

TEST(BenchHtmlTest, ARunWithoutASingleAnswerHasAPageToo) {
  const Result nothing = [] {
    Result result = summarize(RunLog(), std::nullopt);
    result.label = "nothing";
    return result;
  }();
  const std::string html = render_html(std::span(&nothing, 1));
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("inf\"")));
}

TEST(BenchChartTest, TicksAreRoundAndReachTheTop) {
  EXPECT_THAT(linear_ticks(9.5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(linear_ticks(5), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(linear_ticks(0), ElementsAre(0, 1));
  for (const double highest : {1e-9, 0.31, 1.0, 7.77, 99.0, 123456.0}) {
    const std::vector<double> ticks = linear_ticks(highest);
    EXPECT_GE(ticks.back(), highest * (1 - 1e-9));
    EXPECT_LE(ticks.size(), 8U) << highest;
  }
}

TEST(BenchTableTest, SaysWhatWentWrongAndWhatWasGood) {
  Result result = some_result("x", 0.01);
  result.ended_early = "interrupted";
  const std::string text = render_table(result);
  for (const char* const part : {"1 RESOURCE_EXHAUSTED", "interrupted", "ttft", "goodput", "11 ok"})
    EXPECT_THAT(text, HasSubstr(part));
}

TEST(BenchTableTest, AComparisonSaysHowManyTimesTheFirst) {
  const std::vector<Result> results = {some_result("a", 0.01), some_result("b", 0.02)};
  EXPECT_THAT(render_comparison(results), HasSubstr("(2.00x)"));
}

}  // namespace
}  // namespace r1d::cli::bench
