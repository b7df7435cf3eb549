// SPDX-License-Identifier: Apache-2.0
#include "r1d/telemetry/metrics.h"

#include "telemetry/registry.h"

namespace r1d::telemetry {
namespace {

constexpr Family kLoadProgress{"r1d_load_progress_ratio",
                               "Share of the weights that is loaded, 0 to 1."};
constexpr Family kLoadSeconds{"r1d_load_seconds",
                              "How long loading the weights took; 0 until it is done."};
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
        ready(registry.gauge(kReady)),
        live(registry.gauge(kLive)) {
    live.Set(1);
    registry.gauge(kBuildInfo, {{"version", version}}).Set(1);
  }

  prometheus::Gauge& load_progress;
  prometheus::Gauge& load_seconds;
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
void StartupMetrics::ready(bool ready) {
  impl_->ready.Set(ready ? 1 : 0);
}
void StartupMetrics::live(bool live) {
  impl_->live.Set(live ? 1 : 0);
}

}  // namespace r1d::telemetry
