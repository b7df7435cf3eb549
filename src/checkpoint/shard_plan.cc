// SPDX-License-Identifier: Apache-2.0
#include "r1d/checkpoint/shard_plan.h"

#include "r1d/base/status.h"

namespace r1d::checkpoint {
namespace {

// A size that every rank takes an equal part of, or the first one that does not divide.
class EqualParts {
 public:
  EqualParts(int32_t rank, int32_t world_size) : rank_(rank), world_size_(world_size) {}

  Range part_of(const char* field, int64_t size) {
    if (size % world_size_ != 0 && status_.ok()) {
      status_ = invalid_argument("{} {} cannot be split over {} ranks: {} is not a multiple of {}",
                                 field,
                                 size,
                                 world_size_,
                                 size,
                                 world_size_);
    }
    const int64_t part = size / world_size_;
    return {.begin = rank_ * part, .end = (rank_ + 1) * part};
  }

  [[nodiscard]] const absl::Status& status() const { return status_; }

 private:
  int32_t rank_;
  int32_t world_size_;
  absl::Status status_;
};

bool has_dense_layer(const ModelConfig& config) {
  const int32_t num_layers = config.num_hidden_layers + config.num_nextn_predict_layers;
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    if (!config.is_moe_layer(layer)) return true;
  }
  return false;
}

void split_experts(const ModelConfig& config, EqualParts& parts, RankShard& shard) {
  if (config.n_routed_experts == 0) return;
  shard.experts = {.begin = 0, .end = config.n_routed_experts};
  shard.expert_intermediate = {.begin = 0, .end = config.moe_intermediate_size};
  if (shard.expert_split == ExpertSplit::kTensor) {
    shard.expert_intermediate =
        parts.part_of("moe_intermediate_size", config.moe_intermediate_size);
  } else {
    shard.experts = parts.part_of("n_routed_experts", config.n_routed_experts);
  }
  if (config.n_shared_experts == 0) return;
  shard.shared_intermediate = parts.part_of("n_shared_experts * moe_intermediate_size",
                                            config.n_shared_experts * config.moe_intermediate_size);
}

// The part of the cut dimension that the rank owns.
Range owned(const TensorSpec& spec, const RankShard& shard) {
  const int64_t whole = spec.split_cols ? spec.cols : spec.rows;
  switch (spec.split) {
    case Split::kReplicate:
      return {.begin = 0, .end = whole};
    case Split::kHeads:
      return {.begin = shard.heads.begin * spec.unit, .end = shard.heads.end * spec.unit};
    case Split::kDenseIntermediate:
      return shard.dense_intermediate;
    case Split::kSharedIntermediate:
      return shard.shared_intermediate;
    case Split::kExpert: {
      const bool here = shard.experts.begin <= spec.expert && spec.expert < shard.experts.end;
      return here ? shard.expert_intermediate : Range{};
    }
    case Split::kVocab:
      return shard.vocab;
  }
  return {};
}

}  // namespace

absl::StatusOr<RankShard> make_rank_shard(const ModelConfig& config,
                                          int32_t rank,
                                          int32_t world_size,
                                          ExpertSplit expert_split) {
  constexpr int32_t kMaxWorldSize = 64;
  if (world_size < 1 || world_size > kMaxWorldSize) {
    return invalid_argument(
        "world_size: expected 1 to {} ranks, found {}", kMaxWorldSize, world_size);
  }
  if (rank < 0 || rank >= world_size) {
    return invalid_argument("rank: expected 0 to {}, found {}", world_size - 1, rank);
  }
  RankShard shard;
  shard.rank = rank;
  shard.world_size = world_size;
  shard.expert_split = expert_split;
  EqualParts parts(rank, world_size);
  shard.heads = parts.part_of("num_attention_heads", config.num_attention_heads);
  if (has_dense_layer(config)) {
    shard.dense_intermediate = parts.part_of("intermediate_size", config.intermediate_size);
  }
  split_experts(config, parts, shard);
  shard.vocab = parts.part_of("vocab_size", config.vocab_size);
  R1D_RETURN_IF_ERROR(parts.status());
  return shard;
}

TensorSlice slice_of(const TensorSpec& spec, const RankShard& shard) {
  TensorSlice slice{.rows = {0, spec.rows}, .cols = {0, spec.cols}};
  (spec.split_cols ? slice.cols : slice.rows) = owned(spec, shard);
  return slice;
}

TensorSlice scale_slice_of(const TensorSlice& slice, const QuantizationConfig& blocks) {
  if (slice.empty()) return {};
  const auto covering = [](Range range, int64_t block) {
    return Range{range.begin / block, (range.end + block - 1) / block};
  };
  return {.rows = covering(slice.rows, blocks.block_rows),
          .cols = covering(slice.cols, blocks.block_cols)};
}

}  // namespace r1d::checkpoint
