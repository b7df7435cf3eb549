// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <string_view>

#include <absl/base/thread_annotations.h>

#include "r1d/base/mutex.h"
#include "r1d/telemetry/metrics.h"

#include "telemetry/buckets.h"
#include "telemetry/label_set.h"
#include "telemetry/minute_window.h"
#include "telemetry/registry.h"

namespace r1d::telemetry {
namespace {

constexpr Family kWaiting{
    "r1d_requests_waiting",
    "Sequences waiting for their first or next step, preempted ones included."};
constexpr Family kRunning{"r1d_requests_running",
                          "Sequences that hold KV cache blocks and take part in steps."};
constexpr Family kQueueWait{"r1d_queue_wait_seconds",
                            "From a request's arrival to the first step that computes it."};
constexpr Family kStepSeconds{"r1d_step_seconds",
                              "One forward pass over one batch, sampling included."};
constexpr Family kStepTokens{"r1d_step_tokens",
                             "Tokens computed in a step, prefill and decode together."};
constexpr Family kStepSequences{"r1d_step_sequences", "Sequences in a step's batch."};
constexpr Family kTokens{"r1d_tokens_total",
                         "Tokens by kind. Counted at each step: prefill (prompt tokens computed, "
                         "again after a preemption), decode (tokens computed one a sequence), "
                         "output (tokens produced), prompt (the whole prompt, when a sequence's "
                         "first token comes). Counted when a sequence finishes: cached (the part "
                         "of its prompt found in the prefix cache). Kinds overlap: do not add "
                         "them."};
constexpr Family kTimeToFirstToken{"r1d_time_to_first_token_seconds",
                                   "TTFT: from a request's arrival to its first output token."};
constexpr Family kInterTokenLatency{"r1d_inter_token_latency_seconds",
                                    "ITL: one gap between two output tokens of a sequence."};
constexpr Family kTimePerOutputToken{
    "r1d_time_per_output_token_seconds",
    "TPOT: a finished sequence's mean gap, (last - first token time) / (output tokens - 1)."};
constexpr Family kRequestSeconds{
    "r1d_request_seconds",
    "From a request's arrival to the end of a sequence of it, whatever the reason."};
constexpr Family kPrefillSeconds{"r1d_prefill_seconds",
                                 "From a sequence's first step to its first output token, "
                                 "preemptions included. Observed when it finishes."};
constexpr Family kDecodeSeconds{"r1d_decode_seconds",
                                "From a sequence's first output token to its last. Observed when "
                                "it finishes."};
constexpr Family kInferenceSeconds{"r1d_inference_seconds",
                                   "From a sequence's first step to its last output token. "
                                   "Observed when it finishes."};
constexpr Family kMeanLogprob{
    "r1d_output_mean_logprob",
    "Output confidence: the mean natural log-probability of a finished sequence's tokens in the "
    "raw distribution, before temperature and cuts. Of every sequence on the CPU; on a GPU of "
    "those that asked for logprobs. The sum falls: use delta(), not rate(), on it."};
constexpr Family kPromptTokens{"r1d_prompt_tokens", "Prompt tokens of a finished sequence."};
constexpr Family kOutputTokens{"r1d_output_tokens", "Output tokens of a finished sequence."};
constexpr Family kLongestOutput{"r1d_longest_output_tokens",
                                "Output tokens of a finished request's longest sequence."};
constexpr Family kRequestMaxTokens{"r1d_request_max_tokens",
                                   "The most output tokens that a request allows each sequence."};
constexpr Family kRequestSequences{"r1d_request_sequences",
                                   "Sequences that a request asks for (n)."};
constexpr Family kRefused{"r1d_requests_refused_total",
                          "Requests refused because the waiting queue was full."};
constexpr Family kFinished{"r1d_finished_total", "Finished sequences by finish reason."};
constexpr Family kKvBlocks{
    "r1d_kv_blocks",
    "KV cache blocks by state: used (held by a sequence), cached (held by the prefix "
    "cache alone, free to take), free. They add up to the pool."};
constexpr Family kPrefixQueries{"r1d_prefix_cache_queries_total",
                                "Prompt tokens looked up in the prefix cache."};
constexpr Family kPrefixHits{"r1d_prefix_cache_hits_total",
                             "Prompt tokens found in the prefix cache."};
constexpr Family kPreemptions{
    "r1d_preemptions_total",
    "Running sequences whose blocks were taken back, to be computed again later."};

constexpr Family kRecoveries{
    "r1d_engine_recoveries_total",
    "Failed steps after which the engine went on without reading weights again, by cause: stall "
    "(nothing moved), communicator (ranks lost each other), memory (a host allocation failed). "
    "Each ended the requests that ran."};
constexpr Family kStalls{"r1d_stalls_total",
                         "How often no step moved for server.liveness_timeout."};
constexpr Family kBusy{"r1d_engine_busy_ratio",
                       "Share of the last minute in which a step was running, 0 to 1, the step in "
                       "flight included."};

// scheduler::finish_reason_name
constexpr LabelSet<5> kReasons{{"stop", "length", "cancelled", "deadline", "error"}};
// engine::recovery_cause_name
constexpr LabelSet<3> kCauses{{"stall", "communicator", "memory"}};

}  // namespace

class EngineMetrics::Impl {
 public:
  explicit Impl(Registry::Impl& registry)
      : waiting(registry.gauge(kWaiting)),
        running(registry.gauge(kRunning)),
        queue_wait(registry.histogram(kQueueWait, request_buckets())),
        step_seconds(registry.histogram(kStepSeconds, step_buckets())),
        step_tokens(registry.histogram(kStepTokens, powers_of_two(1 << 17))),
        step_sequences(registry.histogram(kStepSequences, powers_of_two(1 << 12))),
        prefill_tokens(registry.counter(kTokens, {{"kind", "prefill"}})),
        decode_tokens(registry.counter(kTokens, {{"kind", "decode"}})),
        prompt_tokens_total(registry.counter(kTokens, {{"kind", "prompt"}})),
        cached_tokens_total(registry.counter(kTokens, {{"kind", "cached"}})),
        output_tokens_total(registry.counter(kTokens, {{"kind", "output"}})),
        time_to_first_token(registry.histogram(kTimeToFirstToken, first_token_buckets())),
        inter_token_latency(registry.histogram(kInterTokenLatency, token_gap_buckets())),
        time_per_output_token(registry.histogram(kTimePerOutputToken, token_gap_buckets())),
        request_seconds(registry.histogram(kRequestSeconds, request_buckets())),
        prefill_seconds(registry.histogram(kPrefillSeconds, request_buckets())),
        decode_seconds(registry.histogram(kDecodeSeconds, request_buckets())),
        inference_seconds(registry.histogram(kInferenceSeconds, request_buckets())),
        mean_logprob(registry.histogram(kMeanLogprob, logprob_buckets())),
        prompt_tokens(registry.histogram(kPromptTokens, token_count_buckets())),
        output_tokens(registry.histogram(kOutputTokens, token_count_buckets())),
        longest_output(registry.histogram(kLongestOutput, token_count_buckets())),
        request_max_tokens(registry.histogram(kRequestMaxTokens, token_count_buckets())),
        request_sequences(registry.histogram(kRequestSequences, sequence_count_buckets())),
        refused(registry.counter(kRefused)),
        blocks_used(registry.gauge(kKvBlocks, {{"state", "used"}})),
        blocks_cached(registry.gauge(kKvBlocks, {{"state", "cached"}})),
        blocks_free(registry.gauge(kKvBlocks, {{"state", "free"}})),
        prefix_queries(registry.counter(kPrefixQueries)),
        prefix_hits(registry.counter(kPrefixHits)),
        preemptions(registry.counter(kPreemptions)),
        stalls(registry.counter(kStalls)),
        busy(std::make_shared<BusyMeter>(registry.clock())) {
    prometheus::Gauge& busy_ratio = registry.gauge(kBusy);
    registry.at_scrape([meter = busy, &busy_ratio] { busy_ratio.Set(meter->ratio()); });
    for (size_t i = 0; i < finished.size(); ++i) {
      finished[i] = &registry.counter(kFinished, {{"reason", std::string(kReasons.value(i))}});
    }
    for (size_t i = 0; i < recoveries.size(); ++i) {
      recoveries[i] = &registry.counter(kRecoveries, {{"cause", std::string(kCauses.value(i))}});
    }
  }

