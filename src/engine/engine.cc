// SPDX-License-Identifier: Apache-2.0
#include "r1d/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "r1d/base/check.h"
#include "r1d/base/exceptions.h"
#include "r1d/base/fault.h"
#include "r1d/base/log.h"
#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/base/thread_pool.h"
#include "r1d/engine/memory_plan.h"
#include "r1d/model/deepseek_v3.h"

#include "engine/device_sampler.h"
#include "engine/host_memory.h"
#include "engine/latent_cache.h"
#include "engine/memory_shortage.h"
#include "engine/numa.h"
#include "engine/rank_group.h"
#include "engine/rank_ops.h"
#include "engine/step_inputs.h"
#include "engine/step_interrupt.h"

namespace r1d::engine {
namespace {

using checkpoint::RankShard;
using checkpoint::WeightSource;

// Adds up what all ranks have read; one call of `report` at a time.
class LoadMeter {
 public:
  LoadMeter(int64_t total_bytes, const LoadFraction& report)
      : total_bytes_(total_bytes), report_(report) {}

  absl::Status add(int64_t bytes) {
    base::MutexLock lock(mu_);
    done_bytes_ += bytes;
    if (!report_) return absl::OkStatus();
    return report_(static_cast<double>(done_bytes_) /
                   static_cast<double>(std::max<int64_t>(total_bytes_, 1)));
  }

 private:
  const int64_t total_bytes_;
  const LoadFraction& report_;
  base::Mutex mu_;
  int64_t done_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

// Whether the weights should be read past the page cache: where they and their copy in it do not
// both fit into the memory of this host. On a GPU there is no copy of them in host memory.
bool read_direct(const EngineOptions& options, int64_t weight_bytes) {
  if (options.load_mode != LoadMode::kAuto) return options.load_mode == LoadMode::kDirect;
  const int64_t copies = options.device == Device::kCpu ? 2 : 1;
  return copies * weight_bytes > spare_host_bytes("");
}

// What one rank's thread owns.
struct Rank {
  RankShard shard;
  std::optional<NumaNode> place;
  std::unique_ptr<ops::Ops> ops;
  std::unique_ptr<model::DeepSeekV3> model;
  std::optional<LatentCache> cache;
  std::optional<ops::DeviceBytes> device_bytes;  // when loaded; none: no memory of its own
};

}  // namespace

class Engine::Impl {
 public:
  Impl(const checkpoint::ModelConfig& config,
       const EngineOptions& options,
       const MemoryPlan& plan,
       int64_t resident_at_start,
       TokenId last_token_id,
       std::vector<Rank> ranks)
      : options_(options),
        memory_(plan),
        resident_at_start_(resident_at_start),
        plan_(plan.cache),
        vocab_size_(config.vocab_size),
        last_token_id_(last_token_id),
        ranks_(std::move(ranks)),
        group_(options.world_size, [this] { abort_ranks(); }),
        interrupt_([this] { abort_ranks(); }),
        sampler_pool_(std::min(total_threads(options), options.max_batch_size)),
        logits_(static_cast<size_t>(options.max_batch_size) *
                static_cast<size_t>(config.vocab_size)) {}

  absl::Status load(const WeightSource& source, const LoadFraction& report, std::stop_token stop) {
    int64_t total = 0;
    for (const Rank& rank : ranks_) {
      R1D_ASSIGN_OR_RETURN(const int64_t bytes,
                           model::rank_weight_bytes(source, rank.shard, options_.with_mtp));
      total += bytes;
    }
    LoadMeter meter(total, report);
    checkpoint::WeightLoad files(
        {.direct = read_direct(options_, total), .num_threads = options_.load_threads},
        options_.world_size,
        std::move(stop));
    R1D_RETURN_IF_ERROR(group_.run([&](int32_t r) -> absl::Status {
      // The others wait for this rank to say what it wants.
      const absl::Status loaded =
          base::without_exceptions([&] { return load_rank(r, source, files, meter); });
      if (!loaded.ok()) files.abort(loaded);
      return loaded;
    }));
    load_report_ = files.report();
    measured_bytes_ = measure();
    return absl::OkStatus();
  }

