// SPDX-License-Identifier: Apache-2.0
// `r1d bench offline`: batches of equal requests through the real scheduler and engine.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "r1d/base/check.h"
#include "r1d/base/clock.h"
#include "r1d/base/random.h"
#include "r1d/base/status.h"
#include "r1d/base/version.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/engine/engine.h"
#include "r1d/scheduler/scheduler.h"

#include "cli/bench/bench.h"
#include "cli/bench/result.h"
#include "cli/bench/step_cost.h"
#include "cli/bench/units.h"
#include "cli/progress_bar.h"
#include "cli/setup.h"

namespace r1d::cli::bench {
namespace {

constexpr int32_t kDefaultRepeats = 3;
// Far more than any cache.
constexpr size_t kPlainReadBytes = size_t{1} << 30;

struct Shape {
  int32_t batch = 0;
  int32_t input = 0;
  int32_t output = 0;
};

// Steps of one kind: those that compute prompt tokens, and those that only decode.
struct Steps {
  std::vector<double> seconds;
  int64_t num_tokens = 0;  // of that kind

  void add(double step_seconds, int64_t tokens) {
    seconds.push_back(step_seconds);
    num_tokens += tokens;
  }
  [[nodiscard]] double total() const {
    double sum = 0;
    for (const double step : seconds) sum += step;
    return sum;
  }
  [[nodiscard]] double tokens_per_second() const {
    return seconds.empty() ? 0 : static_cast<double>(num_tokens) / total();
  }
};

// A step on its way.
struct StartedStep {
  TimePoint begin;
  int64_t num_prompt_tokens = 0;
  int64_t num_sequences = 0;
};

struct Outcome {
  Steps prefill;
  Steps decode;
  std::vector<double> ttft;
  std::vector<double> plain_reads;  // bytes a second, one behind each decode step
  double seconds = 0;               // without those
};

// How near decode comes to reading its weights as fast as memory is read.
struct ReadShare {
  double plain = 0;   // bytes a second, median
  double decode = 0;  // bytes of weights a second in the median step
  double share = 0;   // median over pairs of a step and the reading behind it
};

// Notes when a request's first token came, and how it ended.
class FirstToken final : public scheduler::OutputSink {
 public:
  void on_token(scheduler::TokenEvent event) override {
    if (!time) time = event.time;
  }
  void on_finish(const scheduler::FinishEvent& event) override { status = event.status; }

  std::optional<TimePoint> time;
  absl::Status status;
};

class OfflineBench {
 public:
  explicit OfflineBench(const OfflineOptions& options) : options_(options) {}

  absl::Status run() {
    R1D_RETURN_IF_ERROR(open());
    R1D_RETURN_IF_ERROR(
        run_once({.batch = 1, .input = std::min(options_.input_tokens, 16), .output = 4}).status());
    nlohmann::json cases = nlohmann::json::array();
    print_head();
    for (const int32_t batch : options_.batches) {
      const Shape shape{batch, options_.input_tokens, options_.output_tokens};
      R1D_ASSIGN_OR_RETURN(const Outcome outcome, median_run(shape));
      print_row(shape, outcome);
      print_yardstick(shape, outcome);
      cases.push_back(to_json(shape, outcome));
    }
    if (options_.json.empty()) return absl::OkStatus();
    return write_file("--json", options_.json, document(std::move(cases)).dump(1) + "\n");
  }

 private:
  [[nodiscard]] checkpoint::ExpertSplit expert_split() const {
    return options_.expert_parallel ? checkpoint::ExpertSplit::kExpert
                                    : checkpoint::ExpertSplit::kTensor;
  }

  absl::Status open() {
    if (!options_.model.empty()) {
      R1D_ASSIGN_OR_RETURN(
          weights_,
          checkpoint::open_checkpoint(
              options_.model, {.world_size = options_.world_size, .expert_split = expert_split()}));
    } else {
      R1D_ASSIGN_OR_RETURN(const auto config, checkpoint::ModelConfig::load(options_.model_config));
      weights_ = checkpoint::make_dummy_source(config, options_.seed);
    }
    const TimePoint start = clock_.now();
    ProgressBar bar("weights");
    R1D_ASSIGN_OR_RETURN(
        engine_,
        engine::Engine::create(*weights_,
                               engine_options(),
                               static_cast<TokenId>(weights_->config().vocab_size - 1),
                               [&bar](double fraction) {
                                 bar.update(fraction);
                                 return absl::OkStatus();
                               }));
    load_seconds_ = seconds_between(start, clock_.now());
    R1D_ASSIGN_OR_RETURN(cost_, step_cost(*weights_));
    return options_.read_bandwidth ? open_plain_read() : absl::OkStatus();
  }

