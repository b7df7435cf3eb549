// SPDX-License-Identifier: Apache-2.0
// Every metric r1d exports, by the stage that feeds it. Names, units, labels and buckets stand in
// src/telemetry/*_metrics.cc and buckets.h, the names that other tools know in dialects.cc. Label
// values come from closed sets only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "r1d/base/clock.h"

namespace r1d::telemetry {

class Registry;  // owns the prometheus registry; hides its headers

// Fed by the step loop. Thread-safe.
class EngineMetrics {
 public:
  explicit EngineMetrics(Registry& registry);
  ~EngineMetrics();

  void step_begins();  // another may still be on its way
  // The oldest has ended: what it computed and how long it took.
  void step(int32_t num_sequences,
            int32_t num_prefill_tokens,
            int32_t num_decode_tokens,
            double seconds);
  void step_failed();                 // all have ended, with nothing to show
  void recovered(const char* cause);  // engine::recovery_cause_name
  void stalled();                     // no step moved for server.liveness_timeout
  // Gauges as of now. Counters are totals since start; the exporter adds the difference.
  struct Gauges {
    int64_t waiting = 0;
    int64_t running = 0;
    int64_t blocks_total = 0;
    int64_t blocks_used = 0;
    int64_t blocks_cached = 0;
    int64_t prefix_queries = 0;
    int64_t prefix_hits = 0;
    int64_t preemptions = 0;
  };
  void gauges(const Gauges& now);

  // A request was taken: how many sequences and, of each, how many output tokens it asks for.
  void accepted(int32_t num_sequences, int32_t max_tokens);
  void refused();  // a request, because the waiting queue was full

  void queue_wait(double seconds);  // arrival -> first scheduled
  // A sequence's first output token: arrival -> token. Its prompt is computed by now.
  void first_token(double seconds, int64_t prompt_tokens);
  void next_token(double seconds);  // each token after it: the gap
  // One finished sequence.
  struct Finished {
    const char* reason = "";  // finish_reason_name
    double e2e_seconds = 0;
    // With one token or more: first step -> first token -> last token.
    struct Phases {
      double prefill_seconds = 0;
      double decode_seconds = 0;
    };
    std::optional<Phases> phases = std::nullopt;
    std::optional<double> tpot_seconds = std::nullopt;  // with two tokens or more
    // Mean log-probability of its output tokens; none where one of them is not known.
    std::optional<double> mean_logprob = std::nullopt;
    int64_t prompt_tokens = 0;
    int64_t cached_tokens = 0;
    int64_t output_tokens = 0;
  };
  void finished(const Finished& sequence);
  void request_finished(int64_t longest_output_tokens);  // all its sequences have

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Fed by the doors. Thread-safe.
class TransportMetrics {
 public:
  explicit TransportMetrics(Registry& registry);
  ~TransportMetrics();

  void started(const char* method);  // a call came in
  // It ended. `method` and `code` are literals from closed sets ("Generate", "INVALID_ARGUMENT").
  void request(const char* method, const char* code, double seconds);
  void streams_open(int64_t delta);  // +1 / -1
  void slow_consumer();              // a stream ended because its reader fell behind

  // Client connections: `state` is "handshake" or "open", `reason` one of refusal_name().
  void connections(const char* state, int64_t delta);
  void connection_refused(const char* reason);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Fed while the daemon starts. Thread-safe.
class StartupMetrics {
 public:
  explicit StartupMetrics(Registry& registry, const std::string& version);
  ~StartupMetrics();
  void load_progress(double fraction);  // 0 .. 1
  void load_seconds(double seconds);
  struct WeightsRead {
    int64_t bytes = 0;
    double bytes_per_second = 0;
    int64_t io_retries = 0;
    int64_t stale_retries = 0;
    int64_t timeout_retries = 0;
  };
  void weights_read(const WeightsRead& read);
  void ready(bool ready);
  void live(bool live);  // what /livez says

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Fed while the daemon starts: memory by plan and in use. `kind` is a literal from a closed set,
// engine::memory_part_name() of a plan and ops::memory_kind_name() of what is in use. Thread-safe.
class MemoryMetrics {
 public:
  explicit MemoryMetrics(Registry& registry);
  ~MemoryMetrics();
  void planned(const char* kind, int64_t bytes);
  void used(int32_t rank, const char* kind, int64_t bytes);
  void measured(int64_t bytes);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// The served model, as the labels of other tools' dialects describe it.
struct ModelLabels {
  std::string name;
  std::string quantization;          // dtype of the weights
  std::vector<std::string> devices;  // one a rank, by name; ranks of the CPU share one
  int32_t block_size = 0;
  int32_t num_blocks = 0;
  std::string cache_dtype;
  bool prefix_cache = false;
};

// Thread-safe.
class Registry {
 public:
  Registry();
  explicit Registry(const Clock& clock);  // which outlives it; for series over the last minute
  ~Registry();

  // From here on render() also shows the names that tools made for other servers look for. Once,
  // when the model is loaded.
  void add_dialects(const ModelLabels& model);

  // Prometheus text exposition format 0.0.4, process_* included.
  [[nodiscard]] std::string render() const;

  class Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::telemetry
