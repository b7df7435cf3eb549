// SPDX-License-Identifier: Apache-2.0
#include "r1d/engine/engine.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "r1d/base/check.h"
#include "r1d/base/clock.h"
#include "r1d/base/exceptions.h"
#include "r1d/base/fault.h"
#include "r1d/base/log.h"
#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/base/thread_pool.h"
#include "r1d/engine/memory_plan.h"
#include "r1d/engine/rank_group.h"
#include "r1d/model/deepseek_v3.h"

#include "engine/device_sampler.h"
#include "engine/host_memory.h"
#include "engine/latent_cache.h"
#include "engine/memory_shortage.h"
#include "engine/numa.h"
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

// A step on its way, from start() to finish().
struct StartedStep {
  StepInputBuilder inputs;
  ops::SampleRequest request;    // what a device samples
  std::vector<size_t> sampling;  // sequences of the batch that sample, in its order
  std::vector<bool> captured;    // of those: whether their logits go into the output
  std::vector<float> logits;     // [rows, V], where the host samples or somebody wants to see them
  StepOutput output;
};

// What one rank's thread owns.
struct Rank {
  RankShard shard;
  std::optional<NumaNode> place;
  std::unique_ptr<ops::Ops> ops;
  std::unique_ptr<model::DeepSeekV3> model;
  std::optional<LatentCache> cache;
  std::optional<DeviceStages> stages;  // none: no memory of its own
  double warm_up_seconds = 0;
};