  absl::Status open_plain_read() {
    if (choose_device(options_.device) != engine::Device::kCpu) {
      return invalid_argument("--read-bandwidth: expected --device cpu, whose memory it reads");
    }
    const auto cores = static_cast<int32_t>(std::max(1U, std::thread::hardware_concurrency()));
    const int32_t threads = options_.num_threads > 0 ? options_.num_threads : cores;
    R1D_ASSIGN_OR_RETURN(plain_read_, PlainRead::create(threads, kPlainReadBytes));
    return absl::OkStatus();
  }

  [[nodiscard]] int32_t longest() const { return options_.input_tokens + options_.output_tokens; }

  [[nodiscard]] engine::EngineOptions engine_options() const {
    const engine::Device device = choose_device(options_.device);
    const DType dtype = cache_dtype(options_.kv_cache_dtype, device);
    const int32_t most = *std::max_element(options_.batches.begin(), options_.batches.end());
    const checkpoint::ModelConfig& config = weights_->config();
    const int64_t blocks =
        int64_t{most} * ((longest() + options_.block_size - 1) / options_.block_size);
    return {.device = device,
            .world_size = options_.world_size,
            .num_threads = options_.num_threads,
            .expert_split = expert_split(),
            .kv_cache_dtype = dtype,
            .kv_cache_bytes =
                blocks * options_.block_size * engine::cache_bytes_per_token(config, dtype),
            .block_size = options_.block_size,
            .max_model_len = longest(),
            .max_num_batched_tokens = options_.max_num_batched_tokens,
            .max_batch_size = most,
            .bf16_dot = options_.bf16_dot,
            .deterministic = options_.deterministic};
  }

  absl::StatusOr<Outcome> median_run(const Shape& shape) {
    const int32_t repeats = options_.repeats > 0 ? options_.repeats : kDefaultRepeats;
    std::vector<Outcome> outcomes;
    for (int32_t i = 0; i < repeats; ++i) {
      R1D_ASSIGN_OR_RETURN(Outcome outcome, run_once(shape));
      outcomes.push_back(std::move(outcome));
    }
    std::sort(outcomes.begin(), outcomes.end(), [](const Outcome& a, const Outcome& b) {
      return a.seconds < b.seconds;
    });
    return std::move(outcomes[outcomes.size() / 2]);
  }

  // All requests come at once; nothing is found in a prefix cache.
  absl::StatusOr<Outcome> run_once(const Shape& shape) {
    scheduler::Scheduler scheduler({.max_batch_size = shape.batch,
                                    .max_num_batched_tokens = options_.max_num_batched_tokens,
                                    .max_model_len = engine_->cache().max_model_len,
                                    .max_waiting_requests = shape.batch,
                                    .block_size = options_.block_size,
                                    .num_blocks = engine_->cache().num_blocks,
                                    .prefix_cache = false});
    const TimePoint start = clock_.now();
    std::vector<std::shared_ptr<FirstToken>> sinks;
    for (int32_t i = 0; i < shape.batch; ++i) {
      sinks.push_back(std::make_shared<FirstToken>());
      R1D_RETURN_IF_ERROR(scheduler.add(request(shape, i, sinks.back()), start));
    }
    Outcome outcome;
    started_.clear();
    last_end_ = start;
    double seconds_read = 0;
    while (!scheduler.idle() || scheduler.num_in_flight() > 0) {
      R1D_RETURN_IF_ERROR(step(scheduler, outcome));
      seconds_read += read_plainly(outcome);
    }
    outcome.seconds = seconds_between(start, clock_.now()) - seconds_read;
    for (const auto& sink : sinks) {
      R1D_RETURN_IF_ERROR(sink->status);
      outcome.ttft.push_back(seconds_between(start, *sink->time));
    }
    return outcome;
  }

