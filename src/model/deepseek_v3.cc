// SPDX-License-Identifier: Apache-2.0
#include "r1d/model/deepseek_v3.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/fault.h"
#include "r1d/base/status.h"

#include "model/rope.h"
#include "model/weight_store.h"

namespace r1d::model {
namespace {

using checkpoint::ModelConfig;
using checkpoint::RankShard;

ops::MlpWeights mlp_weights(const WeightStore& store, const std::string& prefix) {
  return {.gate = store.matrix(prefix + "gate_proj.weight"),
          .up = store.matrix(prefix + "up_proj.weight"),
          .down = store.matrix(prefix + "down_proj.weight")};
}

ops::AttentionWeights attention_weights(const WeightStore& store,
                                        const ModelConfig& config,
                                        const std::string& prefix) {
  ops::AttentionWeights attention;
  if (config.q_lora_rank > 0) {
    attention.q_a = store.matrix(prefix + "q_a_proj.weight");
    attention.q_a_norm = store.vector(prefix + "q_a_layernorm.weight");
    attention.q_b = store.matrix(prefix + "q_b_proj.weight");
  } else {
    attention.q_b = store.matrix(prefix + "q_proj.weight");
  }
  attention.kv_a = store.matrix(prefix + "kv_a_proj_with_mqa.weight");
  attention.kv_a_norm = store.vector(prefix + "kv_a_layernorm.weight");
  attention.kv_b = store.matrix(prefix + "kv_b_proj.weight");
  attention.o = store.matrix(prefix + "o_proj.weight");
  return attention;
}

void fill_moe(const WeightStore& store,
              const ModelConfig& config,
              const RankShard& shard,
              const std::string& prefix,
              Layer& layer) {
  layer.moe.router = store.matrix(prefix + "gate.weight");
  layer.moe.router_bias = store.vector(prefix + "gate.e_score_correction_bias");
  layer.moe.first_expert = static_cast<int32_t>(shard.experts.begin);
  for (int64_t e = shard.experts.begin; e < shard.experts.end; ++e) {
    layer.experts.push_back(mlp_weights(store, fmt::format("{}experts.{}.", prefix, e)));
  }
  layer.moe.experts = layer.experts;
  if (config.n_shared_experts > 0)
    layer.moe.shared = mlp_weights(store, prefix + "shared_experts.");
}

absl::StatusOr<Layer> make_layer(ops::Ops& ops,
                                 const WeightStore& store,
                                 const ModelConfig& config,
                                 const RankShard& shard,
                                 int32_t index) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  Layer layer;
  layer.input_norm = store.vector(prefix + "input_layernorm.weight");
  layer.attention = attention_weights(store, config, prefix + "self_attn.");
  layer.post_attention_norm = store.vector(prefix + "post_attention_layernorm.weight");
  R1D_RETURN_IF_ERROR(ops.prepare(layer.attention));
  layer.is_moe = config.is_moe_layer(index);
  if (layer.is_moe) {
    fill_moe(store, config, shard, prefix + "mlp.", layer);
    R1D_RETURN_IF_ERROR(ops.prepare(layer.moe));
  } else {
    layer.mlp = mlp_weights(store, prefix + "mlp.");
    R1D_RETURN_IF_ERROR(ops.prepare(layer.mlp));
  }
  return layer;
}

absl::StatusOr<MtpLayer> make_mtp_layer(ops::Ops& ops,
                                        const WeightStore& store,
                                        const ModelConfig& config,
                                        const RankShard& shard,
                                        int32_t index) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  MtpLayer mtp;
  mtp.embedding_norm = store.vector(prefix + "enorm.weight");
  mtp.hidden_norm = store.vector(prefix + "hnorm.weight");
  mtp.projection = store.matrix(prefix + "eh_proj.weight");
  R1D_ASSIGN_OR_RETURN(mtp.layer, make_layer(ops, store, config, shard, index));
  mtp.head_norm = store.vector(prefix + "shared_head.norm.weight");
  return mtp;
}

