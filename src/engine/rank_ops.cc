// SPDX-License-Identifier: Apache-2.0
#include "engine/rank_ops.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "r1d/base/status.h"
#include "r1d/device/gpu_info.h"
#include "r1d/device/nccl_info.h"
#include "r1d/engine/memory_plan.h"

#include "engine/host_memory.h"

namespace r1d::engine {
namespace {

absl::Status check_gpus(const EngineOptions& options) {
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

ops::CpuOptions cpu_options(const EngineOptions& options) {
  return {.num_threads = std::max(1, total_threads(options) / options.world_size),
          .mla_form = options.mla_form,
          .max_tokens = options.max_num_batched_tokens,
          .bf16_dot = options.bf16_dot};
}

ops::CudaOptions cuda_options(const EngineOptions& options, int32_t rank, int32_t max_model_len) {
  return {.device = rank,
          .world_size = options.world_size,
          .max_tokens = options.max_num_batched_tokens,
          .max_sequences = options.max_batch_size,
          .max_model_len = max_model_len,
          .block_size = options.block_size,
          .deterministic = options.deterministic,
          .graphs = options.cuda_graphs};
}

int32_t longest_sequence(const EngineOptions& options, const checkpoint::ModelConfig& config) {
  return options.max_model_len > 0 ? options.max_model_len
                                   : static_cast<int32_t>(config.max_position_embeddings);
}

absl::StatusOr<MemoryTarget> local_target(const EngineOptions& options) {
  if (options.device == Device::kCpu) {
    return MemoryTarget{
        .device = Device::kCpu, .name = "cpu", .memory_bytes = spare_host_bytes(""), .gpu = {}};
  }
  R1D_RETURN_IF_ERROR(check_gpus(options));
  R1D_ASSIGN_OR_RETURN(const auto gpus, device::list_gpus());
  const auto smallest = std::min_element(
      gpus.begin(), gpus.begin() + options.world_size, [](const auto& a, const auto& b) {
        return a.memory_bytes < b.memory_bytes;
      });
  return MemoryTarget{
      .device = Device::kCuda,
      .name = smallest->name,
      .memory_bytes = smallest->memory_bytes,
      .gpu = {.compute_capability = 10 * smallest->compute_major + smallest->compute_minor,
              .num_multiprocessors = smallest->num_multiprocessors}};
}

absl::StatusOr<std::vector<std::unique_ptr<ops::Ops>>> make_ops(
    const EngineOptions& options,
    const std::vector<ops::ModelDims>& dims,
    int32_t max_model_len,
    const std::vector<std::optional<NumaNode>>& places) {
  if (options.device == Device::kCpu) {
    const KeepThreadPlace keep;
    ops::CpuOptions cpu = cpu_options(options);
    cpu.before_rank = [&](int32_t rank) {
      const std::optional<NumaNode>& place = places[static_cast<size_t>(rank)];
      keep.restore();
      if (place) static_cast<void>(run_on(*place));  // a refusal: its rank's thread tells
    };
    return ops::make_local_cpu_ops(dims, cpu);
  }
  R1D_RETURN_IF_ERROR(check_gpus(options));
  return ops::make_cuda_ranks(dims, cuda_options(options, 0, max_model_len), {});
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
