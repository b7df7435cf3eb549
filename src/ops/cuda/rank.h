// SPDX-License-Identifier: Apache-2.0
// The Ops object of one GPU; cuda_ops.cc, rank_step.cc, rank_blocks.cc and rank_probe.cc define it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include <absl/status/statusor.h>
#include <cuda_bf16.h>

#include "r1d/device/cuda.h"
#include "r1d/device/gpu_info.h"
#include "r1d/ops/cuda_ops.h"
#include "r1d/ops/memory.h"
#include "r1d/ops/ops.h"

#include "kernels/common/layout.h"
#include "kernels/norm/norm.h"
#include "ops/cuda/attention.h"
#include "ops/cuda/collectives.h"
#include "ops/cuda/feed_forward.h"
#include "ops/cuda/launches.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/prepared.h"
#include "ops/cuda/sampler.h"
#include "ops/cuda/step.h"
#include "ops/cuda/uploads.h"

namespace r1d::ops::cuda {

// Steps, graphs and memory; attention.h and feed_forward.h hold the blocks. Threads: confined to
// the rank's thread but for abort() and memory_use().
class CudaOps final : public Ops, public CudaProbe {
 public:
  // `group`: null for a rank without others.
  CudaOps(const ModelDims& dims,
          const CudaOptions& options,
          const device::GpuInfo& gpu,
          std::shared_ptr<CollectiveGroup> group,
          int32_t rank);

  // Bytes of all workspaces; with memory behind it, places them.
  size_t layout(std::byte* base);
  // What attach() takes on the device.
  [[nodiscard]] int64_t workspace_bytes();

  [[nodiscard]] absl::Status attach() override;
  [[nodiscard]] DType activation_dtype() const override { return DType::kBF16; }
  [[nodiscard]] bool host_addressable() const override { return false; }
  [[nodiscard]] bool samples() const override { return true; }

  [[nodiscard]] absl::StatusOr<std::unique_ptr<Buffer>> allocate(size_t bytes,
                                                                 MemoryKind kind,
                                                                 const std::string& what) override;
  [[nodiscard]] MemoryUse memory_use() const override { return meter_.use(); }
  [[nodiscard]] absl::StatusOr<std::optional<DeviceBytes>> device_bytes() const override;
  [[nodiscard]] absl::Status upload(std::byte* device, std::span<const std::byte> host) override;
  [[nodiscard]] absl::StatusOr<std::unique_ptr<Buffer>> allocate_staging(
      size_t bytes, const std::string& what) override;
  [[nodiscard]] absl::StatusOr<uint64_t> start_upload(std::byte* device,
                                                      std::span<const std::byte> staged) override;
  [[nodiscard]] absl::Status wait_upload(uint64_t upload) override;
  [[nodiscard]] absl::Status download(std::span<std::byte> host, const std::byte* device) override;
  [[nodiscard]] absl::StatusOr<bool> fill(std::byte* device, const SeededValues& values) override;
  [[nodiscard]] absl::Status prepare(AttentionWeights& weights) override;
  [[nodiscard]] absl::Status prepare(MlpWeights& weights) override;
  [[nodiscard]] absl::Status prepare(MoeWeights& weights) override;

  [[nodiscard]] std::vector<int32_t> batch_sizes_to_warm() const override;
  [[nodiscard]] absl::Status begin_step(const StepInputs& inputs) override;
  [[nodiscard]] absl::Status end_step() override;
  [[nodiscard]] int32_t steps_ahead() const override;
  [[nodiscard]] absl::Status launch_step() override;
  [[nodiscard]] absl::Status wait_step() override;
  void abort() override;
  // Graphs and what else depends on the steps so far begin anew, since a failed step may have been
  // another one for each rank.
  [[nodiscard]] absl::Status rejoin() override;

  [[nodiscard]] absl::Status embed(const Matrix& table, int64_t first_row, Tensor out) override;
  [[nodiscard]] absl::Status norm(Tensor x,
                                  const float* weight,
                                  Tensor out,
                                  NormReader reader) override;
  [[nodiscard]] absl::Status reduce_add_norm(
      Tensor partial, Tensor residual, const float* weight, Tensor out, NormReader reader) override;
  [[nodiscard]] absl::Status attention(const AttentionWeights& weights,
                                       const LatentPages& pages,
                                       Tensor x,
                                       Tensor out) override;
  [[nodiscard]] absl::Status mlp(const MlpWeights& weights, Tensor x, Tensor out) override;
  [[nodiscard]] absl::Status moe(const MoeWeights& weights, Tensor x, Tensor out) override;
  [[nodiscard]] absl::Status logits(const Matrix& head,
                                    int64_t first_row,
                                    Tensor x,
                                    float* logits) override;

