// SPDX-License-Identifier: Apache-2.0
#include "r1d/engine/memory_plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "r1d/base/bytes.h"
#include "r1d/base/status.h"

#include "engine/cache_plan.h"
#include "engine/memory_shortage.h"
#include "engine/rank_ops.h"

namespace r1d::engine {
namespace {

using checkpoint::ModelConfig;
using checkpoint::RankShard;
using checkpoint::WeightSource;
using ops::MemoryKind;

constexpr int64_t kMiB = int64_t{1} << 20;

// The latent cache of a GPU is bf16 or FP8, and no kernel of ours is built for less than sm_80.
absl::Status check_device(const EngineOptions& options, const MemoryTarget& target) {
  if (target.device == Device::kCpu) return absl::OkStatus();
  if (options.kv_cache_dtype == DType::kF32) {
    return invalid_argument(
        "engine.kv_cache_dtype f32: the latent cache of a GPU is bf16 or fp8; use auto, bf16 or "
        "fp8");
  }
  const int32_t capability = target.gpu.compute_capability;
  if (capability >= 80) return absl::OkStatus();
  return failed_precondition(
      "{} has compute capability {}.{}; r1d needs 8.0 or later (A100, L4, H100, H200)",
      target.name,
      capability / 10,
      capability % 10);
}

ops::CudaLayers layers_of(const WeightSource& source, const RankShard& shard, bool with_mtp) {
  const ModelConfig& config = source.config();
  ops::CudaLayers layers;
  layers.attention = config.num_hidden_layers + (with_mtp ? config.num_nextn_predict_layers : 0);
  for (int32_t layer = 0; layer < layers.attention; ++layer) {
    if (config.is_moe_layer(layer)) ++layers.moe;
  }
  layers.local_experts = shard.experts.size();
  const auto stored = source.find("model.layers.0.self_attn.o_proj.weight");
  layers.fp8 = stored.ok() && stored->dtype == DType::kF8E4M3;
  return layers;
}

void set_weights(const model::RankWeights& weights, MemoryPlan& plan) {
  plan[MemoryPart::kAttention] = weights.attention;
  plan[MemoryPart::kExperts] = weights.experts;
  plan[MemoryPart::kSharedExperts] = weights.shared_experts;
  plan[MemoryPart::kDense] = weights.dense;
  plan[MemoryPart::kRouters] = weights.routers;
  plan[MemoryPart::kEmbeddings] = weights.embeddings;
  plan[MemoryPart::kNorms] = weights.norms;
  plan[MemoryPart::kMtp] = weights.mtp;
}

void set_operators(const ops::MemoryUse& use, MemoryPlan& plan) {
  plan[MemoryPart::kKernelWeights] = use[MemoryKind::kWeights];
  plan[MemoryPart::kWorkspaces] = use[MemoryKind::kWorkspaces];
  plan[MemoryPart::kCollectives] = use[MemoryKind::kCollectives];
}

// What a GPU holds that no Ops counts. The three together are 2 GiB and 2 % of it, as tiling
// weights, the allocator's rounding and growing lists of penalised tokens want room too.
void set_gpu_overheads(const EngineOptions& options,
                       const ops::CudaLayers& layers,
                       const ops::CudaOptions& cuda,
                       const MemoryTarget& target,
                       MemoryPlan& plan) {
  // Measured on two H200 with driver 580 and NCCL 2.28 (docs/planning.md): 552 MB of context and
  // kernels' code whatever the model and the ranks, 1.13 to 1.20 GB of NCCL's channels and the
  // peers' buffers on each of two ranks. NOTE: more than two ranks are assumed to take the same.
  constexpr int64_t kCollectives = 1152 * kMiB;
  constexpr int64_t kContext = 528 * kMiB;
  if (options.world_size > 1) plan[MemoryPart::kCollectives] = kCollectives;
  plan[MemoryPart::kGraphs] = ops::cuda_graph_bytes(cuda, layers);
  plan[MemoryPart::kContext] = kContext;
  const int64_t all = 2048 * kMiB + target.memory_bytes / 50;
  plan[MemoryPart::kReserve] =
      std::max<int64_t>(0, all - plan[MemoryPart::kGraphs] - plan[MemoryPart::kContext]);
}

// All parts but the cache, for one rank.
absl::StatusOr<MemoryPlan> plan_rank(const WeightSource& source,
                                     const EngineOptions& options,
                                     const MemoryTarget& target,
                                     int32_t rank) {
  const ModelConfig& config = source.config();
  R1D_ASSIGN_OR_RETURN(
      const RankShard shard,
      checkpoint::make_rank_shard(config, rank, options.world_size, options.expert_split));
  R1D_ASSIGN_OR_RETURN(const model::RankWeights weights,
                       model::plan_weights(source, shard, options.with_mtp));
  const ops::ModelDims dims = model::make_dims(config, shard);
  const bool on_cpu = target.device == Device::kCpu;
  const int64_t activation_bytes = dtype_bytes(on_cpu ? DType::kF32 : DType::kBF16);
  const int64_t logits =
      options.max_batch_size * config.vocab_size * static_cast<int64_t>(sizeof(float));
  MemoryPlan plan;
  set_weights(weights, plan);
  plan[MemoryPart::kActivations] =
      3 * options.max_num_batched_tokens * config.hidden_size * activation_bytes;
  if (on_cpu) {
    set_operators(ops::plan_cpu_memory(dims, cpu_options(options), options.world_size), plan);
    plan[MemoryPart::kLogits] = (logits + options.world_size - 1) / options.world_size;
    plan.memory_bytes = target.memory_bytes / options.world_size;
    plan[MemoryPart::kReserve] = plan.memory_bytes / 50;
    return plan;
  }
  const int32_t longest = longest_sequence(options, config);
  const ops::CudaOptions cuda = cuda_options(options, rank, longest);
  const ops::CudaLayers layers = layers_of(source, shard, options.with_mtp);
  set_operators(ops::plan_cuda_memory(dims, cuda, target.gpu, layers), plan);
  set_gpu_overheads(options, layers, cuda, target, plan);
  plan.memory_bytes = target.memory_bytes;
  return plan;
}

// Ranks hold the same number of everything but scales: where a cut goes through a block of them, a
// slice may touch one more than another rank's does.
bool may_differ(const ModelConfig& config, const RankShard& shard) {
  if (!config.quantization) return false;
  const int64_t heads = shard.heads.size();
  for (const int64_t part : {heads * config.qk_head_dim(),
                             heads * (config.qk_nope_head_dim + config.v_head_dim),
                             heads * config.v_head_dim,
                             shard.dense_intermediate.size(),
                             shard.shared_intermediate.size(),
                             shard.expert_intermediate.size()}) {
    if (part % config.quantization->block_rows != 0) return true;
    if (part % config.quantization->block_cols != 0) return true;
  }
  return false;
}

absl::StatusOr<MemoryPlan> plan_fullest_rank(const WeightSource& source,
                                             const EngineOptions& options,
                                             const MemoryTarget& target) {
  R1D_ASSIGN_OR_RETURN(MemoryPlan fullest, plan_rank(source, options, target, 0));
  R1D_ASSIGN_OR_RETURN(
      const RankShard shard,
      checkpoint::make_rank_shard(source.config(), 0, options.world_size, options.expert_split));
  if (!may_differ(source.config(), shard)) return fullest;
  for (int32_t rank = 1; rank < options.world_size; ++rank) {
    R1D_ASSIGN_OR_RETURN(const MemoryPlan plan, plan_rank(source, options, target, rank));
    if (plan.total() > fullest.total()) fullest = plan;
  }
  return fullest;
}

// The smallest cache that serves `options`: a block, or a sequence of the length asked for.
int64_t least_cache(const EngineOptions& options, const ModelConfig& config) {
  const int64_t block = cache_bytes_per_token(config, options.kv_cache_dtype) * options.block_size;
  const int64_t blocks =
      (std::max<int64_t>(options.max_model_len, 1) + options.block_size - 1) / options.block_size;
  return std::max(blocks * block, options.kv_cache_bytes / block * block);
}

// The first world size beyond this one that the model divides among and that fits; 0: none to 64.
int32_t fitting_world_size(const WeightSource& source,
                           EngineOptions options,
                           const MemoryTarget& target,
                           int64_t cache_bytes) {
  constexpr int32_t kMost = 64;
  if (target.device == Device::kCpu) return 0;  // ranks of a host share its memory
  for (options.world_size *= 2; options.world_size <= kMost; options.world_size *= 2) {
    const auto plan = plan_rank(source, options, target, 0);
    if (plan.ok() && plan->total() + cache_bytes <= plan->memory_bytes) return options.world_size;
  }
  return 0;
}

}  // namespace

const char* memory_part_name(MemoryPart part) {
  static constexpr std::array<const char*, kMemoryParts> kNames{"attention",
                                                                "experts",
                                                                "shared_experts",
                                                                "dense",
                                                                "routers",
                                                                "embeddings",
                                                                "norms",
                                                                "mtp",
                                                                "kernel_weights",
                                                                "latent_cache",
                                                                "activations",
                                                                "workspaces",
                                                                "collectives",
                                                                "logits",
                                                                "graphs",
                                                                "context",
                                                                "reserve"};
  return kNames[static_cast<size_t>(part)];
}

MemoryTarget target_of(const device::GpuModel& model) {
  return {.device = Device::kCuda,
          .name = std::string(model.name),
          .memory_bytes = model.memory_bytes,
          .gpu = {.compute_capability = model.compute_capability,
                  .num_multiprocessors = model.num_multiprocessors}};
}

int64_t MemoryPlan::weights() const {
  const auto* end = parts.begin() + static_cast<size_t>(MemoryPart::kLatentCache);
  return std::accumulate(parts.begin(), end, int64_t{0});
}

int64_t MemoryPlan::total() const {
  return std::accumulate(parts.begin(), parts.end(), int64_t{0});
}

int64_t MemoryPlan::expected() const {
  return total() - (*this)[MemoryPart::kReserve];
}

ops::MemoryUse MemoryPlan::counted() const {
  ops::MemoryUse use;
  use[MemoryKind::kWeights] = weights();
  use[MemoryKind::kLatentCache] = (*this)[MemoryPart::kLatentCache];
  use[MemoryKind::kActivations] = (*this)[MemoryPart::kActivations];
  use[MemoryKind::kWorkspaces] = (*this)[MemoryPart::kWorkspaces];
  use[MemoryKind::kCollectives] = (*this)[MemoryPart::kCollectives];
  return use;
}

absl::StatusOr<MemoryPlan> plan_memory(const WeightSource& source,
                                       const EngineOptions& options,
                                       const MemoryTarget& target) {
  const ModelConfig& config = source.config();
  R1D_RETURN_IF_ERROR(check_device(options, target));
  R1D_RETURN_IF_ERROR(check_length(config, options));
  R1D_ASSIGN_OR_RETURN(MemoryPlan plan, plan_fullest_rank(source, options, target));
  const int64_t spare = plan.memory_bytes - plan.total();
  const int64_t least = least_cache(options, config);
  if (spare < least) {
    return shortage(
        plan,
        options,
        target,
        {.cache_bytes = least, .world_size = fitting_world_size(source, options, target, least)});
  }
  // A host has other work too.
  const int64_t budget =
      target.device == Device::kCpu ? std::min(spare, plan.memory_bytes / 4) : spare;
  R1D_ASSIGN_OR_RETURN(plan.cache, plan_cache(config, options, budget));
  plan[MemoryPart::kLatentCache] = plan.cache.bytes;
  return plan;
}

std::string describe(const MemoryPlan& plan) {
  return fmt::format("{}: {} of {} a rank",
                     list_parts(plan, ", "),
                     readable_bytes(plan.total()),
                     readable_bytes(plan.memory_bytes));
}

}  // namespace r1d::engine