absl::StatusOr<ModelWeights> make_weights(ops::Ops& ops,
                                          const WeightStore& store,
                                          const ModelConfig& config,
                                          const RankShard& shard,
                                          bool with_mtp) {
  ModelWeights weights;
  weights.embedding = store.matrix("model.embed_tokens.weight");
  weights.first_vocab_row = shard.vocab.begin;
  weights.final_norm = store.vector("model.norm.weight");
  weights.head = config.tie_word_embeddings ? weights.embedding : store.matrix("lm_head.weight");
  for (int32_t i = 0; i < config.num_hidden_layers; ++i) {
    R1D_ASSIGN_OR_RETURN(Layer layer, make_layer(ops, store, config, shard, i));
    weights.layers.push_back(std::move(layer));
  }
  for (int32_t i = 0; with_mtp && i < config.num_nextn_predict_layers; ++i) {
    R1D_ASSIGN_OR_RETURN(MtpLayer layer,
                         make_mtp_layer(ops, store, config, shard, config.num_hidden_layers + i));
    weights.mtp.push_back(std::move(layer));
  }
  return weights;
}

}  // namespace

ops::ModelDims make_dims(const ModelConfig& config, const RankShard& shard) {
  const RopeConstants rope = make_rope_constants(config);
  const int64_t intermediate = std::max({shard.dense_intermediate.size(),
                                         shard.shared_intermediate.size(),
                                         shard.expert_intermediate.size()});
  return {.hidden_size = config.hidden_size,
          .num_heads = static_cast<int32_t>(shard.heads.size()),
          .q_lora_rank = config.q_lora_rank,
          .kv_lora_rank = config.kv_lora_rank,
          .qk_nope_head_dim = config.qk_nope_head_dim,
          .qk_rope_head_dim = config.qk_rope_head_dim,
          .v_head_dim = config.v_head_dim,
          .max_intermediate = intermediate,
          .vocab_size = config.vocab_size,
          .rms_norm_eps = static_cast<float>(config.rms_norm_eps),
          .softmax_scale = rope.softmax_scale,
          .rope_inv_freq = rope.inv_freq,
          .rope_cos_sin_scale = rope.cos_sin_scale,
          .rope_interleave = config.rope_interleave,
          .router = {.num_experts = config.n_routed_experts,
                     .top_k = config.num_experts_per_tok,
                     .num_groups = config.n_group,
                     .kept_groups = config.topk_group,
                     .normalize = config.norm_topk_prob,
                     .scaling_factor = static_cast<float>(config.routed_scaling_factor)}};
}

class DeepSeekV3::Impl {
 public:
  Impl(ops::Ops& ops, WeightStore store, ModelWeights weights, int64_t hidden_size, int32_t rank)
      : ops_(ops),
        store_(std::move(store)),
        weights_(std::move(weights)),
        hidden_size_(hidden_size),
        rank_(rank) {
    // The vectors moved: point the spans at where the experts stand now.
    for (Layer& layer : weights_.layers) layer.moe.experts = layer.experts;
    for (MtpLayer& mtp : weights_.mtp) mtp.layer.moe.experts = mtp.layer.experts;
  }

  absl::Status take_activations(int32_t max_tokens) {
    max_tokens_ = max_tokens;
    const int64_t bytes = max_tokens * hidden_size_ * dtype_bytes(ops_.activation_dtype());
    for (auto* buffer : {&residual_, &normed_, &partial_}) {
      R1D_ASSIGN_OR_RETURN(
          *buffer,
          ops_.allocate(
              static_cast<size_t>(bytes), ops::MemoryKind::kActivations, "activations of a step"));
    }
    return absl::OkStatus();
  }

