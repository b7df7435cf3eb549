// SPDX-License-Identifier: Apache-2.0
// From a run's log to its figures.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "cli/bench/result.h"

namespace r1d::cli::bench {

double quantile(std::span<const double> sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

Latency Latency::of(std::vector<double> values) {
  Latency latency;
  latency.count = static_cast<int64_t>(values.size());
  if (values.empty()) return latency;
  std::sort(values.begin(), values.end());
  latency.mean =
      std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  for (int percent = 0; percent <= 100; ++percent)
    latency.quantiles.push_back(quantile(values, percent / 100.0));
  return latency;
}

int64_t Result::num_failed() const {
  int64_t count = 0;
  for (const auto& [code, number] : errors) count += number;
  return count;
}

namespace {

constexpr size_t kMostBins = 240;  // what a chart can show

class Slices {
 public:
  explicit Slices(const RunLog& log) {
    const auto fine = static_cast<size_t>(std::ceil(log.seconds / RunLog::kBinSeconds));
    fine_per_bin_ = fine / kMostBins + 1;
    series_.bin_seconds = RunLog::kBinSeconds * static_cast<double>(fine_per_bin_);
    num_bins_ = fine / fine_per_bin_ + (fine % fine_per_bin_ != 0 ? 1 : 0);
    for (auto* values : {&series_.output_tokens_per_second,
                         &series_.in_flight,
                         &series_.completed_per_second,
                         &series_.failed_per_second}) {
      values->resize(num_bins_);
    }
    if (num_bins_ == 0) return;
    for (size_t i = 0; i < log.tokens_by_bin.size(); ++i) {
      series_.output_tokens_per_second[std::min(i / fine_per_bin_, num_bins_ - 1)] +=
          static_cast<double>(log.tokens_by_bin[i]) / series_.bin_seconds;
    }
    for (const Record& record : log.records) add(record);
    std::partial_sum(series_.in_flight.begin(), series_.in_flight.end(), series_.in_flight.begin());
  }

  Series take() { return std::move(series_); }

 private:
  [[nodiscard]] size_t bin(double time) const {
    const auto at = static_cast<size_t>(std::max(time, 0.0) / series_.bin_seconds);
    return std::min(at, num_bins_ - 1);
  }
  // in_flight holds differences until the sum is made.
  void add(const Record& record) {
    series_.in_flight[bin(record.sent)] += 1;
    series_.in_flight[bin(record.end)] -= 1;
    if (record.unfinished) return;
    auto& ended = record.ok() ? series_.completed_per_second : series_.failed_per_second;
    ended[bin(record.end)] += 1 / series_.bin_seconds;
  }

  Series series_;
  size_t fine_per_bin_ = 1;
  size_t num_bins_ = 0;
};

// The latencies of requests that ended well; how late they were sent, of all.
class Collected {
 public:
  void add(const Record& record) {
    values_["send_lag"].push_back(record.sent - record.intended);
    if (!record.ok()) return;
    values_["e2e"].push_back(record.e2e());
    add("ttft", record.ttft());
    add("tpot", record.tpot());
    add("queue", record.queue);
    auto& gaps = values_["itl"];
    gaps.insert(gaps.end(), record.gaps.begin(), record.gaps.end());
  }
  std::map<std::string, Latency> latencies() {
    std::map<std::string, Latency> all;
    for (const char* const name : kLatencyNames) all[name] = Latency::of(std::move(values_[name]));
    return all;
  }

 private:
  void add(const char* name, std::optional<double> value) {
    if (value) values_[name].push_back(*value);
  }
  std::map<std::string, std::vector<double>> values_;
};

}  // namespace

Result summarize(const RunLog& log, const std::optional<Goal>& goal) {
  Result result;
  result.seconds = log.seconds;
  result.ended_early = log.ended_early;
  result.num_sent = static_cast<int64_t>(log.records.size());
  if (goal) result.goodput = Goodput{*goal, 0};
  Collected collected;
  for (const Record& record : log.records) {
    collected.add(record);
    if (record.unfinished) {
      ++result.num_unfinished;
    } else if (!record.ok()) {
      ++result.errors[record.code];
    } else {
      ++result.num_ok;
      result.num_input_tokens += record.num_input_tokens;
      result.num_cached_tokens += record.num_cached_tokens;
      result.num_output_tokens += record.num_output_tokens;
    }
    if (goal && goal->met_by(record)) ++result.goodput->num_good;
  }
  result.latencies = collected.latencies();
  result.series = Slices(log).take();
  return result;
}

}  // namespace r1d::cli::bench
