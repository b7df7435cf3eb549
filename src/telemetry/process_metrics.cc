// SPDX-License-Identifier: Apache-2.0
#include "telemetry/process_metrics.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <sys/resource.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

#include "r1d/base/log.h"

namespace r1d::telemetry {
namespace {

std::string read_text(const char* path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Seconds since the epoch at which the machine started: the "btime" line of /proc/stat. That file
// tells of every processor and interrupt there is, and the kernel takes its time to write it.
std::optional<double> read_boot_time() {
  std::istringstream lines(read_text("/proc/stat"));
  for (std::string line; std::getline(lines, line);) {
    double seconds = 0;
    std::string key;
    if (std::istringstream fields(line); fields >> key >> seconds && key == "btime") return seconds;
  }
  return std::nullopt;
}

std::optional<double> boot_time_seconds() {
  static const std::optional<double> seconds = read_boot_time();
  return seconds;
}

// From Linux 6.2 on the directory's size is the number; before it is 0.
std::optional<double> num_open_fds() {
  constexpr const char* kDirectory = "/proc/self/fd";
  if (struct stat info{}; ::stat(kDirectory, &info) == 0 && info.st_size > 0) {
    return static_cast<double>(info.st_size);
  }
  std::error_code error;
  double count = 0;
  std::filesystem::directory_iterator it(kDirectory, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) ++count;
  if (error) return std::nullopt;
  return count - 1;  // the one that reads the directory
}

class ProcessFamilies {
 public:
  void gauge(const char* name, const char* help, double value) {
    add(name, help, prometheus::MetricType::Gauge).gauge.value = value;
  }
  void counter(const char* name, const char* help, double value) {
    add(name, help, prometheus::MetricType::Counter).counter.value = value;
  }
  [[nodiscard]] std::vector<prometheus::MetricFamily> take() { return std::move(families_); }

 private:
  prometheus::ClientMetric& add(const char* name, const char* help, prometheus::MetricType type) {
    prometheus::MetricFamily& family = families_.emplace_back();
    family.name = name;
    family.help = help;
    family.type = type;
    return family.metric.emplace_back();
  }

  std::vector<prometheus::MetricFamily> families_;
};

void add_stat(ProcessFamilies& families) {
  ProcessStat stat;
  if (!parse_process_stat(read_text("/proc/self/stat"), stat)) return;
  const auto ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  const auto page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
  families.counter("process_cpu_seconds_total",
                   "User and system CPU time of the process.",
                   stat.cpu_ticks / ticks_per_second);
  families.gauge("process_resident_memory_bytes",
                 "Memory of the process that is in RAM.",
                 stat.resident_pages * page_bytes);
  families.gauge(
      "process_virtual_memory_bytes", "Address space of the process.", stat.virtual_bytes);
  families.gauge("process_threads", "Threads of the process.", stat.num_threads);
  if (const auto boot = boot_time_seconds()) {
    families.gauge("process_start_time_seconds",
                   "When the process started, in seconds since the epoch.",
                   *boot + stat.start_ticks / ticks_per_second);
  }
}

void add_fds(ProcessFamilies& families) {
  if (const auto open = num_open_fds()) {
    families.gauge("process_open_fds", "Open file descriptors, sockets included.", *open);
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    families.gauge("process_max_fds",
                   "Limit on open file descriptors (RLIMIT_NOFILE).",
                   static_cast<double>(limit.rlim_cur));
  }
}

}  // namespace

bool parse_process_stat(std::string_view text, ProcessStat& out) {
  const size_t name_end = text.rfind(')');
  if (name_end == std::string_view::npos) return false;
  std::istringstream fields{std::string(text.substr(name_end + 1))};
  // proc(5) counts fields from 1; the state, after the name, is number 3.
  constexpr size_t kState = 3;
  constexpr size_t kResidentPages = 24;
  std::array<double, kResidentPages + 1> value{};
  if (std::string state; !(fields >> state)) return false;
  for (size_t i = kState + 1; i <= kResidentPages; ++i) {
    if (!(fields >> value[i])) return false;
  }
  out = {.cpu_ticks = value[14] + value[15],
         .num_threads = value[20],
         .start_ticks = value[22],
         .virtual_bytes = value[23],
         .resident_pages = value[24]};
  return true;
}

std::vector<prometheus::MetricFamily> collect_process_metrics() {
  ProcessFamilies families;
  add_stat(families);
  add_fds(families);
  families.counter("r1d_log_records_dropped_total",
                   "Log records dropped because standard error was not read.",
                   static_cast<double>(base::num_dropped_log_records()));
  return families.take();
}

}  // namespace r1d::telemetry