  [[nodiscard]] scheduler::Request request(const Shape& shape,
                                           int32_t index,
                                           std::shared_ptr<FirstToken> sink) const {
    scheduler::Request request;
    request.id = static_cast<RequestId>(index) + 1;
    const auto vocab = static_cast<uint64_t>(weights_->config().vocab_size);
    for (int32_t i = 0; i < shape.input; ++i) {
      const auto counter = static_cast<uint64_t>(index) << 32 | static_cast<uint64_t>(i);
      request.prompt.push_back(
          static_cast<TokenId>(base::random_bits(options_.seed, counter) % vocab));
    }
    request.sampling.temperature = 0;
    request.sampling.max_tokens = shape.output;
    request.arrival = clock_.now();
    request.sink = std::move(sink);
    return request;
  }

  // After a decode step, so that a neighbour on the machine meets both; how long it took.
  double read_plainly(Outcome& outcome) {
    if (plain_read_ == nullptr || outcome.plain_reads.size() == outcome.decode.seconds.size()) {
      return 0;
    }
    const TimePoint start = clock_.now();
    outcome.plain_reads.push_back(plain_read_->bytes_per_second());
    return seconds_between(start, clock_.now());
  }

  // Starts a step, then finishes the oldest unless the engine takes another first.
  absl::Status step(scheduler::Scheduler& scheduler, Outcome& outcome) {
    const TimePoint start = clock_.now();
    if (scheduler.plan(start).kind == scheduler::Decision::Kind::kRun) {
      StartedStep step{.begin = start};
      for (const engine::SequenceStep& sequence : scheduler.batch()) {
        step.num_prompt_tokens +=
            std::clamp(sequence.num_prompt_tokens - sequence.start, 0, sequence.count);
      }
      step.num_sequences = static_cast<int64_t>(scheduler.batch().size());
      started_.push_back(step);
      R1D_RETURN_IF_ERROR(engine_->start(scheduler.batch()));
      if (scheduler.num_in_flight() <= engine_->steps_ahead()) return absl::OkStatus();
    }
    R1D_CHECK(!started_.empty());
    R1D_ASSIGN_OR_RETURN(engine::StepOutput output, engine_->finish());
    scheduler.commit(std::move(output), clock_.now());
    const StartedStep step = started_.front();
    started_.pop_front();
    const TimePoint end = clock_.now();
    const double seconds =
        seconds_between(std::max(step.begin, std::exchange(last_end_, end)), end);
    if (step.num_prompt_tokens > 0) {
      outcome.prefill.add(seconds, step.num_prompt_tokens);
    } else {
      outcome.decode.add(seconds, step.num_sequences);
    }
    return absl::OkStatus();
  }

  [[nodiscard]] std::string model_name() const {
    return options_.model.empty() ? options_.model_config + " (dummy weights)" : options_.model;
  }

  void print_head() const {
    fmt::print("{} on {}, {} ranks, loaded in {}; {} tokens in, {} out\n\n",
               model_name(),
               engine_->device(),
               options_.world_size,
               format_seconds(load_seconds_),
               options_.input_tokens,
               options_.output_tokens);
    fmt::print("{:>6}{:>16}{:>12}{:>12}{:>16}{:>12}{:>12}{:>16}\n",
               "batch",
               "prefill tok/s",
               "TTFT p50",
               "TTFT max",
               "decode tok/s",
               "step p50",
               "step p99",
               "whole tok/s");
  }

  static void print_row(const Shape& shape, const Outcome& outcome) {
    const Latency ttft = Latency::of(outcome.ttft);
    const Latency decode = Latency::of(outcome.decode.seconds);
    fmt::print("{:>6}{:>16}{:>12}{:>12}{:>16}{:>12}{:>12}{:>16}\n",
               shape.batch,
               format_number(outcome.prefill.tokens_per_second()),
               format_seconds(ttft.percentile(50)),
               format_seconds(ttft.max()),
               format_number(outcome.decode.tokens_per_second()),
               format_seconds(decode.percentile(50)),
               format_seconds(decode.percentile(99)),
               format_number(output_rate(shape, outcome)));
    std::fflush(stdout);
  }

  // Several tokens share what they read of the experts, by luck: their bytes are not known.
  [[nodiscard]] std::optional<ReadShare> read_share(const Shape& shape,
                                                    const Outcome& outcome) const {
    if (shape.batch != 1 || outcome.plain_reads.empty()) return std::nullopt;
    std::vector<double> shares;
    for (size_t i = 0; i < outcome.plain_reads.size(); ++i) {
      shares.push_back(cost_.decode_bytes / outcome.decode.seconds[i] / outcome.plain_reads[i]);
    }
    return ReadShare{
        .plain = Latency::of(outcome.plain_reads).percentile(50),
        .decode = cost_.decode_bytes / Latency::of(outcome.decode.seconds).percentile(50),
        .share = Latency::of(shares).percentile(50)};
  }

