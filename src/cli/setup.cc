// SPDX-License-Identifier: Apache-2.0
#include "cli/setup.h"

#include <filesystem>
#include <utility>

#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/device/gpu_info.h"

namespace r1d::cli {
namespace {

using checkpoint::ModelConfig;

std::string served_name(const config::ModelSettings& settings) {
  if (!settings.name.empty()) return settings.name;
  const std::string& origin = settings.path.empty() ? settings.config_file : settings.path;
  const std::filesystem::path path = std::filesystem::path(origin).lexically_normal();
  const std::filesystem::path last =
      path.has_filename() ? path.filename() : path.parent_path().filename();
  return last.string();
}

// The dtype most weights have, from one that every layer owns.
std::string weight_dtype(const checkpoint::WeightSource& weights) {
  const auto stored = weights.find("model.layers.0.self_attn.o_proj.weight");
  if (!stored.ok()) return "unknown";
  switch (stored->dtype) {
    case DType::kF8E4M3:
      return "fp8_e4m3";
    case DType::kBF16:
      return "bf16";
    case DType::kF32:
      return "f32";
  }
  return "unknown";
}

int64_t count_parameters(const ModelConfig& config) {
  int64_t count = 0;
  for (const auto& spec : checkpoint::expected_tensors(config, /*with_mtp=*/false)) {
    count += spec.rows * spec.cols;
  }
  return count;
}

absl::StatusOr<ModelFiles> open_dummy(const config::ModelSettings& settings) {
  R1D_ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::load(settings.config_file));
  ModelFiles files;
  files.weights = checkpoint::make_dummy_source(config, settings.dummy_seed);
  files.last_token_id = static_cast<TokenId>(config.vocab_size - 1);
  return files;
}

absl::StatusOr<std::unique_ptr<checkpoint::WeightSource>> open_source(
    const config::Config& config) {
  const config::ModelSettings& model = config.model;
  if (model.load_format == "safetensors") return checkpoint::open_hugging_face(model.path);
  const checkpoint::ReadOptions options{.world_size = config.engine.world_size,
                                        .expert_split = config.engine.expert_parallel
                                                            ? checkpoint::ExpertSplit::kExpert
                                                            : checkpoint::ExpertSplit::kTensor,
                                        .verify_checksums = model.verify_checksums};
  if (model.load_format == "packed") return checkpoint::open_packed(model.path, options);
  return checkpoint::open_checkpoint(model.path, options);
}

// Files are named by themselves; the operator also wants the directory.
absl::StatusOr<std::unique_ptr<checkpoint::WeightSource>> open_weights(
    const config::Config& config) {
  const std::string& dir = config.model.path;
  auto weights = open_source(config);
  if (weights.ok() || message_of(weights.status()).find(dir) != std::string::npos) return weights;
  return absl::Status(weights.status().code(),
                      fmt::format("{}: {}", dir, message_of(weights.status())));
}

absl::StatusOr<ModelFiles> open_directory(const config::Config& config) {
  const config::ModelSettings& settings = config.model;
  ModelFiles files;
  R1D_ASSIGN_OR_RETURN(files.weights, open_weights(config));
  R1D_ASSIGN_OR_RETURN(const std::optional<TokenId> last, checkpoint::last_token_id(settings.path));
  const auto vocab_last = static_cast<TokenId>(files.weights->config().vocab_size - 1);
  files.last_token_id = std::min(last.value_or(vocab_last), vocab_last);
  R1D_ASSIGN_OR_RETURN(files.defaults, checkpoint::load_generation_defaults(settings.path));
  return files;
}

}  // namespace

absl::StatusOr<ModelFiles> open_model(const config::Config& config) {
  const config::ModelSettings& settings = config.model;
  R1D_ASSIGN_OR_RETURN(
      ModelFiles files,
      settings.load_format == "dummy" ? open_dummy(settings) : open_directory(config));
  files.name = served_name(settings);
  if (settings.path.empty() && settings.tokenizer.empty()) return files;
  R1D_ASSIGN_OR_RETURN(
      files.text,
      admission::TextModel::load({.model_dir = settings.path,
                                  .tokenizer = settings.tokenizer,
                                  .chat_template = config.chat.template_file,
                                  .match_control_tokens = config.chat.match_control_tokens}));
  return files;
}

DType cache_dtype(const std::string& name, engine::Device device) {
  if (name == "auto") return device == engine::Device::kCuda ? DType::kBF16 : DType::kF32;
  if (name == "fp8") return DType::kF8E4M3;
  return name == "bf16" ? DType::kBF16 : DType::kF32;
}

const char* cache_dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF8E4M3:
      break;
  }
  return "fp8";
}

engine::Device choose_device(const std::string& name) {
  if (name == "cpu") return engine::Device::kCpu;
  if (name == "cuda") return engine::Device::kCuda;
  const auto gpus = device::list_gpus();
  return gpus.ok() && !gpus->empty() ? engine::Device::kCuda : engine::Device::kCpu;
}

engine::LoadMode load_mode(const std::string& name) {
  if (name == "cached") return engine::LoadMode::kCached;
  return name == "direct" ? engine::LoadMode::kDirect : engine::LoadMode::kAuto;
}

