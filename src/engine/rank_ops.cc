// SPDX-License-Identifier: Apache-2.0
#include "engine/rank_ops.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "r1d/base/status.h"
#include "r1d/device/gpu_info.h"
#include "r1d/ops/cuda_ops.h"

#include "engine/host_memory.h"

namespace r1d::engine {
namespace {

ops::CudaOptions cuda_options(const EngineOptions& options, int32_t rank, int32_t max_model_len) {
  return {.device = rank,
          .max_tokens = options.max_num_batched_tokens,
          .max_sequences = options.max_batch_size,
          .max_model_len = max_model_len,
          .block_size = options.block_size,
          .deterministic = options.deterministic,
          .graphs = options.cuda_graphs};
}

absl::Status check_gpus(const EngineOptions& options) {
  if (options.kv_cache_dtype != DType::kBF16) {
    return invalid_argument(
        "engine.kv_cache_dtype f32: the latent cache of a GPU is bf16; use auto or bf16");
  }
  if (!device::built_with_cuda()) {
    return failed_precondition("engine.device cuda: this binary was built without CUDA");
  }
  R1D_ASSIGN_OR_RETURN(const auto gpus, device::list_gpus());
  if (static_cast<int64_t>(gpus.size()) < options.world_size) {
    return failed_precondition(
        "engine.device cuda: engine.world_size {} needs as many GPUs, there are {}",
        options.world_size,
        gpus.size());
  }
  if (options.world_size > 1) {
    return unimplemented("engine.device cuda: one GPU so far; engine.world_size is {}",
                         options.world_size);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::optional<NumaNode>> rank_places(const EngineOptions& options) {
  if (!options.numa)
    return std::vector<std::optional<NumaNode>>(static_cast<size_t>(options.world_size));
  std::vector<std::string> addresses;
  if (options.device == Device::kCuda) {
    const auto gpus = device::list_gpus();
    if (!gpus.ok())
      return std::vector<std::optional<NumaNode>>(static_cast<size_t>(options.world_size));
    for (const device::GpuInfo& gpu : *gpus) addresses.push_back(gpu.pci_address);
  }
  return place_ranks("", options.world_size, addresses);
}

int32_t total_threads(const EngineOptions& options) {
  if (options.num_threads > 0) return options.num_threads;
  return std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
}

absl::StatusOr<int64_t> cache_budget(const EngineOptions& options,
                                     const ops::ModelDims& dims,
                                     int64_t weight_bytes,
                                     int32_t longest) {
  if (options.device == Device::kCpu) return spare_host_bytes("") / options.world_size / 4;
  R1D_RETURN_IF_ERROR(check_gpus(options));
  R1D_ASSIGN_OR_RETURN(const auto gpus, device::list_gpus());
  // The CUDA context, graphs and the allocator's rounding.
  const int64_t reserve = (int64_t{2} << 30) + gpus.front().memory_bytes / 50;
  return gpus.front().memory_bytes - reserve - weight_bytes -
         ops::cuda_workspace_bytes(dims, cuda_options(options, 0, longest));
}

absl::StatusOr<std::vector<std::unique_ptr<ops::Ops>>> make_ops(
    const EngineOptions& options,
    const std::vector<ops::ModelDims>& dims,
    int32_t max_model_len,
    const std::vector<std::optional<NumaNode>>& places) {
  if (options.device == Device::kCpu) {
    const KeepThreadPlace keep;
    return ops::make_local_cpu_ops(
        dims,
        {.num_threads = std::max(1, total_threads(options) / options.world_size),
         .mla_form = options.mla_form,
         .max_tokens = options.max_num_batched_tokens,
         .bf16_dot = options.bf16_dot,
         .before_rank = [&](int32_t rank) {
           const std::optional<NumaNode>& place = places[static_cast<size_t>(rank)];
           keep.restore();
           if (place) static_cast<void>(run_on(*place));  // a refusal: its rank's thread tells
         }});
  }
  R1D_RETURN_IF_ERROR(check_gpus(options));
  std::vector<std::unique_ptr<ops::Ops>> ranks;
  for (int32_t rank = 0; rank < options.world_size; ++rank) {
    R1D_ASSIGN_OR_RETURN(auto made,
                         ops::make_cuda_ops(dims[static_cast<size_t>(rank)],
                                            cuda_options(options, rank, max_model_len)));
    ranks.push_back(std::move(made));
  }
  return ranks;
}

std::string describe_device(const EngineOptions& options) {
  if (options.device == Device::kCpu) {
    return fmt::format(
        "cpu ({}, {} threads)", ops::cpu_target(options.bf16_dot), total_threads(options));
  }
  const auto gpus = device::list_gpus();
  return fmt::format("cuda ({})", gpus.ok() && !gpus->empty() ? gpus->front().name : "no GPU");
}

}  // namespace r1d::engine
