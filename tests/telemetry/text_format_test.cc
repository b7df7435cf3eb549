// SPDX-License-Identifier: Apache-2.0
#include "telemetry/text_format.h"

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include "r1d/base/clock.h"
#include "r1d/telemetry/metrics.h"

#include "telemetry/registry.h"

namespace r1d::telemetry {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const ModelLabels kLabels{.name = "deepseek-r1",
                          .quantization = "fp8_e4m3",
                          .devices = {"cpu"},
                          .block_size = 64,
                          .num_blocks = 1000,
                          .cache_dtype = "bf16",
                          .prefix_cache = true};

MetricFamily family(MetricType type, std::vector<ClientMetric> metrics) {
  return {.name = "r1d_x", .help = "What \\ it is.", .type = type, .metric = std::move(metrics)};
}

std::string expected(const std::vector<MetricFamily>& families) {
  return prometheus::TextSerializer().Serialize(families);
}

// The same with every value to 15 digits. prometheus-cpp writes 16, some of which the shortest text
// that reads back does not have: 0.07000000000000001 for 0.07.
std::string rounded(const std::string& text) {
  std::istringstream in(text);
  std::ostringstream out;
  out.precision(15);
  for (std::string line; std::getline(in, line);) {
    const size_t space = line.rfind(' ');
    if (line.starts_with('#') || space == std::string::npos) {
      out << line << '\n';
    } else {
      out << line.substr(0, space) << ' ' << std::strtod(line.c_str() + space, nullptr) << '\n';
    }
  }
  return out.str();
}

TEST(TextFormatTest, WritesNumbersAsPrometheusCppDoes) {
  for (const double value : {0.0,
                             -0.0,
                             1.0,
                             -1.0,
                             0.1,
                             0.3,
                             1e-9,
                             1.0 / 3,
                             2.5e-7,
                             123456789.0,
                             999999999999999.0,
                             1e15,
                             1e16,
                             1.5e15,
                             1e22,
                             1e300,
                             kInfinity,
                             -kInfinity,
                             std::numeric_limits<double>::quiet_NaN()}) {
    ClientMetric metric;
    metric.gauge.value = value;
    const std::vector<MetricFamily> families{family(MetricType::Gauge, {metric})};
    EXPECT_EQ(text_format(families), expected(families));
  }
}

TEST(TextFormatTest, WritesNumbersSoThatTheyReadBack) {
  ClientMetric metric;
  metric.gauge.value = 0.1 + 0.2;
  const std::string text = text_format({family(MetricType::Gauge, {metric})});
  EXPECT_NE(text.find("\nr1d_x 0.30000000000000004\n"), std::string::npos) << text;
}

TEST(TextFormatTest, WritesLabelsAndHistogramsAsPrometheusCppDoes) {
  ClientMetric counter;
  counter.counter.value = 7;
  counter.label = {{"path", "a\\b \"c\"\nd"}, {"code", ""}};
  ClientMetric histogram;
  histogram.histogram = {.sample_count = 5,
                         .sample_sum = 1.25,
                         .bucket = {{.cumulative_count = 2, .upper_bound = 0.005},
                                    {.cumulative_count = 4, .upper_bound = 1e6}}};
  ClientMetric closed = histogram;
  closed.label = {{"kind", "x"}};
  closed.histogram.bucket.push_back({.cumulative_count = 5, .upper_bound = kInfinity});
  MetricFamily bare = family(MetricType::Counter, {});
  bare.help.clear();
  const std::vector<MetricFamily> families{family(MetricType::Counter, {counter}),
                                           family(MetricType::Histogram, {histogram, closed}),
                                           bare};
  EXPECT_EQ(text_format(families), expected(families));
}

// Rates over the last minute are then fractions that 16 digits tell.
class StoppedClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const override { return TimePoint{}; }
};

TEST(TextFormatTest, WritesEverySeriesOfTheDaemonAsPrometheusCppDoes) {
  const StoppedClock clock;
  Registry registry(clock);
  EngineMetrics engine(registry);
  TransportMetrics transport(registry);
  registry.add_dialects(kLabels);
  for (int i = 0; i < 100; ++i) {
    engine.step(i, 3 * i, i, 0.0078125 * i);
    transport.request("Generate", "OK", 0.125 * i);
  }
  const std::vector<MetricFamily> families = registry.impl().collect();
  EXPECT_EQ(rounded(text_format(families)), rounded(expected(families)));
}

TEST(TextFormatTest, ValuesThatDifferInTheLastOf16DigitsAloneAreTheSame) {
  ClientMetric metric;
  metric.gauge.value = 0.07;
  const std::vector<MetricFamily> families{family(MetricType::Gauge, {metric})};
  EXPECT_NE(text_format(families), expected(families));
  EXPECT_EQ(rounded(text_format(families)), rounded(expected(families)));
  metric.gauge.value = 0.0701;
  EXPECT_NE(rounded(text_format(families)),
            rounded(text_format({family(MetricType::Gauge, {metric})})));
}

// Milliseconds of processor time, the best of many.
template <typename Body>
double cpu_ms(Body body) {
  double best = kInfinity;
  for (int i = 0; i < 50; ++i) {
    const std::clock_t begin = std::clock();
    body();
    best = std::min(best, 1e3 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  return best;
}

// What a scrape costs its thread; the daemon's compute threads want the rest.
TEST(TextFormatTest, AWholeScrapeTakesLittleProcessorTime) {
  Registry registry;
  const EngineMetrics engine(registry);
  const TransportMetrics transport(registry);
  registry.add_dialects(kLabels);
  const std::vector<MetricFamily> families = registry.impl().collect();
  const double whole = cpu_ms([&] { EXPECT_GT(registry.render().size(), 50'000U); });
  const double ours = cpu_ms([&] { EXPECT_FALSE(text_format(families).empty()); });
  const double theirs = cpu_ms([&] { EXPECT_FALSE(expected(families).empty()); });
  printf("a scrape: %.3f ms of processor time, %.3f of it for its text (prometheus-cpp: %.3f)\n",
         whole,
         ours,
         theirs);
  EXPECT_LT(whole, 5) << "ten times what it takes, and what a scrape may take at the socket";
}

}  // namespace
}  // namespace r1d::telemetry