  [[nodiscard]] double prefill_flops_per_second(const Shape& shape, const Outcome& outcome) const {
    if (outcome.prefill.seconds.empty()) return 0;
    return cost_.prefill_flops(outcome.prefill.num_tokens, shape.batch) / outcome.prefill.total();
  }

  void print_yardstick(const Shape& shape, const Outcome& outcome) const {
    if (plain_read_ == nullptr) return;
    fmt::print("{:>6}prefill {:.1f} GFLOP/s of products\n",
               "",
               prefill_flops_per_second(shape, outcome) * 1e-9);
    if (const std::optional<ReadShare> read = read_share(shape, outcome)) {
      fmt::print(
          "{:>6}decode reads {:.0f} MB of weights a step, {:.2f} GB/s; plain read in turn with the "
          "steps {:.2f} GB/s; share {:.2f}\n",
          "",
          cost_.decode_bytes * 1e-6,
          read->decode * 1e-9,
          read->plain * 1e-9,
          read->share);
    }
    std::fflush(stdout);
  }

  [[nodiscard]] nlohmann::json read_json(const Shape& shape, const Outcome& outcome) const {
    const std::optional<ReadShare> read = read_share(shape, outcome);
    if (!read) return nullptr;
    return {{"weight_bytes_per_step", cost_.decode_bytes},
            {"decode_bytes_per_second", read->decode},
            {"plain_bytes_per_second", read->plain},
            {"share", read->share}};
  }

  [[nodiscard]] static double output_rate(const Shape& shape, const Outcome& outcome) {
    return static_cast<double>(shape.batch) * shape.output / outcome.seconds;
  }

  [[nodiscard]] static nlohmann::json summary(const std::vector<double>& values) {
    const Latency latency = Latency::of(values);
    return {{"count", latency.count},
            {"mean", latency.mean},
            {"p50", latency.percentile(50)},
            {"p90", latency.percentile(90)},
            {"p95", latency.percentile(95)},
            {"p99", latency.percentile(99)},
            {"max", latency.max()}};
  }

  [[nodiscard]] nlohmann::json to_json(const Shape& shape, const Outcome& outcome) const {
    return {{"batch", shape.batch},
            {"input_tokens", shape.input},
            {"output_tokens", shape.output},
            {"seconds", outcome.seconds},
            {"output_tokens_per_second", output_rate(shape, outcome)},
            {"prefill_tokens_per_second", outcome.prefill.tokens_per_second()},
            {"prefill_flops_per_second", prefill_flops_per_second(shape, outcome)},
            {"read_bandwidth", read_json(shape, outcome)},
            {"decode_tokens_per_second", outcome.decode.tokens_per_second()},
            {"ttft_seconds", summary(outcome.ttft)},
            {"prefill_step_seconds", summary(outcome.prefill.seconds)},
            {"decode_step_seconds", summary(outcome.decode.seconds)}};
  }

  [[nodiscard]] nlohmann::json document(nlohmann::json cases) const {
    return {{"schema", "r1d.bench.offline/1"},
            {"version", base::version()},
            {"model", options_.model.empty() ? options_.model_config : options_.model},
            {"weights", options_.model.empty() ? "dummy" : "checkpoint"},
            {"device", engine_->device()},
            {"world_size", options_.world_size},
            {"max_num_batched_tokens", options_.max_num_batched_tokens},
            {"load_seconds", load_seconds_},
            {"cases", std::move(cases)}};
  }

  const OfflineOptions& options_;
  const SteadyClock clock_;
  std::unique_ptr<checkpoint::WeightSource> weights_;
  std::unique_ptr<engine::Engine> engine_;
  double load_seconds_ = 0;
  StepCost cost_;
  std::unique_ptr<PlainRead> plain_read_;  // null unless asked for
  std::deque<StartedStep> started_;        // steps on their way, oldest first
  TimePoint last_end_;                     // of the step before
};

}  // namespace

absl::Status offline(const OfflineOptions& options) {
  return OfflineBench(options).run();
}

}  // namespace r1d::cli::bench
