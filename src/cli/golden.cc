// SPDX-License-Identifier: Apache-2.0
// `r1d golden`: runs recorded prompts through the real scheduler and engine and judges the answers.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "r1d/base/check.h"
#include "r1d/base/clock.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/engine/engine.h"
#include "r1d/engine/memory_plan.h"
#include "r1d/scheduler/scheduler.h"

#include "cli/commands.h"
#include "cli/golden_cases.h"
#include "cli/setup.h"

namespace r1d::cli {
namespace {

// What came back for one request.
class Answer final : public scheduler::OutputSink {
 public:
  void on_token(scheduler::TokenEvent event) override {
    if (tokens.empty()) logits = std::move(event.token.logits);
    tokens.push_back(event.token.token);
  }
  void on_finish(const scheduler::FinishEvent& event) override { finish = event; }

  std::vector<TokenId> tokens;
  std::vector<float> logits;
  scheduler::FinishEvent finish;
};

// --preempt takes all blocks away whenever this many more tokens came out: tokens, not steps, so
// that prompts longer than a few chunks still get through.
constexpr int64_t kPreemptEvery = 7;

class GoldenRun {
 public:
  GoldenRun(const GoldenOptions& options,
            const std::vector<GoldenCase>& cases,
            engine::Engine& engine,
            int32_t budget)
      : options_(options),
        cases_(cases),
        engine_(engine),
        scheduler_({.max_batch_size = std::min(options.batch, budget),
                    .max_num_batched_tokens = budget,
                    .max_model_len = engine.cache().max_model_len,
                    .max_waiting_requests = 1 << 20,
                    .block_size = options.block_size,
                    .num_blocks = engine.cache().num_blocks,
                    .prefix_cache = options.prefix_hit}) {}

  // Asks every case (again and again until `batch` are side by side), runs to the end.
  absl::StatusOr<std::vector<std::shared_ptr<Answer>>> ask_all() {
    const size_t count = std::max(cases_.size(), static_cast<size_t>(options_.batch));
    std::vector<std::shared_ptr<Answer>> answers;
    for (size_t i = 0; i < count; ++i) {
      answers.push_back(std::make_shared<Answer>());
      R1D_RETURN_IF_ERROR(scheduler_.add(request(i, answers.back()), clock_.now()));
    }
    R1D_RETURN_IF_ERROR(run_to_end());
    for (const auto& answer : answers) R1D_RETURN_IF_ERROR(answer->finish.status);
    return answers;
  }

  [[nodiscard]] int64_t num_preemptions() const { return scheduler_.stats().num_preemptions; }

 private:
  scheduler::Request request(size_t index, std::shared_ptr<Answer> answer) {
    const GoldenCase& expected = cases_[index % cases_.size()];
    scheduler::Request request;
    request.id = ++last_id_;
    request.prompt = expected.prompt;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = static_cast<int32_t>(expected.greedy.size());
    request.capture_logits = true;
    request.arrival = clock_.now();
    request.sink = std::move(answer);
    return request;
  }

  absl::Status run_to_end() {
    int64_t tokens_left = kPreemptEvery;
    // As the step loop runs them; preemption wants no step in flight.
    const int32_t ahead = options_.preempt ? 0 : engine_.steps_ahead();
    while (!scheduler_.idle() || scheduler_.num_in_flight() > 0) {
      if (scheduler_.plan(clock_.now()).kind == scheduler::Decision::Kind::kRun) {
        for (const engine::SequenceStep& step : scheduler_.batch())
          tokens_left -= step.sampling != nullptr;
        R1D_RETURN_IF_ERROR(engine_.start(scheduler_.batch()));
        if (scheduler_.num_in_flight() <= ahead) continue;
      }
      R1D_ASSIGN_OR_RETURN(engine::StepOutput output, engine_.finish());
      scheduler_.commit(std::move(output), clock_.now());
      if (!options_.preempt || tokens_left > 0) continue;
      scheduler_.preempt_all();
      tokens_left = kPreemptEvery;
    }
    return absl::OkStatus();
  }

