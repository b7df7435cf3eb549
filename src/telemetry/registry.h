// SPDX-License-Identifier: Apache-2.0
// The one place that knows prometheus-cpp. The metric classes ask it for their series once, when
// they are built, and keep the references: a series lives as long as the registry.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/labels.h>
#include <prometheus/registry.h>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"
#include "r1d/telemetry/metrics.h"

#include "telemetry/dialects.h"

namespace r1d::telemetry {

using Buckets = prometheus::Histogram::BucketBoundaries;

// A family's name and its help text; both are constants of ours.
struct Family {
  const char* name;
  const char* help;
};

// Threads: safe. Asking again for the same family and labels gives the same series.
class Registry::Impl {
 public:
  explicit Impl(const Clock* clock) : clock_(clock != nullptr ? *clock : own_clock_) {}

  [[nodiscard]] const Clock& clock() const { return clock_; }

  prometheus::Counter& counter(const Family& family, const prometheus::Labels& labels = {}) {
    return prometheus::BuildCounter()
        .Name(family.name)
        .Help(family.help)
        .Register(registry_)
        .Add(labels);
  }
  prometheus::Gauge& gauge(const Family& family, const prometheus::Labels& labels = {}) {
    return prometheus::BuildGauge()
        .Name(family.name)
        .Help(family.help)
        .Register(registry_)
        .Add(labels);
  }
  prometheus::Histogram& histogram(const Family& family,
                                   const Buckets& buckets,
                                   const prometheus::Labels& labels = {}) {
    return prometheus::BuildHistogram()
        .Name(family.name)
        .Help(family.help)
        .Register(registry_)
        .Add(labels, buckets);
  }

  // Calls `update` before each scrape: for what is only known when somebody asks. It must own what
  // it touches, other than series.
  void at_scrape(std::function<void()> update) {
    base::MutexLock lock(mu_);
    updates_.push_back(std::move(update));
  }

  void add_dialects(const ModelLabels& model) {
    base::MutexLock lock(mu_);
    dialects_ = std::make_unique<const Dialects>(model);
  }

  // Every family, sorted by name, so that two scrapes list them in the same order.
  [[nodiscard]] std::vector<prometheus::MetricFamily> collect();

 private:
  const SteadyClock own_clock_;
  const Clock& clock_;
  prometheus::Registry registry_;
  base::Mutex mu_;
  std::vector<std::function<void()>> updates_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<const Dialects> dialects_ ABSL_GUARDED_BY(mu_);
};

}  // namespace r1d::telemetry
