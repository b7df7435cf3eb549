// SPDX-License-Identifier: Apache-2.0
// The CPU implementation: the embedded default and the reference for CUDA. f32 activations.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "r1d/ops/ops.h"

namespace r1d::ops {

// Which form of MLA a sequence's share of a step takes. kAuto counts multiplications (see
// src/ops/cpu/attention.cc): naive for long prefill chunks, absorbed for decode.
enum class MlaForm : uint8_t { kAuto, kNaive, kAbsorbed };

struct CpuOptions {
  int32_t num_threads = 1;  // per rank
  MlaForm mla_form = MlaForm::kAuto;
  int32_t max_tokens = 0;  // largest T of a step; scratch memory is taken for it at creation
  // Multiply bf16-rounded activations by bf16 weights with AVX-512 BF16; without that CPU the f32
  // path runs. Less exact (2e-2 instead of 1e-3 relative on the logits), and faster only where
  // vdpbf16ps outruns two f32 multiply-adds: src/ops/README.md has figures.
  bool bf16_dot = false;
  // Told before rank r's object and its threads are made, on the thread that makes them: threads
  // run where that one may run then.
  std::function<void(int32_t rank)> before_rank = nullptr;
};

// The instruction set in use, e.g. "AVX3", "AVX2", "SSE4", "EMU128"; with "+BF16" when bf16_dot
// runs on AVX-512 BF16.
[[nodiscard]] std::string cpu_target(bool bf16_dot);

// log(sum(exp(x))) of finite numbers, at least one; in f32, good to 1e-4.
[[nodiscard]] float log_sum_exp(std::span<const float> x);

// What each of `world_size` ranks takes besides weights, latent cache and activations. Pure: no
// memory is taken, no thread started.
[[nodiscard]] MemoryUse plan_cpu_memory(const ModelDims& dims,
                                        const CpuOptions& options,
                                        int32_t world_size);

// One Ops per rank over the `local` communicator (threads of one process). The ranks' collectives
// meet each other: each returned object must be driven by a thread of its own.
[[nodiscard]] std::vector<std::unique_ptr<Ops>> make_local_cpu_ops(
    const std::vector<ModelDims>& dims, const CpuOptions& options);

}  // namespace r1d::ops
