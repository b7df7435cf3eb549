// SPDX-License-Identifier: Apache-2.0
#include "r1d/telemetry/metrics.h"

#include "telemetry/registry.h"

namespace r1d::telemetry {
namespace {

constexpr Family kLoadProgress{"r1d_load_progress_ratio",
                               "Share of the weights that is loaded, 0 to 1."};
constexpr Family kLoadSeconds{"r1d_load_seconds",
                              "How long loading the weights took; 0 until it is done."};
constexpr Family kLoadBytes{"r1d_load_bytes",
                            "Bytes of weights read from files; 0 until it is done."};
constexpr Family kLoadRate{"r1d_load_bytes_per_second",
                           "How fast they were read, by all ranks together."};
constexpr Family kLoadRetries{
    "r1d_load_retries",
    "Reads of weights that failed and were tried again: an I/O error, a stale file handle, a "
    "timeout."};
constexpr Family kReady{"r1d_ready", "1 while new requests are taken, else 0."};
constexpr Family kLive{"r1d_live",
                       "1 while /livez answers 200: loading, idle, or steps move on; else 0."};
constexpr Family kBuildInfo{"r1d_build_info",
                            "Always 1; the label names the version of the daemon."};

}  // namespace

class StartupMetrics::Impl {
 public:
  Impl(Registry::Impl& registry, const std::string& version)
      : load_progress(registry.gauge(kLoadProgress)),
        load_seconds(registry.gauge(kLoadSeconds)),
        load_bytes(registry.gauge(kLoadBytes)),
        load_rate(registry.gauge(kLoadRate)),
        io_retries(registry.gauge(kLoadRetries, {{"cause", "io"}})),
        stale_retries(registry.gauge(kLoadRetries, {{"cause", "stale"}})),
        timeout_retries(registry.gauge(kLoadRetries, {{"cause", "timeout"}})),
        ready(registry.gauge(kReady)),
        live(registry.gauge(kLive)) {
    live.Set(1);
    registry.gauge(kBuildInfo, {{"version", version}}).Set(1);
  }

  prometheus::Gauge& load_progress;
  prometheus::Gauge& load_seconds;
  prometheus::Gauge& load_bytes;
  prometheus::Gauge& load_rate;
  prometheus::Gauge& io_retries;
  prometheus::Gauge& stale_retries;
  prometheus::Gauge& timeout_retries;
  prometheus::Gauge& ready;
  prometheus::Gauge& live;
};

StartupMetrics::StartupMetrics(Registry& registry, const std::string& version)
    : impl_(std::make_unique<Impl>(registry.impl(), version)) {}
StartupMetrics::~StartupMetrics() = default;

void StartupMetrics::load_progress(double fraction) {
  impl_->load_progress.Set(fraction);
}
void StartupMetrics::load_seconds(double seconds) {
  impl_->load_seconds.Set(seconds);
}
void StartupMetrics::weights_read(const WeightsRead& read) {
  impl_->load_bytes.Set(static_cast<double>(read.bytes));
  impl_->load_rate.Set(read.bytes_per_second);
  impl_->io_retries.Set(static_cast<double>(read.io_retries));
  impl_->stale_retries.Set(static_cast<double>(read.stale_retries));
  impl_->timeout_retries.Set(static_cast<double>(read.timeout_retries));
}
void StartupMetrics::ready(bool ready) {
  impl_->ready.Set(ready ? 1 : 0);
}
void StartupMetrics::live(bool live) {
  impl_->live.Set(live ? 1 : 0);
}

}  // namespace r1d::telemetry