  [[nodiscard]] MemoryReport memory() const {
    MemoryReport report{.plan = memory_, .ranks = {}, .measured_bytes = measured_bytes_};
    for (const Rank& rank : ranks_) report.ranks.push_back(rank.ops->memory_use());
    return report;
  }

  absl::StatusOr<StepOutput> execute(std::span<const SequenceStep> batch) {
    StepOutput output;
    interrupt_.begin();
    const absl::Status failure =
        base::without_exceptions([&] { return execute_step(batch, output); });
    const absl::Status interruption = interrupt_.end();
    // That ranks lost each other is what an interruption looks like to them; anything worse counts.
    const bool worse = !failure.ok() && !recovery_cause(failure).has_value();
    if (!interruption.ok() && !worse) return interruption;
    R1D_RETURN_IF_ERROR(failure);
    return output;
  }

  void interrupt(const absl::Status& why) { interrupt_.interrupt(why); }

  // The communicator may be sound, as when memory ran out between two collectives; rejoin() wants
  // it aborted all the same.
  absl::Status recover() {
    abort_ranks();
    return group_.run([this](int32_t r) {
      const absl::Status injected = base::without_exceptions(
          [r] { return base::fault_status(base::FaultPoint::kRejoin, r); });
      const absl::Status rejoined =
          ranks_[static_cast<size_t>(r)].ops->rejoin();  // none stays away
      return injected.ok() ? rejoined : injected;
    });
  }

  // Steps, rank 0's layers, and what the ranks count within a layer: any change is progress.
  [[nodiscard]] uint64_t progress() const {
    uint64_t progress = progress_.load(std::memory_order_relaxed);
    for (const Rank& rank : ranks_) progress += rank.ops->progress();
    return progress;
  }
  [[nodiscard]] const CachePlan& cache() const { return plan_; }
  [[nodiscard]] const checkpoint::LoadReport& load_report() const { return load_report_; }
  [[nodiscard]] std::string device() const { return describe_device(options_); }

 private:
  void abort_ranks() {
    for (const Rank& rank : ranks_) rank.ops->abort();
  }

  absl::Status execute_step(std::span<const SequenceStep> batch, StepOutput& output) {
    const ops::StepInputs& inputs = inputs_.build(batch);
    R1D_CHECK(inputs.token_ids.size() <= static_cast<size_t>(options_.max_num_batched_tokens));
    R1D_CHECK(inputs.logit_rows.size() <= static_cast<size_t>(options_.max_batch_size));
    R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kStep));
    R1D_RETURN_IF_ERROR(run_step(inputs, batch));
    sample(batch, output);
    progress_.fetch_add(1, std::memory_order_relaxed);
    return absl::OkStatus();
  }

  // Whether the rank's device has as much free as the plan takes.
  absl::Status check_device(const Rank& rank, int32_t r) const {
    R1D_ASSIGN_OR_RETURN(const std::optional<ops::DeviceBytes> bytes, rank.ops->device_bytes());
    return bytes ? check_free_memory(memory_, *bytes, r) : absl::OkStatus();
  }

  // What loading took, as the devices' drivers or the kernel see it.
  [[nodiscard]] int64_t measure() const {
    if (!ranks_.front().device_bytes) return resident_bytes("") - resident_at_start_;
    int64_t bytes = 0;
    for (const Rank& rank : ranks_) {
      bytes += rank.device_bytes->total - rank.device_bytes->free_now;
    }
    return bytes;
  }

  absl::Status load_rank(int32_t r,
                         const WeightSource& source,
                         checkpoint::WeightLoad& files,
                         LoadMeter& meter) {
    Rank& rank = ranks_[static_cast<size_t>(r)];
    if (rank.place && !run_on(*rank.place)) {
      base::make_logger("engine")->warn(
          "rank {}: may not use the cores of NUMA node {}; runs anywhere", r, rank.place->id);
    }
    R1D_RETURN_IF_ERROR(rank.ops->attach());
    R1D_RETURN_IF_ERROR(check_device(rank, r));
    R1D_ASSIGN_OR_RETURN(rank.model,
                         model::DeepSeekV3::load(
                             source.for_rank(r),
                             rank.shard,
                             *rank.ops,
                             options_.max_num_batched_tokens,
                             options_.with_mtp,
                             [&](int64_t bytes) { return meter.add(bytes); },
                             &files));
    R1D_ASSIGN_OR_RETURN(rank.cache,
                         LatentCache::create(source.config(), options_, plan_, *rank.ops));
    R1D_RETURN_IF_ERROR(warm_up(rank));
    R1D_ASSIGN_OR_RETURN(rank.device_bytes, rank.ops->device_bytes());
    return absl::OkStatus();
  }

