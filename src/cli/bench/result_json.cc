// SPDX-License-Identifier: Apache-2.0
// A result as JSON and back.
#include <array>
#include <utility>

#include "r1d/base/json.h"
#include "r1d/base/status.h"

#include "cli/bench/result.h"

namespace r1d::cli::bench {
namespace {

constexpr const char* kSchema = "r1d.bench.serve/1";
constexpr JsonLimits kLimits{
    .max_bytes = 64 << 20, .max_depth = 16, .max_key_bytes = 4096, .max_values = 1 << 20};

// The percentiles that people ask for by name; `quantiles` has them all.
constexpr std::array<std::pair<const char*, int>, 5> kNamed = {
    {{"p50", 50}, {"p90", 90}, {"p95", 95}, {"p99", 99}, {"max", 100}}};

Json latency_json(const Latency& latency) {
  Json json{{"count", latency.count}, {"mean", latency.mean}, {"quantiles", latency.quantiles}};
  for (const auto& [name, percent] : kNamed) json[name] = latency.percentile(percent);
  return json;
}

Json series_json(const Series& series) {
  return {{"bin_seconds", series.bin_seconds},
          {"output_tokens_per_second", series.output_tokens_per_second},
          {"in_flight", series.in_flight},
          {"completed_per_second", series.completed_per_second},
          {"failed_per_second", series.failed_per_second}};
}

Json goodput_json(const Result& result) {
  if (!result.goodput) return nullptr;
  const int64_t good = result.goodput->num_good;
  const int64_t judged = result.num_ok + result.num_failed();
  return {{"goal_seconds", result.goodput->goal.limits},
          {"requests", good},
          {"share", judged == 0 ? 0.0 : static_cast<double>(good) / static_cast<double>(judged)},
          {"requests_per_second", result.per_second(good)}};
}

Json cost_json(const Result& result) {
  if (!result.server_cost) return nullptr;
  const double cpu = result.server_cost->cpu_seconds;
  const auto each = [cpu](int64_t count) { return cpu > 0 ? static_cast<double>(count) / cpu : 0; };
  return {{"cpu_seconds", cpu},
          {"resident_bytes", result.server_cost->resident_bytes},
          {"requests_per_cpu_second", each(result.num_ok)},
          {"output_tokens_per_cpu_second", each(result.num_output_tokens)}};
}

// Reads fields by path and remembers the first that is not there or not of its kind.
class Fields {
 public:
  explicit Fields(const Json& root) : root_(root) {}

  template <typename T>
  void read(const std::string& path, T& value) {
    if (!status_.ok()) return;
    const Json::json_pointer pointer(path);
    if (!root_.contains(pointer)) {
      status_ = invalid_argument("{} is missing", path);
    } else if (!fits(root_.at(pointer), value)) {
      status_ =
          invalid_argument("{}: {} is not what stands there", path, describe(root_.at(pointer)));
    } else {
      root_.at(pointer).get_to(value);
    }
  }
  [[nodiscard]] bool has(const std::string& path) const {
    const Json::json_pointer pointer(path);
    return root_.contains(pointer) && !root_.at(pointer).is_null();
  }
  [[nodiscard]] const absl::Status& status() const { return status_; }

 private:
  static bool fits(const Json& json, const double& /*value*/) { return json.is_number(); }
  static bool fits(const Json& json, const int64_t& /*value*/) { return json.is_number_integer(); }
  static bool fits(const Json& json, const std::string& /*value*/) { return json.is_string(); }
  template <typename T>
  static bool fits(const Json& json, const std::vector<T>& /*values*/) {
    return json.is_array() && all_fit<T>(json);
  }
  template <typename T>
  static bool fits(const Json& json, const std::map<std::string, T>& /*values*/) {
    return json.is_object() && all_fit<T>(json);
  }
  template <typename T>
  static bool all_fit(const Json& json) {
    for (const Json& value : json) {
      if (!fits(value, T())) return false;
    }
    return true;
  }

