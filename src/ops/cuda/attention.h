// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <absl/status/status.h>
#include <cuda_bf16.h>

#include "r1d/ops/cuda_ops.h"
#include "r1d/ops/ops.h"

#include "kernels/generic/generic.h"
#include "kernels/mla_decode/mla_decode.h"
#include "kernels/norm/norm.h"
#include "ops/cuda/arena.h"
#include "ops/cuda/launches.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/prepared.h"
#include "ops/cuda/step.h"

namespace r1d::ops::cuda {

// One MLA block (DeepSeek-V2 report, section 2.1, arXiv 2405.04434). Sequences with few query
// tokens take the absorbed form over the paged latents; longer ones rebuild keys and values from
// them. Sizes other than R1's, and GPUs before sm_90, take the generic absorbed kernels for all.
class Attention {
 public:
  Attention(const ModelDims& dims,
            const CudaOptions& options,
            int num_multiprocessors,
            bool has_r1_kernels,
            const DeviceStep& step,
            LinearKernels& linear,
            Launches& launches);

  void layout(Arena& arena);

  // Once a step, before the first layer.
  absl::Status begin_step();

  // x [T, D], out [T, D] bf16.
  absl::Status run(const PreparedAttention& weights,
                   const LatentPages& pages,
                   const Rows& x,
                   const Output& out);

 private:
  absl::Status project(const PreparedAttention& weights, const LatentPages& pages, const Rows& x);
  // The heads' values go to `codes`, or where that is null to heads_out_.
  absl::Status decode(const PreparedAttention& weights,
                      const LatentPages& pages,
                      const kernels::QuantizedRows& codes);
  absl::Status prefill(const PreparedAttention& weights,
                       const LatentPages& pages,
                       const kernels::QuantizedRows& codes);
  absl::Status prefill_window(const PreparedAttention& weights,
                              const LatentPages& pages,
                              size_t window,
                              const kernels::QuantizedRows& codes);
  absl::Status gather(const PreparedAttention& weights,
                      const LatentPages& pages,
                      const KeyWindow& window);
  absl::Status generic(const PreparedAttention& weights, const LatentPages& pages);
  void layout_generic_workspace(Arena& arena);
  [[nodiscard]] kernels::generic::AttentionDims generic_sizes() const;
  [[nodiscard]] kernels::MlaShape shape() const;
  [[nodiscard]] kernels::MlaShape largest_shape() const;

  const ModelDims& dims_;
  const CudaOptions& options_;
  const int num_sms_;
  const bool r1_;
  const DeviceStep& step_;
  LinearKernels& linear_;
  Launches& launches_;
  const int64_t heads_;
  const int64_t query_dim_;  // dn + dr
  const int64_t row_dim_;    // R + dr
  const int64_t joint_dim_;  // q_lora + R + dr

  __nv_bfloat16* joint_ = nullptr;  // [T, q_lora + R + dr]
  __nv_bfloat16* q_low_ = nullptr;  // [T, q_lora], normed
  kernels::QuantizedRows q_low_quantized_;
  __nv_bfloat16* q_ = nullptr;          // [T, H, dn + dr]
  __nv_bfloat16* heads_out_ = nullptr;  // [T, H, dv]

  __nv_bfloat16* q_latent_ = nullptr;  // decode: [Td, H, R + dr]
  std::byte* plan_ = nullptr;
  std::byte* decode_workspace_ = nullptr;

  __nv_bfloat16* latents_ = nullptr;  // prefill: [S, R]
  kernels::QuantizedRows latents_quantized_;
  __nv_bfloat16* k_pe_ = nullptr;  // [S, dr]
  __nv_bfloat16* kv_ = nullptr;    // [S, H, dn + dv]
  float* running_out_ = nullptr;   // [T, H, dv], several windows
  float* running_lse_ = nullptr;   // [T, H]
  uint32_t* tile_counter_ = nullptr;

  float* generic_q_ = nullptr;          // [T, H, R + dr]
  float* generic_o_ = nullptr;          // [T, H, R]
  float* generic_workspace_ = nullptr;  // for splitting the keys of a few tokens over the GPU
  int64_t generic_split_tokens_ = 0;    // so many
};

}  // namespace r1d::ops::cuda