  // Brings counters up to the scheduler's totals.
  void advance_totals(const Gauges& now) {
    base::MutexLock lock(mu_);
    prefix_queries.Increment(static_cast<double>(now.prefix_queries - last_.prefix_queries));
    prefix_hits.Increment(static_cast<double>(now.prefix_hits - last_.prefix_hits));
    preemptions.Increment(static_cast<double>(now.preemptions - last_.preemptions));
    last_ = now;
  }

  prometheus::Gauge& waiting;
  prometheus::Gauge& running;
  prometheus::Histogram& queue_wait;
  prometheus::Histogram& step_seconds;
  prometheus::Histogram& step_tokens;
  prometheus::Histogram& step_sequences;
  prometheus::Counter& prefill_tokens;
  prometheus::Counter& decode_tokens;
  prometheus::Counter& prompt_tokens_total;
  prometheus::Counter& cached_tokens_total;
  prometheus::Counter& output_tokens_total;
  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& time_per_output_token;
  prometheus::Histogram& request_seconds;
  prometheus::Histogram& prefill_seconds;
  prometheus::Histogram& decode_seconds;
  prometheus::Histogram& inference_seconds;
  prometheus::Histogram& mean_logprob;
  prometheus::Histogram& prompt_tokens;
  prometheus::Histogram& output_tokens;
  prometheus::Histogram& longest_output;
  prometheus::Histogram& request_max_tokens;
  prometheus::Histogram& request_sequences;
  prometheus::Counter& refused;
  prometheus::Gauge& blocks_used;
  prometheus::Gauge& blocks_cached;
  prometheus::Gauge& blocks_free;
  prometheus::Counter& prefix_queries;
  prometheus::Counter& prefix_hits;
  prometheus::Counter& preemptions;
  prometheus::Counter& stalls;
  const std::shared_ptr<BusyMeter> busy;  // shared with the registry, which asks it at each scrape
  std::array<prometheus::Counter*, decltype(kReasons)::kSize> finished{};
  std::array<prometheus::Counter*, decltype(kCauses)::kSize> recoveries{};

