// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/summary.h"

#include "r1d/base/status.h"

namespace r1d::checkpoint {
namespace {

class Summarizer {
 public:
  Summarizer(const WeightSource& source, const RankShard& shard)
      : source_(source), config_(source.config()), shard_(shard) {
    summary_.kv_values_per_token = config_.num_hidden_layers * config_.latent_width();
  }

  absl::Status add(const TensorSpec& spec) {
    const absl::StatusOr<StoredTensor> found = source_.find(spec.name);
    if (spec.duplicate && absl::IsNotFound(found.status())) return absl::OkStatus();  // left out
    R1D_ASSIGN_OR_RETURN(const StoredTensor weight, found);
    const bool is_mtp = spec.layer >= config_.num_hidden_layers;
    count_parameters(spec, is_mtp);
    count_bytes(weight, is_mtp);
    const TensorSlice slice = slice_of(spec, shard_);
    int64_t rank_bytes = slice_bytes(slice, weight.dtype);
    if (weight.dtype == DType::kF8E4M3) {
      R1D_ASSIGN_OR_RETURN(const StoredTensor scale, source_.find(scale_name(spec.name)));
      count_bytes(scale, is_mtp);
      rank_bytes += slice_bytes(scale_slice_of(slice, *config_.quantization), scale.dtype);
    }
    if (!spec.duplicate)
      (is_mtp ? summary_.rank_mtp_bytes : summary_.rank_main_bytes) += rank_bytes;
    return absl::OkStatus();
  }

  [[nodiscard]] const Summary& summary() const { return summary_; }

 private:
  void count_parameters(const TensorSpec& spec, bool is_mtp) {
    if (spec.duplicate) return;
    const int64_t count = spec.rows * spec.cols;
    if (is_mtp) {
      summary_.mtp_parameters += count;
      return;
    }
    summary_.main_parameters += count;
    // Of equally large experts, a token passes num_experts_per_tok: the first ones stand for them.
    if (spec.expert < config_.num_experts_per_tok) summary_.active_parameters += count;
  }

  void count_bytes(const StoredTensor& tensor, bool is_mtp) {
    const int64_t bytes = tensor.rows * tensor.cols * dtype_bytes(tensor.dtype);
    const auto add_to = [bytes](TensorTotal& total) {
      ++total.num_tensors;
      total.bytes += bytes;
    };
    add_to(summary_.by_dtype[static_cast<size_t>(tensor.dtype)]);
    add_to(summary_.all);
    if (!is_mtp) add_to(summary_.main);
  }

  static int64_t slice_bytes(const TensorSlice& slice, DType dtype) {
    return slice.empty() ? 0 : slice.rows.size() * slice.cols.size() * dtype_bytes(dtype);
  }

  const WeightSource& source_;
  const ModelConfig& config_;
  const RankShard& shard_;
  Summary summary_;
};

}  // namespace

absl::StatusOr<Summary> summarize(const WeightSource& source,
                                  int32_t world_size,
                                  ExpertSplit expert_split) {
  R1D_ASSIGN_OR_RETURN(const RankShard shard,
                       make_rank_shard(source.config(), 0, world_size, expert_split));
  Summarizer summarizer(source, shard);
  for (const TensorSpec& spec : expected_tensors(source.config(), source.has_mtp())) {
    R1D_RETURN_IF_ERROR(summarizer.add(spec));
  }
  return summarizer.summary();
}

}  // namespace r1d::checkpoint
