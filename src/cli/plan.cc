// SPDX-License-Identifier: Apache-2.0
#include "cli/plan.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "r1d/base/status.h"
#include "r1d/config/config.h"
#include "r1d/device/gpu_info.h"

#include "cli/setup.h"

namespace r1d::cli {
namespace {

using checkpoint::ExpertSplit;
using checkpoint::WeightSource;

struct PlannedModel {
  std::string name;
  std::string source;
  std::unique_ptr<WeightSource> weights;
};

std::string last_name(const std::string& path) {
  const std::filesystem::path normal = std::filesystem::path(path).lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

absl::StatusOr<PlannedModel> implied_model(const std::string& file, const std::string& name) {
  R1D_ASSIGN_OR_RETURN(const auto config, checkpoint::ModelConfig::load(file));
  return PlannedModel{.name = name,
                      .source = "config.json alone, sizes are what it implies",
                      .weights = checkpoint::make_dummy_source(config, 0)};
}

// A directory's weights; without any, what its config.json implies.
absl::StatusOr<PlannedModel> open_planned(const PlanOptions& options,
                                          const config::Config& config) {
  const bool from_flags = !options.model.empty() || !options.model_config.empty();
  const std::string& dir = from_flags ? options.model : config.model.path;
  const std::string& file = from_flags ? options.model_config : config.model.config_file;
  if (dir.empty() && file.empty()) {
    return invalid_argument("nothing to plan: give a model directory, or --model-config FILE");
  }
  if (dir.empty()) return implied_model(file, std::filesystem::path(file).stem().string());
  auto weights = checkpoint::open_hugging_face(dir);
  if (absl::IsNotFound(weights.status()))
    return implied_model(dir + "/config.json", last_name(dir));
  if (!weights.ok()) return weights.status();
  return PlannedModel{.name = last_name(dir),
                      .source = "weights, checked against config.json",
                      .weights = *std::move(weights)};
}

absl::StatusOr<config::Config> base_config(const std::string& file) {
  if (file.empty()) return config::Config{};
  R1D_ASSIGN_OR_RETURN(auto loaded, config::load({.file = file, .environment = {}, .flags = {}}));
  return std::move(loaded.config);
}

// Which device the plan is for, and with it the formats that "auto" means.
absl::StatusOr<engine::Device> device_of(const std::string& gpu) {
  if (gpu == "cpu") return engine::Device::kCpu;
  if (gpu == "this") return choose_device("auto");
  if (device::find_gpu_model(gpu) != nullptr) return engine::Device::kCuda;
  std::vector<std::string_view> names;
  for (const device::GpuModel& model : device::gpu_models()) names.push_back(model.name);
  return invalid_argument("--gpu {}: expected {}, cpu or this", gpu, fmt::join(names, ", "));
}

engine::EngineOptions planned_options(const PlanOptions& options,
                                      config::Config config,
                                      engine::Device device) {
  config.engine.device = device == engine::Device::kCpu ? "cpu" : "cuda";
  if (!options.kv_cache_dtype.empty()) config.engine.kv_cache_dtype = options.kv_cache_dtype;
  if (options.expert_parallel) config.engine.expert_parallel = true;
  if (options.load_mtp) config.engine.load_mtp = true;
  engine::EngineOptions made = engine_options(config);
  made.world_size = options.world_size.value_or(made.world_size);
  made.max_model_len = options.max_model_len.value_or(made.max_model_len);
  made.max_batch_size = options.max_batch_size.value_or(made.max_batch_size);
  made.max_num_batched_tokens =
      options.max_num_batched_tokens.value_or(made.max_num_batched_tokens);
  made.block_size = options.block_size.value_or(made.block_size);
  made.kv_cache_bytes = options.kv_cache_bytes.value_or(made.kv_cache_bytes);
  return made;
}

absl::StatusOr<engine::MemoryTarget> planned_target(const std::string& gpu,
                                                    const engine::EngineOptions& options) {
  const device::GpuModel* model = device::find_gpu_model(gpu);
  if (model != nullptr) return engine::target_of(*model);
  return engine::local_target(options);
}

bool stores_fp8(const WeightSource& weights) {
  const auto stored = weights.find("model.layers.0.self_attn.o_proj.weight");
  return stored.ok() && stored->dtype == DType::kF8E4M3;
}

SplitFloors floors_of(const WeightSource& weights, const PlanReport& report, ExpertSplit split) {
  SplitFloors floors;
  floors.split = split;
  const auto shard =
      checkpoint::make_rank_shard(weights.config(), 0, report.options.world_size, split);
  const auto bytes = shard.ok() ? model::plan_weights(weights, *shard, report.options.with_mtp)
                                : absl::StatusOr<model::RankWeights>(shard.status());
  if (!bytes.ok()) {
    floors.refused = message_of(bytes.status());
    return floors;
  }
  floors.weight_bytes = bytes->total();
  if (!report.gpu) return floors;
  const engine::RooflineModel model{
      .config = weights.config(),
      .shard = *shard,
      .fp8_weights = report.fp8,
      .cache_token_bytes =
          engine::latent_format(weights.config(), report.options.kv_cache_dtype).bytes_per_token()};
  for (const int64_t batch : kPlanBatches) {
    floors.decode.push_back(engine::decode_floor(model, report.rates, batch, report.context));
  }
  floors.prefill = engine::prefill_floor(model, report.rates, report.prefill_tokens);
  return floors;
}

std::vector<SplitFloors> all_floors(const WeightSource& weights, const PlanReport& report) {
  std::vector<SplitFloors> floors{floors_of(weights, report, report.options.expert_split)};
  if (report.options.world_size == 1 || weights.config().n_routed_experts == 0) return floors;
  const bool sliced = report.options.expert_split == ExpertSplit::kTensor;
  floors.push_back(
      floors_of(weights, report, sliced ? ExpertSplit::kExpert : ExpertSplit::kTensor));
  return floors;
}

std::vector<std::string> notes_of(const PlanReport& report) {
  std::vector<std::string> notes;
  const int32_t capability = report.target.gpu.compute_capability;
  if (report.target.device == engine::Device::kCpu) {
    notes.emplace_back(
        "the CPU's workspaces and cache are taken page by page as they are used; no floors are "
        "worked out for it");
    return notes;
  }
  if (report.fp8 && capability != 90) {
    notes.push_back(fmt::format(
        "sm_{}: {}; FP8 weights stay FP8 in memory and are widened to bf16 in registers, so "
        "products run at the bf16 rate through the generic kernels",
        capability,
        capability < 89 ? "there are no FP8 tensor cores"
                        : "r1d's FP8 products are made for sm_90a"));
  }
  if (capability > 90) {
    notes.push_back(fmt::format(
        "sm_{}: a build with R1D_CUDA_ARCHITECTURES={} is needed; the images have 80, 89 and 90a",
        capability,
        capability));
  }
  notes.emplace_back(report.options.world_size > 1
                         ? "collectives, graphs and context are as measured on two H200"
                         : "graphs and context are as measured on an H200");
  return notes;
}

}  // namespace

absl::StatusOr<PlanReport> make_plan_report(const PlanOptions& options) {
  R1D_ASSIGN_OR_RETURN(const config::Config config, base_config(options.config_file));
  R1D_ASSIGN_OR_RETURN(const engine::Device device, device_of(options.gpu));
  R1D_ASSIGN_OR_RETURN(const PlannedModel planned, open_planned(options, config));
  const WeightSource& weights = *planned.weights;
  PlanReport report;
  report.model = planned.name;
  report.source = planned.source;
  report.fp8 = stores_fp8(weights);
  for (const auto& spec : checkpoint::expected_tensors(weights.config(), /*with_mtp=*/false)) {
    report.parameters += spec.rows * spec.cols;
  }
  report.options = planned_options(options, config, device);
  R1D_ASSIGN_OR_RETURN(report.target, planned_target(options.gpu, report.options));
  R1D_ASSIGN_OR_RETURN(report.plan, engine::plan_memory(weights, report.options, report.target));
  const device::GpuModel* gpu = device::find_gpu_model(options.gpu);
  if (gpu == nullptr && device == engine::Device::kCuda) {
    gpu = device::match_gpu_model(report.target.name, report.target.memory_bytes);
  }
  if (gpu != nullptr) {
    report.gpu = *gpu;
    report.rates = engine::reachable_rates(*gpu, options.all_reduce_us * 1e-6);
  }
  constexpr int64_t kPrefill = 8192;
  report.context = std::min<int64_t>(options.context, report.plan.cache.max_model_len);
  report.prefill_tokens = std::min<int64_t>(
      {kPrefill, report.options.max_num_batched_tokens, report.plan.cache.max_model_len});
  report.splits = all_floors(weights, report);
  report.notes = notes_of(report);
  return report;
}

absl::Status plan(const PlanOptions& options) {
  const auto report = make_plan_report(options);
  if (!report.ok()) {
    if (options.json) {
      const nlohmann::ordered_json refused{{"fits", false},
                                           {"reason", message_of(report.status())}};
      fmt::print("{}\n", refused.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    }
    return report.status();
  }
  std::fputs((options.json ? plan_json(*report) : plan_text(*report)).c_str(), stdout);
  return absl::OkStatus();
}

void add_plan(CLI::App& app, std::function<absl::Status()>& action) {
  CLI::App* command = app.add_subcommand(
      "plan", "What a model takes of a GPU's memory, what fits beside it, and how fast it can be");
  auto options = std::make_shared<PlanOptions>();
  CLI::Option* model = command->add_option("model", options->model, "Hugging Face directory");
  command->add_option("--model-config", options->model_config, "A config.json alone")
      ->excludes(model);
  command->add_option(
      "--config", options->config_file, "r1d.yaml: model and limits that no flag here says");
  command
      ->add_option("--gpu",
                   options->gpu,
                   "h200, h100-80gb, h100-94gb, h20, b200, a100-80gb, a100-40gb, l40s, cpu, or "
                   "this machine's")
      ->capture_default_str();
  command->add_option("--world-size", options->world_size, "Ranks")->check(CLI::Range(1, 64));
  command->add_option("--max-model-len", options->max_model_len, "Tokens of a sequence at most")
      ->check(CLI::Range(0, 1 << 24));
  command->add_option("--max-batch-size", options->max_batch_size, "Sequences of a step at most")
      ->check(CLI::Range(1, 1 << 14));
  command
      ->add_option(
          "--max-num-batched-tokens", options->max_num_batched_tokens, "Tokens of a step at most")
      ->check(CLI::Range(1, 1 << 17));
  command->add_option("--block-size", options->block_size, "Tokens of a KV block")
      ->check(CLI::Range(1, 1024));
  command->add_option("--kv-cache-dtype", options->kv_cache_dtype, "Latent cache")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "fp8"}));
  command
      ->add_option("--kv-cache-memory",
                   options->kv_cache_bytes,
                   "Bytes of KV cache a rank, e.g. 30Gi; default: what is left")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  command->add_flag("--expert-parallel", options->expert_parallel, "Whole experts a rank");
  command->add_flag("--load-mtp", options->load_mtp, "With the MTP layers");
  command
      ->add_option(
          "--context", options->context, "Tokens of each sequence in a decode step's floor")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command
      ->add_option("--all-reduce-us",
                   options->all_reduce_us,
                   "What one all-reduce costs before its first byte, in the floors")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object");
  command->callback([options, &action] { action = [options] { return plan(*options); }; });
}

}  // namespace r1d::cli
