// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "cli/bench/report.h"
#include "cli/bench/units.h"

namespace r1d::cli::bench {
namespace {

std::string joined(const std::map<std::string, std::string>& facts) {
  std::string text;
  for (const auto& [name, value] : facts) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, value);
  }
  return text;
}

std::string latency_rows(const Result& result) {
  std::string text = fmt::format("\n{:<9}{:>9}", "", "count");
  for (const char* const head : {"mean", "p50", "p90", "p95", "p99", "max"})
    text += fmt::format("{:>11}", head);
  text += "\n";
  for (const char* const name : kLatencyNames) {
    const Latency& latency = result.latencies.at(name);
    if (latency.count == 0) continue;
    text += fmt::format("{:<9}{:>9}{:>11}", name, latency.count, format_seconds(latency.mean));
    for (const int percent : {50, 90, 95, 99, 100})
      text += fmt::format("{:>11}", format_seconds(latency.percentile(percent)));
    text += "\n";
  }
  return text;
}

std::string goodput_row(const Result& result) {
  if (!result.goodput) return "";
  std::string goal;
  for (const auto& [name, seconds] : result.goodput->goal.limits)
    goal += fmt::format("{}{} within {}", goal.empty() ? "" : ", ", name, format_seconds(seconds));
  const int64_t good = result.goodput->num_good;
  const int64_t judged = result.num_ok + result.num_failed();
  return fmt::format(
      "goodput   {} of {} requests ({:.1f} %), {}/s: {}\n",
      good,
      judged,
      judged == 0 ? 0.0 : 100.0 * static_cast<double>(good) / static_cast<double>(judged),
      format_number(result.per_second(good)),
      goal);
}

std::string cost_row(const Result& result) {
  if (!result.server_cost || result.server_cost->cpu_seconds <= 0) return "";
  const double cpu = result.server_cost->cpu_seconds;
  return fmt::format(
      "daemon    {} of processor time: {} requests and {} output tokens a processor second; {} MB "
      "resident\n",
      format_seconds(cpu),
      format_number(static_cast<double>(result.num_ok) / cpu),
      format_number(static_cast<double>(result.num_output_tokens) / cpu),
      format_number(result.server_cost->resident_bytes * 1e-6));
}

}  // namespace

std::string render_table(const Result& result) {
  std::string text = fmt::format("{}\n{}\n", joined(result.server), joined(result.workload));
  if (!result.ended_early.empty()) text += fmt::format("ended early: {}\n", result.ended_early);
  text += fmt::format("\nrequests  {} sent in {}: {} ok, {} failed, {} unfinished; {}/s\n",
                      result.num_sent,
                      format_seconds(result.seconds),
                      result.num_ok,
                      result.num_failed(),
                      result.num_unfinished,
                      format_number(result.per_second(result.num_ok)));
  for (const auto& [code, count] : result.errors)
    text += fmt::format("          {} {}\n", count, code);
  text += fmt::format("tokens    {} in ({} cached), {} out; {} in/s, {} out/s\n",
                      result.num_input_tokens,
                      result.num_cached_tokens,
                      result.num_output_tokens,
                      format_number(result.per_second(result.num_input_tokens)),
                      format_number(result.per_second(result.num_output_tokens)));
  return text + goodput_row(result) + cost_row(result) + latency_rows(result);
}

std::string render_comparison(std::span<const Result> results) {
  using Cell = std::string (*)(const Result&);
  constexpr std::pair<const char*, Cell> kRows[] = {
      {"requests ok", [](const Result& r) { return std::to_string(r.num_ok); }},
      {"failed", [](const Result& r) { return std::to_string(r.num_failed()); }},
      {"requests/s", [](const Result& r) { return format_number(r.per_second(r.num_ok)); }},
      {"out tokens/s",
       [](const Result& r) { return format_number(r.per_second(r.num_output_tokens)); }},
  };
  std::string text = fmt::format("{:<14}", "");
  for (const Result& result : results) text += fmt::format("{:>18.17}", result.label);
  text += "\n";
  for (const auto& [name, cell] : kRows) {
    text += fmt::format("{:<14}", name);
    for (const Result& result : results) text += fmt::format("{:>18}", cell(result));
    text += "\n";
  }
  for (const char* const name : kLatencyNames) {
    for (const int percent : {50, 99}) {
      text += fmt::format("{:<14}", fmt::format("{} p{}", name, percent));
      for (const Result& result : results) {
        const Latency& latency = result.latencies.at(name);
        const double value = latency.percentile(percent);
        const double first = results.front().latencies.at(name).percentile(percent);
        text +=
            fmt::format("{:>18}",
                        latency.count == 0 ? "-"
                        : &result == &results.front() || first <= 0
                            ? format_seconds(value)
                            : fmt::format("{} ({:.2f}x)", format_seconds(value), value / first));
      }
      text += "\n";
    }
  }
  return text;
}

}  // namespace r1d::cli::bench
