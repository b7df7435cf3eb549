// SPDX-License-Identifier: Apache-2.0
#include "telemetry/process_metrics.h"

#include <chrono>
#include <fcntl.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "r1d/telemetry/metrics.h"

#include "tests/telemetry/exposition.h"

namespace r1d::telemetry {
namespace {

TEST(ProcessMetricsTest, ReadStatPastACommandNameThatLooksLikeFields) {
  ProcessStat stat;
  ASSERT_TRUE(
      parse_process_stat("7 (a) S 1 2) R 1 2 3 4 5 6 7 8 9 10 "
                         "150 50 0 0 20 0 12 0 987654 4096000 250 99999 1 1",
                         stat));
  EXPECT_EQ(stat.cpu_ticks, 200);
  EXPECT_EQ(stat.num_threads, 12);
  EXPECT_EQ(stat.start_ticks, 987654);
  EXPECT_EQ(stat.virtual_bytes, 4096000);
  EXPECT_EQ(stat.resident_pages, 250);
}

TEST(ProcessMetricsTest, RefuseAStatThatEndsEarly) {
  ProcessStat stat;
  EXPECT_FALSE(parse_process_stat("", stat));
  EXPECT_FALSE(parse_process_stat("7 (r1d)", stat));
  EXPECT_FALSE(parse_process_stat("7 (r1d) S 1 2 3", stat));
}

TEST(ProcessMetricsTest, ShowThisProcessAsItIs) {
  Registry registry;
  const std::string text = registry.render();
  EXPECT_GT(sample(text, "process_resident_memory_bytes"), 1e6);
  EXPECT_GT(sample(text, "process_virtual_memory_bytes"),
            sample(text, "process_resident_memory_bytes"));
  EXPECT_GE(sample(text, "process_cpu_seconds_total"), 0);
  EXPECT_GE(sample(text, "process_threads"), 1);
  EXPECT_GT(sample(text, "process_max_fds"), sample(text, "process_open_fds"));
  const auto now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch());
  EXPECT_LT(sample(text, "process_start_time_seconds"), now.count() + 2)
      << "btime is whole seconds";
  EXPECT_GT(sample(text, "process_start_time_seconds"), now.count() - 86400);
}

TEST(ProcessMetricsTest, CountAnOpenedFile) {
  Registry registry;
  const double before = sample(registry.render(), "process_open_fds");
  const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(sample(registry.render(), "process_open_fds"), before + 1);
  close(fd);
  EXPECT_EQ(sample(registry.render(), "process_open_fds"), before);
}

}  // namespace
}  // namespace r1d::telemetry
