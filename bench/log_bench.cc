// SPDX-License-Identifier: Apache-2.0
// What a log record costs whoever logs it: r1d_log_bench > FILE
// CPU time of the calling thread a record, best of five rounds, with spdlog's own plain call to the
// same descriptor (standard output) beside it as the yardstick.
#include <algorithm>
#include <cstdint>
#include <ctime>
#include <functional>
#include <limits>
#include <memory>
#include <unistd.h>

#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>

#include "base/log_sink.h"

namespace r1d::base {
namespace {

constexpr int kRounds = 5;
// Fewer than the queue holds, so that none is dropped.
constexpr int kRecords = 5000;

double thread_cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Microseconds a call; `settle` runs between rounds.
double measure(const std::function<void(int)>& call, const std::function<void()>& settle) {
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kRounds; ++round) {
    const double begin = thread_cpu_seconds();
    for (int i = 0; i < kRecords; ++i) call(i);
    best = std::min(best, (thread_cpu_seconds() - begin) / kRecords * 1e6);
    settle();
  }
  return best;
}

void log_access(spdlog::logger& logger, int i) {
  log_event(logger,
            LogLevel::info,
            "request finished",
            {{"method", "GenerateOnce"},
             {"status", "OK"},
             {"request_id", "5b0c7a91-1234567"},
             {"input_length", i},
             {"cached_length", 0},
             {"output_length", 64},
             {"finish_reason", "stop"},
             {"batch_size", 32},
             {"queue_ms", 1.204},
             {"ttft_ms", 38.71},
             {"total_ms", 412.006},
             {"span_id", "9f2d1c06a7e3b845"}},
            "0af7651916cd43dd8448eb211c80319c");
}

void run() {
  const auto sink = std::make_shared<LogSink>(STDOUT_FILENO, LogSink::Form{.json = true});
  spdlog::logger ours("transport", sink);
  spdlog::logger plain("transport", std::make_shared<spdlog::sinks::stdout_sink_mt>());
  const auto settle = [&] { sink->writer().flush(std::chrono::minutes(1)); };
  const auto nothing = [] {};

  const double record = measure([&](int i) { log_access(ours, i); }, settle);
  const double message = measure([&](int i) { ours.info("request {} finished", i); }, settle);
  const double yardstick = measure([&](int i) { plain.info("request {} finished", i); }, nothing);
  ours.set_level(LogLevel::warn);
  const double off = measure([&](int i) { log_access(ours, i); }, nothing);
  fmt::print(stderr,
             "access record {:.2f} us, plain message {:.2f} us (spdlog's stdout sink {:.2f} us), "
             "level off {:.3f} us, {} dropped\n",
             record,
             message,
             yardstick,
             off,
             sink->writer().num_dropped());
}

}  // namespace
}  // namespace r1d::base

int main() {
  r1d::base::run();
}
