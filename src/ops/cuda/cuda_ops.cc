// SPDX-License-Identifier: Apache-2.0
// The rank of one GPU: how it is made, its memory, uploads and weights.
#include "r1d/ops/cuda_ops.h"

#include <algorithm>
#include <utility>

#include "r1d/base/status.h"
#include "r1d/device/cuda.h"
#include "r1d/device/gpu_info.h"

#include "kernels/random_fill/random_fill.h"
#include "ops/cuda/arena.h"
#include "ops/cuda/collectives.h"
#include "ops/cuda/rank.h"

namespace r1d::ops {
namespace cuda {
namespace {

class CudaBuffer final : public Buffer {
 public:
  CudaBuffer(device::DeviceMemory memory, MemoryMeter::Share share)
      : memory_(std::move(memory)), share_(std::move(share)) {}
  [[nodiscard]] std::byte* data() override { return memory_.data(); }
  [[nodiscard]] size_t size() const override { return memory_.size(); }

 private:
  device::DeviceMemory memory_;
  const MemoryMeter::Share share_;
};

// PinnedMemory behind the interface of ops.h.
class StagingBuffer final : public Buffer {
 public:
  explicit StagingBuffer(device::PinnedMemory memory) : memory_(std::move(memory)) {}
  [[nodiscard]] std::byte* data() override { return memory_.data(); }
  [[nodiscard]] size_t size() const override { return memory_.size(); }