// What is in use on the rank's device now; 0: it has no memory of its own.
absl::StatusOr<int64_t> bytes_in_use(const Rank& rank) {
  R1D_ASSIGN_OR_RETURN(const std::optional<ops::DeviceBytes> bytes, rank.ops->device_bytes());
  return bytes ? bytes->total - bytes->free_now : 0;
}

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
        sampler_pool_(std::min(total_threads(options), options.max_batch_size)) {
    if (!ranks_.front().ops->samples()) {
      steps_.front().logits.resize(static_cast<size_t>(options.max_batch_size) *
                                   static_cast<size_t>(config.vocab_size));
    }
  }

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
    MemoryReport report;
    report.plan = memory_;
    report.measured_bytes = measured_bytes_;
    for (const Rank& rank : ranks_) {
      report.ranks.push_back(rank.ops->memory_use());
      if (rank.stages) report.devices.push_back(*rank.stages);
      report.warm_up_seconds = std::max(report.warm_up_seconds, rank.warm_up_seconds);
    }
    return report;
  }

  [[nodiscard]] int32_t steps_ahead() const { return ranks_.front().ops->steps_ahead(); }

  absl::Status start(std::span<const SequenceStep> batch) {
    R1D_CHECK(num_started_ - num_finished_ <= static_cast<uint64_t>(steps_ahead()));
    if (num_started_++ == num_finished_) interrupt_.begin();
    const absl::Status failure =
        base::without_exceptions([&] { return start_step(batch, slot_of(num_started_ - 1)); });
    return failure.ok() ? failure : give_up(failure);
  }

  absl::StatusOr<StepOutput> finish() {
    StartedStep& step = slot_of(num_finished_);
    const absl::Status failure = base::without_exceptions([&] { return finish_step(step); });
    if (!failure.ok()) return give_up(failure);
    const bool last = ++num_finished_ == num_started_;
    const absl::Status interruption = last ? interrupt_.end() : interrupt_.so_far();
    if (!interruption.ok()) return last ? interruption : give_up(interruption);
    return std::move(step.output);
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

  [[nodiscard]] StartedStep& slot_of(uint64_t step) {
    return steps_[step % static_cast<uint64_t>(steps_ahead() + 1)];
  }

  // Voids every step on its way. That ranks lost each other is what an interruption looks like to
  // them; anything worse counts.
  absl::Status give_up(const absl::Status& failure) {
    num_finished_ = num_started_;
    const absl::Status interruption = interrupt_.end();
    const bool worse = !recovery_cause(failure).has_value();
    return interruption.ok() || worse ? failure : interruption;
  }

  absl::Status start_step(std::span<const SequenceStep> batch, StartedStep& step) {
    const ops::StepInputs& inputs = step.inputs.build(batch);
    R1D_CHECK(inputs.token_ids.size() <= static_cast<size_t>(options_.max_num_batched_tokens));
    R1D_CHECK(inputs.logit_rows.size() <= static_cast<size_t>(options_.max_batch_size));
    R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kStep));
    note_samples(batch, step);
    R1D_RETURN_IF_ERROR(launch_step(inputs, batch, step));
    if (!ranks_.front().ops->samples()) sample_on_host(batch, step);
    return absl::OkStatus();
  }

  absl::Status finish_step(StartedStep& step) {
    if (steps_ahead() > 0) {
      R1D_RETURN_IF_ERROR(
          group_.run([&](int32_t r) { return ranks_[static_cast<size_t>(r)].ops->wait_step(); }));
    }
    if (ranks_.front().ops->samples()) take_sampled(step);
    progress_.fetch_add(1, std::memory_order_relaxed);
    return absl::OkStatus();
  }

  // Whether the rank's device has as much free as the plan takes.
  absl::Status check_device(Rank& rank, int32_t r) const {
    R1D_ASSIGN_OR_RETURN(const std::optional<ops::DeviceBytes> bytes, rank.ops->device_bytes());
    if (!bytes) return absl::OkStatus();
    rank.stages = {.context = bytes->total - bytes->free_at_start,
                   .attached = bytes->total - bytes->free_now};
    return check_free_memory(memory_, *bytes, r);
  }

  // What loading took, as the devices' drivers or the kernel see it.
  [[nodiscard]] int64_t measure() const {
    if (!ranks_.front().stages) return resident_bytes("") - resident_at_start_;
    int64_t bytes = 0;
    for (const Rank& rank : ranks_) bytes += rank.stages->ready;
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
    R1D_ASSIGN_OR_RETURN(const int64_t loaded, bytes_in_use(rank));
    const auto start = clock_.now();
    R1D_RETURN_IF_ERROR(warm_up(rank));
    rank.warm_up_seconds = seconds_between(start, clock_.now());
    if (!rank.stages) return absl::OkStatus();
    rank.stages->loaded = loaded;
    R1D_ASSIGN_OR_RETURN(rank.stages->ready, bytes_in_use(rank));
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

  // Row b of the logits, and of what a device samples, belongs to the b-th sequence that samples.
  static void note_samples(std::span<const SequenceStep> batch, StartedStep& step) {
    step.output.tokens.assign(batch.size(), {});
    step.sampling.clear();
    step.captured.clear();
    for (size_t i = 0; i < batch.size(); ++i) {
      if (batch[i].sampling == nullptr) continue;
      step.sampling.push_back(i);
      step.captured.push_back(batch[i].capture_logits);
    }
  }

  // Forward on all ranks; rank 0 also samples where it can, and brings the logits to the host where
  // it cannot or somebody wants to see them.
  absl::Status launch_step(ops::StepInputs inputs,
                           std::span<const SequenceStep> batch,
                           StartedStep& step) {
    float* logits = step.logits.data();
    if (ranks_.front().ops->samples()) {
      fill_sample_request(batch, last_token_id_, vocab_size_, step.request);
      inputs.sample = &step.request;
      const bool wanted = std::ranges::find(step.captured, true) != step.captured.end();
      if (wanted) step.logits.resize(step.sampling.size() * static_cast<size_t>(vocab_size_));
      logits = wanted ? step.logits.data() : nullptr;
    }
    return group_.run([&](int32_t r) {
      Rank& rank = ranks_[static_cast<size_t>(r)];
      std::atomic<uint64_t>& layers_done = r == 0 ? progress_ : ignored_progress_;
      return rank.model->launch(
          inputs, rank.cache->layers(), r == 0 ? logits : nullptr, layers_done);
    });
  }

  [[nodiscard]] std::span<float> logits_row(StartedStep& step, size_t row) const {
    const auto width = static_cast<size_t>(vocab_size_);
    return {step.logits.data() + row * width, width};
  }

  void take_sampled(StartedStep& step) const {
    for (size_t row = 0; row < step.sampling.size(); ++row) {
      SampledToken& token = step.output.tokens[step.sampling[row]];
      token = sampled_token(step.request, row);
      if (!step.captured[row]) continue;
      const std::span<float> logits = logits_row(step, row);
      token.logits.assign(logits.begin(), logits.end());
    }
  }

  // Sequences are sampled side by side; what goes wrong with one ends that one alone.
  void sample_on_host(std::span<const SequenceStep> batch, StartedStep& step) {
    const auto rows = static_cast<int64_t>(step.sampling.size());
    sampler_pool_.parallel_for(rows, [&](int64_t row, int32_t) {
      const size_t i = step.sampling[static_cast<size_t>(row)];
      SampledToken& token = step.output.tokens[i];
      try {
        token = sample_row(batch[i], logits_row(step, static_cast<size_t>(row)));
      } catch (...) {
        token.status = base::caught_status();
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
  const SteadyClock clock_;
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
  std::array<StartedStep, 2> steps_;           // used in turn
  uint64_t num_started_ = 0;
  uint64_t num_finished_ = 0;
  RankGroup group_;
  StepInterrupt interrupt_;
  base::ThreadPool sampler_pool_;
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
  R1D_RETURN_IF_ERROR(impl_->start(batch));
  return impl_->finish();
}
int32_t Engine::steps_ahead() const {
  return impl_->steps_ahead();
}
absl::Status Engine::start(std::span<const SequenceStep> batch) {
  return impl_->start(batch);
}
absl::StatusOr<StepOutput> Engine::finish() {
  return impl_->finish();
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
