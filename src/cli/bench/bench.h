// SPDX-License-Identifier: Apache-2.0
// `r1d bench`: what its subcommands take.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/status.h>

#include "cli/bench/goal.h"
#include "cli/bench/load.h"
#include "cli/bench/workload.h"

namespace CLI {
class App;
}  // namespace CLI

namespace r1d::cli {
// Adds `bench` and its subcommands to `app`; the one that is chosen leaves its action.
void add_bench(CLI::App& app, std::function<absl::Status()>& action);
}  // namespace r1d::cli

namespace r1d::cli::bench {

struct ServeOptions {
  LoadOptions load;
  WorkloadOptions workload;
  int32_t num_warmup = 4;  // requests before the measured ones
  std::string management;  // host:port; "": the daemon's processor time is not asked for
  std::string label;       // "": made from the load
  std::optional<Goal> goal;
  std::string json;  // files to write; "": none
  std::string html;
};
// A load on a running daemon. kUnavailable when no request came through.
[[nodiscard]] absl::Status serve(const ServeOptions& options);

struct ReportOptions {
  std::vector<std::string> files;  // of serve()
  std::string html;                // "": a table on standard output
};
[[nodiscard]] absl::Status report(const ReportOptions& options);

struct OfflineOptions {
  std::string model;         // a Hugging Face directory, or
  std::string model_config;  // a config.json, with dummy weights
  std::string device = "auto";
  int32_t world_size = 1;
  int32_t num_threads = 0;
  bool expert_parallel = false;
  bool bf16_dot = false;
  bool deterministic = false;
  std::string kv_cache_dtype = "auto";
  std::vector<int32_t> batches = {1};
  int32_t input_tokens = 512;
  int32_t output_tokens = 64;
  int32_t max_num_batched_tokens = 8192;
  int32_t block_size = 64;
  int32_t repeats = 1;
  uint64_t seed = 1;
  bool read_bandwidth = false;  // read memory plainly in turn with decode steps
  std::string json;
};
// Whole batches through scheduler and engine, without a server.
[[nodiscard]] absl::Status offline(const OfflineOptions& options);

struct RankShardOptions {
  std::string model_config;  // config.json of the model; its weights are dummies
  int32_t rank = 0;          // whose shard of
  int32_t world_size = 1;    // how many; collectives are left out, but with all_ranks
  bool all_ranks = false;    // a GPU each, with their collectives
  bool expert_parallel = false;
  std::vector<std::pair<int32_t, int32_t>> decode;  // (batch, context)
  std::vector<int32_t> prefill;                     // tokens of a chunk
  int32_t repeats = 20;
  double collective_us = 0;  // added in the summary for each that was left out
  bool per_op = true;
  bool deterministic = false;
  std::string kv_cache_dtype = "auto";
};
// One rank's steps on a GPU, or all ranks' on as many, kernel by kernel.
[[nodiscard]] absl::Status rank_shard(const RankShardOptions& options);

// Adds `bench collectives`.
void add_collectives(CLI::App& bench, std::function<absl::Status()>& action);
struct WeightsOptions {
  std::string model;  // a Hugging Face directory, or a packed one
  std::string device = "cpu";
  int32_t world_size = 1;
  bool expert_parallel = false;
  std::string mode = "cached";  // or "direct"
  int32_t num_threads = 0;
  int32_t repeats = 3;
  std::string json;  // a file; "": none
};
// Weights from disk to all ranks' memory, beside a plain read of the same files.
[[nodiscard]] absl::Status weights(const WeightsOptions& options);

// kInvalidArgument names the flag and the file.
[[nodiscard]] absl::Status write_file(const char* flag,
                                      const std::string& path,
                                      const std::string& text);

}  // namespace r1d::cli::bench
