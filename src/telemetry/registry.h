// SPDX-License-Identifier: Apache-2.0
// The one place that knows prometheus-cpp. The metric classes ask it for their series once, when
// they are built, and keep the references: a series lives as long as the registry.
#pragma once

#include <memory>
#include <string>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/labels.h>
#include <prometheus/registry.h>

#include "r1d/telemetry/metrics.h"

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

  [[nodiscard]] std::vector<prometheus::MetricFamily> collect() const {
    return registry_.Collect();
  }

 private:
  prometheus::Registry registry_;
};

}  // namespace r1d::telemetry