 private:
  base::Mutex mu_;
  Gauges last_ ABSL_GUARDED_BY(mu_);
};

EngineMetrics::EngineMetrics(Registry& registry) : impl_(std::make_unique<Impl>(registry.impl())) {}
EngineMetrics::~EngineMetrics() = default;

void EngineMetrics::step_begins() {
  impl_->busy->begin();
}

void EngineMetrics::step(int32_t num_sequences,
                         int32_t num_prefill_tokens,
                         int32_t num_decode_tokens,
                         double seconds) {
  impl_->busy->end();
  impl_->step_seconds.Observe(seconds);
  impl_->step_sequences.Observe(num_sequences);
  impl_->step_tokens.Observe(static_cast<double>(num_prefill_tokens) + num_decode_tokens);
  impl_->prefill_tokens.Increment(num_prefill_tokens);
  impl_->decode_tokens.Increment(num_decode_tokens);
}

void EngineMetrics::step_failed() {
  impl_->busy->end_all();
}

void EngineMetrics::recovered(const char* cause) {
  impl_->recoveries[kCauses.index(cause)]->Increment();
}

void EngineMetrics::stalled() {
  impl_->stalls.Increment();
}

void EngineMetrics::gauges(const Gauges& now) {
  impl_->waiting.Set(static_cast<double>(now.waiting));
  impl_->running.Set(static_cast<double>(now.running));
  impl_->blocks_used.Set(static_cast<double>(now.blocks_used));
  impl_->blocks_cached.Set(static_cast<double>(now.blocks_cached));
  impl_->blocks_free.Set(
      static_cast<double>(now.blocks_total - now.blocks_used - now.blocks_cached));
  impl_->advance_totals(now);
}

void EngineMetrics::accepted(int32_t num_sequences, int32_t max_tokens) {
  impl_->request_sequences.Observe(num_sequences);
  impl_->request_max_tokens.Observe(max_tokens);
}

void EngineMetrics::refused() {
  impl_->refused.Increment();
}

void EngineMetrics::queue_wait(double seconds) {
  impl_->queue_wait.Observe(seconds);
}

void EngineMetrics::first_token(double seconds, int64_t prompt_tokens) {
  impl_->time_to_first_token.Observe(seconds);
  impl_->prompt_tokens_total.Increment(static_cast<double>(prompt_tokens));
  impl_->output_tokens_total.Increment();
}

void EngineMetrics::next_token(double seconds) {
  impl_->inter_token_latency.Observe(seconds);
  impl_->output_tokens_total.Increment();
}

void EngineMetrics::finished(const Finished& sequence) {
  impl_->finished[kReasons.index(sequence.reason)]->Increment();
  impl_->request_seconds.Observe(sequence.e2e_seconds);
  if (const auto& phases = sequence.phases) {
    impl_->prefill_seconds.Observe(phases->prefill_seconds);
    impl_->decode_seconds.Observe(phases->decode_seconds);
    impl_->inference_seconds.Observe(phases->prefill_seconds + phases->decode_seconds);
  }
  if (sequence.tpot_seconds) impl_->time_per_output_token.Observe(*sequence.tpot_seconds);
  if (sequence.mean_logprob) impl_->mean_logprob.Observe(*sequence.mean_logprob);
  impl_->prompt_tokens.Observe(static_cast<double>(sequence.prompt_tokens));
  impl_->output_tokens.Observe(static_cast<double>(sequence.output_tokens));
  impl_->cached_tokens_total.Increment(static_cast<double>(sequence.cached_tokens));
}

void EngineMetrics::request_finished(int64_t longest_output_tokens) {
  impl_->longest_output.Observe(static_cast<double>(longest_output_tokens));
}

}  // namespace r1d::telemetry
