// SPDX-License-Identifier: Apache-2.0
// `r1d make-checkpoint`: a model's directory with seeded weights, at a depth that fits.
#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "r1d/base/file.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/checkpoint_writer.h"
#include "r1d/checkpoint/weight_source.h"

#include "cli/commands.h"

namespace r1d::cli {
namespace {

constexpr int64_t kMostConfigBytes = 1 << 20;

// config.json's text with the sizes that the options change; all else as it stands.
absl::StatusOr<std::string> reduced_config(const MakeCheckpointOptions& options) {
  absl::StatusOr<std::string> text = read_text_file(options.model_config, kMostConfigBytes);
  if (!text.ok()) {
    return absl::Status(text.status().code(),
                        fmt::format("{}: {}", options.model_config, message_of(text.status())));
  }
  // The same checks as when a model is loaded, so that what follows may rely on them.
  R1D_RETURN_IF_ERROR(checkpoint::ModelConfig::load(options.model_config).status());
  auto config = nlohmann::ordered_json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return invalid_argument("{}: no JSON object", options.model_config);
  if (options.layers) config["num_hidden_layers"] = *options.layers;
  if (options.dense_layers) config["first_k_dense_replace"] = *options.dense_layers;
  if (options.experts) config["n_routed_experts"] = *options.experts;
  config["num_nextn_predict_layers"] = 0;
  return config.dump(2) + "\n";
}

}  // namespace

absl::Status make_checkpoint(const MakeCheckpointOptions& options) {
  using Clock = std::chrono::steady_clock;
  R1D_ASSIGN_OR_RETURN(const std::string text, reduced_config(options));
  R1D_ASSIGN_OR_RETURN(const checkpoint::ModelConfig config, checkpoint::ModelConfig::parse(text));
  const auto source = checkpoint::make_dummy_source(config, options.seed);
  const Clock::time_point start = Clock::now();
  R1D_ASSIGN_OR_RETURN(
      const checkpoint::WrittenCheckpoint written,
      checkpoint::write_checkpoint(*source,
                                   text,
                                   options.dir,
                                   {.shard_bytes = options.shard_bytes,
                                    .num_threads = static_cast<int32_t>(
                                        std::max(std::thread::hardware_concurrency(), 1U))}));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const double gigabytes = static_cast<double>(written.num_bytes) / 1e9;
  fmt::print("{}: {} tensors, {:.3f} GB in {} files; {:.1f} s, {:.2f} GB/s\n",
             options.dir,
             written.num_tensors,
             gigabytes,
             written.num_files,
             seconds,
             gigabytes / seconds);
  return absl::OkStatus();
}

}  // namespace r1d::cli
