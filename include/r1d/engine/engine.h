// SPDX-License-Identifier: Apache-2.0
// The ranks of one host, their models and latent caches, behind Executor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include <absl/status/statusor.h>

#include "r1d/base/dtype.h"
#include "r1d/base/types.h"
#include "r1d/checkpoint/shard_plan.h"
#include "r1d/checkpoint/weight_load.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/engine/executor.h"
#include "r1d/ops/cpu_ops.h"
#include "r1d/ops/latent_format.h"

namespace r1d::engine {

enum class Device : uint8_t { kCpu, kCuda };

// How weights are read: through the page cache, past it, or past it only where the host has not the
// memory to keep them.
enum class LoadMode : uint8_t { kAuto, kCached, kDirect };

struct EngineOptions {
  Device device = Device::kCpu;
  int32_t world_size = 1;
  int32_t num_threads = 0;  // all ranks together; 0: one a core
  checkpoint::ExpertSplit expert_split = checkpoint::ExpertSplit::kTensor;
  DType kv_cache_dtype = DType::kF32;
  int64_t kv_cache_bytes = 0;  // a rank; 0: what there is to spare, see plan_cache()
  int32_t block_size = 64;
  int32_t max_model_len = 0;  // 0: the model's, as far as the cache holds it
  int32_t max_num_batched_tokens = 32768;
  int32_t max_batch_size = 64;
  bool bf16_dot = false;
  bool with_mtp = false;
  bool deterministic = false;  // CUDA; the CPU always is
  bool cuda_graphs = true;
  LoadMode load_mode = LoadMode::kAuto;
  int32_t load_threads = 0;  // 0: a core each, 4 to 32
  bool numa = true;  // ranks and their memory near their device, on hosts with several nodes
  ops::MlaForm mla_form = ops::MlaForm::kAuto;
};

// What the latent cache can hold.
struct CachePlan {
  int64_t bytes = 0;            // a rank: num_blocks * block_size * bytes_per_token
  int64_t bytes_per_token = 0;  // all layers: cache_bytes_per_token()
  int32_t num_blocks = 0;
  int32_t max_model_len = 0;
};

// How a layer's cache of `dtype` stores the model's tokens.
[[nodiscard]] ops::LatentFormat latent_format(const checkpoint::ModelConfig& config, DType dtype);
// What a token takes in the caches of all layers.
[[nodiscard]] int64_t cache_bytes_per_token(const checkpoint::ModelConfig& config, DType dtype);

// Pure. `budget_bytes`: what a rank may take when kv_cache_bytes == 0; it takes no more than
// max_batch_size sequences of max_model_len need. kInvalidArgument when one block does not fit,
// max_model_len was given and does not, or the format does not take the model's latents.
[[nodiscard]] absl::StatusOr<CachePlan> plan_cache(const checkpoint::ModelConfig& config,
                                                   const EngineOptions& options,
                                                   int64_t budget_bytes);

// Told how much of the weights is there, 0 .. 1, from any thread, one call at a time; an error
// stops the load.
using LoadFraction = std::function<absl::Status(double fraction)>;

struct MemoryPlan;  // memory_plan.h
struct MemoryReport;
// Told the plan once, before weights are read.
using PlanListener = std::function<void(const MemoryPlan& plan)>;

// Lifecycle: create() loads weights on all ranks and takes every byte the step loop needs.
// Threads: as Executor; one thread per rank and one for interrupts besides, asleep between steps.
class Engine final : public Executor {
 public:
  // `last_token_id`: ids above are padding and never sampled. What does not fit is refused before
  // any weight is read (plan_memory()). `stop` ends the load with kCancelled.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<Engine>> create(
      const checkpoint::WeightSource& source,
      const EngineOptions& options,
      TokenId last_token_id,
      const LoadFraction& progress,
      const PlanListener& planned = nullptr,
      std::stop_token stop = {});
  ~Engine() override;

  [[nodiscard]] absl::StatusOr<StepOutput> execute(std::span<const SequenceStep> batch) override;
  [[nodiscard]] int32_t steps_ahead() const override;
  [[nodiscard]] absl::Status start(std::span<const SequenceStep> batch) override;
  [[nodiscard]] absl::StatusOr<StepOutput> finish() override;
  [[nodiscard]] uint64_t progress() const override;
  void interrupt(const absl::Status& why) override;
  [[nodiscard]] absl::Status recover() override;

  [[nodiscard]] const CachePlan& cache() const;
  [[nodiscard]] MemoryReport memory() const;  // as of now
  // How the weights were read; no bytes for dummy weights.
  [[nodiscard]] const checkpoint::LoadReport& load_report() const;
  [[nodiscard]] std::string device() const;  // "cpu (AVX3, 2 threads)", "cuda (NVIDIA H200)"

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::engine
