// SPDX-License-Identifier: Apache-2.0
#include "cli/memory_report.h"

#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>

#include "tests/telemetry/exposition.h"

namespace r1d::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

class MemoryReportTest : public testing::Test {
 protected:
  MemoryReportTest() {
    for (size_t i = 0; i < engine::kMemoryParts; ++i) plan_.parts[i] = static_cast<int64_t>(i) + 1;
    plan_.memory_bytes = 1000;
  }
  double value(const std::string& family, const std::string& series) {
    const auto families = telemetry::parse_exposition(registry_.render());
    const auto& samples = families.at(family).samples;
    const auto found = samples.find(family + series);
    return found == samples.end() ? -1 : found->second;
  }
  telemetry::Registry registry_;
  telemetry::MemoryMetrics metrics_{registry_};
  engine::MemoryPlan plan_;
  std::ostringstream lines_;
  spdlog::logger log_{"test", std::make_shared<spdlog::sinks::ostream_sink_mt>(lines_)};
};

TEST_F(MemoryReportTest, EveryPartOfThePlanHasItsSeries) {
  report_memory_plan(plan_, log_, metrics_);
  for (size_t i = 0; i < engine::kMemoryParts; ++i) {
    const std::string part = engine::memory_part_name(static_cast<engine::MemoryPart>(i));
    EXPECT_EQ(value("r1d_memory_planned_bytes", "{kind=\"" + part + "\"}"),
              static_cast<double>(plan_.parts[i]))
        << part;
  }
  EXPECT_THAT(registry_.render(), Not(HasSubstr("kind=\"other\"")));
  EXPECT_THAT(lines_.str(), HasSubstr("memory plan: attention 1 B, experts 2 B, "));
}

TEST_F(MemoryReportTest, EveryRankHasItsSeriesOfWhatItHolds) {
  engine::MemoryReport report;
  report.plan = plan_;
  report.ranks.resize(2);
  report.measured_bytes = 777;
  for (size_t i = 0; i < ops::kMemoryKinds; ++i) {
    report.ranks[1][static_cast<ops::MemoryKind>(i)] = static_cast<int64_t>(i) + 5;
  }
  report_memory_use(report, log_, metrics_);
  for (size_t i = 0; i < ops::kMemoryKinds; ++i) {
    const std::string kind = ops::memory_kind_name(static_cast<ops::MemoryKind>(i));
    EXPECT_EQ(value("r1d_memory_used_bytes", "{kind=\"" + kind + "\",rank=\"1\"}"),
              static_cast<double>(i + 5))
        << kind;
    EXPECT_EQ(value("r1d_memory_used_bytes", "{kind=\"" + kind + "\",rank=\"0\"}"), 0) << kind;
  }
  EXPECT_EQ(value("r1d_memory_measured_bytes", ""), 777);
  EXPECT_THAT(registry_.render(), Not(HasSubstr("kind=\"other\"")));
  EXPECT_THAT(lines_.str(), HasSubstr("777 B measured"));
  EXPECT_THAT(lines_.str(), Not(HasSubstr("GPU of rank")));
}

TEST_F(MemoryReportTest, AGpuIsComparedWithItsPlanPartByPart) {
  engine::MemoryReport report;
  report.plan = plan_;
  report.devices = {{.context = 15, .attached = 40, .loaded = 96, .ready = 136 + 17}};
  report.warm_up_seconds = 1.25;
  report_memory_use(report, log_, metrics_);
  // Parts of 1, 2, .. 17 bytes: weights are the first nine, the reserve is the last.
  EXPECT_THAT(
      lines_.str(),
      HasSubstr("GPU of rank 0: 153 B in use, 136 B planned (+12.50 %): context 15 B (16 B), "
                "workspaces and collectives 25 B (25 B), weights and latent cache 56 B "
                "(66 B), graphs 57 B (15 B)"));
  EXPECT_THAT(lines_.str(), HasSubstr("ready 1.25 s after weights"));
}

}  // namespace
}  // namespace r1d::cli
