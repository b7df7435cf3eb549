// SPDX-License-Identifier: Apache-2.0
#include "telemetry/registry.h"

#include <algorithm>
#include <iterator>

#include <prometheus/text_serializer.h>

#include "r1d/base/fault.h"

#include "telemetry/process_metrics.h"

namespace r1d::telemetry {

Registry::Registry() : impl_(std::make_unique<Impl>()) {}
Registry::~Registry() = default;

std::string Registry::render() const {
  base::hit_fault(base::FaultPoint::kRender);
  std::vector<prometheus::MetricFamily> families = impl_->collect();
  std::vector<prometheus::MetricFamily> process = collect_process_metrics();
  std::move(process.begin(), process.end(), std::back_inserter(families));
  // By name, so that two scrapes list the same families in the same order.
  std::sort(families.begin(), families.end(), [](const auto& a, const auto& b) {
    return a.name < b.name;
  });
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace r1d::telemetry
