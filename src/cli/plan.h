// SPDX-License-Identifier: Apache-2.0
// `r1d plan`: what a model needs of a machine that need not be there.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "r1d/checkpoint/weight_source.h"
#include "r1d/device/gpu_table.h"
#include "r1d/engine/memory_plan.h"
#include "r1d/engine/roofline.h"

namespace r1d::cli {

struct PlanOptions {
  std::string model;         // a directory, or
  std::string model_config;  // a config.json
  std::string config_file;   // r1d.yaml: what the flags below do not say; "": the defaults
  std::string gpu = "this";  // a name of the table, "cpu" or "this"
  std::optional<int32_t> world_size;
  std::optional<int32_t> max_model_len;
  std::optional<int32_t> max_batch_size;
  std::optional<int32_t> max_num_batched_tokens;
  std::optional<int32_t> block_size;
  std::optional<int64_t> kv_cache_bytes;
  std::string kv_cache_dtype;  // "": the configuration's
  bool expert_parallel = false;
  bool load_mtp = false;
  int64_t context = 4096;  // tokens in the cache of each sequence of a decode step
  double all_reduce_us = 5;
  bool json = false;
};

// How fast one way to divide the experts can be.
struct SplitFloors {
  checkpoint::ExpertSplit split = checkpoint::ExpertSplit::kTensor;
  int64_t weight_bytes = 0;  // of the fullest rank, as loaded
  std::string refused;       // why the model cannot be divided so; then the rest is nothing
  std::vector<engine::StepFloor> decode;  // of kPlanBatches
  engine::StepFloor prefill;
};
inline constexpr std::array<int64_t, 4> kPlanBatches = {1, 16, 64, 256};

// All that is printed.
struct PlanReport {
  std::string model;
  std::string source;  // where the weights' sizes are from
  int64_t parameters = 0;
  bool fp8 = false;
  engine::EngineOptions options;
  engine::MemoryTarget target;
  engine::MemoryPlan plan;
  std::optional<device::GpuModel> gpu;  // none: no floors
  engine::Rates rates;
  int64_t context = 0;
  int64_t prefill_tokens = 0;
  std::vector<SplitFloors>
      splits;  // the one in force first; the other where experts could be cut so
  std::vector<std::string> notes;
};
[[nodiscard]] absl::StatusOr<PlanReport> make_plan_report(const PlanOptions& options);

[[nodiscard]] std::string plan_text(const PlanReport& report);
[[nodiscard]] std::string plan_json(const PlanReport& report);

// Prints; an error when the model does not fit or cannot be served so.
[[nodiscard]] absl::Status plan(const PlanOptions& options);

void add_plan(CLI::App& app, std::function<absl::Status()>& action);

}  // namespace r1d::cli
