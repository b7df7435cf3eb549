// SPDX-License-Identifier: Apache-2.0
// Every metric r1d exports, by the stage that feeds it. Names, units, labels and buckets stand in
// src/telemetry/*_metrics.cc and buckets.h. Label values come from closed sets only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace r1d::telemetry {

class Registry;  // owns the prometheus registry; hides its headers

// Fed by the step loop. Thread-safe.
class EngineMetrics {
 public:
  explicit EngineMetrics(Registry& registry);
  ~EngineMetrics();

  // After each step: what it computed and how long it took.
  void step(int32_t num_sequences,
            int32_t num_prefill_tokens,
            int32_t num_decode_tokens,
            double seconds);
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

  void queue_wait(double seconds);           // arrival -> first scheduled
  void time_to_first_token(double seconds);  // arrival -> first token
  void inter_token_latency(double seconds);  // one gap
  // One finished sequence. `tpot_seconds` < 0 when fewer than two tokens came.
  struct Finished {
    const char* reason = "";  // finish_reason_name
    double e2e_seconds = 0;
    double tpot_seconds = -1;
    int64_t prompt_tokens = 0;
    int64_t cached_tokens = 0;
    int64_t output_tokens = 0;
  };
  void finished(const Finished& sequence);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Fed by the doors. Thread-safe.
class TransportMetrics {
 public:
  explicit TransportMetrics(Registry& registry);
  ~TransportMetrics();

  // `method` and `code` are literals from closed sets ("Generate", "INVALID_ARGUMENT").
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
  void ready(bool ready);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

class Registry {
 public:
  Registry();
  ~Registry();
  // Prometheus text exposition format 0.0.4, process_* included.
  [[nodiscard]] std::string render() const;

  class Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::telemetry
