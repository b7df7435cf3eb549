// SPDX-License-Identifier: Apache-2.0
// How fast a step can be at best: each operator takes as long as its bytes at the rate of the
// memory or its operations at the rate of the unit that does them, whichever is longer; every input
// is read once, every output written once. Not a prediction: launches, dependencies and small grids
// come on top. Pure.
#pragma once

#include <cstdint>

#include "r1d/checkpoint/model_config.h"
#include "r1d/checkpoint/shard_plan.h"
#include "r1d/device/gpu_table.h"

namespace r1d::engine {

// What a GPU reaches, a second.
struct Rates {
  double memory = 0;      // bytes
  double bf16 = 0;        // operations of tensor cores; a multiply-add is two
  double fp8 = 0;         // the same; bf16's where weights are widened
  double link = 0;        // bytes into one GPU
  double all_reduce = 0;  // seconds: what one costs before its first byte
};
// True where r1d multiplies FP8 weights on FP8 tensor cores; elsewhere it widens them to bf16 on
// the way, which costs no memory.
[[nodiscard]] bool runs_fp8_products(const device::GpuModel& gpu);

// The data sheet's, times the share of it that an H200 was measured to reach.
[[nodiscard]] Rates reachable_rates(const device::GpuModel& gpu, double all_reduce_seconds);

// The model as one rank runs it.
struct RooflineModel {
  const checkpoint::ModelConfig& config;
  const checkpoint::RankShard& shard;
  bool fp8_weights = false;
  int64_t cache_token_bytes = 0;  // of a token in one layer's latent cache
};

struct StepFloor {
  double gpu_seconds = 0;         // the sum over operators
  double collective_seconds = 0;  // all-reduces: latency and the link
  double active_experts = 0;      // of a layer, on the fullest rank, with equally likely experts
  [[nodiscard]] double seconds() const { return gpu_seconds + collective_seconds; }
};

// One token for each of `batch` sequences that have `context` tokens in the cache.
[[nodiscard]] StepFloor decode_floor(const RooflineModel& model,
                                     const Rates& rates,
                                     int64_t batch,
                                     int64_t context);

// The first `tokens` of one prompt in one step.
[[nodiscard]] StepFloor prefill_floor(const RooflineModel& model,
                                      const Rates& rates,
                                      int64_t tokens);

}  // namespace r1d::engine
