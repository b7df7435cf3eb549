// SPDX-License-Identifier: Apache-2.0
// DeepSeek-V3 / R1: the forward pass of one rank, written once over ops.
// Source: DeepSeek-V3 report, section 2.1 (arXiv 2412.19437); MLA: DeepSeek-V2 report, section 2.1.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/model_config.h"
#include "r1d/checkpoint/shard_plan.h"
#include "r1d/checkpoint/weight_load.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/ops/ops.h"

namespace r1d::model {

// Sizes and constants of this rank: YaRN frequencies and both mscale factors worked out.
[[nodiscard]] ops::ModelDims make_dims(const checkpoint::ModelConfig& config,
                                       const checkpoint::RankShard& shard);

// Bytes of weights a rank holds, for plans and progress; scales included, norms as f32.
[[nodiscard]] absl::StatusOr<int64_t> rank_weight_bytes(const checkpoint::WeightSource& source,
                                                        const checkpoint::RankShard& shard,
                                                        bool with_mtp);

// What a rank's weights take in memory, as loaded: scales and alignment with the tensor they belong
// to, norms and biases as f32.
struct RankWeights {
  int64_t attention = 0;
  int64_t experts = 0;  // routed
  int64_t shared_experts = 0;
  int64_t dense = 0;  // feed-forward blocks without experts
  int64_t routers = 0;
  int64_t embeddings = 0;  // embedding and head
  int64_t norms = 0;
  int64_t mtp = 0;  // all of the MTP layers
  [[nodiscard]] int64_t total() const {
    return attention + experts + shared_experts + dense + routers + embeddings + norms + mtp;
  }
};
// Pure; exactly what load() takes.
[[nodiscard]] absl::StatusOr<RankWeights> plan_weights(const checkpoint::WeightSource& source,
                                                       const checkpoint::RankShard& shard,
                                                       bool with_mtp);

// Told, on the rank's thread, how many more bytes came; an error stops the load and is passed on.
using LoadProgress = std::function<absl::Status(int64_t bytes)>;

// One decoder layer. Norm weights are f32 [D].
struct Layer {
  const float* input_norm = nullptr;
  ops::AttentionWeights attention;
  const float* post_attention_norm = nullptr;
  bool is_moe = false;
  ops::MlpWeights mlp;                   // dense layers
  std::vector<ops::MlpWeights> experts;  // MoE layers: what `moe.experts` spans
  ops::MoeWeights moe;
};

// A multi-token prediction layer: drafts token i + 2 from the hidden state of i and token i + 1.
struct MtpLayer {
  const float* embedding_norm = nullptr;  // enorm [D]
  const float* hidden_norm = nullptr;     // hnorm [D]
  ops::Matrix projection;                 // eh_proj [D, 2 D]; columns: embedding, then hidden
  Layer layer;
  const float* head_norm = nullptr;  // shared_head.norm [D]; the head itself is lm_head
};

struct ModelWeights {
  ops::Matrix embedding;  // [V / world, D]
  int64_t first_vocab_row = 0;
  std::vector<Layer> layers;
  const float* final_norm = nullptr;  // [D]
  ops::Matrix head;                   // [V / world, D]
  std::vector<MtpLayer> mtp;          // empty unless asked for
};

// Lifecycle: load() takes all memory; steps take none. The Ops outlives the model.
// Threads: confined to its rank's thread.
class DeepSeekV3 {
 public:
  // Reads this rank's slices from `source` and takes activations for `max_tokens` a step.
  // kFailedPrecondition when MTP is asked for and the source has none. `files`: what the ranks that
  // load together read through, so that no byte is read twice; null: this rank loads alone.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<DeepSeekV3>> load(
      const checkpoint::WeightSource& source,
      const checkpoint::RankShard& shard,
      ops::Ops& ops,
      int32_t max_tokens,
      bool with_mtp,
      const LoadProgress& progress,
      checkpoint::WeightLoad* files = nullptr);
  ~DeepSeekV3();

  // One step: writes the latents of its tokens to `pages` (one per layer) and, on rank 0, raw
  // logits [logit_rows, V] f32 to `logits` (null on other ranks). A collective over all ranks.
  // `layers_done` grows once a layer, so that a watcher sees a long step move.
  [[nodiscard]] absl::Status forward(const ops::StepInputs& inputs,
                                     std::span<const ops::LatentPages> pages,
                                     float* logits,
                                     std::atomic<uint64_t>& layers_done);
  // The same without waiting for it: Ops::wait_step() does.
  [[nodiscard]] absl::Status launch(const ops::StepInputs& inputs,
                                    std::span<const ops::LatentPages> pages,
                                    float* logits,
                                    std::atomic<uint64_t>& layers_done);

  [[nodiscard]] const ModelWeights& weights() const;

 private:
  class Impl;
  explicit DeepSeekV3(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::model