  // Runs the steps that a device wants to have seen before the first request: a prefill, and decode
  // batches of every size it names. They write to blocks that nobody holds yet.
  absl::Status warm_up(Rank& rank) {
    const std::vector<int32_t> sizes = rank.ops->batch_sizes_to_warm();
    if (sizes.empty()) return absl::OkStatus();
    constexpr int32_t kPrefill = 300;  // takes the kernels for many tokens
    // max_model_len is no more than the cache holds.
    const int32_t prefill =
        std::min({kPrefill, plan_.max_model_len, options_.max_num_batched_tokens});
    R1D_RETURN_IF_ERROR(warm_up_step(rank, 1, prefill));
    for (const int32_t size : sizes) {
      for (int pass = 0; pass < 2; ++pass) R1D_RETURN_IF_ERROR(warm_up_step(rank, size, 1));
    }
    return absl::OkStatus();
  }

  absl::Status warm_up_step(Rank& rank, int32_t num_sequences, int32_t length) {
    std::vector<BlockId> blocks(
        static_cast<size_t>((length + options_.block_size - 1) / options_.block_size));
    std::iota(blocks.begin(), blocks.end(), 0);
    const std::vector<TokenId> tokens(static_cast<size_t>(length), 0);
    const SamplingParams sampling;
    const SequenceStep step{.tokens = tokens,
                            .num_prompt_tokens = length,
                            .count = length,
                            .block_table = blocks,
                            .sampling = &sampling};
    const std::vector<SequenceStep> batch(static_cast<size_t>(num_sequences), step);
    StepInputBuilder inputs;
    return rank.model->forward(
        inputs.build(batch), rank.cache->layers(), nullptr, ignored_progress_);
  }

  // Forward on all ranks; rank 0 also samples where it can, and brings the logits to the host where
  // it cannot or somebody wants to see them.
  absl::Status run_step(ops::StepInputs inputs, std::span<const SequenceStep> batch) {
    const bool on_device = ranks_.front().ops->samples();
    const bool captured = std::any_of(batch.begin(), batch.end(), [](const SequenceStep& step) {
      return step.capture_logits && step.sampling != nullptr;
    });
    if (on_device) {
      fill_sample_request(batch, last_token_id_, vocab_size_, request_);
      inputs.sample = &request_;
    }
    float* logits = !on_device || captured ? logits_.data() : nullptr;
    return group_.run([&](int32_t r) {
      Rank& rank = ranks_[static_cast<size_t>(r)];
      std::atomic<uint64_t>& layers_done = r == 0 ? progress_ : ignored_progress_;
      return rank.model->forward(
          inputs, rank.cache->layers(), r == 0 ? logits : nullptr, layers_done);
    });
  }

  // Row b of the logits, and of what a device sampled, belongs to the b-th sequence that samples.
  void sample(std::span<const SequenceStep> batch, StepOutput& output) {
    output.tokens.resize(batch.size());
    sampling_.clear();
    for (size_t i = 0; i < batch.size(); ++i) {
      if (batch[i].sampling != nullptr) sampling_.push_back(i);
    }
    if (ranks_.front().ops->samples()) {
      take_sampled(batch, output);
    } else {
      sample_on_host(batch, output);
    }
  }

  [[nodiscard]] std::span<float> logits_row(size_t row) {
    const auto width = static_cast<size_t>(vocab_size_);
    return {logits_.data() + row * width, width};
  }

  void take_sampled(std::span<const SequenceStep> batch, StepOutput& output) {
    for (size_t row = 0; row < sampling_.size(); ++row) {
      const size_t i = sampling_[row];
      output.tokens[i] = sampled_token(request_, row);
      if (!batch[i].capture_logits) continue;
      const std::span<float> logits = logits_row(row);
      output.tokens[i].logits.assign(logits.begin(), logits.end());
    }
  }

