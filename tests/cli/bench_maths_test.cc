// SPDX-License-Identifier: Apache-2.0
// The arithmetic of `r1d bench serve`: lengths, arrivals, percentiles, goodput, units.
#include <algorithm>
#include <cmath>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "cli/bench/arrivals.h"
#include "cli/bench/goal.h"
#include "cli/bench/lengths.h"
#include "cli/bench/result.h"
#include "cli/bench/scrape.h"
#include "cli/bench/units.h"

namespace r1d::cli::bench {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<double> draws(const std::string& text, uint64_t seed, int count) {
  const Lengths lengths = Lengths::parse(text).value();
  std::vector<double> values;
  for (int i = 0; i < count; ++i) values.push_back(lengths.draw(seed, static_cast<uint64_t>(i)));
  return values;
}

TEST(BenchLengthsTest, AFixedLengthIsAlwaysTheSame) {
  EXPECT_THAT(draws("128", 1, 3), ElementsAre(128, 128, 128));
}

TEST(BenchLengthsTest, UniformReachesBothEndsAndNothingBeyond) {
  const std::vector<double> values = draws("uniform:3:7", 5, 10'000);
  EXPECT_EQ(*std::min_element(values.begin(), values.end()), 3);
  EXPECT_EQ(*std::max_element(values.begin(), values.end()), 7);
  EXPECT_THAT(Latency::of(values).mean, DoubleNear(5, 0.1));
}

TEST(BenchLengthsTest, LognormalHasItsMedianAndSpreadAndKeepsItsBound) {
  const Latency free = Latency::of(draws("lognormal:400:0.5", 5, 20'000));
  EXPECT_THAT(free.percentile(50), DoubleNear(400, 12));
  // One sigma above the median holds 84.13 % of a normal distribution.
  EXPECT_THAT(free.percentile(84), DoubleNear(400 * std::exp(0.5), 25));
  EXPECT_EQ(Latency::of(draws("lognormal:400:0.5:700", 5, 20'000)).max(), 700);
}

TEST(BenchLengthsTest, SameSeedSameDrawsAndAnotherSeedOthers) {
  EXPECT_EQ(draws("lognormal:400:0.5", 5, 100), draws("lognormal:400:0.5", 5, 100));
  EXPECT_NE(draws("lognormal:400:0.5", 5, 100), draws("lognormal:400:0.5", 6, 100));
}

TEST(BenchLengthsTest, WhatIsNoLengthIsRefused) {
  for (const char* const text : {"",
                                 "0",
                                 "-1",
                                 "12x",
                                 "uniform:7:3",
                                 "uniform:0:3",
                                 "uniform:3",
                                 "lognormal:10",
                                 "lognormal:10:-1",
                                 "lognormal:10:nan",
                                 "lognormal:10:1:0",
                                 "normal:1:2",
                                 "99999999"}) {
    const auto parsed = Lengths::parse(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_THAT(message_of(parsed.status()), HasSubstr("expected")) << text;
  }
}

std::vector<double> gaps(bool poisson, uint64_t seed, int count) {
  Arrivals arrivals(/*rate=*/50, poisson, seed);
  std::vector<double> values;
  for (double last = arrivals.next(); count > 0; --count) {
    const double due = arrivals.next();
    values.push_back(due - last);
    last = due;
  }
  return values;
}

TEST(BenchArrivalsTest, PoissonGapsAreExponential) {
  const std::vector<double> values = gaps(true, 3, 20'000);
  const Latency gap = Latency::of(values);
  EXPECT_THAT(gap.mean, DoubleNear(0.02, 0.0005));
  EXPECT_THAT(gap.percentile(50), DoubleNear(0.02 * std::log(2), 0.0005));
  double squares = 0;
  for (const double value : values) squares += (value - gap.mean) * (value - gap.mean);
  const double deviation = std::sqrt(squares / static_cast<double>(values.size()));
  EXPECT_THAT(deviation, DoubleNear(0.02, 0.0007));  // an exponential's equals its mean
}

TEST(BenchArrivalsTest, SameSeedSameTimesAndAnotherSeedOthers) {
  EXPECT_EQ(gaps(true, 3, 100), gaps(true, 3, 100));
  EXPECT_NE(gaps(true, 3, 100), gaps(true, 4, 100));
}

TEST(BenchArrivalsTest, ConstantGapsAreTheRate) {
  for (const double gap : gaps(false, 1, 100)) EXPECT_NEAR(gap, 0.02, 1e-12);
}

TEST(BenchArrivalsTest, TheFirstIsDueAtOnce) {
  EXPECT_EQ(Arrivals(3, true, 1).next(), 0);
}

TEST(BenchPercentilesTest, QuantilesAreLinearBetweenNeighbours) {
  const std::vector<double> values = {10, 20, 40};
  EXPECT_EQ(quantile(values, 0), 10);
  EXPECT_EQ(quantile(values, 0.25), 15);
  EXPECT_EQ(quantile(values, 0.5), 20);
  EXPECT_EQ(quantile(values, 0.75), 30);
  EXPECT_EQ(quantile(values, 1), 40);
}

TEST(BenchPercentilesTest, OfUnsortedValuesOfOneAndOfNone) {
  std::vector<double> hundred;
  for (int i = 100; i >= 0; --i) hundred.push_back(i);
  const Latency latency = Latency::of(hundred);
  EXPECT_EQ(latency.count, 101);
  EXPECT_DOUBLE_EQ(latency.mean, 50);
  EXPECT_NEAR(latency.percentile(99), 99, 1e-9);
  EXPECT_EQ(latency.max(), 100);
  EXPECT_EQ(Latency::of({7}).percentile(50), 7);
  EXPECT_EQ(Latency::of({}).percentile(99), 0);
}

// Due at 1, sent at 1.5, `tokens` tokens from `first` on, each `gap` after the one before.
Record answer(double first, int32_t tokens, double gap) {
  Record record{.intended = 1, .sent = 1.5, .num_output_tokens = tokens};
  record.first_token = first;
  record.last_token = first + gap * (tokens - 1);
  record.end = *record.last_token + 0.1;
  return record;
}

TEST(BenchRecordTest, LatenciesCountFromTheTimeARequestWasDue) {
  const Record record = answer(3, 5, 0.25);
  EXPECT_DOUBLE_EQ(*record.ttft(), 2);
  EXPECT_DOUBLE_EQ(*record.tpot(), 0.25);
  EXPECT_DOUBLE_EQ(record.e2e(), 3.1);
  EXPECT_FALSE(answer(3, 1, 0).tpot().has_value());
}

TEST(BenchGoalTest, ARequestIsGoodWithinEveryLimit) {
  const Goal goal = Goal::parse("ttft:2s,tpot:250ms").value();
  EXPECT_TRUE(goal.met_by(answer(3, 5, 0.25)));
  EXPECT_FALSE(goal.met_by(answer(3.001, 5, 0.25)));
  EXPECT_FALSE(goal.met_by(answer(3, 5, 0.26)));
  EXPECT_TRUE(goal.met_by(answer(3, 1, 0)));  // one token has no gap
  Record failed = answer(2, 5, 0.1);
  failed.code = "UNAVAILABLE";
  EXPECT_FALSE(goal.met_by(failed));
  Record cut = answer(2, 5, 0.1);
  cut.unfinished = true;
  EXPECT_FALSE(goal.met_by(cut));
  Record silent = answer(2, 5, 0.1);
  silent.first_token.reset();
  EXPECT_FALSE(goal.met_by(silent));
}

TEST(BenchGoalTest, WhatIsNoGoalIsRefusedByItsPart) {
  for (const char* const text :
       {"", "ttft", "ttft:5", "ttft:-5ms", "speed:5ms", "ttft:5ms,", "ttft:5ms,ttft:6ms"}) {
    EXPECT_FALSE(Goal::parse(text).ok()) << text;
  }
  EXPECT_THAT(message_of(Goal::parse("ttft:5ms,itl:6ms").status()), HasSubstr("\"itl:6ms\""));
}

TEST(BenchSummaryTest, FailedAndUnfinishedRequestsAreCountedApartAndNotTimed) {
  RunLog log;
  log.seconds = 10;
  log.records = {answer(2, 3, 0.1), answer(3, 5, 0.3), answer(9, 2, 9), answer(9, 2, 9)};
  log.records[0].gaps = {0.1F, 0.1F};
  log.records[1].gaps = {0.3F, 0.3F, 0.3F, 0.3F};
  log.records[2].code = "UNAVAILABLE";
  log.records[3].unfinished = true;
  const Result result = summarize(log, Goal::parse("tpot:200ms").value());
  EXPECT_EQ(result.num_sent, 4);
  EXPECT_EQ(result.num_ok, 2);
  EXPECT_EQ(result.num_failed(), 1);
  EXPECT_EQ(result.errors.at("UNAVAILABLE"), 1);
  EXPECT_EQ(result.num_unfinished, 1);
  EXPECT_EQ(result.num_output_tokens, 8);
  EXPECT_EQ(result.goodput->num_good, 1);
  EXPECT_EQ(result.latencies.at("itl").count, 6);
  EXPECT_NEAR(result.latencies.at("itl").max(), 0.3, 1e-6);
  EXPECT_EQ(result.latencies.at("ttft").count, 2);
  EXPECT_EQ(result.latencies.at("send_lag").count, 4);
  EXPECT_DOUBLE_EQ(result.latencies.at("send_lag").max(), 0.5);
}

TEST(BenchSummaryTest, SeriesAddUpToTheTotals) {
  RunLog log;
  log.seconds = 95.03;  // more fine bins than a chart shows
  log.tokens_by_bin.assign(951, 4);
  for (int i = 0; i < 95; ++i) {
    Record record = answer(i + 0.5, 40, 0.001);
    record.sent = i;
    record.end = i + 0.9;
    log.records.push_back(record);
  }
  const Series series = summarize(log, std::nullopt).series;
  EXPECT_LE(series.in_flight.size(), 240U);
  double tokens = 0;
  double completed = 0;
  for (const double value : series.output_tokens_per_second) tokens += value * series.bin_seconds;
  for (const double value : series.completed_per_second) completed += value * series.bin_seconds;
  EXPECT_NEAR(tokens, 4 * 951, 1e-6);
  EXPECT_NEAR(completed, 95, 1e-6);
  EXPECT_EQ(series.in_flight.back(), 0);
}

TEST(BenchUnitsTest, DurationsNeedAUnit) {
  EXPECT_DOUBLE_EQ(*parse_seconds("500ms"), 0.5);
  EXPECT_DOUBLE_EQ(*parse_seconds("1.5s"), 1.5);
  EXPECT_DOUBLE_EQ(*parse_seconds("2m"), 120);
  EXPECT_DOUBLE_EQ(*parse_seconds("250us"), 0.00025);
  for (const char* const text : {"", "5", "ms", "5 s", "0s", "-1s", "infs", "1d"})
    EXPECT_FALSE(parse_seconds(text).has_value()) << text;
}

TEST(BenchUnitsTest, NumbersAreShownWithThreeDigits) {
  EXPECT_EQ(format_seconds(0.01234), "12.3 ms");
  EXPECT_EQ(format_seconds(0.9999), "1.00 s");
  EXPECT_EQ(format_seconds(0.000012), "12.0 us");
  EXPECT_EQ(format_number(12.34), "12.3");
  EXPECT_EQ(format_number(1234567.8), "1,234,568");
  EXPECT_EQ(format_number(123), "123");
}

TEST(BenchScrapeTest, AMetricIsFoundByItsWholeName) {
  const std::string text = "# HELP a_total x\na_total_other 7\na_total 1.5e2\n";
  EXPECT_EQ(*metric_value(text, "a_total"), 150);
  EXPECT_TRUE(absl::IsNotFound(metric_value(text, "a").status()));
}

}  // namespace
}  // namespace r1d::cli::bench
