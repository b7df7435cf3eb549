// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "cli/bench/chart.h"
#include "cli/bench/report.h"
#include "cli/bench/units.h"

namespace r1d::cli::bench {
namespace {

constexpr int32_t kColours = 8;  // runs beyond it begin again

constexpr const char* kHead = R"html(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>r1d bench</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6675; --rule: #d8dde4; --page: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b3; --rule: #333b46; --page: #14181e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1200px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1em; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg text.title { font-weight: 600; fill: var(--ink); } svg .grid { stroke: var(--rule); }
.l { fill: none; stroke-width: 1.8; } .key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em; }
.soft { color: var(--soft); } .warn { color: #c0392b; }
)html";

constexpr const char* kPalette[kColours] = {
    "#2f6fde", "#d9622b", "#2a9d6f", "#a347c4", "#c9a227", "#d23f6a", "#4aa3b8", "#7d6b5d"};

int32_t colour_of(size_t run) {
  return static_cast<int32_t>(run) % kColours;
}

std::string styles() {
  std::string css;
  for (int32_t i = 0; i < kColours; ++i) {
    css += fmt::format(
        "polyline.c{0} {{ stroke: {1}; }} circle.c{0} {{ fill: {1}; }} "
        ".key.c{0} {{ background: {1}; }}\n",
        i,
        kPalette[i]);
  }
  return css + "</style>\n</head>\n<body>\n<h1>r1d bench serve</h1>\n";
}

std::string row(const std::vector<std::string>& cells, const char* tag = "td") {
  std::string html = "<tr>";
  for (const std::string& cell : cells) html += fmt::format("<{0}>{1}</{0}>", tag, cell);
  return html + "</tr>\n";
}

std::string table(const std::string& rows) {
  return "<div class=\"wide\"><table>\n" + rows + "</table></div>\n";
}

std::string name_of(const Result& result, size_t run) {
  return fmt::format(
      "<span class=\"key c{}\"></span>{}", colour_of(run), escape_html(result.label));
}

std::string optional_number(bool there, double value) {
  return there ? format_number(value) : "-";
}

std::string summary(std::span<const Result> results) {
  std::string rows = row({"run",
                          "sent",
                          "ok",
                          "failed",
                          "requests/s",
                          "input tokens/s",
                          "output tokens/s",
                          "good requests/s",
                          "output tokens a CPU s"},
                         "th");
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    const double cpu = r.server_cost ? r.server_cost->cpu_seconds : 0;
    rows += row(
        {name_of(r, i),
         std::to_string(r.num_sent),
         std::to_string(r.num_ok),
         std::to_string(r.num_failed()),
         format_number(r.per_second(r.num_ok)),
         format_number(r.per_second(r.num_input_tokens)),
         format_number(r.per_second(r.num_output_tokens)),
         optional_number(r.goodput.has_value(), r.goodput ? r.per_second(r.goodput->num_good) : 0),
         optional_number(cpu > 0, static_cast<double>(r.num_output_tokens) / cpu)});
  }
  return "<h2>Throughput</h2>\n" + table(rows);
}

std::string latencies(std::span<const Result> results) {
  std::string html;
  constexpr std::pair<const char*, const char*> kSections[] = {
      {"ttft", "Time to first token"},
      {"itl", "Time between tokens"},
      {"tpot", "Mean time per output token, by request"},
      {"e2e", "Whole request"},
      {"queue", "In the server's queue"},
      {"send_lag", "The generator's own delay"}};
  for (const auto& [key, title] : kSections) {
    std::string rows = row({"run", "count", "mean", "p50", "p90", "p95", "p99", "max"}, "th");
    bool any = false;
    for (size_t i = 0; i < results.size(); ++i) {
      const Latency& latency = results[i].latencies.at(key);
      any = any || latency.count > 0;
      std::vector<std::string> cells = {
          name_of(results[i], i), std::to_string(latency.count), format_seconds(latency.mean)};
      for (const int percent : {50, 90, 95, 99, 100})
        cells.push_back(format_seconds(latency.percentile(percent)));
      rows += row(cells);
    }
    if (any) html += fmt::format("<h2>{}</h2>\n", title) + table(rows);
  }
  return html;
}

// A value over time.
Chart over_time(std::span<const Result> results,
                const char* title,
                const char* unit,
                std::vector<double> Series::*values) {
  Chart chart{.title = title, .x_label = "seconds", .y_label = unit, .lines = {}};
  for (size_t i = 0; i < results.size(); ++i) {
    const Series& series = results[i].series;
    Chart::Line line{.name = results[i].label, .colour = colour_of(i), .points = {}};
    for (size_t bin = 0; bin < (series.*values).size(); ++bin) {
      line.points.emplace_back((static_cast<double>(bin) + 0.5) * series.bin_seconds,
                               (series.*values)[bin]);
    }
    chart.lines.push_back(std::move(line));
  }
  return chart;
}

