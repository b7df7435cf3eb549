// SPDX-License-Identifier: Apache-2.0
// From a validated Config to the options of each stage.
#pragma once

#include <memory>
#include <optional>

#include <absl/status/statusor.h>

#include "r1d/admission/frontend.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/config/config.h"
#include "r1d/engine/engine.h"
#include "r1d/scheduler/scheduler.h"
#include "r1d/telemetry/metrics.h"
#include "r1d/transport/grpc_server.h"

namespace r1d::cli {

// What the model's directory says besides the weights.
struct ModelFiles {
  std::unique_ptr<checkpoint::WeightSource> weights;
  std::string name;
  TokenId last_token_id = 0;
  checkpoint::GenerationDefaults defaults;
  std::shared_ptr<const admission::TextModel> text;  // null: no tokenizer
};
[[nodiscard]] absl::StatusOr<ModelFiles> open_model(const config::Config& config);

// "auto": the GPU when this build and this machine have one.
[[nodiscard]] engine::Device choose_device(const std::string& name);
// "auto": bf16 on a GPU, f32 on the CPU.
[[nodiscard]] DType cache_dtype(const std::string& name, engine::Device device);
[[nodiscard]] const char* cache_dtype_name(DType dtype);  // "f32", "bf16", "fp8"
[[nodiscard]] engine::LoadMode load_mode(const std::string& name);
[[nodiscard]] engine::EngineOptions engine_options(const config::Config& config);

[[nodiscard]] scheduler::SchedulerOptions scheduler_options(
    const config::SchedulerSettings& settings, const engine::CachePlan& cache);

[[nodiscard]] admission::Limits admission_limits(const ModelFiles& files,
                                                 const engine::CachePlan& cache);

[[nodiscard]] transport::GrpcOptions grpc_options(const config::Config& config);

[[nodiscard]] transport::GrpcLimits grpc_limits(const config::ServerSettings& settings);

[[nodiscard]] transport::ServedModel served_model(const ModelFiles& files,
                                                  const config::Config& config,
                                                  const engine::Engine& engine);

[[nodiscard]] telemetry::ModelLabels metric_labels(const ModelFiles& files,
                                                   const config::Config& config,
                                                   const engine::Engine& engine);

}  // namespace r1d::cli
