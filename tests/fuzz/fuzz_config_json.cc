// SPDX-License-Identifier: Apache-2.0
// Any bytes as config.json: refused, or a config whose tensors can be listed and cut without
// overflow.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "r1d/base/check.h"
#include "r1d/checkpoint/shard_plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace r1d::checkpoint;
  const auto config =
      ModelConfig::parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!config.ok()) return 0;
  // The list of a large model takes seconds here and shows nothing that a small one does not.
  if (int64_t{config->num_hidden_layers} * (config->n_routed_experts + 1) > 10'000) return 0;
  const auto shard = make_rank_shard(*config, 1, 2, ExpertSplit::kTensor);
  for (const TensorSpec& spec : expected_tensors(*config, true)) {
    R1D_CHECK(spec.rows > 0 && spec.cols > 0 && spec.rows * spec.cols > 0);
    if (!shard.ok()) continue;
    const TensorSlice slice = slice_of(spec, *shard);
    R1D_CHECK(slice.rows.end <= spec.rows && slice.cols.end <= spec.cols);
  }
  return 0;
}
