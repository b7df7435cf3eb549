// SPDX-License-Identifier: Apache-2.0
// docs/metrics.md holds a table of every family between two marks; the table comes from what the
// registry renders. R1D_UPDATE_DOCS=1 makes this test rewrite it.
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include "r1d/telemetry/metrics.h"

#include "tests/support/test_data.h"
#include "tests/telemetry/exposition.h"

namespace r1d::telemetry {
namespace {

const std::string kDocument = test::data("../../docs/metrics.md");
constexpr const char* kBegin = "<!-- begin of the generated table -->\n";
constexpr const char* kEnd = "<!-- end of the generated table -->\n";

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// label -> its values, over all samples of a family.
using Labels = std::map<std::string, std::set<std::string>>;

void add_labels(const std::string& series, Labels& labels) {
  size_t at = series.find('{');
  while (at != std::string::npos && series[at] != '}') {
    const size_t equals = series.find('=', at + 1);
    const size_t close = series.find('"', equals + 2);
    labels[series.substr(at + 1, equals - at - 1)].insert(
        series.substr(equals + 2, close - equals - 2));
    at = close + 1;
  }
}

std::string describe_labels(Labels labels) {
  // Whose values follow from the release, the model and the machine.
  static const std::set<std::string> kOpen{"version",
                                           "model_name",
                                           "quantization",
                                           "device",
                                           "block_size",
                                           "num_gpu_blocks",
                                           "kv_cache_size_tokens",
                                           "cache_dtype",
                                           "enable_prefix_caching",
                                           "rank"};
  labels.erase("le");
  std::string text;
  for (const auto& [label, values] : labels) {
    if (!text.empty()) text += "; ";
    text += "`" + label + "`";
    if (kOpen.contains(label)) continue;
    text += ": ";
    std::string list;
    for (const std::string& value : values) list += (list.empty() ? "" : ", ") + value;
    text += list;
  }
  return text;
}

std::string describe_buckets(const Labels& labels) {
  const auto le = labels.find("le");
  if (le == labels.end()) return "";
  std::set<double> bounds;
  for (const std::string& bound : le->second) {
    if (bound != "+Inf") bounds.insert(std::stod(bound));
  }
  std::string text;
  for (const double bound : bounds) {
    std::ostringstream number;
    number << std::setprecision(10) << bound;
    text += (text.empty() ? "" : " ") + number.str();
  }
  return text;
}

std::string table() {
  Registry registry;
  const EngineMetrics engine(registry);
  const TransportMetrics transport(registry);
  const StartupMetrics startup(registry, "0");
  const MemoryMetrics memory(registry);
  registry.add_dialects({.name = "0", .quantization = "0", .devices = {"0"}, .cache_dtype = "0"});
  std::string text = "| series | type | labels | meaning |\n|---|---|---|---|\n";
  std::string buckets = "\n| histogram | upper bounds of its buckets, then +Inf |\n|---|---|\n";
  for (const auto& [name, family] : parse_exposition(registry.render())) {
    Labels labels;
    for (const auto& [series, value] : family.samples) add_labels(series, labels);
    text += "| `" + name + "` | " + family.type + " | " + describe_labels(labels) + " | " +
            family.help + " |\n";
    const std::string bounds = describe_buckets(labels);
    if (!bounds.empty()) buckets += "| `" + name + "` | " + bounds + " |\n";
  }
  return text + buckets;
}

TEST(MetricsDocTest, ListsEverySeries) {
  std::string document = read_file(kDocument);
  const size_t begin = document.find(kBegin);
  const size_t end = document.find(kEnd);
  ASSERT_TRUE(begin != std::string::npos && end != std::string::npos && begin < end)
      << kDocument << " lacks the marks of the table";
  const size_t from = begin + std::string(kBegin).size();
  const std::string expected = table();
  if (std::getenv("R1D_UPDATE_DOCS") != nullptr) {
    document.replace(from, end - from, expected);
    std::ofstream(kDocument) << document;
    return;
  }
  EXPECT_EQ(document.substr(from, end - from), expected)
      << "docs/metrics.md is out of date; regenerate: R1D_UPDATE_DOCS=1 r1d_telemetry_test";
}

}  // namespace
}  // namespace r1d::telemetry
