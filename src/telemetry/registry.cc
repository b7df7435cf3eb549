// SPDX-License-Identifier: Apache-2.0
#include "telemetry/registry.h"

#include <algorithm>
#include <iterator>

#include "r1d/base/fault.h"

#include "telemetry/process_metrics.h"
#include "telemetry/text_format.h"

namespace r1d::telemetry {
namespace {

using Families = std::vector<prometheus::MetricFamily>;

void append(Families more, Families& families) {
  std::move(more.begin(), more.end(), std::back_inserter(families));
}

void sort_by_name(Families& families) {
  std::sort(families.begin(), families.end(), [](const auto& a, const auto& b) {
    return a.name < b.name;
  });
}

}  // namespace

Families Registry::Impl::collect() {
  base::MutexLock lock(mu_);
  for (const auto& update : updates_) update();
  Families families = registry_.Collect();
  append(collect_process_metrics(), families);
  sort_by_name(families);
  if (dialects_ == nullptr) return families;
  append(dialects_->collect(families), families);
  sort_by_name(families);
  return families;
}

Registry::Registry() : impl_(std::make_unique<Impl>(nullptr)) {}
Registry::Registry(const Clock& clock) : impl_(std::make_unique<Impl>(&clock)) {}
Registry::~Registry() = default;

void Registry::add_dialects(const ModelLabels& model) {
  impl_->add_dialects(model);
}

std::string Registry::render() const {
  base::hit_fault(base::FaultPoint::kRender);
  return text_format(impl_->collect());
}

}  // namespace r1d::telemetry
