// SPDX-License-Identifier: Apache-2.0
// The Ops object of one GPU: norms, embedding, logits, steps and graphs; attention.h and
// feed_forward.h hold the blocks.
#include "r1d/ops/cuda_ops.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/status.h"
#include "r1d/device/cuda.h"
#include "r1d/device/gpu_info.h"

#include "kernels/bandwidth/bandwidth.h"
#include "kernels/embed/embed.h"
#include "kernels/norm/norm.h"
#include "kernels/random_fill/random_fill.h"
#include "kernels/rope/rope.h"
#include "ops/cuda/arena.h"
#include "ops/cuda/attention.h"
#include "ops/cuda/collectives.h"
#include "ops/cuda/feed_forward.h"
#include "ops/cuda/launches.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/prepared.h"
#include "ops/cuda/sampler.h"
#include "ops/cuda/step.h"
#include "ops/cuda/uploads.h"
#include "ops/cuda_memory.h"

namespace r1d::ops {
namespace cuda {
namespace {

using kernels::Launch;

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

__nv_bfloat16* bf16(const Tensor& tensor) {
  R1D_CHECK(tensor.dtype == DType::kBF16);
  return static_cast<__nv_bfloat16*>(tensor.data);
}

class CudaOps final : public Ops, public CudaProbe {
 public:
  // `group`: null for a rank without others.
  CudaOps(const ModelDims& dims,
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
        feed_forward_(dims_, options_, sm90_ ? 90 : 80, step_, linear_, launches_),
        sampler_(static_cast<int32_t>(max_rows()),
                 static_cast<int32_t>(dims_.vocab_size),
                 10 * gpu.compute_major + gpu.compute_minor,
                 gpu.num_multiprocessors) {
    if (group != nullptr) {
      collectives_.emplace(
          std::move(group), rank, 10 * gpu.compute_major + gpu.compute_minor, stream_, launches_);
    }
  }

  // Bytes of all workspaces; with memory behind it, places them.
  size_t layout(std::byte* base) {
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
  // What attach() takes on the device.
  [[nodiscard]] int64_t workspace_bytes() {
    return static_cast<int64_t>(layout(nullptr)) + step_.input_bytes() + sampler_.buffer_bytes() +
           device::BlasLt::workspace_bytes();
  }

  [[nodiscard]] absl::Status attach() override {
    R1D_RETURN_IF_ERROR(device::use_device(options_.device));
    R1D_ASSIGN_OR_RETURN(memory_at_start_, device::memory_info());
    R1D_ASSIGN_OR_RETURN(stream_, device::Stream::create());
    R1D_ASSIGN_OR_RETURN(blas_, device::BlasLt::create());
    R1D_ASSIGN_OR_RETURN(begin_, device::Event::create());
    R1D_ASSIGN_OR_RETURN(end_, device::Event::create());
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

  [[nodiscard]] DType activation_dtype() const override { return DType::kBF16; }

  [[nodiscard]] absl::StatusOr<std::unique_ptr<Buffer>> allocate(size_t bytes,
                                                                 MemoryKind kind,
                                                                 const std::string& what) override {
    R1D_ASSIGN_OR_RETURN(auto memory, device::DeviceMemory::allocate(bytes, what));
    return std::make_unique<CudaBuffer>(
        std::move(memory), MemoryMeter::Share(meter_, kind, static_cast<int64_t>(bytes)));
  }
  [[nodiscard]] MemoryUse memory_use() const override { return meter_.use(); }
  [[nodiscard]] absl::StatusOr<std::optional<DeviceBytes>> device_bytes() const override {
    R1D_ASSIGN_OR_RETURN(const device::DeviceMemoryInfo now, device::memory_info());
    return DeviceBytes{.total = now.total_bytes,
                       .free_at_start = memory_at_start_.free_bytes,
                       .free_now = now.free_bytes};
  }

  [[nodiscard]] absl::Status upload(std::byte* device, std::span<const std::byte> host) override {
    R1D_RETURN_IF_ERROR(stream_.copy_in(device, host.data(), host.size()));
    return stream_.synchronize();
  }

  [[nodiscard]] absl::StatusOr<std::unique_ptr<Buffer>> allocate_staging(
      size_t bytes, const std::string& what) override {
    R1D_ASSIGN_OR_RETURN(auto memory, device::PinnedMemory::allocate(bytes, what));
    return std::make_unique<StagingBuffer>(std::move(memory));
  }
  [[nodiscard]] absl::StatusOr<uint64_t> start_upload(std::byte* device,
                                                      std::span<const std::byte> staged) override {
    return uploads_.start(device, staged);
  }
  [[nodiscard]] absl::Status wait_upload(uint64_t upload) override { return uploads_.wait(upload); }

  [[nodiscard]] absl::Status download(std::span<std::byte> host, const std::byte* device) override {
    R1D_RETURN_IF_ERROR(stream_.copy_out(host.data(), device, host.size()));
    return stream_.synchronize();
  }

  [[nodiscard]] bool host_addressable() const override { return false; }

  [[nodiscard]] absl::StatusOr<bool> fill(std::byte* device, const SeededValues& values) override {
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

  [[nodiscard]] absl::Status prepare(AttentionWeights& weights) override {
    R1D_ASSIGN_OR_RETURN(auto prepared, preparer_->attention(weights));
    meter_.add(MemoryKind::kWeights,
               static_cast<int64_t>(prepared.absorbed_memory.size() + prepared.fused_scale.size()));
    weights.prepared = static_cast<int32_t>(attentions_.size());
    attentions_.push_back(std::move(prepared));
    return absl::OkStatus();
  }
  [[nodiscard]] absl::Status prepare(MlpWeights& weights) override {
    R1D_ASSIGN_OR_RETURN(auto prepared, preparer_->mlp(weights));
    weights.prepared = static_cast<int32_t>(mlps_.size());
    mlps_.push_back(std::move(prepared));
    return absl::OkStatus();
  }
  [[nodiscard]] absl::Status prepare(MoeWeights& weights) override {
    R1D_ASSIGN_OR_RETURN(auto prepared, preparer_->moe(weights));
    meter_.add(MemoryKind::kWeights, static_cast<int64_t>(prepared.matrices.size()));
    weights.prepared = static_cast<int32_t>(moes_.size());
    moes_.push_back(std::move(prepared));
    return absl::OkStatus();
  }

  [[nodiscard]] std::vector<int32_t> batch_sizes_to_warm() const override {
    std::vector<int32_t> sizes;
    for (const int32_t size : kGraphBuckets) {
      if (!sizes.empty() && sizes.back() >= options_.max_sequences) break;
      sizes.push_back(std::min(size, options_.max_sequences));
    }
    return sizes;
  }

  [[nodiscard]] absl::Status begin_step(const StepInputs& inputs) override {
    if (preparer_) {
      R1D_RETURN_IF_ERROR(stream_.synchronize());
      preparer_.reset();  // no weights come after the first step: its scratch memory goes back
      // Freeing may wait for what runs on the other GPUs, so nothing there may wait for this one.
      if (collectives_) R1D_RETURN_IF_ERROR(collectives_->meet());
    }
    const int32_t bucket = bucket_of(inputs);
    choose_mode(bucket);
    if (collectives_) R1D_RETURN_IF_ERROR(collectives_->begin_step(collective_mode(inputs)));
    num_tokens_ = static_cast<int64_t>(inputs.token_ids.size());
    num_logit_rows_ = static_cast<int64_t>(inputs.logit_rows.size());
    logits_target_ = nullptr;
    sample_ = rank_ == 0 ? inputs.sample : nullptr;
    normed_of_ = nullptr;
    R1D_RETURN_IF_ERROR(step_.begin(inputs, bucket, stream_));
    R1D_RETURN_IF_ERROR(begin_.record(stream_));
    if (mode_ == Mode::kReplay) return absl::OkStatus();
    if (mode_ == Mode::kRecord) {
      R1D_RETURN_IF_ERROR(device::Graph::begin_recording(stream_));
      recording_ = true;
    }
    launches_.start_step();
    const kernels::BeginStep begin{.sequences = step_.all(),
                                   .block_size = options_.block_size,
                                   .tokens = step_.num_tokens(),
                                   .positions = step_.positions(),
                                   .slots = step_.slots(),
                                   .inv_freq = inv_freq_,
                                   .cos_sin_scale = dims_.rope_cos_sin_scale,
                                   .rope = dims_.qk_rope_head_dim,
                                   .cos_sin = step_.cos_sin()};
    R1D_RETURN_IF_ERROR(launches_(Kind::kBegin, {}, [&](const Launch& launch) {
      return kernels::begin_step(begin, launch);
    }));
    return attention_.begin_step();
  }

  [[nodiscard]] absl::Status embed(const Matrix& table, int64_t first_row, Tensor out) override {
    if (mode_ == Mode::kReplay) return absl::OkStatus();
    const double bytes = 4.0 * static_cast<double>(step_.num_tokens() * table.cols);
    R1D_RETURN_IF_ERROR(launches_(Kind::kEmbed, {.bytes = bytes}, [&](const Launch& launch) {
      // The step's plan and tables are read ahead of dependency waits from here on (mla_decode.h),
      // so this one kernel waits for what made them in the ordinary way.
      const Launch after_plan{.stream = launch.stream, .dependent = false};
      return kernels::embed({.table = table.data,
                             .table_f32 = table.dtype == DType::kF32,
                             .rows = table.rows,
                             .first_row = first_row,
                             .cols = table.cols,
                             .ids = step_.ids(),
                             .tokens = step_.num_tokens(),
                             .out = bf16(out),
                             .out_stride = out.stride},
                            after_plan);
    }));
    if (!collectives_) return absl::OkStatus();
    R1D_CHECK(out.stride == out.cols);
    return collectives_->all_reduce(
        {.in = bf16(out), .out = bf16(out), .count = step_.num_tokens() * out.cols});
  }

  [[nodiscard]] absl::Status norm(Tensor x, const float* weight, Tensor out) override {
    if (mode_ == Mode::kReplay) return absl::OkStatus();
    normed_of_ = out.data;
    const double bytes = 5.0 * static_cast<double>(step_.num_tokens() * x.cols);
    return launches_(Kind::kNorm, {.bytes = bytes}, [&](const Launch& launch) {
      return kernels::rms_norm(
          {.x = bf16(x),
           .x_stride = x.stride,
           .weight = weight,
           .eps = dims_.rms_norm_eps,
           .tokens = step_.num_tokens(),
           .cols = x.cols,
           .out = {.bf16 = bf16(out), .stride = out.stride, .quantized = normed_}},
          launch);
    });
  }

  [[nodiscard]] absl::Status reduce_add_norm(Tensor partial,
                                             Tensor residual,
                                             const float* weight,
                                             Tensor out) override {
    if (mode_ == Mode::kReplay) return absl::OkStatus();
    normed_of_ = out.data;
    if (collectives_) return all_reduce_add_norm(partial, residual, weight, out);
    const double bytes = 9.0 * static_cast<double>(step_.num_tokens() * residual.cols);
    return launches_(Kind::kNorm, {.bytes = bytes}, [&](const Launch& launch) {
      return kernels::add_norm(
          {.partial = partial.data,
           .partial_stride = partial.stride,
           .residual = bf16(residual),
           .residual_stride = residual.stride,
           .weight = weight,
           .eps = dims_.rms_norm_eps,
           .tokens = step_.num_tokens(),
           .cols = residual.cols,
           .out = {.bf16 = bf16(out), .stride = out.stride, .quantized = normed_}},
          launch);
    });
  }

  [[nodiscard]] absl::Status attention(const AttentionWeights& weights,
                                       const LatentPages& pages,
                                       Tensor x,
                                       Tensor out) override {
    if (mode_ == Mode::kReplay) return absl::OkStatus();
    return attention_.run(
        attentions_.at(static_cast<size_t>(weights.prepared)), pages, rows_of(x), output_of(out));
  }

  [[nodiscard]] absl::Status mlp(const MlpWeights& weights, Tensor x, Tensor out) override {
    if (mode_ == Mode::kReplay) return absl::OkStatus();
    return feed_forward_.mlp(mlps_.at(static_cast<size_t>(weights.prepared)),
                             rows_of(x),
                             step_.num_tokens(),
                             output_of(out));
  }

  [[nodiscard]] absl::Status moe(const MoeWeights& weights, Tensor x, Tensor out) override {
    if (mode_ == Mode::kReplay) return absl::OkStatus();
    return feed_forward_.moe(moes_.at(static_cast<size_t>(weights.prepared)),
                             rows_of(x),
                             step_.num_tokens(),
                             output_of(out));
  }

  [[nodiscard]] absl::Status logits(const Matrix& head,
                                    int64_t first_row,
                                    Tensor x,
                                    float* logits) override {
    R1D_CHECK(!collectives_ || first_row == rank_ * head.rows);
    logits_target_ = logits;
    logit_columns_ = collectives_ && rank_ == 0 ? dims_.vocab_size : head.rows;
    if (mode_ == Mode::kReplay || step_.num_logit_rows() == 0) return absl::OkStatus();
    const int64_t rows = step_.num_logit_rows();
    // The wanted rows, gathered as an embedding would.
    R1D_RETURN_IF_ERROR(launches_(Kind::kHead, {}, [&](const Launch& launch) {
      return kernels::embed({.table = x.data,
                             .rows = step_.num_tokens(),
                             .cols = x.cols,
                             .ids = step_.logit_rows(),
                             .tokens = rows,
                             .out = head_rows_},
                            launch);
    }));
    const Linear weight{.raw = head, .tiled = {}};
    R1D_RETURN_IF_ERROR(linear_.multiply(Kind::kHead,
                                         weight,
                                         {.data = head_rows_, .stride = x.cols, .quantized = {}},
                                         rows,
                                         {.data = logits_, .stride = logit_columns_, .f32 = true}));
    return collectives_ ? collectives_->gather(logits_, rows, head.rows) : absl::OkStatus();
  }

  [[nodiscard]] bool samples() const override { return true; }

  [[nodiscard]] absl::Status end_step() override {
    R1D_RETURN_IF_ERROR(end_collectives());
    R1D_RETURN_IF_ERROR(launch_graph());
    const bool sample = sample_ != nullptr && !sample_->rows.empty();
    if (sample) R1D_RETURN_IF_ERROR(enqueue_sampler());
    R1D_RETURN_IF_ERROR(end_.record(stream_));
    if (logits_target_ != nullptr && num_logit_rows_ > 0) {
      const int64_t bytes = num_logit_rows_ * logit_columns_ * int64_t{sizeof(float)};
      R1D_RETURN_IF_ERROR(stream_.copy_out(logits_target_, logits_, static_cast<size_t>(bytes)));
    }
    R1D_RETURN_IF_ERROR(stream_.synchronize());
    if (collectives_) R1D_RETURN_IF_ERROR(collectives_->finish_step(num_collectives_));
    if (sample) sampler_.collect(*sample_);
    return absl::OkStatus();
  }

  void abort() override {
    if (collectives_) collectives_->abort();  // else nobody waits for another
  }

  // Graphs and what else depends on the steps so far begin anew, since a failed step may have been
  // another one for each rank.
  [[nodiscard]] absl::Status rejoin() override {
    if (!collectives_) return failed_precondition("a GPU whose step failed is not used again");
    if (recording_) {
      recording_ = false;
      // What was recorded is thrown away, whatever became of it.
      static_cast<void>(device::Graph::end_recording(stream_));
    }
    R1D_RETURN_IF_ERROR(collectives_->rejoin());
    graphs_.clear();
    seen_.clear();
    preparer_.reset();
    return collectives_->meet();
  }

  [[nodiscard]] absl::StatusOr<double> last_step_micros() override {
    return end_.micros_since(begin_);
  }
  [[nodiscard]] std::vector<KernelCost> costs() const override { return launches_.costs(); }
  void only(const std::string* name) override {
    std::optional<Kind> kind;
    for (uint8_t k = 0; name != nullptr && k < static_cast<uint8_t>(Kind::kCount); ++k) {
      if (*name == kind_name(static_cast<Kind>(k))) kind = static_cast<Kind>(k);
    }
    launches_.only(kind);
    graphs_.clear();
  }
  [[nodiscard]] int64_t graph_nodes() const override { return graph_nodes_; }

  [[nodiscard]] absl::StatusOr<int32_t> active_experts() override {
    std::vector<int32_t> chosen(static_cast<size_t>(num_tokens_ * dims_.router.top_k));
    if (chosen.empty()) return 0;
    R1D_RETURN_IF_ERROR(stream_.copy_out(
        chosen.data(), feed_forward_.chosen_experts(), chosen.size() * sizeof(int32_t)));
    R1D_RETURN_IF_ERROR(stream_.synchronize());
    std::sort(chosen.begin(), chosen.end());
    return static_cast<int32_t>(std::unique(chosen.begin(), chosen.end()) - chosen.begin());
  }

  [[nodiscard]] absl::StatusOr<double> read_bandwidth(size_t bytes) override {
    R1D_ASSIGN_OR_RETURN(const auto memory,
                         device::DeviceMemory::allocate(bytes, "bandwidth test"));
    R1D_ASSIGN_OR_RETURN(const auto sink,
                         device::DeviceMemory::allocate(sizeof(uint32_t), "bandwidth test"));
    std::array<double, 7> micros{};
    for (double& time : micros) {
      R1D_RETURN_IF_ERROR(begin_.record(stream_));
      R1D_CUDA_TRY(kernels::read_memory(memory.data(),
                                        static_cast<int64_t>(bytes),
                                        reinterpret_cast<uint32_t*>(sink.data()),
                                        {.stream = stream_.get()}));
      R1D_RETURN_IF_ERROR(end_.record(stream_));
      R1D_RETURN_IF_ERROR(stream_.synchronize());
      R1D_ASSIGN_OR_RETURN(time, end_.micros_since(begin_));
    }
    std::sort(micros.begin(), micros.end());
    return static_cast<double>(bytes) / micros[micros.size() / 2] * 1e6;
  }

 private:
  enum class Mode : uint8_t { kEager, kRecord, kReplay };
  struct BucketGraph {
    bool warmed = false;  // ran once, so that every kernel is loaded
    std::optional<device::Graph> graph;
    uint32_t num_collectives = 0;
  };
  // Eager steps of one kind launch the same kernels, give or take.
  using StepKind = std::tuple<int32_t, bool, bool>;  // tokens' power of two; decodes; prefills

  [[nodiscard]] int64_t max_tokens() const {
    return std::max(options_.max_tokens, DeviceStep::kMaxGraphTokens);
  }
  [[nodiscard]] int64_t max_rows() const {
    return std::max(options_.max_sequences, DeviceStep::kMaxGraphTokens);
  }

  // The batch size to pad this step to; 0: it is no step for a graph.
  [[nodiscard]] int32_t bucket_of(const StepInputs& inputs) const {
    const auto tokens = static_cast<int32_t>(inputs.token_ids.size());
    const bool decodes = std::all_of(inputs.sequences.begin(),
                                     inputs.sequences.end(),
                                     [](const SequenceSpan& span) { return span.query_len == 1; });
    const bool records = options_.graphs && (!collectives_ || collectives_->has_peer_memory());
    if (!records || !decodes || tokens == 0 || tokens > kGraphBuckets.back() ||
        inputs.logit_rows.size() != inputs.token_ids.size()) {
      return 0;
    }
    return *std::lower_bound(kGraphBuckets.begin(), kGraphBuckets.end(), tokens);
  }

  void choose_mode(int32_t bucket) {
    bucket_ = bucket;
    mode_ = Mode::kEager;
    if (bucket == 0) return;
    BucketGraph& entry = graphs_[bucket];
    if (entry.graph) {
      mode_ = Mode::kReplay;
    } else if (entry.warmed) {
      mode_ = Mode::kRecord;
    }
    entry.warmed = true;
  }

  // Eager steps are careful the first time: they load kernels.
  [[nodiscard]] Collectives::Mode collective_mode(const StepInputs& inputs) {
    if (mode_ == Mode::kReplay) return Collectives::Mode::kFree;
    if (mode_ == Mode::kRecord) return Collectives::Mode::kRecorded;
    if (bucket_ > 0) return Collectives::Mode::kCareful;
    const auto has = [&](bool decode) {
      return std::any_of(
          inputs.sequences.begin(), inputs.sequences.end(), [&](const SequenceSpan& span) {
            return (span.query_len <= DeviceStep::kMaxDecodeQuery) == decode;
          });
    };
    int32_t power = 0;
    while ((size_t{1} << power) < inputs.token_ids.size()) ++power;
    const bool first = seen_.insert({power, has(true), has(false)}).second;
    return first ? Collectives::Mode::kCareful : Collectives::Mode::kFree;
  }

  // The end of the collectives of a step that is enqueued or recorded.
  absl::Status end_collectives() {
    if (!collectives_) return absl::OkStatus();
    if (mode_ == Mode::kReplay) {
      num_collectives_ = graphs_[bucket_].num_collectives;
      return absl::OkStatus();
    }
    R1D_ASSIGN_OR_RETURN(num_collectives_, collectives_->end_step());
    return absl::OkStatus();
  }

  absl::Status launch_graph() {
    if (mode_ == Mode::kEager) return absl::OkStatus();
    BucketGraph& entry = graphs_[bucket_];
    if (mode_ == Mode::kRecord) {
      recording_ = false;
      R1D_ASSIGN_OR_RETURN(entry.graph, device::Graph::end_recording(stream_));
      entry.num_collectives = num_collectives_;
      if (collectives_) {
        // Making a graph may take memory: no rank starts before all have theirs.
        R1D_RETURN_IF_ERROR(entry.graph->upload(stream_));
        R1D_RETURN_IF_ERROR(stream_.synchronize());
        R1D_RETURN_IF_ERROR(collectives_->meet());
      }
      R1D_RETURN_IF_ERROR(begin_.record(stream_));
    }
    graph_nodes_ = entry.graph->num_nodes();
    return entry.graph->launch(stream_);
  }

  absl::Status enqueue_sampler() {
    bool& loaded = sampler_loaded_[sample_->greedy ? 0 : 1];
    // The first launch loads code, which may wait for all kernels: none may be waiting for a rank.
    if (collectives_ && !loaded) R1D_RETURN_IF_ERROR(stream_.synchronize());
    loaded = true;
    return sampler_.enqueue(*sample_, logits_, logit_columns_, stream_);
  }

  absl::Status all_reduce_add_norm(const Tensor& partial,
                                   const Tensor& residual,
                                   const float* weight,
                                   const Tensor& out) {
    R1D_CHECK(partial.stride == partial.cols && residual.stride == residual.cols);
    return collectives_->all_reduce_add_norm(
        {.partial = bf16(partial),
         .residual = bf16(residual),
         .weight = weight,
         .eps = dims_.rms_norm_eps,
         .tokens = step_.num_tokens(),
         .cols = residual.cols,
         .out = {.bf16 = bf16(out), .stride = out.stride, .quantized = normed_}});
  }

  // A tensor, and its quantized twin when it is what the last norm wrote.
  [[nodiscard]] Rows rows_of(const Tensor& x) const {
    return {.data = bf16(x),
            .stride = x.stride,
            .quantized = x.data == normed_of_ ? normed_ : kernels::QuantizedRows{}};
  }
  static Output output_of(const Tensor& out) { return {.data = bf16(out), .stride = out.stride}; }

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
  std::array<bool, 2> sampler_loaded_{};  // greedy, any
  uint32_t num_collectives_ = 0;          // of this step
  std::set<StepKind> seen_;               // kinds of eager steps that have run
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

CudaProbe* cuda_probe(Ops& ops) {
  return dynamic_cast<CudaProbe*>(&ops);
}

}  // namespace r1d::ops
