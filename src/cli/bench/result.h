// SPDX-License-Identifier: Apache-2.0
// What a run of `r1d bench serve` found: a report's contents, and the JSON file between runs.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <absl/status/statusor.h>
#include <nlohmann/json.hpp>

#include "cli/bench/goal.h"
#include "cli/bench/record.h"

namespace r1d::cli::bench {

// `q` from 0 to 1 of sorted values, linear between neighbours; `sorted` is not empty.
[[nodiscard]] double quantile(std::span<const double> sorted, double q);

// A latency over a run, seconds.
struct Latency {
  int64_t count = 0;
  double mean = 0;
  std::vector<double> quantiles;  // at 0 %, 1 %, ... 100 %; empty when count is 0

  [[nodiscard]] static Latency of(std::vector<double> values);
  [[nodiscard]] double percentile(int percent) const {  // 0 when there is none
    return quantiles.empty() ? 0 : quantiles[static_cast<size_t>(percent)];
  }
  [[nodiscard]] double max() const { return percentile(100); }
};

// In the order of tables. send_lag: how late the generator itself was.
inline constexpr const char* kLatencyNames[] = {"ttft", "itl", "tpot", "e2e", "queue", "send_lag"};

struct Goodput {
  Goal goal;
  int64_t num_good = 0;
};

// Processor time that the daemon spent on the run, and what it held at its end.
struct ServerCost {
  double cpu_seconds = 0;
  double resident_bytes = 0;
};

// One value a time slice, of equal width.
struct Series {
  double bin_seconds = 0;
  std::vector<double> output_tokens_per_second;
  std::vector<double> in_flight;  // requests at the slice's end
  std::vector<double> completed_per_second;
  std::vector<double> failed_per_second;
};

struct Result {
  std::string label;
  std::string started_at;                       // UTC, ISO 8601
  std::string version;                          // of this client
  std::map<std::string, std::string> server;    // address, version, model, device
  std::map<std::string, std::string> workload;  // what was asked, by flag
  double seconds = 0;
  std::string ended_early;
  int64_t num_sent = 0;
  int64_t num_ok = 0;
  int64_t num_unfinished = 0;
  std::map<std::string, int64_t> errors;  // by status code
  int64_t num_input_tokens = 0;           // of requests that ended well, like all below
  int64_t num_cached_tokens = 0;
  int64_t num_output_tokens = 0;
  std::map<std::string, Latency> latencies;  // by kLatencyNames
  std::optional<Goodput> goodput;
  std::optional<ServerCost> server_cost;
  Series series;

  [[nodiscard]] int64_t num_failed() const;
  [[nodiscard]] double per_second(int64_t count) const {
    return seconds > 0 ? static_cast<double>(count) / seconds : 0;
  }
};

// Fills what follows from the log: everything but label, times, server, workload and cost.
[[nodiscard]] Result summarize(const RunLog& log, const std::optional<Goal>& goal);

// The schema is in docs/benchmarking.md.
[[nodiscard]] nlohmann::json to_json(const Result& result);
// kInvalidArgument names the field that is missing or wrong.
[[nodiscard]] absl::StatusOr<Result> result_from_json(const std::string& text);

}  // namespace r1d::cli::bench