  const Json& root_;
  absl::Status status_;
};

void read_latencies(Fields& fields, Result& result) {
  for (const char* const name : kLatencyNames) {
    const std::string path = fmt::format("/latency_seconds/{}/", name);
    Latency& latency = result.latencies[name];
    fields.read(path + "count", latency.count);
    fields.read(path + "mean", latency.mean);
    fields.read(path + "quantiles", latency.quantiles);
  }
}

void read_series(Fields& fields, Series& series) {
  fields.read("/series/bin_seconds", series.bin_seconds);
  fields.read("/series/output_tokens_per_second", series.output_tokens_per_second);
  fields.read("/series/in_flight", series.in_flight);
  fields.read("/series/completed_per_second", series.completed_per_second);
  fields.read("/series/failed_per_second", series.failed_per_second);
}

absl::Status check(const Result& result) {
  for (const auto& [name, latency] : result.latencies) {
    const size_t due = latency.count > 0 ? 101 : 0;
    if (latency.quantiles.size() != due) {
      return invalid_argument("/latency_seconds/{}/quantiles: {} values, expected {}",
                              name,
                              latency.quantiles.size(),
                              due);
    }
  }
  const Series& series = result.series;
  const size_t bins = series.output_tokens_per_second.size();
  if (series.in_flight.size() != bins || series.completed_per_second.size() != bins ||
      series.failed_per_second.size() != bins) {
    return invalid_argument("/series: its lists are not of one length");
  }
  return absl::OkStatus();
}

}  // namespace

Json to_json(const Result& result) {
  Json latencies = Json::object();
  for (const char* const name : kLatencyNames) {
    const auto found = result.latencies.find(name);
    latencies[name] = latency_json(found == result.latencies.end() ? Latency{} : found->second);
  }
  return {{"schema", kSchema},
          {"label", result.label},
          {"started_at", result.started_at},
          {"version", result.version},
          {"server", result.server},
          {"workload", result.workload},
          {"seconds", result.seconds},
          {"ended_early", result.ended_early},
          {"requests",
           {{"sent", result.num_sent},
            {"ok", result.num_ok},
            {"failed", result.num_failed()},
            {"unfinished", result.num_unfinished}}},
          {"errors", result.errors},
          {"tokens",
           {{"input", result.num_input_tokens},
            {"cached", result.num_cached_tokens},
            {"output", result.num_output_tokens}}},
          {"throughput",
           {{"requests_per_second", result.per_second(result.num_ok)},
            {"input_tokens_per_second", result.per_second(result.num_input_tokens)},
            {"output_tokens_per_second", result.per_second(result.num_output_tokens)}}},
          {"latency_seconds", latencies},
          {"goodput", goodput_json(result)},
          {"server_cost", cost_json(result)},
          {"series", series_json(result.series)}};
}

absl::StatusOr<Result> result_from_json(const std::string& text) {
  R1D_ASSIGN_OR_RETURN(const Json json, parse_json(text, kLimits));
  Fields fields(json);
  std::string schema;
  fields.read("/schema", schema);
  if (fields.status().ok() && schema != kSchema)
    return invalid_argument("/schema: \"{}\", expected \"{}\"", schema, kSchema);
  Result result;
  fields.read("/label", result.label);
  fields.read("/started_at", result.started_at);
  fields.read("/version", result.version);
  fields.read("/server", result.server);
  fields.read("/workload", result.workload);
  fields.read("/seconds", result.seconds);
  fields.read("/ended_early", result.ended_early);
  fields.read("/requests/sent", result.num_sent);
  fields.read("/requests/ok", result.num_ok);
  fields.read("/requests/unfinished", result.num_unfinished);
  fields.read("/errors", result.errors);
  fields.read("/tokens/input", result.num_input_tokens);
  fields.read("/tokens/cached", result.num_cached_tokens);
  fields.read("/tokens/output", result.num_output_tokens);
  read_latencies(fields, result);
  if (fields.has("/goodput")) {
    result.goodput.emplace();
    fields.read("/goodput/goal_seconds", result.goodput->goal.limits);
    fields.read("/goodput/requests", result.goodput->num_good);
  }
  if (fields.has("/server_cost")) {
    result.server_cost.emplace();
    fields.read("/server_cost/cpu_seconds", result.server_cost->cpu_seconds);
    fields.read("/server_cost/resident_bytes", result.server_cost->resident_bytes);
  }
  read_series(fields, result.series);
  R1D_RETURN_IF_ERROR(fields.status());
  R1D_RETURN_IF_ERROR(check(result));
  return result;
}

}  // namespace r1d::cli::bench