  const GoldenOptions& options_;
  const std::vector<GoldenCase>& cases_;
  engine::Engine& engine_;
  const SteadyClock clock_;
  scheduler::Scheduler scheduler_;
  RequestId last_id_ = 0;
};

// The reference is f32 throughout. bf16 activations, dots or cache: 2e-2, about the rounding of a
// few dozen bf16 stages that add up as random errors do. FP8 weights on a GPU bring e4m3
// activations with them: a value's rounding error is up to 2^-4 of it, 2.6e-2 in the mean square,
// on every Linear's input; what the residual stream keeps of that is about twice one stage's. An
// FP8 cache brings as much to every latent, which softmax and, where weights are random, routers at
// the edge of another choice make more of: measured 3e-2 to 1.2e-1 and once 2.9e-1 over the
// recorded random models, 6e-3 to 1.6e-2 on a trained one.
double tolerance_of(const GoldenOptions& options, const engine::EngineOptions& engine, bool fp8) {
  if (options.tolerance > 0) return options.tolerance;
  if (engine.kv_cache_dtype == DType::kF8E4M3) return 3.5e-1;
  if (engine.device == engine::Device::kCuda) return fp8 ? 6e-2 : 2e-2;
  return engine.bf16_dot || engine.kv_cache_dtype == DType::kBF16 ? 2e-2 : 1e-3;
}

// What golden.json says for kernels that round to e4m3.
void drop_e4m3(std::vector<GoldenCase>& cases) {
  std::erase_if(cases, [](const GoldenCase& expected) { return expected.e4m3; });
  for (GoldenCase& expected : cases) expected.e4m3_error.reset();
}

std::string describe_greedy(const GoldenCase& expected, const GoldenVerdict& verdict) {
  if (verdict.matching_tokens == static_cast<int32_t>(expected.greedy.size())) return "all match";
  return fmt::format("differ at {} (gap {:.4g}, {})",
                     verdict.matching_tokens,
                     expected.gap[static_cast<size_t>(verdict.matching_tokens)],
                     verdict.excused ? "excused" : "NOT excused");
}

std::string describe_outcome(const GoldenCase& expected, GoldenOutcome outcome, double tolerance) {
  if (outcome == GoldenOutcome::kPassed) return "ok";
  if (outcome == GoldenOutcome::kFailed) return "FAILED";
  return fmt::format("near tie, not judged (router margin {:.3f}, {:.3f} is decided)",
                     *expected.prompt_router_margin,
                     undecided_below(tolerance));
}

// Whether the kernels that serve `config` round activations to e4m3: those of FP8 tensor cores.
absl::StatusOr<bool> rounds_to_e4m3(const GoldenOptions& options,
                                    const checkpoint::ModelConfig& config) {
  engine::EngineOptions where;
  where.device = choose_device(options.device);
  where.world_size = options.world_size;
  if (where.device == engine::Device::kCpu || !config.quantization) return false;
  R1D_ASSIGN_OR_RETURN(const engine::MemoryTarget target, engine::local_target(where));
  return target.gpu.compute_capability == 90;
}

// Prints a line an answer. kFailedPrecondition when one failed or too few cases passed.
absl::Status report(const std::string& dir,
                    const std::vector<GoldenCase>& cases,
                    const std::vector<std::shared_ptr<Answer>>& answers,
                    double tolerance) {
  bool failed = false;
  std::set<size_t> passed;
  for (size_t i = 0; i < answers.size(); ++i) {
    const GoldenCase& expected = cases[i % cases.size()];
    const GoldenVerdict verdict =
        judge(expected, answers[i]->tokens, answers[i]->logits, tolerance);
    fmt::print(
        "case {}: prompt {} tokens ({} from cache), logits relative L2 {:.2e} of {:.2e}, {} greedy "
        "tokens {}: {}\n",
        expected.number,
        expected.prompt.size(),
        answers[i]->finish.num_cached_tokens,
        verdict.logits_error,
        verdict.allowed_error,
        expected.greedy.size(),
        describe_greedy(expected, verdict),
        describe_outcome(expected, verdict.outcome, tolerance));
    failed = failed || verdict.outcome == GoldenOutcome::kFailed;
    if (verdict.outcome == GoldenOutcome::kPassed) passed.insert(expected.number);
  }
  if (failed) {
    return failed_precondition("{}: answers differ from the reference by more than they may", dir);
  }
  const size_t least = std::min(kLeastPassed, cases.size());
  if (passed.size() >= least) return absl::OkStatus();
  return failed_precondition(
      "{} cases passed, all others are near ties of the router; {} must pass",
      passed.size(),
      least);
}

// The full blocks of every prompt, less its last token, must have come from the cache.
absl::Status check_hits(const GoldenOptions& options,
                        const std::vector<GoldenCase>& cases,
                        const std::vector<std::shared_ptr<Answer>>& answers) {
  for (size_t i = 0; i < answers.size(); ++i) {
    const auto prompt = static_cast<int32_t>(cases[i % cases.size()].prompt.size());
    const int32_t expected = (prompt - 1) / options.block_size * options.block_size;
    const int32_t found = answers[i]->finish.num_cached_tokens;
    if (found < expected) {
      return failed_precondition(
          "case {}: {} prompt tokens came from the prefix cache, expected {}",
          i % cases.size(),
          found,
          expected);
    }
  }
  return absl::OkStatus();
}

// Room for every answer side by side, so that the prefix cache loses none of them.
int64_t cache_bytes(const GoldenOptions& options,
                    const std::vector<GoldenCase>& cases,
                    const checkpoint::ModelConfig& config,
                    DType dtype) {
  int64_t blocks = 0;
  for (size_t i = 0; i < std::max(cases.size(), static_cast<size_t>(options.batch)); ++i) {
    const GoldenCase& expected = cases[i % cases.size()];
    blocks +=
        static_cast<int64_t>(expected.prompt.size() + expected.greedy.size()) / options.block_size +
        1;
  }
  return blocks * options.block_size * engine::cache_bytes_per_token(config, dtype);
}

engine::EngineOptions golden_engine_options(const GoldenOptions& options,
                                            const std::vector<GoldenCase>& cases,
                                            const checkpoint::ModelConfig& config,
                                            int32_t longest,
                                            int32_t budget) {
  const engine::Device device = choose_device(options.device);
  const DType dtype = cache_dtype(options.kv_cache_dtype, device);
  return {.device = device,
          .world_size = options.world_size,
          .expert_split = options.expert_parallel ? checkpoint::ExpertSplit::kExpert
                                                  : checkpoint::ExpertSplit::kTensor,
          .kv_cache_dtype = dtype,
          .kv_cache_bytes = cache_bytes(options, cases, config, dtype),
          .block_size = options.block_size,
          .max_model_len = longest,
          .max_num_batched_tokens = budget,
          .max_batch_size = options.batch,
          .bf16_dot = options.bf16_dot,
          .deterministic = options.deterministic};
}

}  // namespace

absl::Status golden(const GoldenOptions& options) {
  R1D_ASSIGN_OR_RETURN(
      const auto weights,
      checkpoint::open_checkpoint(
          options.dir,
          {.world_size = options.world_size,
           .expert_split = options.expert_parallel ? checkpoint::ExpertSplit::kExpert
                                                   : checkpoint::ExpertSplit::kTensor}));
  R1D_ASSIGN_OR_RETURN(auto cases, load_golden_cases(options.dir, weights->config().vocab_size));
  R1D_ASSIGN_OR_RETURN(const bool e4m3, rounds_to_e4m3(options, weights->config()));
  if (!e4m3) drop_e4m3(cases);
  if (cases.empty())
    return failed_precondition("{}: all cases are of FP8 tensor cores", options.dir);
  int32_t longest = 0;
  for (const GoldenCase& expected : cases) {
    longest = std::max(longest,
                       static_cast<int32_t>(expected.prompt.size() + expected.greedy.size()) + 1);
  }
  const int32_t budget = options.chunk > 0 ? options.chunk : longest * options.batch;
  const engine::EngineOptions engine_options =
      golden_engine_options(options, cases, weights->config(), longest, budget);
  const SteadyClock clock;
  const auto start = clock.now();
  R1D_ASSIGN_OR_RETURN(
      const auto engine,
      engine::Engine::create(
          *weights, engine_options, static_cast<TokenId>(weights->config().vocab_size - 1), {}));
  fmt::print("{}: {} cases on {}, world size {}, ready in {:.1f} s\n",
             options.dir,
             cases.size(),
             engine->device(),
             options.world_size,
             std::chrono::duration<double>(clock.now() - start).count());

  GoldenRun run(options, cases, *engine, budget);
  R1D_ASSIGN_OR_RETURN(auto answers, run.ask_all());
  if (options.prefix_hit) {
    R1D_ASSIGN_OR_RETURN(answers, run.ask_all());
    R1D_RETURN_IF_ERROR(check_hits(options, cases, answers));
  }
  if (options.preempt && run.num_preemptions() == 0) {
    return failed_precondition("--preempt: nothing was preempted; the continuations are too short");
  }
  const double tolerance =
      tolerance_of(options, engine_options, weights->config().quantization.has_value());
  return report(options.dir, cases, answers, tolerance);
}

}  // namespace r1d::cli