// A latency against the share of requests that were no slower.
Chart by_percentile(std::span<const Result> results, const char* key, const char* title) {
  Chart chart{.title = title,
              .x_label = "% of all that took no longer",
              .y_label = "log scale",
              .log_y = true,
              .y_is_seconds = true,
              .lines = {}};
  for (size_t i = 0; i < results.size(); ++i) {
    Chart::Line line{.name = results[i].label, .colour = colour_of(i), .points = {}};
    const std::vector<double>& quantiles = results[i].latencies.at(key).quantiles;
    for (size_t percent = 0; percent < quantiles.size(); ++percent)
      line.points.emplace_back(static_cast<double>(percent), quantiles[percent]);
    chart.lines.push_back(std::move(line));
  }
  return chart;
}

// The runs as points of one curve: what a latency does as throughput grows.
Chart against_load(std::span<const Result> results, const char* key, const char* title) {
  Chart chart{.title = title,
              .x_label = "requests/s served",
              .y_label = "p50, p99 dashed; log scale",
              .log_y = true,
              .y_is_seconds = true,
              .lines = {}};
  for (const int percent : {50, 99}) {
    Chart::Line line{.name = fmt::format("p{}", percent),
                     .colour = percent == 50 ? 0 : 1,
                     .dashed = percent == 99,
                     .dots = true,
                     .points = {}};
    for (const Result& result : results) {
      const Latency& latency = result.latencies.at(key);
      if (latency.count == 0) continue;
      line.points.emplace_back(result.per_second(result.num_ok), latency.percentile(percent));
    }
    std::sort(line.points.begin(), line.points.end());
    chart.lines.push_back(std::move(line));
  }
  return chart;
}

std::string charts(std::span<const Result> results) {
  std::vector<Chart> all;
  if (results.size() > 1) {
    all.push_back(against_load(results, "ttft", "Time to first token against load"));
    all.push_back(against_load(results, "tpot", "Time per output token against load"));
  }
  all.push_back(over_time(results, "Output tokens", "tokens/s", &Series::output_tokens_per_second));
  all.push_back(over_time(results, "Requests in flight", "requests", &Series::in_flight));
  all.push_back(over_time(results, "Requests done", "requests/s", &Series::completed_per_second));
  all.push_back(over_time(results, "Requests failed", "requests/s", &Series::failed_per_second));
  all.push_back(by_percentile(results, "ttft", "Time to first token"));
  all.push_back(by_percentile(results, "itl", "Time between tokens"));
  all.push_back(by_percentile(results, "tpot", "Mean time per output token"));
  all.push_back(by_percentile(results, "e2e", "Whole request"));
  std::string html = "<h2>Charts</h2>\n<div class=\"charts\">\n";
  for (const Chart& chart : all) html += render_svg(chart);
  return html + "</div>\n";
}

// What was asked, of whom: a column a run.
std::string conditions(std::span<const Result> results) {
  std::set<std::string> names;
  const auto facts_of = [](const Result& result) {
    std::map<std::string, std::string> facts = result.workload;
    for (const auto& [name, value] : result.server) facts["server " + name] = value;
    facts["started"] = result.started_at;
    facts["client"] = "r1d " + result.version;
    facts["seconds"] = format_number(result.seconds);
    for (const auto& [code, count] : result.errors) facts["errors " + code] = std::to_string(count);
    if (!result.ended_early.empty()) facts["ended early"] = result.ended_early;
    return facts;
  };
  std::vector<std::string> head = {"run"};
  std::vector<std::map<std::string, std::string>> columns;
  for (size_t i = 0; i < results.size(); ++i) {
    head.push_back(name_of(results[i], i));
    columns.push_back(facts_of(results[i]));
    for (const auto& [name, value] : columns.back()) names.insert(name);
  }
  std::string rows = row(head, "th");
  for (const std::string& name : names) {
    std::vector<std::string> cells = {escape_html(name)};
    for (const auto& facts : columns) {
      const auto found = facts.find(name);
      cells.push_back(found == facts.end() ? "" : escape_html(found->second));
    }
    rows += row(cells);
  }
  return "<h2>Conditions</h2>\n" + table(rows);
}

}  // namespace

std::string render_html(std::span<const Result> results) {
  return kHead + styles() + summary(results) + charts(results) + latencies(results) +
         conditions(results) + "</body>\n</html>\n";
}

}  // namespace r1d::cli::bench
