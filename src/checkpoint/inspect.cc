// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "r1d/base/status.h"
#include "r1d/base/two_columns.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/checkpoint/weight_source.h"

#include "checkpoint/errors.h"
#include "checkpoint/summary.h"

namespace r1d::checkpoint {
namespace {

std::string gigabytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value < 1e9) return fmt::format("{:.2f} MB ({:.2f} MiB)", value / 1e6, value / 0x1p20);
  return fmt::format("{:.2f} GB ({:.2f} GiB)", value / 1e9, value / 0x1p30);
}

std::string parameters(int64_t count) {
  const auto value = static_cast<double>(count);
  return count < 1'000'000'000 ? fmt::format("{:.2f} M", value / 1e6)
                               : fmt::format("{:.2f} B", value / 1e9);
}

void report_model(const ModelConfig& config, TwoColumns& report) {
  int32_t num_moe = 0;
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    num_moe += config.is_moe_layer(layer) ? 1 : 0;
  }
  report.line("architecture", "{} ({})", config.architecture, config.model_type);
  report.line("layers",
              "{}: {} dense, {} MoE",
              config.num_hidden_layers,
              config.num_hidden_layers - num_moe,
              num_moe);
  report.line("hidden size", "{}", config.hidden_size);
  report.line("vocabulary", "{} rows", config.vocab_size);
  report.line("heads",
              "{}: {} + {} rotary values of q and k, {} of v",
              config.num_attention_heads,
              config.qk_nope_head_dim,
              config.qk_rope_head_dim,
              config.v_head_dim);
  report.line("latent ranks",
              "q {}, kv {}",
              config.q_lora_rank > 0 ? std::to_string(config.q_lora_rank) : "none",
              config.kv_lora_rank);
  if (config.n_routed_experts > 0) {
    report.line("experts",
                "{} routed in {} groups, {} a token from {} groups; {} shared",
                config.n_routed_experts,
                config.n_group,
                config.num_experts_per_tok,
                config.topk_group,
                config.n_shared_experts);
  }
  report.line("context",
              "{} tokens{}",
              config.max_position_embeddings,
              config.yarn ? fmt::format(" (YaRN, {} times {})",
                                        config.yarn->factor,
                                        config.yarn->original_max_position_embeddings)
                          : "");
}

void report_weights(const WeightSource& source, const Summary& summary, TwoColumns& report) {
  report.line("parameters",
              "{}, {} active a token",
              parameters(summary.main_parameters),
              parameters(summary.active_parameters));
  if (const int32_t num_layers = source.config().num_nextn_predict_layers; source.has_mtp()) {
    report.line("MTP",
                "{} layer{}, {} parameters more",
                num_layers,
                num_layers == 1 ? "" : "s",
                parameters(summary.mtp_parameters));
  } else {
    report.line("MTP", "none");
  }
  report.line("tensors",
              "{}, {}: {} bytes",
              grouped(summary.all.num_tensors),
              gigabytes(summary.all.bytes),
              grouped(summary.all.bytes));
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
    const TensorTotal& total = summary.by_dtype[static_cast<size_t>(dtype)];
    if (total.num_tensors == 0) continue;
    report.line(fmt::format("  {}", dtype_name(dtype)),
                "{}, {}",
                grouped(total.num_tensors),
                gigabytes(total.bytes));
  }
}

void report_ranks(const WeightSource& source,
                  const Summary& summary,
                  int32_t world_size,
                  ExpertSplit expert_split,
                  TwoColumns& report) {
  report.line("per rank",
              "{} of weights, world size {}, {}",
              gigabytes(summary.rank_main_bytes),
              world_size,
              expert_split == ExpertSplit::kTensor ? "a slice of every expert" : "whole experts");
  if (source.has_mtp()) {
    report.line("  with MTP", "{}", gigabytes(summary.rank_main_bytes + summary.rank_mtp_bytes));
  }
  report.line("KV cache",
              "{} bytes a token in BF16, {} in F32, on every rank",
              grouped(summary.kv_values_per_token * dtype_bytes(DType::kBF16)),
              grouped(summary.kv_values_per_token * dtype_bytes(DType::kF32)));
}

absl::Status report_all(const WeightSource& source,
                        int32_t world_size,
                        ExpertSplit expert_split,
                        TwoColumns& report) {
  R1D_ASSIGN_OR_RETURN(const Summary summary, summarize(source, world_size, expert_split));
  report_model(source.config(), report);
  report_weights(source, summary, report);
  report_ranks(source, summary, world_size, expert_split, report);
  return absl::OkStatus();
}

absl::StatusOr<std::string> packed_report(const std::string& dir, const ReadOptions& options) {
  R1D_ASSIGN_OR_RETURN(const auto source, open_packed(dir, options));
  R1D_ASSIGN_OR_RETURN(const PackedInfo info, read_packed_info(dir));
  int64_t bytes = 0;
  for (const int64_t size : info.file_bytes) bytes += size;
  TwoColumns report;
  report.line("source",
              "packed for world size {}, format version {}, headers checked against config.json",
              info.world_size,
              info.version);
  report.line("  packed by", "{}", printable(info.source));
  report.line("  files", "{}, {}", info.world_size, gigabytes(bytes));
  R1D_RETURN_IF_ERROR(report_all(*source, info.world_size, info.expert_split, report));
  return report.take();
}

// The weights of `dir`; without any, what config.json implies.
absl::StatusOr<std::unique_ptr<WeightSource>> open_or_imply(const std::string& dir,
                                                            bool& has_weights) {
  absl::StatusOr<std::unique_ptr<WeightSource>> source = open_hugging_face(dir);
  has_weights = source.ok();
  if (!absl::IsNotFound(source.status())) return source;
  R1D_ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::load(dir + "/config.json"));
  return make_dummy_source(config, 0);
}

}  // namespace

absl::StatusOr<std::string> inspect_report(const std::string& dir,
                                           std::optional<int32_t> world_size,
                                           std::optional<ExpertSplit> expert_split) {
  if (is_packed(dir)) return packed_report(dir, {world_size, expert_split});
  bool has_weights = false;
  R1D_ASSIGN_OR_RETURN(const std::unique_ptr<WeightSource> source, open_or_imply(dir, has_weights));
  TwoColumns report;
  report.line("source",
              "{}",
              has_weights ? "weights, checked against config.json"
                          : "config.json alone: no weights here, sizes are what it implies");
  R1D_RETURN_IF_ERROR(report_all(
      *source, world_size.value_or(1), expert_split.value_or(ExpertSplit::kTensor), report));
  return report.take();
}

}  // namespace r1d::checkpoint
