// SPDX-License-Identifier: Apache-2.0
// `r1d bench load`: how fast weights come from disk, beside how fast the disk gives the same files
// to somebody who only reads them.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include <nlohmann/json.hpp>

#include "r1d/base/status.h"
#include "r1d/base/version.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/engine/engine.h"

#include "cli/bench/bench.h"
#include "cli/bench/raw_read.h"
#include "cli/load_report.h"
#include "cli/setup.h"

namespace r1d::cli::bench {
namespace {

constexpr int32_t kBlockTokens = 16;

double rate(int64_t bytes, double seconds) {
  return seconds > 0 ? static_cast<double>(bytes) / 1e9 / seconds : 0;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

class LoadBench {
 public:
  explicit LoadBench(const WeightsOptions& options) : options_(options) {}

  absl::Status run() {
    R1D_ASSIGN_OR_RETURN(files_, weight_files(options_.model));
    for (int32_t i = 0; i < options_.repeats; ++i) R1D_RETURN_IF_ERROR(run_pair(i));
    print_sum();
    if (options_.json.empty()) return absl::OkStatus();
    return write_file("--json", options_.json, document().dump(1) + "\n");
  }

 private:
  // One of each, in turns first, so that a disk that gets slower or faster favours neither.
  absl::Status run_pair(int32_t index) {
    // The threads of the first load are the yardstick's, too.
    const bool raw_first = index % 2 == 1;
    if (raw_first) R1D_RETURN_IF_ERROR(read_plain());
    R1D_RETURN_IF_ERROR(load());
    if (!raw_first) R1D_RETURN_IF_ERROR(read_plain());
    if (index == 0) print_head();
    fmt::print("{:>6}{:>16.3f}{:>16.3f}{:>10.0f} %\n",
               index + 1,
               load_rates_.back(),
               raw_rates_.back(),
               100 * load_rates_.back() / raw_rates_.back());
    std::fflush(stdout);
    return absl::OkStatus();
  }

  absl::Status load() {
    R1D_RETURN_IF_ERROR(drop_from_cache(files_));
    // Comparing checksums is not reading: packed files come without.
    R1D_ASSIGN_OR_RETURN(const auto source,
                         checkpoint::open_checkpoint(options_.model,
                                                     {.world_size = options_.world_size,
                                                      .expert_split = expert_split(),
                                                      .verify_checksums = false}));
    R1D_ASSIGN_OR_RETURN(
        const auto engine,
        engine::Engine::create(*source,
                               engine_options(source->config()),
                               static_cast<TokenId>(source->config().vocab_size - 1),
                               [](double /*fraction*/) { return absl::OkStatus(); }));
    report_ = engine->load_report();
    device_ = engine->device();
    load_rates_.push_back(rate(report_.bytes_read, report_.seconds));
    return absl::OkStatus();
  }

  absl::Status read_plain() {
    R1D_RETURN_IF_ERROR(drop_from_cache(files_));
    R1D_ASSIGN_OR_RETURN(const RawRead raw,
                         read_raw(files_, options_.mode == "direct", report_.num_threads));
    raw_rates_.push_back(rate(raw.bytes, raw.seconds));
    return absl::OkStatus();
  }

  [[nodiscard]] checkpoint::ExpertSplit expert_split() const {
    return options_.expert_parallel ? checkpoint::ExpertSplit::kExpert
                                    : checkpoint::ExpertSplit::kTensor;
  }

  // Everything besides the weights as small as it goes.
  [[nodiscard]] engine::EngineOptions engine_options(const checkpoint::ModelConfig& config) const {
    const engine::Device device = choose_device(options_.device);
    const DType dtype = cache_dtype("auto", device);
    return {.device = device,
            .world_size = options_.world_size,
            .num_threads = options_.world_size,
            .expert_split = expert_split(),
            .kv_cache_dtype = dtype,
            .kv_cache_bytes = kBlockTokens * engine::cache_bytes_per_token(config, dtype),
            .block_size = kBlockTokens,
            .max_model_len = kBlockTokens,
            .max_num_batched_tokens = kBlockTokens,
            .max_batch_size = 1,
            .cuda_graphs = false,
            .load_mode = load_mode(options_.mode),
            .load_threads = options_.num_threads};
  }

  void print_head() const {
    fmt::print(
        "{}: {:.3f} GB on {}, {} ranks, mode {}, {} reading threads\n\n{:>6}{:>16}{:>16}{:>12}\n",
        options_.model,
        static_cast<double>(report_.bytes_read) / 1e9,
        device_,
        options_.world_size,
        load_mode_name(report_),
        report_.num_threads,
        "pass",
        "weights GB/s",
        "raw read GB/s",
        "share");
  }

  void print_sum() const {
    fmt::print("{:>6}{:>16.3f}{:>16.3f}{:>10.0f} %\n",
               "median",
               median(load_rates_),
               median(raw_rates_),
               100 * share());
  }

  [[nodiscard]] double share() const { return median(load_rates_) / median(raw_rates_); }

  [[nodiscard]] nlohmann::json document() const {
    return {{"schema", "r1d.bench.load/1"},
            {"version", base::version()},
            {"model", options_.model},
            {"device", device_},
            {"world_size", options_.world_size},
            {"expert_parallel", options_.expert_parallel},
            {"mode", load_mode_name(report_)},
            {"threads", report_.num_threads},
            {"bytes", report_.bytes_read},
            {"weights_gigabytes_per_second", load_rates_},
            {"raw_gigabytes_per_second", raw_rates_},
            {"median_share", share()}};
  }

  const WeightsOptions& options_;
  std::vector<std::string> files_;
  checkpoint::LoadReport report_;  // of the last load
  std::string device_;
  std::vector<double> load_rates_;  // GB/s
  std::vector<double> raw_rates_;
};

}  // namespace

absl::Status weights(const WeightsOptions& options) {
  return LoadBench(options).run();
}

}  // namespace r1d::cli::bench
