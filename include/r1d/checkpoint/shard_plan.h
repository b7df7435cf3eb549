// SPDX-License-Identifier: Apache-2.0
// Which tensors a checkpoint must have, and which part of each a rank owns. One table of
// TensorSpecs drives the shape check, the loader, `r1d inspect` and the dummy weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/dtype.h"
#include "r1d/checkpoint/model_config.h"

namespace r1d::checkpoint {

// Half-open.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  [[nodiscard]] int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// What a tensor is cut along.
enum class Split : uint8_t {
  kReplicate,           // every rank reads all of it
  kHeads,               // by attention head
  kDenseIntermediate,   // by intermediate_size
  kSharedIntermediate,  // by n_shared_experts * moe_intermediate_size
  kExpert,  // routed expert: by moe_intermediate_size, or whole experts (expert parallel)
  kVocab,   // by vocabulary row
};

// A tensor the model expects. Norms and biases have cols == 1 and rank_1 set.
struct TensorSpec {
  std::string name;
  int64_t rows = 0;  // "out" of a Linear
  int64_t cols = 1;  // "in" of a Linear
  bool rank_1 = false;
  bool quantizable = false;  // may be F8_E4M3 with `<name>_scale_inv`
  bool may_be_f32 = true;
  Split split = Split::kReplicate;
  bool split_cols = false;  // the cut goes through columns (o_proj, down_proj), else rows
  int64_t unit = 1;         // rows or columns per head, or 1
  int32_t layer = -1;       // -1: not in a layer
  int32_t expert = -1;      // routed expert index, or -1
  // MTP only: a copy of model.embed_tokens / lm_head that is known and counted but never loaded. A
  // checkpoint may leave it out.
  bool duplicate = false;
};

// Every weight tensor of the main model in load order; layers num_hidden_layers.. (MTP) are
// appended when `with_mtp`. Scales are not listed: a quantizable tensor's own dtype decides.
[[nodiscard]] std::vector<TensorSpec> expected_tensors(const ModelConfig& config, bool with_mtp);

// "model.layers.3.mlp.gate.weight" -> "model.layers.3.mlp.gate.weight_scale_inv".
[[nodiscard]] std::string scale_name(const std::string& weight_name);

// How routed experts are divided among ranks.
enum class ExpertSplit : uint8_t {
  kTensor,  // each rank a slice of every expert (default)
  kExpert,  // each rank whole experts
};

// What rank `rank` of `world_size` owns.
struct RankShard {
  int32_t rank = 0;
  int32_t world_size = 1;
  ExpertSplit expert_split = ExpertSplit::kTensor;
  Range heads;
  Range dense_intermediate;
  Range shared_intermediate;
  Range expert_intermediate;  // of each owned expert
  Range experts;              // owned routed experts
  Range vocab;
};

// kInvalidArgument with the field and the reason when a size does not divide ("num_attention_heads
// 4 cannot be split over 8 ranks").
[[nodiscard]] absl::StatusOr<RankShard> make_rank_shard(const ModelConfig& config,
                                                        int32_t rank,
                                                        int32_t world_size,
                                                        ExpertSplit expert_split);

// The part of a tensor that a rank reads: rows x cols of the stored matrix. Empty for an expert
// that another rank owns.
struct TensorSlice {
  Range rows;
  Range cols;
  [[nodiscard]] bool empty() const { return rows.size() <= 0 || cols.size() <= 0; }
};
[[nodiscard]] TensorSlice slice_of(const TensorSpec& spec, const RankShard& shard);

// The scale blocks that cover `slice`; a slice that starts inside a block keeps the whole block,
// and the row's scale is block (slice.rows.begin + r) / block_rows - scale.rows.begin.
[[nodiscard]] TensorSlice scale_slice_of(const TensorSlice& slice,
                                         const QuantizationConfig& blocks);

}  // namespace r1d::checkpoint
