// SPDX-License-Identifier: Apache-2.0
#include "engine/rank_ops.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "r1d/base/status.h"
#include "r1d/device/gpu_info.h"
#include "r1d/device/nccl_info.h"
#include "r1d/ops/cuda_ops.h"

#include "engine/host_memory.h"

namespace r1d::engine {
namespace {

ops::CudaOptions cuda_options(const EngineOptions& options, int32_t max_model_len) {
  return {.world_size = options.world_size,
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
  if (options.world_size == 1) return absl::OkStatus();
  const auto nccl = device::nccl_version();
  if (nccl.ok()) return absl::OkStatus();
  return failed_precondition("engine.device cuda: engine.world_size {} needs NCCL: {}",
                             options.world_size,
                             message_of(nccl.status()));
}

}  // namespace

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
  int64_t memory = gpus.front().memory_bytes;
  for (int32_t rank = 1; rank < options.world_size; ++rank)
    memory = std::min(memory, gpus[static_cast<size_t>(rank)].memory_bytes);
  // The CUDA context, graphs, NCCL's buffers and the allocator's rounding.
  const int64_t reserve = (int64_t{2} << 30) + memory / 50;
  return memory - reserve - weight_bytes -
         ops::cuda_workspace_bytes(dims, cuda_options(options, longest));
}

absl::StatusOr<std::vector<std::unique_ptr<ops::Ops>>> make_ops(
    const EngineOptions& options, const std::vector<ops::ModelDims>& dims, int32_t max_model_len) {
  if (options.device == Device::kCpu) {
    return ops::make_local_cpu_ops(
        dims,
        {.num_threads = std::max(1, total_threads(options) / options.world_size),
         .mla_form = options.mla_form,
         .max_tokens = options.max_num_batched_tokens,
         .bf16_dot = options.bf16_dot});
  }
  R1D_RETURN_IF_ERROR(check_gpus(options));
  return ops::make_cuda_ranks(dims, cuda_options(options, max_model_len), {});
}

std::string describe_device(const EngineOptions& options) {
  if (options.device == Device::kCpu) {
    return fmt::format(
        "cpu ({}, {} threads)", ops::cpu_target(options.bf16_dot), total_threads(options));
  }
  const auto gpus = device::list_gpus();
  const std::string name = gpus.ok() && !gpus->empty() ? gpus->front().name : "no GPU";
  if (options.world_size == 1) return fmt::format("cuda ({})", name);
  return fmt::format("cuda ({} x {})", options.world_size, name);
}

}  // namespace r1d::engine