 private:
  device::PinnedMemory memory_;
};

absl::Status check_gpu(const device::GpuInfo& gpu) {
  if (gpu.compute_major >= 8) return absl::OkStatus();
  return failed_precondition(
      "GPU {} is {} with compute capability {}.{}; r1d needs 8.0 or later (A100, L4, H100, H200)",
      gpu.index,
      gpu.name,
      gpu.compute_major,
      gpu.compute_minor);
}

}  // namespace

CudaOps::CudaOps(const ModelDims& dims,
                 const CudaOptions& options,
                 const device::GpuInfo& gpu,
                 std::shared_ptr<CollectiveGroup> group,
                 int32_t rank)
    : dims_(dims),
      options_(options),
      gpu_(gpu),
      rank_(rank),
      sm90_(gpu.compute_major == 9 && gpu.compute_minor == 0),
      r1_heads_(sm90_ && has_r1_heads(dims, options.block_size)),
      launches_(stream_, /*dependent=*/sm90_),
      step_(dims_, options_, r1_heads_),
      linear_({.capability = 10 * gpu.compute_major + gpu.compute_minor,
               .deterministic = options.deterministic},
              stream_,
              launches_,
              blas_),
      attention_(dims_, options_, gpu.num_multiprocessors, r1_heads_, step_, linear_, launches_),
      feed_forward_(
          dims_, options_, sm90_ ? 90 : 80, gpu.num_multiprocessors, step_, linear_, launches_),
      sampler_(static_cast<int32_t>(max_rows()),
               static_cast<int32_t>(dims_.vocab_size),
               10 * gpu.compute_major + gpu.compute_minor,
               gpu.num_multiprocessors) {
  if (group != nullptr) {
    collectives_.emplace(
        std::move(group), rank, 10 * gpu.compute_major + gpu.compute_minor, stream_, launches_);
  }
}

size_t CudaOps::layout(std::byte* base) {
  Arena arena(base);
  const int64_t tokens = max_tokens();
  step_.layout(arena);
  attention_.layout(arena);
  feed_forward_.layout(arena);
  const int64_t widest = std::max<int64_t>({dims_.hidden_size,
                                            dims_.num_heads * dims_.v_head_dim,
                                            dims_.max_intermediate,
                                            dims_.q_lora_rank});
  sampler_.layout(arena);
  linear_.layout(arena, tokens, (widest + 127) / 128 * 128);
  if (dims_.hidden_size % 128 == 0) normed_ = arena.take_quantized(tokens, dims_.hidden_size);
  // Rank 0 gets all columns.
  const int64_t columns = rank_ == 0 ? dims_.vocab_size : dims_.vocab_size / options_.world_size;
  logits_ = arena.take<float>(max_rows() * columns);
  head_rows_ = arena.take<__nv_bfloat16>(max_rows() * dims_.hidden_size);
  inv_freq_ = arena.take<float>(static_cast<int64_t>(dims_.rope_inv_freq.size()));
  return arena.used();
}

int64_t CudaOps::workspace_bytes() {
  return static_cast<int64_t>(layout(nullptr)) + step_.input_bytes() + sampler_.buffer_bytes() +
         device::BlasLt::workspace_bytes();
}

absl::Status CudaOps::attach() {
  R1D_RETURN_IF_ERROR(device::use_device(options_.device));
  R1D_ASSIGN_OR_RETURN(memory_at_start_, device::memory_info());
  R1D_ASSIGN_OR_RETURN(stream_, device::Stream::create());
  R1D_ASSIGN_OR_RETURN(blas_, device::BlasLt::create());
  R1D_ASSIGN_OR_RETURN(begin_, device::Event::create());
  R1D_ASSIGN_OR_RETURN(end_, device::Event::create());
  for (LaunchedStep& step : launched_) {
    R1D_ASSIGN_OR_RETURN(step.done, device::Event::create());
  }
  R1D_RETURN_IF_ERROR(step_.create());
  R1D_RETURN_IF_ERROR(sampler_.create());
  meter_.add(MemoryKind::kWorkspaces, workspace_bytes());
  R1D_ASSIGN_OR_RETURN(workspace_,
                       device::DeviceMemory::allocate(layout(nullptr), "workspaces of a step"));
  layout(workspace_.data());
  R1D_RETURN_IF_ERROR(stream_.copy_in(
      inv_freq_, dims_.rope_inv_freq.data(), dims_.rope_inv_freq.size() * sizeof(float)));
  preparer_.emplace(dims_, options_.block_size, sm90_, stream_);
  R1D_RETURN_IF_ERROR(stream_.synchronize());
  return collectives_ ? collectives_->attach(logits_) : absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaOps::allocate(size_t bytes,
                                                          MemoryKind kind,
                                                          const std::string& what) {
  R1D_ASSIGN_OR_RETURN(auto memory, device::DeviceMemory::allocate(bytes, what));
  return std::make_unique<CudaBuffer>(
      std::move(memory), MemoryMeter::Share(meter_, kind, static_cast<int64_t>(bytes)));
}

absl::StatusOr<std::optional<DeviceBytes>> CudaOps::device_bytes() const {
  R1D_ASSIGN_OR_RETURN(const device::DeviceMemoryInfo now, device::memory_info());
  return DeviceBytes{.total = now.total_bytes,
                     .free_at_start = memory_at_start_.free_bytes,
                     .free_now = now.free_bytes};
}

absl::Status CudaOps::upload(std::byte* device, std::span<const std::byte> host) {
  R1D_RETURN_IF_ERROR(stream_.copy_in(device, host.data(), host.size()));
  return stream_.synchronize();
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaOps::allocate_staging(size_t bytes,
                                                                  const std::string& what) {
  R1D_ASSIGN_OR_RETURN(auto memory, device::PinnedMemory::allocate(bytes, what));
  return std::make_unique<StagingBuffer>(std::move(memory));
}

absl::StatusOr<uint64_t> CudaOps::start_upload(std::byte* device,
                                               std::span<const std::byte> staged) {
  return uploads_.start(device, staged);
}

absl::Status CudaOps::wait_upload(uint64_t upload) {
  return uploads_.wait(upload);
}

absl::Status CudaOps::download(std::span<std::byte> host, const std::byte* device) {
  R1D_RETURN_IF_ERROR(stream_.copy_out(host.data(), device, host.size()));
  return stream_.synchronize();
}

absl::StatusOr<bool> CudaOps::fill(std::byte* device, const SeededValues& values) {
  R1D_CUDA_TRY(kernels::random_fill({.key = values.key,
                                     .center = values.center,
                                     .amplitude = values.amplitude,
                                     .dtype = values.dtype,
                                     .row_begin = values.row_begin,
                                     .row_end = values.row_end,
                                     .col_begin = values.col_begin,
                                     .col_end = values.col_end},
                                    device,
                                    {.stream = stream_.get()}));
  return true;
}

absl::Status CudaOps::prepare(AttentionWeights& weights) {
  R1D_ASSIGN_OR_RETURN(auto prepared, preparer_->attention(weights));
  meter_.add(MemoryKind::kWeights,
             static_cast<int64_t>(prepared.absorbed_memory.size() + prepared.fused_scale.size()));
  attention_reads_bf16_ |= !prepared.takes_quantized();
  weights.prepared = static_cast<int32_t>(attentions_.size());
  attentions_.push_back(std::move(prepared));
  return absl::OkStatus();
}

absl::Status CudaOps::prepare(MlpWeights& weights) {
  R1D_ASSIGN_OR_RETURN(auto prepared, preparer_->mlp(weights));
  mlp_reads_bf16_ |= !prepared.is_tiled();
  weights.prepared = static_cast<int32_t>(mlps_.size());
  mlps_.push_back(std::move(prepared));
  return absl::OkStatus();
}

absl::Status CudaOps::prepare(MoeWeights& weights) {
  R1D_ASSIGN_OR_RETURN(auto prepared, preparer_->moe(weights));
  meter_.add(MemoryKind::kWeights, static_cast<int64_t>(prepared.matrices.size()));
  weights.prepared = static_cast<int32_t>(moes_.size());
  moes_.push_back(std::move(prepared));
  return absl::OkStatus();
}

int64_t CudaOps::max_tokens() const {
  return std::max(options_.max_tokens, DeviceStep::kMaxGraphTokens);
}

int64_t CudaOps::max_rows() const {
  return std::max(options_.max_sequences, DeviceStep::kMaxGraphTokens);
}

}  // namespace cuda

namespace {

absl::StatusOr<std::unique_ptr<Ops>> make_rank(const ModelDims& dims,
                                               const CudaOptions& options,
                                               std::shared_ptr<cuda::CollectiveGroup> group,
                                               int32_t rank) {
  R1D_ASSIGN_OR_RETURN(const auto gpus, device::list_gpus());
  if (options.device < 0 || static_cast<size_t>(options.device) >= gpus.size()) {
    return failed_precondition(
        "there is no GPU {}: the driver shows {}", options.device, gpus.size());
  }
  const device::GpuInfo& gpu = gpus[static_cast<size_t>(options.device)];
  R1D_RETURN_IF_ERROR(cuda::check_gpu(gpu));
  return std::make_unique<cuda::CudaOps>(dims, options, gpu, std::move(group), rank);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> make_cuda_ops(const ModelDims& dims,
                                                   const CudaOptions& options) {
  return make_rank(dims, options, nullptr, 0);
}

absl::StatusOr<std::vector<std::unique_ptr<Ops>>> make_cuda_ranks(
    const std::vector<ModelDims>& dims, const CudaOptions& options, const CudaRankOptions& ranks) {
  cuda::CollectiveOptions collective{.devices = ranks.devices,
                                     .table = collective_table(static_cast<int32_t>(dims.size())),
                                     .peer_memory = ranks.peer_memory,
                                     .nccl = ranks.nccl,
                                     .deterministic = options.deterministic,
                                     // A GPU's kernels wait for each other where ranks share it.
                                     .always_careful = !ranks.nccl,
                                     .max_blocks = ranks.nccl ? kernels::kMaxPeerBlocks : 16};
  if (collective.devices.empty()) {
    for (size_t rank = 0; rank < dims.size(); ++rank)
      collective.devices.push_back(options.device + static_cast<int32_t>(rank));
  }
  std::shared_ptr<cuda::CollectiveGroup> group;
  if (dims.size() > 1) {
    R1D_ASSIGN_OR_RETURN(group, cuda::CollectiveGroup::create(collective));
  }
  CudaOptions own = options;
  own.world_size = static_cast<int32_t>(dims.size());
  own.graphs = options.graphs && ranks.nccl;
  own.shares_gpu = !ranks.nccl;
  std::vector<std::unique_ptr<Ops>> made;
  for (size_t rank = 0; rank < dims.size(); ++rank) {
    own.device = collective.devices[rank];
    R1D_ASSIGN_OR_RETURN(auto ops, make_rank(dims[rank], own, group, static_cast<int32_t>(rank)));
    made.push_back(std::move(ops));
  }
  return made;
}

int64_t cuda_workspace_bytes(const ModelDims& dims,
                             const CudaOptions& options,
                             const GpuTarget& gpu) {
  device::GpuInfo info;
  info.compute_major = gpu.compute_capability / 10;
  info.compute_minor = gpu.compute_capability % 10;
  info.num_multiprocessors = gpu.num_multiprocessors;
  return cuda::CudaOps(dims, options, info, nullptr, 0).workspace_bytes();
}

}  // namespace r1d::ops
