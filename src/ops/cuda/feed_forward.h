// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <absl/status/status.h>
#include <cuda_bf16.h>

#include "r1d/ops/cuda_ops.h"
#include "r1d/ops/ops.h"

#include "ops/cuda/arena.h"
#include "ops/cuda/launches.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/prepared.h"
#include "ops/cuda/step.h"

namespace r1d::ops::cuda {

// Dense MLP and mixture of experts (DeepSeek-V3 report, section 2.1.2, arXiv 2412.19437).
class FeedForward {
 public:
  static constexpr int64_t kExpertTokens = 8192;  // tokens whose expert rows are in memory together

  FeedForward(const ModelDims& dims,
              const CudaOptions& options,
              int capability,
              int32_t num_sms,
              const DeviceStep& step,
              LinearKernels& linear,
              Launches& launches);

  void layout(Arena& arena);

  // x [T, D]; out [T, D] bf16, dense.
  absl::Status mlp(const PreparedMlp& weights, const Rows& x, int64_t tokens, const Output& out);
  absl::Status moe(const PreparedMoe& weights, const Rows& x, int64_t tokens, const Output& out);

  // [T, k] on the device: the last call's choice.
  [[nodiscard]] const int32_t* chosen_experts() const { return experts_; }

 private:
  // Rows [first, first + count) of a step.
  static Rows slice(const Rows& x, int64_t first);

  absl::Status gate_up(
      const PreparedMlp& weights, const Rows& x, int64_t tokens, Kind kind, Rows& h);
  absl::Status mlp_as(const PreparedMlp& weights,
                      const Rows& x,
                      int64_t tokens,
                      Kind up,
                      Kind down,
                      const Output& out);
  absl::Status route_logits(const PreparedMoe& weights, const Rows& x, int64_t tokens);
  absl::Status route(const PreparedMoe& weights, const Rows& x, int64_t tokens);
  absl::Status moe_decode(const PreparedMoe& weights,
                          const Rows& x,
                          int64_t tokens,
                          const Output& out);
  absl::Status moe_prefill(const PreparedMoe& weights,
                           const Rows& x,
                           int64_t tokens,
                           const Output& out);
  absl::Status moe_generic(const PreparedMoe& weights,
                           const Rows& x,
                           int64_t tokens,
                           const Output& out);
  void layout_decode(Arena& arena);
  void layout_prefill(Arena& arena);
  void layout_generic(Arena& arena);
  // Bytes of the experts that `tokens` choose when all are equally likely.
  [[nodiscard]] double expected_expert_bytes(const PreparedMoe& weights, int64_t tokens) const;
  [[nodiscard]] double expert_flops(const PreparedMoe& weights, int64_t tokens) const;

  const ModelDims& dims_;
  const CudaOptions& options_;
  const bool sm90_;
  const int32_t num_sms_;
  const DeviceStep& step_;
  LinearKernels& linear_;
  Launches& launches_;
  const int64_t max_tokens_;
  const int64_t chunk_;  // min(max_tokens, kExpertTokens)

  __nv_bfloat16* gate_ = nullptr;    // [T, I]; also h
  __nv_bfloat16* up_ = nullptr;      // [T, I]
  kernels::QuantizedRows h_;         // [T, I]
  float* router_logits_ = nullptr;   // [T, E]
  int32_t* experts_ = nullptr;       // [T, k]
  float* weights_ = nullptr;         // [T, k]
  __nv_bfloat16* shared_ = nullptr;  // [chunk, D]

  std::byte* route_workspace_ = nullptr;  // decode; zeroed once, as the kernels want it
  std::byte* decode_workspace_ = nullptr;
  int32_t* num_blocks_ = nullptr;
  std::byte* blocks_ = nullptr;
  int32_t* entries_ = nullptr;

  int32_t* lists_[6] = {};                // prefill: as moe_prefill.h names them
  kernels::QuantizedRows expert_h_;       // [chunk * k, I]
  __nv_bfloat16* expert_rows_ = nullptr;  // [chunk * k, D]

  int32_t* generic_offset_ = nullptr;  // generic
  int32_t* generic_slots_ = nullptr;
  __nv_bfloat16* generic_gate_ = nullptr;  // [chunk * k, I]
  __nv_bfloat16* generic_up_ = nullptr;
};

}  // namespace r1d::ops::cuda