engine::EngineOptions engine_options(const config::Config& config) {
  const engine::Device device = choose_device(config.engine.device);
  return {.device = device,
          .world_size = config.engine.world_size,
          .num_threads = config.engine.num_threads,
          .expert_split = config.engine.expert_parallel ? checkpoint::ExpertSplit::kExpert
                                                        : checkpoint::ExpertSplit::kTensor,
          .kv_cache_dtype = cache_dtype(config.engine.kv_cache_dtype, device),
          .kv_cache_bytes = config.engine.kv_cache_memory_bytes,
          .block_size = config.scheduler.block_size,
          .max_model_len = config.scheduler.max_model_len,
          .max_num_batched_tokens = config.scheduler.max_num_batched_tokens,
          .max_batch_size = config.scheduler.max_batch_size,
          .bf16_dot = config.engine.bf16_dot,
          .with_mtp = config.engine.load_mtp,
          .deterministic = config.engine.deterministic,
          .cuda_graphs = config.engine.cuda_graphs,
          .load_mode = load_mode(config.model.load_mode),
          .load_threads = config.model.load_threads,
          .numa = config.engine.numa == "auto"};
}

scheduler::SchedulerOptions scheduler_options(const config::SchedulerSettings& settings,
                                              const engine::CachePlan& cache) {
  return {.max_batch_size = settings.max_batch_size,
          .max_num_batched_tokens = settings.max_num_batched_tokens,
          .max_model_len = cache.max_model_len,
          .max_waiting_requests = settings.max_waiting_requests,
          .block_size = settings.block_size,
          .num_blocks = cache.num_blocks,
          .batch_timeout = settings.batch_timeout,
          .priority_aging = settings.priority_aging,
          .prefix_cache = settings.prefix_cache};
}

admission::Limits admission_limits(const ModelFiles& files, const engine::CachePlan& cache) {
  const ModelConfig& config = files.weights->config();
  admission::Limits limits;
  limits.max_model_len = cache.max_model_len;
  limits.vocab_size = config.vocab_size;
  limits.last_token_id = files.last_token_id;
  limits.eos_token_ids =
      files.defaults.eos_token_ids.empty() ? config.eos_token_ids : files.defaults.eos_token_ids;
  // R1 ends some answers with it although its generation_config.json does not say so.
  const auto end_of_turn =
      files.text ? files.text->tokenizer().find_added("<|EOT|>") : std::nullopt;
  if (end_of_turn) limits.eos_token_ids.push_back(*end_of_turn);
  limits.default_temperature = files.defaults.temperature.value_or(limits.default_temperature);
  limits.default_top_p = files.defaults.top_p.value_or(limits.default_top_p);
  limits.default_top_k = files.defaults.top_k.value_or(limits.default_top_k);
  limits.model_name = files.name;
  return limits;
}

transport::GrpcOptions grpc_options(const config::Config& config) {
  const config::ServerSettings& settings = config.server;
  return {.address = settings.grpc_address,
          .reflection = settings.reflection,
          .log_requests = config.log.requests,
          .max_request_bytes = settings.max_request_bytes,
          .stream_buffer_tokens = settings.stream_buffer_tokens,
          .max_concurrent_streams = settings.max_concurrent_streams,
          .max_connections = settings.max_connections,
          .max_connections_per_address = settings.max_connections_per_address,
          .max_request_time = settings.max_request_time};
}

transport::GrpcLimits grpc_limits(const config::ServerSettings& settings) {
  return {.stream_buffer_tokens = settings.stream_buffer_tokens,
          .max_request_time = settings.max_request_time};
}

transport::ServedModel served_model(const ModelFiles& files,
                                    const config::Config& config,
                                    const engine::Engine& engine) {
  const ModelConfig& model = files.weights->config();
  return {.name = files.name,
          .architecture = model.architecture,
          .num_parameters = count_parameters(model),
          .num_layers = model.num_hidden_layers,
          .hidden_size = model.hidden_size,
          .vocab_size = model.vocab_size,
          .max_model_len = engine.cache().max_model_len,
          .weight_dtype = weight_dtype(*files.weights),
          .kv_cache_dtype = cache_dtype_name(engine_options(config).kv_cache_dtype),
          .kv_bytes_per_token = engine.cache().bytes_per_token,
          .block_size = config.scheduler.block_size,
          .num_blocks = engine.cache().num_blocks,
          .world_size = config.engine.world_size,
          .has_tokenizer = files.text != nullptr,
          .has_mtp = files.weights->has_mtp(),
          .has_chat_template = files.text != nullptr && files.text->has_chat_template(),
          .has_reasoning = files.text != nullptr && files.text->reasons(),
          .device = engine.device()};
}

telemetry::ModelLabels metric_labels(const ModelFiles& files,
                                     const config::Config& config,
                                     const engine::Engine& engine) {
  const engine::EngineOptions options = engine_options(config);
  telemetry::ModelLabels labels{.name = files.name,
                                .quantization = weight_dtype(*files.weights),
                                .devices = {},
                                .block_size = options.block_size,
                                .num_blocks = engine.cache().num_blocks,
                                .cache_dtype = cache_dtype_name(options.kv_cache_dtype),
                                .prefix_cache = config.scheduler.prefix_cache};
  if (options.device == engine::Device::kCpu) {
    labels.devices = {"cpu"};
  } else {
    for (int32_t rank = 0; rank < options.world_size; ++rank)
      labels.devices.push_back(fmt::format("cuda:{}", rank));
  }
  return labels;
}

}  // namespace r1d::cli