  // Sequences are sampled side by side; what goes wrong with one ends that one alone.
  void sample_on_host(std::span<const SequenceStep> batch, StepOutput& output) {
    sampler_pool_.parallel_for(static_cast<int64_t>(sampling_.size()), [&](int64_t row, int32_t) {
      const size_t i = sampling_[static_cast<size_t>(row)];
      try {
        output.tokens[i] = sample_row(batch[i], logits_row(static_cast<size_t>(row)));
      } catch (...) {
        output.tokens[i].status = base::caught_status();
      }
    });
  }

  [[nodiscard]] SampledToken sample_row(const SequenceStep& step, std::span<float> logits) const {
    if (base::hit_fault(base::FaultPoint::kSample) == base::FaultAction::kNan) {
      logits.front() = std::numeric_limits<float>::quiet_NaN();
    }
    std::vector<float> captured;
    if (step.capture_logits) captured.assign(logits.begin(), logits.end());
    SampledToken sampled =
        sample_token(logits, step.tokens, step.num_prompt_tokens, last_token_id_, *step.sampling);
    sampled.logits = std::move(captured);
    return sampled;
  }

  const EngineOptions options_;
  const MemoryPlan memory_;
  const int64_t resident_at_start_;  // of the process, before anything was taken
  int64_t measured_bytes_ = 0;       // by load()
  const CachePlan plan_;
  const int64_t vocab_size_;
  const TokenId last_token_id_;
  std::vector<Rank> ranks_;
  checkpoint::LoadReport load_report_;
  std::atomic<uint64_t> progress_{0};
  std::atomic<uint64_t> ignored_progress_{0};  // the other ranks' layers
  StepInputBuilder inputs_;
  std::vector<size_t> sampling_;
  ops::SampleRequest request_;  // what a device samples
  RankGroup group_;
  StepInterrupt interrupt_;
  base::ThreadPool sampler_pool_;
  std::vector<float> logits_;  // [max_batch_size, V]
};

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

absl::StatusOr<std::unique_ptr<Engine>> Engine::create(const WeightSource& source,
                                                       const EngineOptions& options,
                                                       TokenId last_token_id,
                                                       const LoadFraction& progress,
                                                       const PlanListener& planned,
                                                       std::stop_token stop) {
  std::vector<Rank> ranks(static_cast<size_t>(options.world_size));
  std::vector<ops::ModelDims> dims;
  for (int32_t r = 0; r < options.world_size; ++r) {
    R1D_ASSIGN_OR_RETURN(
        ranks[static_cast<size_t>(r)].shard,
        checkpoint::make_rank_shard(source.config(), r, options.world_size, options.expert_split));
    dims.push_back(model::make_dims(source.config(), ranks[static_cast<size_t>(r)].shard));
  }
  R1D_ASSIGN_OR_RETURN(const MemoryTarget target, local_target(options));
  R1D_ASSIGN_OR_RETURN(const MemoryPlan plan, plan_memory(source, options, target));
  if (planned) planned(plan);
  const int64_t resident = resident_bytes("");
  const std::vector<std::optional<NumaNode>> places = rank_places(options);
  R1D_ASSIGN_OR_RETURN(auto ops, make_ops(options, dims, plan.cache.max_model_len, places));
  for (size_t r = 0; r < ranks.size(); ++r) {
    ranks[r].ops = std::move(ops[r]);
    ranks[r].place = places[r];
  }
  auto impl = std::make_unique<Impl>(
      source.config(), options, plan, resident, last_token_id, std::move(ranks));
  R1D_RETURN_IF_ERROR(impl->load(source, progress, std::move(stop)));
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

absl::StatusOr<StepOutput> Engine::execute(std::span<const SequenceStep> batch) {
  return impl_->execute(batch);
}
uint64_t Engine::progress() const {
  return impl_->progress();
}
void Engine::interrupt(const absl::Status& why) {
  impl_->interrupt(why);
}
absl::Status Engine::recover() {
  return impl_->recover();
}
const CachePlan& Engine::cache() const {
  return impl_->cache();
}
MemoryReport Engine::memory() const {
  return impl_->memory();
}
const checkpoint::LoadReport& Engine::load_report() const {
  return impl_->load_report();
}
std::string Engine::device() const {
  return impl_->device();
}

}  // namespace r1d::engine
