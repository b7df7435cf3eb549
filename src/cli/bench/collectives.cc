// SPDX-License-Identifier: Apache-2.0
// `r1d bench collectives`: what a sum over ranks takes, each way, and which way is chosen.
#include "r1d/ops/collectives.h"

#include <algorithm>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "r1d/base/status.h"
#include "r1d/base/version.h"
#include "r1d/device/gpu_info.h"
#include "r1d/device/nccl_info.h"
#include "r1d/engine/engine.h"

#include "cli/bench/bench.h"
#include "cli/bench/units.h"
#include "cli/setup.h"

namespace r1d::cli::bench {
namespace {

constexpr int64_t kRow = 14336;  // a token of R1, bf16
constexpr int64_t kKib = 1024;
constexpr int64_t kMostOnCpu = 4096 * kKib;  // there a size says nothing new above

struct CollectivesFlags {
  ops::CollectiveBenchOptions options;
  std::string device = "auto";
  std::vector<std::string> shapes;
  std::string json;
};

std::vector<int64_t> default_sizes(bool cuda) {
  std::vector<int64_t> sizes = {2 * kKib, kRow, 2 * kRow, 4 * kRow, 8 * kRow, 16 * kRow};
  for (const int64_t kib :
       {512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768, 65536, 262144})
    if (cuda || kib * kKib <= kMostOnCpu) sizes.push_back(kib * kKib);
  return sizes;
}

// "1024x1024" -> rows, columns; false when it is no shape.
bool parse_shape(const std::string& text, int64_t& rows, int64_t& cols) {
  constexpr double kMost = 1 << 20;
  const std::vector<std::string> sides = split(text, 'x');
  if (sides.size() != 2) return false;
  const auto first = parse_number(sides[0]);
  const auto second = parse_number(sides[1]);
  const auto valid = [&](const std::optional<double>& side) {
    return side && *side >= 1 && *side <= kMost && *side == static_cast<int64_t>(*side);
  };
  if (!valid(first) || !valid(second)) return false;
  rows = static_cast<int64_t>(*first);
  cols = static_cast<int64_t>(*second);
  return true;
}

std::string device_name(bool cuda, int32_t world_size) {
  if (!cuda) return fmt::format("CPU, {} ranks of the local communicator (f32)", world_size);
  const auto gpus = device::list_gpus();
  const std::string name = gpus.ok() && !gpus->empty() ? gpus->front().name : "no GPU";
  return fmt::format("{} x {} (bf16)", world_size, name);
}

// "2.06", or "-" where there is none.
std::string micros(const std::optional<double>& time) {
  return time ? fmt::format("{:.2f}", *time) : "-";
}

nlohmann::json to_json(const CollectivesFlags& flags, const std::vector<ops::CollectiveRow>& rows) {
  const ops::CollectiveBenchOptions& options = flags.options;
  nlohmann::json document = {{"schema", "r1d.bench.collectives/1"},
                             {"version", base::version()},
                             {"device", device_name(options.cuda, options.world_size)},
                             {"world_size", options.world_size},
                             {"rows", nlohmann::json::array()}};
  if (options.cuda) {
    document["nccl"] = device::nccl_version().value_or("");
    for (const auto& [name, value] : device::nccl_settings()) document["settings"][name] = value;
  }
  for (const ops::CollectiveRow& row : rows) {
    nlohmann::json ways = nlohmann::json::object();
    for (const ops::CollectiveTiming& timing : row.timings) {
      nlohmann::json& way = ways[timing.way];
      way["correct"] = timing.correct;
      if (timing.graph_micros) way["graph_us"] = *timing.graph_micros;
      if (timing.single_micros) way["single_us"] = *timing.single_micros;
    }
    document["rows"].push_back({{"bytes", row.bytes}, {"chosen", row.chosen}, {"ways", ways}});
  }
  return document;
}

void print_head(const ops::CollectiveBenchOptions& options) {
  fmt::print("{}\n", device_name(options.cuda, options.world_size));
  if (!options.cuda) {
    fmt::print("no figures of a GPU: one call after the other, threads that sleep\n\n");
    return;
  }
  fmt::print("NCCL {}\n", device::nccl_version().value_or("is not there"));
  for (const auto& [name, value] : device::nccl_settings()) fmt::print("{}={}\n", name, value);
  fmt::print(
      "a call's microseconds in a graph of many, and launched alone; * is what is chosen\n\n");
}

void print_rows(const std::vector<ops::CollectiveRow>& rows) {
  fmt::print("{:>12}  {:<10}{:>12}{:>12}  {}\n", "bytes", "way", "graph us", "single us", "sum");
  for (const ops::CollectiveRow& row : rows) {
    for (const ops::CollectiveTiming& timing : row.timings) {
      const bool chosen = timing.way == row.chosen;
      fmt::print(
          "{:>12}  {:<10}{:>12}{:>12}  {}\n",
          &timing == &row.timings.front() ? format_number(static_cast<double>(row.bytes)) : "",
          timing.way + (chosen ? " *" : ""),
          micros(timing.graph_micros),
          micros(timing.single_micros),
          timing.correct ? "right" : "WRONG");
    }
  }
}

void print_table(const ops::CollectiveBenchOptions& options,
                 const std::vector<ops::CollectiveRow>& rows) {
  const auto line = [](const char* what, const ops::CollectiveTable& table) {
    fmt::print("{}: one-shot to {} bytes, two-shot to {}\n",
               what,
               format_number(static_cast<double>(table.one_shot_bytes)),
               format_number(static_cast<double>(table.two_shot_bytes)));
  };
  const ops::CollectiveTable table = ops::collective_table(options.world_size);
  fmt::print("\n");
  line(table.measured ? "in use, from measurements" : "in use, computed", table);
  line("fastest here", ops::fastest_table(rows));
}

absl::Status run(CollectivesFlags& flags) {
  ops::CollectiveBenchOptions& options = flags.options;
  options.cuda = choose_device(flags.device) == engine::Device::kCuda;
  const int64_t width = options.cuda ? 2 : 4;
  for (const std::string& text : flags.shapes) {
    int64_t rows = 0;
    int64_t cols = 0;
    parse_shape(text, rows, cols);
    options.bytes.push_back(rows * cols * width);
    options.row_bytes = cols * width;
  }
  if (options.bytes.empty()) options.bytes = default_sizes(options.cuda);
  R1D_ASSIGN_OR_RETURN(const auto rows, ops::bench_collectives(options));
  print_head(options);
  print_rows(rows);
  if (options.cuda) print_table(options, rows);
  if (!flags.json.empty()) {
    R1D_RETURN_IF_ERROR(write_file("--json", flags.json, to_json(flags, rows).dump(1) + "\n"));
  }
  for (const ops::CollectiveRow& row : rows) {
    for (const ops::CollectiveTiming& timing : row.timings) {
      if (!timing.correct) return internal_error("{}: {} bytes: wrong sum", timing.way, row.bytes);
    }
  }
  return absl::OkStatus();
}

}  // namespace

void add_collectives(CLI::App& bench, std::function<absl::Status()>& action) {
  CLI::App* command =
      bench.add_subcommand("collectives", "Sums over ranks: each way, at every size");
  auto flags = std::make_shared<CollectivesFlags>();
  command->add_option("--world-size", flags->options.world_size, "Ranks")
      ->check(CLI::Range(2, 64))
      ->capture_default_str();
  command->add_option("--device", flags->device, "Where the ranks are")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command
      ->add_option("--shape", flags->shapes, "What is summed, ROWSxCOLUMNS; default 2 KB to 256 MB")
      ->check([](const std::string& text) {
        int64_t rows = 0;
        int64_t cols = 0;
        return parse_shape(text, rows, cols) ? std::string()
                                             : "expected ROWSxCOLUMNS, e.g. 1024x1024";
      })
      ->delimiter(',');
  command->add_option("--repeats", flags->options.repeats, "Calls, or graphs, the median is of")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_option("--json", flags->json, "File to write the result to");
  command->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace r1d::cli::bench
