// SPDX-License-Identifier: Apache-2.0
#include "r1d/telemetry/metrics.h"

#include "telemetry/label_set.h"
#include "telemetry/registry.h"

namespace r1d::telemetry {
namespace {

constexpr Family kPlanned{
    "r1d_memory_planned_bytes",
    "What the plan of the start gives a rank, the fullest, by what it is for."};
constexpr Family kUsed{"r1d_memory_used_bytes",
                       "What a rank's operators hold, by what it is for, as they count it."};
constexpr Family kMeasured{
    "r1d_memory_measured_bytes",
    "What is in use of all ranks' GPUs once the model is loaded, or what the load added to the "
    "process's resident memory."};

// engine::memory_part_name() and ops::memory_kind_name(); tests/cli/memory_report_test.cc holds
// them equal.
constexpr LabelSet kPlannedKinds(std::array<std::string_view, 17>{"attention",
                                                                  "experts",
                                                                  "shared_experts",
                                                                  "dense",
                                                                  "routers",
                                                                  "embeddings",
                                                                  "norms",
                                                                  "mtp",
                                                                  "kernel_weights",
                                                                  "latent_cache",
                                                                  "activations",
                                                                  "workspaces",
                                                                  "collectives",
                                                                  "logits",
                                                                  "graphs",
                                                                  "context",
                                                                  "reserve"});
constexpr LabelSet kUsedKinds(std::array<std::string_view, 5>{
    "weights", "latent_cache", "activations", "workspaces", "collectives"});

}  // namespace

class MemoryMetrics::Impl {
 public:
  explicit Impl(Registry::Impl& registry)
      : registry_(registry), measured_(registry.gauge(kMeasured)) {
    for (size_t i = 0; i + 1 < kPlannedKinds.kSize; ++i) planned_gauge(i);
    for (size_t i = 0; i + 1 < kUsedKinds.kSize; ++i) used_gauge(0, i);
  }

  prometheus::Gauge& planned_gauge(size_t kind) {
    return registry_.gauge(kPlanned, {{"kind", std::string(kPlannedKinds.value(kind))}});
  }
  prometheus::Gauge& used_gauge(int32_t rank, size_t kind) {
    return registry_.gauge(
        kUsed, {{"rank", std::to_string(rank)}, {"kind", std::string(kUsedKinds.value(kind))}});
  }
  prometheus::Gauge& measured() { return measured_; }

 private:
  Registry::Impl& registry_;
  prometheus::Gauge& measured_;
};

MemoryMetrics::MemoryMetrics(Registry& registry) : impl_(std::make_unique<Impl>(registry.impl())) {}
MemoryMetrics::~MemoryMetrics() = default;

void MemoryMetrics::planned(const char* kind, int64_t bytes) {
  impl_->planned_gauge(kPlannedKinds.index(kind)).Set(static_cast<double>(bytes));
}
void MemoryMetrics::used(int32_t rank, const char* kind, int64_t bytes) {
  impl_->used_gauge(rank, kUsedKinds.index(kind)).Set(static_cast<double>(bytes));
}
void MemoryMetrics::measured(int64_t bytes) {
  impl_->measured().Set(static_cast<double>(bytes));
}

}  // namespace r1d::telemetry
