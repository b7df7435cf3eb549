// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/prepared.h"

#include <algorithm>
#include <utility>

#include "r1d/base/status.h"

#include "kernels/tile_weights/tile_weights.h"

namespace r1d::ops::cuda {
namespace {

// Weights are const for everybody but the one who lays them out anew.
uint8_t* bytes_of(const Matrix& matrix) {
  return static_cast<uint8_t*>(const_cast<void*>(matrix.data));
}

int64_t scale_count(const Matrix& matrix) {
  constexpr int64_t kBlock = Matrix::kScaleBlock;
  return (matrix.rows + kBlock - 1) / kBlock * matrix.scale_cols;
}

// The distance from an expert to the next: bytes of weights, floats of scales.
struct ExpertStride {
  int64_t tiles = 0;
  int64_t scale = 0;
};
ExpertStride expert_stride(const MoeWeights& weights) {
  if (weights.experts.size() < 2) return {};
  const MlpWeights& first = weights.experts[0];
  const MlpWeights& second = weights.experts[1];
  return {.tiles = bytes_of(second.gate) - bytes_of(first.gate),
          .scale = second.gate.scale - first.gate.scale};
}

kernels::TiledMatrix tiled_view(const Matrix& matrix) {
  return {
      .tiles = bytes_of(matrix), .scale = matrix.scale, .rows = matrix.rows, .cols = matrix.cols};
}

}  // namespace

bool has_r1_heads(const ModelDims& dims, int32_t block_size) {
  return kernels::mla_decode_serves({.latent = dims.kv_lora_rank,
                                     .rope = dims.qk_rope_head_dim,
                                     .nope = dims.qk_nope_head_dim,
                                     .value = dims.v_head_dim,
                                     .heads = dims.num_heads,
                                     .block_size = block_size});
}

bool Preparer::can_tile(const Matrix& matrix) const {
  return tiles_ && matrix.dtype == DType::kF8E4M3 && matrix.rows % 64 == 0 &&
         matrix.cols % 128 == 0 && matrix.cols <= 32768 && matrix.scale_row_offset == 0 &&
         matrix.scale_col_offset == 0;
}

bool Preparer::can_tile_mlp(const MlpWeights& weights) const {
  const Matrix& gate = weights.gate;
  return can_tile(gate) && can_tile(weights.up) && can_tile(weights.down) && gate.rows % 128 == 0 &&
         bytes_of(weights.up) == bytes_of(gate) + gate.rows * gate.cols;
}

absl::Status Preparer::reserve_scratch(int64_t bytes) {
  if (static_cast<int64_t>(scratch_.size()) >= bytes) return absl::OkStatus();
  R1D_RETURN_IF_ERROR(stream_.synchronize());
  R1D_ASSIGN_OR_RETURN(
      scratch_, device::DeviceMemory::allocate(static_cast<size_t>(bytes), "weights being tiled"));
  return absl::OkStatus();
}

absl::StatusOr<Linear> Preparer::linear(const Matrix& matrix) {
  Linear linear{.raw = matrix, .tiled = {}};
  if (!can_tile(matrix)) return linear;
  const int64_t bytes = matrix.rows * matrix.cols;
  R1D_RETURN_IF_ERROR(reserve_scratch(bytes));
  R1D_RETURN_IF_ERROR(
      stream_.copy_within(scratch_.data(), matrix.data, static_cast<size_t>(bytes)));
  R1D_CUDA_TRY(kernels::tile_weight(reinterpret_cast<const uint8_t*>(scratch_.data()),
                                    matrix.rows,
                                    matrix.cols,
                                    bytes_of(matrix),
                                    {.stream = stream_.get()}));
  linear.tiled = tiled_view(matrix);
  return linear;
}

// q_a and kv_a stand behind each other and read the same rows: one product instead of two. Tiles go
// strip by strip, so two tiled matrices in a row are one; their scales are only when q_a ends with
// a whole block.
absl::Status Preparer::fuse_qkv_a(PreparedAttention& attention) {
  const Linear& q_a = attention.q_a;
  const Linear& kv_a = attention.kv_a;
  const bool joined = q_a.is_tiled() && kv_a.is_tiled() && q_a.rows() % 128 == 0 &&
                      kv_a.tiled.tiles == q_a.tiled.tiles + q_a.bytes();
  if (!joined) return absl::OkStatus();
  const int64_t q_scales = scale_count(q_a.raw);
  const int64_t kv_scales = scale_count(kv_a.raw);
  R1D_ASSIGN_OR_RETURN(
      attention.fused_scale,
      device::DeviceMemory::allocate(static_cast<size_t>(q_scales + kv_scales) * sizeof(float),
                                     "scales of qkv_a"));
  auto* scale = reinterpret_cast<float*>(attention.fused_scale.data());
  R1D_RETURN_IF_ERROR(
      stream_.copy_within(scale, q_a.raw.scale, static_cast<size_t>(q_scales) * sizeof(float)));
  R1D_RETURN_IF_ERROR(stream_.copy_within(
      scale + q_scales, kv_a.raw.scale, static_cast<size_t>(kv_scales) * sizeof(float)));
  Linear& fused = attention.qkv_a;
  fused.raw = q_a.raw;
  fused.raw.rows += kv_a.rows();
  fused.raw.scale = scale;
  fused.tiled = tiled_view(fused.raw);
  return absl::OkStatus();
}

absl::StatusOr<PreparedAttention> Preparer::attention(const AttentionWeights& weights) {
  PreparedAttention prepared;
  prepared.q_a_norm = weights.q_a_norm;
  prepared.kv_a_norm = weights.kv_a_norm;
  if (tiles_ && has_r1_heads(dims_, block_size_)) {
    R1D_ASSIGN_OR_RETURN(
        prepared.absorbed_memory,
        device::DeviceMemory::allocate(kernels::mla_absorbed_bytes(dims_.num_heads),
                                       "absorbed attention weights"));
    R1D_CUDA_TRY(kernels::mla_absorb_weights(
        weights.kv_b, dims_.num_heads, prepared.absorbed_memory.data(), {.stream = stream_.get()}));
    prepared.absorbed = kernels::mla_weights(prepared.absorbed_memory.data(), dims_.num_heads);
    R1D_ASSIGN_OR_RETURN(prepared.kv_b, linear(weights.kv_b));
  } else {
    prepared.kv_b.raw = weights.kv_b;  // the generic kernels read it as stored
  }
  if (weights.q_a.data != nullptr) {
    R1D_ASSIGN_OR_RETURN(prepared.q_a, linear(weights.q_a));
  }
  R1D_ASSIGN_OR_RETURN(prepared.kv_a, linear(weights.kv_a));
  R1D_RETURN_IF_ERROR(fuse_qkv_a(prepared));
  R1D_ASSIGN_OR_RETURN(prepared.q_b, linear(weights.q_b));
  R1D_ASSIGN_OR_RETURN(prepared.o, linear(weights.o));
  return prepared;
}

absl::StatusOr<PreparedMlp> Preparer::mlp(const MlpWeights& weights) {
  return mlp(weights, can_tile_mlp(weights));
}

absl::StatusOr<PreparedMlp> Preparer::mlp(const MlpWeights& weights, bool tile) {
  PreparedMlp prepared;
  prepared.gate.raw = weights.gate;
  prepared.up.raw = weights.up;
  prepared.down.raw = weights.down;
  if (!tile) return prepared;
  const int64_t bytes = weights.gate.rows * weights.gate.cols;
  R1D_RETURN_IF_ERROR(reserve_scratch(2 * bytes));
  const auto* scratch = reinterpret_cast<const uint8_t*>(scratch_.data());
  R1D_RETURN_IF_ERROR(
      stream_.copy_within(scratch_.data(), weights.gate.data, static_cast<size_t>(2 * bytes)));
  R1D_CUDA_TRY(kernels::tile_gate_up(scratch,
                                     scratch + bytes,
                                     weights.gate.rows,
                                     weights.gate.cols,
                                     bytes_of(weights.gate),
                                     {.stream = stream_.get()}));
  prepared.gate_up = {.tiles = bytes_of(weights.gate),
                      .gate_scale = weights.gate.scale,
                      .up_scale = weights.up.scale,
                      .intermediate = weights.gate.rows,
                      .cols = weights.gate.cols};
  R1D_ASSIGN_OR_RETURN(prepared.down, linear(weights.down));
  return prepared;
}

// The kernels for tiled experts find expert e by a distance, so either all are tiled or none.
bool Preparer::can_tile_moe(const MoeWeights& weights) const {
  if (weights.experts.empty()) return false;
  if (weights.shared.gate.data != nullptr && !can_tile_mlp(weights.shared)) return false;
  const MlpWeights& first = weights.experts.front();
  const ExpertStride stride = expert_stride(weights);
  for (size_t e = 0; e < weights.experts.size(); ++e) {
    const MlpWeights& expert = weights.experts[e];
    const auto index = static_cast<int64_t>(e);
    const bool in_step = bytes_of(expert.gate) - bytes_of(first.gate) == index * stride.tiles &&
                         bytes_of(expert.down) - bytes_of(first.down) == index * stride.tiles &&
                         expert.gate.scale - first.gate.scale == index * stride.scale &&
                         expert.up.scale - first.up.scale == index * stride.scale &&
                         expert.down.scale - first.down.scale == index * stride.scale;
    if (!in_step || !can_tile_mlp(expert)) return false;
  }
  return true;
}

absl::StatusOr<PreparedMoe> Preparer::moe(const MoeWeights& weights) {
  PreparedMoe prepared;
  prepared.router = weights.router;
  prepared.router_bias = weights.router_bias;
  prepared.first_expert = weights.first_expert;
  prepared.has_shared = weights.shared.gate.data != nullptr;
  prepared.is_tiled = can_tile_moe(weights);
  const ExpertStride stride = expert_stride(weights);
  prepared.tiles_stride = stride.tiles;
  prepared.scale_stride = stride.scale;
  if (prepared.has_shared) {
    R1D_ASSIGN_OR_RETURN(prepared.shared, mlp(weights.shared, prepared.is_tiled));
  }
  for (const MlpWeights& expert : weights.experts) {
    R1D_ASSIGN_OR_RETURN(PreparedMlp made, mlp(expert, prepared.is_tiled));
    prepared.experts.push_back(std::move(made));
  }
  if (!prepared.is_tiled) {
    R1D_ASSIGN_OR_RETURN(prepared.matrices, table_of(prepared.experts));
  }
  return prepared;
}

// gates, ups and downs of all experts, one array behind the other.
absl::StatusOr<device::DeviceMemory> Preparer::table_of(const std::vector<PreparedMlp>& experts) {
  std::vector<Matrix> matrices;
  for (const PreparedMlp& expert : experts) matrices.push_back(expert.gate.raw);
  for (const PreparedMlp& expert : experts) matrices.push_back(expert.up.raw);
  for (const PreparedMlp& expert : experts) matrices.push_back(expert.down.raw);
  const size_t bytes = matrices.size() * sizeof(Matrix);
  R1D_ASSIGN_OR_RETURN(auto table, device::DeviceMemory::allocate(bytes, "table of experts"));
  if (bytes > 0) R1D_RETURN_IF_ERROR(stream_.copy_in(table.data(), matrices.data(), bytes));
  R1D_RETURN_IF_ERROR(stream_.synchronize());
  return table;
}

}  // namespace r1d::ops::cuda
