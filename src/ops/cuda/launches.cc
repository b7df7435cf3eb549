// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/launches.h"

namespace r1d::ops::cuda {
namespace {

constexpr std::array<const char*, static_cast<size_t>(Kind::kCount)> kNames = {
    "begin",   "embed",         "norm",       "qkv_a",        "split_norm", "q_b",
    "absorb",  "mla_decode",    "expand",     "gather",       "kv_b",       "mla_prefill",
    "o",       "dense_gate_up", "dense_down", "router",       "experts",    "shared",
    "combine", "lm_head",       "all_reduce", "gather_logits"};

}  // namespace

const char* kind_name(Kind kind) {
  return kNames[static_cast<size_t>(kind)];
}

bool Launches::count(Kind kind, const Cost& cost) {
  Total& total = totals_[static_cast<size_t>(kind)];
  ++total.calls;
  total.cost.bytes += cost.bytes;
  total.cost.flops += cost.flops;
  return !only_ || *only_ == kind;
}

std::vector<KernelCost> Launches::costs() const {
  std::vector<KernelCost> costs;
  for (size_t kind = 0; kind < totals_.size(); ++kind) {
    const Total& total = totals_[kind];
    if (total.calls > 0) {
      costs.push_back({kNames[kind], total.calls, total.cost.bytes, total.cost.flops});
    }
  }
  return costs;
}

}  // namespace r1d::ops::cuda
