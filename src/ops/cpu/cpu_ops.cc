// SPDX-License-Identifier: Apache-2.0
#include "r1d/ops/cpu_ops.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/fault.h"
#include "r1d/base/status.h"

#include "ops/cpu/attention.h"
#include "ops/cpu/feed_forward.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/host_memory.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/local_group.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/step.h"

namespace r1d::ops {
namespace cpu {
namespace {

// Rows of logits computed together; on several ranks the scratch for their slice is taken for this
// many.
constexpr int64_t kLogitRows = 64;

float* row_of(const Tensor& x, int64_t row) {
  return static_cast<float*>(x.data) + row * x.stride;
}

// The widest weight matrix of the model on this rank.
int64_t max_cols(const ModelDims& dims) {
  return std::max({dims.hidden_size,
                   dims.q_lora_rank,
                   dims.kv_lora_rank,
                   dims.num_heads * dims.v_head_dim,
                   dims.max_intermediate});
}

class CpuOps final : public Ops {
 public:
  enum class Purpose : uint8_t { kRun, kMeasure };  // kMeasure: nothing is taken or started

  CpuOps(ModelDims dims,
         const CpuOptions& options,
         std::shared_ptr<LocalGroup> group,
         int32_t rank,
         Purpose purpose = Purpose::kRun)
      : dims_(std::move(dims)),
        group_(std::move(group)),
        rank_(rank),
        largest_exchange_(largest_exchange(options)),
        parallel_(options.num_threads, purpose == Purpose::kRun),
        gemm_(parallel_, options.bf16_dot, max_cols(dims_)),
        step_(dims_, std::max(1, options.max_tokens)),
        attention_(
            dims_, options.mla_form, parallel_, gemm_, step_, std::max(1, options.max_tokens)),
        feed_forward_(dims_, parallel_, gemm_, std::max(1, options.max_tokens)) {
    const MemoryUse needs = own_memory();
    if (purpose == Purpose::kMeasure) return;
    const int64_t bytes = needs[MemoryKind::kWorkspaces];
    auto memory = HostMemory::allocate(static_cast<size_t>(bytes), "scratch for activations");
    scratch_status_ = memory.status();
    if (!memory.ok()) return;
    scratch_ = std::move(memory).value();
    Arena arena(scratch_.data());
    layout(arena);
    group_->reserve(rank_, largest_exchange_);
    meter_.add(MemoryKind::kWorkspaces, bytes);
    meter_.add(MemoryKind::kCollectives, needs[MemoryKind::kCollectives]);
  }

  // What the constructor takes.
  [[nodiscard]] MemoryUse own_memory() {
    Arena measure(nullptr);
    layout(measure);
    MemoryUse use;
    use[MemoryKind::kWorkspaces] = static_cast<int64_t>(measure.used());
    use[MemoryKind::kCollectives] = LocalGroup::slot_bytes(group_->world_size(), largest_exchange_);
    return use;
  }

  [[nodiscard]] DType activation_dtype() const override { return DType::kF32; }
  [[nodiscard]] bool host_addressable() const override { return true; }

  [[nodiscard]] absl::StatusOr<std::unique_ptr<Buffer>> allocate(size_t bytes,
                                                                 MemoryKind kind,
                                                                 const std::string& what) override {
    R1D_RETURN_IF_ERROR(scratch_status_);
    R1D_ASSIGN_OR_RETURN(HostMemory memory, HostMemory::allocate(bytes, what));
    return make_buffer(std::move(memory), {meter_, kind, static_cast<int64_t>(bytes)});
  }
  [[nodiscard]] MemoryUse memory_use() const override { return meter_.use(); }