  absl::Status enqueue(const ops::StepInputs& inputs,
                       std::span<const ops::LatentPages> pages,
                       float* logits,
                       std::atomic<uint64_t>& layers_done) {
    const auto num_tokens = static_cast<int64_t>(inputs.token_ids.size());
    R1D_CHECK(num_tokens <= max_tokens_ && pages.size() >= weights_.layers.size());
    const ops::Tensor residual = view(*residual_, num_tokens);
    const ops::Tensor x = view(*normed_, num_tokens);
    const ops::Tensor partial = view(*partial_, num_tokens);

    R1D_RETURN_IF_ERROR(ops_.begin_step(inputs));
    R1D_RETURN_IF_ERROR(ops_.embed(weights_.embedding, weights_.first_vocab_row, residual));
    R1D_RETURN_IF_ERROR(
        ops_.norm(residual, weights_.layers.front().input_norm, x, ops::NormReader::kAttention));
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kLayer, rank_));
      const Layer& layer = weights_.layers[i];
      R1D_RETURN_IF_ERROR(ops_.attention(layer.attention, pages[i], x, partial));
      R1D_RETURN_IF_ERROR(
          ops_.reduce_add_norm(partial,
                               residual,
                               layer.post_attention_norm,
                               x,
                               layer.is_moe ? ops::NormReader::kMoe : ops::NormReader::kMlp));
      R1D_RETURN_IF_ERROR(layer.is_moe ? ops_.moe(layer.moe, x, partial)
                                       : ops_.mlp(layer.mlp, x, partial));
      R1D_RETURN_IF_ERROR(
          ops_.reduce_add_norm(partial, residual, norm_after(i), x, reader_after(i)));
      layers_done.fetch_add(1, std::memory_order_relaxed);
    }
    return ops_.logits(weights_.head, weights_.first_vocab_row, x, logits);
  }

  [[nodiscard]] ops::Ops& ops() { return ops_; }
  [[nodiscard]] const ModelWeights& weights() const { return weights_; }

 private:
  // The norm that reads the residual next: the following layer's first, or the model's last.
  [[nodiscard]] const float* norm_after(size_t layer) const {
    return layer + 1 < weights_.layers.size() ? weights_.layers[layer + 1].input_norm
                                              : weights_.final_norm;
  }

  [[nodiscard]] ops::NormReader reader_after(size_t layer) const {
    return layer + 1 < weights_.layers.size() ? ops::NormReader::kAttention
                                              : ops::NormReader::kLogits;
  }

  [[nodiscard]] ops::Tensor view(ops::Buffer& buffer, int64_t rows) const {
    return {.data = buffer.data(),
            .dtype = ops_.activation_dtype(),
            .rows = rows,
            .cols = hidden_size_,
            .stride = hidden_size_};
  }

  ops::Ops& ops_;
  const WeightStore store_;
  ModelWeights weights_;
  const int64_t hidden_size_;
  const int32_t rank_;
  int32_t max_tokens_ = 0;
  std::unique_ptr<ops::Buffer> residual_;  // [max_tokens, D]: the residual stream
  std::unique_ptr<ops::Buffer> normed_;    // [max_tokens, D]: what the next block reads
  std::unique_ptr<ops::Buffer> partial_;   // [max_tokens, D]: this rank's share of a block's output
};

DeepSeekV3::DeepSeekV3(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeepSeekV3::~DeepSeekV3() = default;

absl::StatusOr<std::unique_ptr<DeepSeekV3>> DeepSeekV3::load(const checkpoint::WeightSource& source,
                                                             const RankShard& shard,
                                                             ops::Ops& ops,
                                                             int32_t max_tokens,
                                                             bool with_mtp,
                                                             const LoadProgress& progress,
                                                             checkpoint::WeightLoad* files) {
  if (with_mtp && !source.has_mtp()) {
    return failed_precondition("MTP layers were asked for, but the checkpoint has none");
  }
  std::optional<checkpoint::WeightLoad> alone;
  if (files == nullptr) files = &alone.emplace(checkpoint::LoadOptions{}, 1);
  R1D_ASSIGN_OR_RETURN(WeightStore store,
                       WeightStore::load(source, shard, ops, with_mtp, *files, progress));
  alone.reset();
  R1D_ASSIGN_OR_RETURN(ModelWeights weights,
                       make_weights(ops, store, source.config(), shard, with_mtp));
  auto impl = std::make_unique<Impl>(
      ops, std::move(store), std::move(weights), source.config().hidden_size, shard.rank);
  R1D_RETURN_IF_ERROR(impl->take_activations(max_tokens));
  return std::unique_ptr<DeepSeekV3>(new DeepSeekV3(std::move(impl)));
}

absl::Status DeepSeekV3::forward(const ops::StepInputs& inputs,
                                 std::span<const ops::LatentPages> pages,
                                 float* logits,
                                 std::atomic<uint64_t>& layers_done) {
  R1D_RETURN_IF_ERROR(impl_->enqueue(inputs, pages, logits, layers_done));
  return impl_->ops().end_step();
}

absl::Status DeepSeekV3::launch(const ops::StepInputs& inputs,
                                std::span<const ops::LatentPages> pages,
                                float* logits,
                                std::atomic<uint64_t>& layers_done) {
  R1D_RETURN_IF_ERROR(impl_->enqueue(inputs, pages, logits, layers_done));
  return impl_->ops().launch_step();
}

const ModelWeights& DeepSeekV3::weights() const {
  return impl_->weights();
}

}  // namespace r1d::model