  [[nodiscard]] absl::StatusOr<double> last_step_micros() override;
  [[nodiscard]] std::vector<KernelCost> costs() const override;
  void only(const std::string* name) override;
  [[nodiscard]] int64_t graph_nodes() const override;
  [[nodiscard]] absl::StatusOr<int32_t> active_experts() override;
  [[nodiscard]] absl::StatusOr<double> read_bandwidth(size_t bytes) override;

 private:
  static constexpr int32_t kMaxLaunched = 2;  // steps on their way

  // A step that was launched and is not waited for yet.
  struct LaunchedStep {
    device::Event done;
    SampleRequest* sample = nullptr;  // null: nothing was sampled here
    uint32_t num_collectives = 0;
  };

  enum class Mode : uint8_t { kEager, kRecord, kReplay };
  struct BucketGraph {
    bool warmed = false;  // ran once, so that every kernel is loaded
    std::optional<device::Graph> graph;
    uint32_t num_collectives = 0;
  };
  // Eager steps of one kind launch the same kernels, give or take.
  using StepKind = std::tuple<int32_t, bool, bool>;  // tokens' power of two; decodes; prefills

  [[nodiscard]] int64_t max_tokens() const;
  [[nodiscard]] int64_t max_rows() const;

  // The batch size to pad this step to; 0: it is no step for a graph.
  [[nodiscard]] int32_t bucket_of(const StepInputs& inputs) const;
  void choose_mode(int32_t bucket);
  // Eager steps are careful the first time: they load kernels.
  [[nodiscard]] Collectives::Mode collective_mode(const StepInputs& inputs);
  // The end of the collectives of a step that is enqueued or recorded.
  absl::Status end_collectives();
  absl::Status launch_graph();
  absl::Status enqueue_sampler();
  // Ids that stand for what the step before sampled become that.
  absl::Status fill_in_tokens();

  absl::Status all_reduce_add_norm(const Tensor& partial,
                                   const Tensor& residual,
                                   const float* weight,
                                   const kernels::NormOutput& out);
  // Where a norm writes: bf16 rows for those who read them, e4m3 rows where there is room.
  kernels::NormOutput norm_output(const Tensor& out, NormReader reader);
  // A tensor, and its quantized twin when it is what the last norm wrote.
  [[nodiscard]] Rows rows_of(const Tensor& x) const;
  static Output output_of(const Tensor& out);

  const ModelDims dims_;
  const CudaOptions options_;
  const device::GpuInfo gpu_;
  const int32_t rank_;
  const bool sm90_;
  const bool r1_heads_;
  device::Stream stream_;
  Uploads uploads_;
  device::BlasLt blas_;
  device::Event begin_;
  device::Event end_;
  device::DeviceMemoryInfo memory_at_start_;
  MemoryMeter meter_;
  device::DeviceMemory workspace_;
  Launches launches_;
  DeviceStep step_;
  LinearKernels linear_;
  Attention attention_;
  FeedForward feed_forward_;
  DeviceSampler sampler_;
  std::optional<Preparer> preparer_;  // until the first step
  std::optional<Collectives> collectives_;

  std::vector<PreparedAttention> attentions_;
  std::vector<PreparedMlp> mlps_;
  std::vector<PreparedMoe> moes_;

  kernels::QuantizedRows normed_;       // of the last norm's output
  const void* normed_of_ = nullptr;     // which tensor that was
  bool attention_reads_bf16_ = false;   // some attention block, some dense MLP has weights whose
  bool mlp_reads_bf16_ = false;         // products take bf16 rows
  float* logits_ = nullptr;             // [rows, V]
  __nv_bfloat16* head_rows_ = nullptr;  // [rows, D]
  float* inv_freq_ = nullptr;           // [dr / 2]

  int64_t num_tokens_ = 0;
  int64_t num_logit_rows_ = 0;
  int64_t logit_columns_ = 0;
  float* logits_target_ = nullptr;
  SampleRequest* sample_ = nullptr;
  Mode mode_ = Mode::kEager;
  int32_t bucket_ = 0;
  std::map<int32_t, BucketGraph> graphs_;
  int64_t graph_nodes_ = 0;
  bool recording_ = false;
  std::array<LaunchedStep, kMaxLaunched> launched_;  // in turn
  uint64_t num_launched_ = 0;
  uint64_t num_waited_ = 0;
  std::array<bool, 2> sampler_loaded_{};  // greedy, any
  uint32_t num_collectives_ = 0;          // of this step
  std::set<StepKind> seen_;               // kinds of eager steps that have run
};

}  // namespace r1d::ops::cuda
