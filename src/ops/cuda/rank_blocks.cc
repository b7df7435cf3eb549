// SPDX-License-Identifier: Apache-2.0
// The model's blocks on a rank: embedding, norms, attention, feed-forward, logits.
#include "r1d/base/check.h"
#include "r1d/base/status.h"

#include "kernels/embed/embed.h"
#include "kernels/norm/norm.h"
#include "ops/cuda/rank.h"

namespace r1d::ops::cuda {
namespace {

using kernels::Launch;

__nv_bfloat16* bf16(const Tensor& tensor) {
  R1D_CHECK(tensor.dtype == DType::kBF16);
  return static_cast<__nv_bfloat16*>(tensor.data);
}

// Bytes a value that a norm writes.
double bytes_of(const kernels::NormOutput& out) {
  return (out.bf16 != nullptr ? 2 : 0) + (out.quantized.data != nullptr ? 1 : 0);
}

}  // namespace

absl::Status CudaOps::embed(const Matrix& table, int64_t first_row, Tensor out) {
  if (collectives_) R1D_RETURN_IF_ERROR(collectives_->may_begin());
  if (mode_ == Mode::kReplay) return absl::OkStatus();
  const double bytes = 4.0 * static_cast<double>(step_.num_tokens() * table.cols);
  R1D_RETURN_IF_ERROR(launches_(Kind::kEmbed, {.bytes = bytes}, [&](const Launch& launch) {
    // The step's plan and tables are read ahead of dependency waits from here on (mla_decode.h),
    // so this one kernel waits for what made them in the ordinary way.
    const Launch after_plan{.stream = launch.stream, .dependent = false};
    return kernels::embed({.table = table.data,
                           .table_f32 = table.dtype == DType::kF32,
                           .rows = table.rows,
                           .first_row = first_row,
                           .cols = table.cols,
                           .ids = step_.ids(),
                           .tokens = step_.num_tokens(),
                           .out = bf16(out),
                           .out_stride = out.stride},
                          after_plan);
  }));
  if (!collectives_) return absl::OkStatus();
  R1D_CHECK(out.stride == out.cols);
  return collectives_->all_reduce(
      {.in = bf16(out), .out = bf16(out), .count = step_.num_tokens() * out.cols});
}

absl::Status CudaOps::norm(Tensor x, const float* weight, Tensor out, NormReader reader) {
  if (mode_ == Mode::kReplay) return absl::OkStatus();
  const kernels::NormOutput to = norm_output(out, reader);
  const double bytes = (2 + bytes_of(to)) * static_cast<double>(step_.num_tokens() * x.cols);
  return launches_(Kind::kNorm, {.bytes = bytes}, [&](const Launch& launch) {
    return kernels::rms_norm({.x = bf16(x),
                              .x_stride = x.stride,
                              .weight = weight,
                              .eps = dims_.rms_norm_eps,
                              .tokens = step_.num_tokens(),
                              .cols = x.cols,
                              .out = to},
                             launch);
  });
}

absl::Status CudaOps::reduce_add_norm(
    Tensor partial, Tensor residual, const float* weight, Tensor out, NormReader reader) {
  if (collectives_) R1D_RETURN_IF_ERROR(collectives_->may_begin());
  if (mode_ == Mode::kReplay) return absl::OkStatus();
  const kernels::NormOutput to = norm_output(out, reader);
  if (collectives_) return all_reduce_add_norm(partial, residual, weight, to);
  const double bytes = (6 + bytes_of(to)) * static_cast<double>(step_.num_tokens() * residual.cols);
  return launches_(Kind::kNorm, {.bytes = bytes}, [&](const Launch& launch) {
    return kernels::add_norm({.partial = partial.data,
                              .partial_stride = partial.stride,
                              .residual = bf16(residual),
                              .residual_stride = residual.stride,
                              .weight = weight,
                              .eps = dims_.rms_norm_eps,
                              .tokens = step_.num_tokens(),
                              .cols = residual.cols,
                              .out = to},
                             launch);
  });
}

absl::Status CudaOps::attention(const AttentionWeights& weights,
                                const LatentPages& pages,
                                Tensor x,
                                Tensor out) {
  if (mode_ == Mode::kReplay) return absl::OkStatus();
  return attention_.run(
      attentions_.at(static_cast<size_t>(weights.prepared)), pages, rows_of(x), output_of(out));
}

absl::Status CudaOps::mlp(const MlpWeights& weights, Tensor x, Tensor out) {
  if (mode_ == Mode::kReplay) return absl::OkStatus();
  return feed_forward_.mlp(mlps_.at(static_cast<size_t>(weights.prepared)),
                           rows_of(x),
                           step_.num_tokens(),
                           output_of(out));
}

absl::Status CudaOps::moe(const MoeWeights& weights, Tensor x, Tensor out) {
  if (mode_ == Mode::kReplay) return absl::OkStatus();
  return feed_forward_.moe(moes_.at(static_cast<size_t>(weights.prepared)),
                           rows_of(x),
                           step_.num_tokens(),
                           output_of(out));
}

absl::Status CudaOps::logits(const Matrix& head, int64_t first_row, Tensor x, float* logits) {
  if (collectives_) R1D_RETURN_IF_ERROR(collectives_->may_begin());
  R1D_CHECK(!collectives_ || first_row == rank_ * head.rows);
  logits_target_ = logits;
  logit_columns_ = collectives_ && rank_ == 0 ? dims_.vocab_size : head.rows;
  if (mode_ == Mode::kReplay || step_.num_logit_rows() == 0) return absl::OkStatus();
  const int64_t rows = step_.num_logit_rows();
  // The wanted rows, gathered as an embedding would.
  R1D_RETURN_IF_ERROR(launches_(Kind::kHead, {}, [&](const Launch& launch) {
    return kernels::embed({.table = x.data,
                           .rows = step_.num_tokens(),
                           .cols = x.cols,
                           .ids = step_.logit_rows(),
                           .tokens = rows,
                           .out = head_rows_},
                          launch);
  }));
  const Linear weight{.raw = head, .tiled = {}};
  R1D_RETURN_IF_ERROR(linear_.multiply(Kind::kHead,
                                       weight,
                                       {.data = head_rows_, .stride = x.cols, .quantized = {}},
                                       rows,
                                       {.data = logits_, .stride = logit_columns_, .f32 = true}));
  return collectives_ ? collectives_->gather(logits_, rows, head.rows) : absl::OkStatus();
}

absl::Status CudaOps::all_reduce_add_norm(const Tensor& partial,
                                          const Tensor& residual,
                                          const float* weight,
                                          const kernels::NormOutput& out) {
  R1D_CHECK(partial.stride == partial.cols && residual.stride == residual.cols);
  return collectives_->all_reduce_add_norm({.partial = bf16(partial),
                                            .residual = bf16(residual),
                                            .weight = weight,
                                            .eps = dims_.rms_norm_eps,
                                            .tokens = step_.num_tokens(),
                                            .cols = residual.cols,
                                            .out = out});
}

kernels::NormOutput CudaOps::norm_output(const Tensor& out, NormReader reader) {
  const bool quantized = normed_.data != nullptr && reader != NormReader::kLogits;
  normed_of_ = quantized ? out.data : nullptr;
  const bool wide = !quantized || reader == NormReader::kMoe ||  // whose router reads bf16 rows
                    (reader == NormReader::kAttention && attention_reads_bf16_) ||
                    (reader == NormReader::kMlp && mlp_reads_bf16_);
  return {.bf16 = wide ? bf16(out) : nullptr,
          .stride = out.stride,
          .quantized = quantized ? normed_ : kernels::QuantizedRows{}};
}

Rows CudaOps::rows_of(const Tensor& x) const {
  return {.data = bf16(x),
          .stride = x.stride,
          .quantized = x.data == normed_of_ ? normed_ : kernels::QuantizedRows{}};
}

Output CudaOps::output_of(const Tensor& out) {
  return {.data = bf16(out), .stride = out.stride};
}

}  // namespace r1d::ops::cuda