  [[nodiscard]] absl::Status upload(std::byte* device, std::span<const std::byte> host) override {
    if (device != host.data() && !host.empty()) std::memcpy(device, host.data(), host.size());
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status download(std::span<std::byte> host, const std::byte* device) override {
    if (device != host.data() && !host.empty()) std::memcpy(host.data(), device, host.size());
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status begin_step(const StepInputs& inputs) override {
    R1D_RETURN_IF_ERROR(scratch_status_);
    return step_.begin(inputs);
  }

  [[nodiscard]] absl::Status embed(const Matrix& table, int64_t first_row, Tensor out) override {
    check_activations(out);
    parallel_.run(out.rows, out.rows * out.cols, [&](int64_t t, int32_t /*thread*/) {
      const int64_t row = step_.inputs().token_ids[static_cast<size_t>(t)] - first_row;
      if (row < 0 || row >= table.rows) {
        std::fill_n(row_of(out, t), out.cols, 0.0F);
      } else {
        dequantize_rows(table, row, row + 1, row_of(out, t), out.stride);
      }
    });
    return all_reduce(out);
  }

  [[nodiscard]] absl::Status norm(Tensor x,
                                  const float* weight,
                                  Tensor out,
                                  NormReader /*reader*/) override {
    R1D_CHECK(x.rows == out.rows && x.cols == out.cols);
    parallel_.run(x.rows, x.rows * x.cols * 2, [&](int64_t t, int32_t /*thread*/) {
      rms_norm(row_of(x, t), weight, dims_.rms_norm_eps, x.cols, row_of(out, t));
    });
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status reduce_add_norm(Tensor partial,
                                             Tensor residual,
                                             const float* weight,
                                             Tensor out,
                                             NormReader reader) override {
    check_activations(partial);
    check_activations(residual);
    R1D_RETURN_IF_ERROR(all_reduce(partial));
    parallel_.run(residual.rows, residual.rows * residual.cols, [&](int64_t t, int32_t /*thread*/) {
      add_scaled(row_of(residual, t), 1.0F, row_of(partial, t), residual.cols);
    });
    return norm(residual, weight, out, reader);
  }

  [[nodiscard]] absl::Status attention(const AttentionWeights& weights,
                                       const LatentPages& pages,
                                       Tensor x,
                                       Tensor out) override {
    attention_.run(weights, pages, x, out);
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status mlp(const MlpWeights& weights, Tensor x, Tensor out) override {
    check_activations(x);
    feed_forward_.mlp(weights, x, out);
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status moe(const MoeWeights& weights, Tensor x, Tensor out) override {
    check_activations(x);
    feed_forward_.moe(weights, x, out);
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status logits(const Matrix& head,
                                    int64_t first_row,
                                    Tensor x,
                                    float* logits) override {
    R1D_CHECK((rank_ == 0) == (logits != nullptr) || step_.inputs().logit_rows.empty());
    const auto rows = static_cast<int64_t>(step_.inputs().logit_rows.size());
    for (int64_t first = 0; first < rows; first += kLogitRows) {
      const int64_t count = std::min(kLogitRows, rows - first);
      float* target = logits == nullptr ? nullptr : logits + first * dims_.vocab_size;
      R1D_RETURN_IF_ERROR(some_logits(head, first_row, x, first, count, target));
    }
    return absl::OkStatus();
  }

  // Every call above is done when it returns.
  [[nodiscard]] absl::Status end_step() override { return absl::OkStatus(); }

  [[nodiscard]] uint64_t progress() const override { return parallel_.progress(); }
  void abort() override { group_->abort(); }
  [[nodiscard]] absl::Status rejoin() override {
    group_->rejoin(rank_);
    return absl::OkStatus();
  }

 private:
  void layout(Arena& arena) {
    gemm_.layout(arena);
    step_.layout(arena);
    attention_.layout(arena);
    feed_forward_.layout(arena);
    if (group_->world_size() > 1) {
      logit_share_ = dims_.vocab_size / group_->world_size() + 1;
      logits_ = arena.take<float>(kLogitRows * logit_share_);
    }
  }

  // Elements of a rank's share of its largest collective: hidden states of a step, or logits.
  [[nodiscard]] int64_t largest_exchange(const CpuOptions& options) const {
    return std::max(std::max(1, options.max_tokens) * dims_.hidden_size,
                    kLogitRows * (dims_.vocab_size / group_->world_size() + 1));
  }

  void check_activations(const Tensor& x) const {
    R1D_CHECK(x.dtype == DType::kF32 && x.rows == step_.num_tokens() &&
              x.cols == dims_.hidden_size);
  }

  // Before each collective: where tests let this rank's part in it get lost.
  [[nodiscard]] absl::Status may_meet() {
    switch (base::hit_fault(base::FaultPoint::kCollective, rank_)) {
      case base::FaultAction::kError:
        return unavailable("fault point ops.collective");
      case base::FaultAction::kHang:
        return group_->wait_for_abort();
      default:
        return absl::OkStatus();
    }
  }

  [[nodiscard]] absl::Status all_reduce(const Tensor& x) {
    R1D_RETURN_IF_ERROR(may_meet());
    if (x.stride == x.cols) {
      return group_->all_reduce_sum(
          rank_, {static_cast<float*>(x.data), static_cast<size_t>(x.rows * x.cols)});
    }
    for (int64_t t = 0; t < x.rows; ++t) {
      R1D_RETURN_IF_ERROR(
          group_->all_reduce_sum(rank_, {row_of(x, t), static_cast<size_t>(x.cols)}));
    }
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status some_logits(const Matrix& head,
                                         int64_t first_row,
                                         const Tensor& x,
                                         int64_t first,
                                         int64_t count,
                                         float* target) {
    const bool alone = group_->world_size() == 1;
    R1D_CHECK(alone || head.rows <= logit_share_);
    gemm_.run({.weights = head,
               .x = row_of(x, 0),
               .x_stride = x.stride,
               .x_rows = step_.inputs().logit_rows.data() + first,
               .tokens = count,
               .y = alone ? target + first_row : logits_,
               .y_stride = alone ? dims_.vocab_size : head.rows});
    if (alone) return absl::OkStatus();
    R1D_RETURN_IF_ERROR(may_meet());
    const LocalGroup::Columns own{.data = {logits_, static_cast<size_t>(count * head.rows)},
                                  .cols = head.rows,
                                  .first_col = first_row};
    return group_->gather_columns(rank_, own, target, dims_.vocab_size);
  }

  const ModelDims dims_;
  const std::shared_ptr<LocalGroup> group_;  // shared by the ranks: the last one frees it
  const int32_t rank_;
  const int64_t largest_exchange_;  // elements
  MemoryMeter meter_;
  Parallel parallel_;
  Gemm gemm_;
  Step step_;
  Attention attention_;
  FeedForward feed_forward_;
  HostMemory scratch_;           // activations of a step, cut up by layout()
  absl::Status scratch_status_;  // reported by the first allocate() or begin_step()
  float* logits_ = nullptr;      // [kLogitRows, logit_share_], several ranks only
  int64_t logit_share_ = 0;
};

}  // namespace
}  // namespace cpu

std::string cpu_target(bool bf16_dot) {
  const std::string target = cpu::vector_target();
  return bf16_dot && cpu::has_bf16_dot() ? target + "+BF16" : target;
}

MemoryUse plan_cpu_memory(const ModelDims& dims, const CpuOptions& options, int32_t world_size) {
  return cpu::CpuOps(dims,
                     options,
                     std::make_shared<cpu::LocalGroup>(world_size),
                     0,
                     cpu::CpuOps::Purpose::kMeasure)
      .own_memory();
}

std::vector<std::unique_ptr<Ops>> make_local_cpu_ops(const std::vector<ModelDims>& dims,
                                                     const CpuOptions& options) {
  auto group = std::make_shared<cpu::LocalGroup>(static_cast<int32_t>(dims.size()));
  std::vector<std::unique_ptr<Ops>> ops;
  for (size_t rank = 0; rank < dims.size(); ++rank) {
    if (options.before_rank) options.before_rank(static_cast<int32_t>(rank));
    ops.push_back(
        std::make_unique<cpu::CpuOps>(dims[rank], options, group, static_cast<int32_t>(rank)));
  }
  return ops;
}

}  // namespace r1d::ops
