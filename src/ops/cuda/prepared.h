// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/device/cuda.h"
#include "r1d/ops/ops.h"

#include "kernels/common/layout.h"
#include "kernels/mla_decode/mla_decode.h"

namespace r1d::ops::cuda {

// One Linear's weight on the device: as stored or, for the kernels made for sm_90a, tiled in place
// (then raw.data no longer is what the checkpoint stores, and raw serves for its sizes alone).
struct Linear {
  Matrix raw;
  kernels::TiledMatrix tiled;
  [[nodiscard]] bool is_tiled() const { return tiled.tiles != nullptr; }
  [[nodiscard]] int64_t rows() const { return raw.rows; }
  [[nodiscard]] int64_t cols() const { return raw.cols; }
  [[nodiscard]] int64_t bytes() const { return raw.rows * raw.cols * dtype_bytes(raw.dtype); }
};

struct PreparedAttention {
  Linear qkv_a;  // q_a and kv_a in one; rows 0: they stay apart
  Linear q_a;    // rows 0: no low-rank query
  Linear kv_a;
  Linear q_b;
  Linear kv_b;
  Linear o;
  const float* q_a_norm = nullptr;
  const float* kv_a_norm = nullptr;
  kernels::MlaWeights absorbed;  // for mla_decode; null on the generic path
  device::DeviceMemory absorbed_memory;
  device::DeviceMemory fused_scale;
  // Whether the block's own products read its input as e4m3 rows alone.
  [[nodiscard]] bool takes_quantized() const {
    if (qkv_a.rows() > 0) return qkv_a.is_tiled();
    return (q_a.rows() > 0 ? q_a : q_b).is_tiled() && kv_a.is_tiled();
  }
};

struct PreparedMlp {
  kernels::TiledGateUp gate_up;  // tiles null: not tiled
  Linear gate;
  Linear up;
  Linear down;
  [[nodiscard]] bool is_tiled() const { return gate_up.tiles != nullptr; }
  [[nodiscard]] int64_t intermediate() const { return gate.rows(); }
  [[nodiscard]] int64_t bytes() const { return gate.bytes() + up.bytes() + down.bytes(); }
};

struct PreparedMoe {
  Matrix router;
  const float* router_bias = nullptr;
  std::vector<PreparedMlp> experts;
  int32_t first_expert = 0;
  bool has_shared = false;
  PreparedMlp shared;
  // All experts and the shared one are tiled, and experts follow each other at one distance.
  bool is_tiled = false;
  int64_t tiles_stride = 0;  // bytes from one expert's gate_up (and down) to the next's
  int64_t scale_stride = 0;  // floats
  // Generic path: the experts' matrices on the device, three arrays.
  device::DeviceMemory matrices;
  [[nodiscard]] const Matrix* gates() const {
    return reinterpret_cast<const Matrix*>(matrices.data());
  }
  [[nodiscard]] const Matrix* ups() const { return gates() + experts.size(); }
  [[nodiscard]] const Matrix* downs() const { return ups() + experts.size(); }
};

// Turns loaded weights into what the kernels read. Lives while weights are loaded: it owns the
// scratch memory that tiling in place needs.
class Preparer {
 public:
  // `tiles`: the GPU runs the kernels made for sm_90a.
  Preparer(const ModelDims& dims, int32_t block_size, bool tiles, const device::Stream& stream)
      : dims_(dims), block_size_(block_size), tiles_(tiles), stream_(stream) {}

  [[nodiscard]] absl::StatusOr<PreparedAttention> attention(const AttentionWeights& weights);
  [[nodiscard]] absl::StatusOr<PreparedMlp> mlp(const MlpWeights& weights);
  [[nodiscard]] absl::StatusOr<PreparedMoe> moe(const MoeWeights& weights);

 private:
  [[nodiscard]] bool can_tile(const Matrix& matrix) const;
  [[nodiscard]] bool can_tile_mlp(const MlpWeights& weights) const;
  [[nodiscard]] bool can_tile_moe(const MoeWeights& weights) const;
  absl::Status reserve_scratch(int64_t bytes);
  absl::StatusOr<Linear> linear(const Matrix& matrix);
  absl::StatusOr<PreparedMlp> mlp(const MlpWeights& weights, bool tile);
  absl::StatusOr<device::DeviceMemory> table_of(const std::vector<PreparedMlp>& experts);
  absl::Status fuse_qkv_a(PreparedAttention& attention);

  const ModelDims& dims_;
  const int32_t block_size_;
  const bool tiles_;
  const device::Stream& stream_;
  device::DeviceMemory scratch_;
};

// True for sizes that kernels/mla_decode and kernels/mla_prefill are made for.
[[nodiscard]] bool has_r1_heads(const ModelDims& dims, int32_t block_size);

}  // namespace r1d::ops::cuda
