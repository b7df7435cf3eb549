// SPDX-License-Identifier: Apache-2.0
// The names under which dashboards, autoscalers and endpoint pickers made for other servers look
// for what r1d_* series hold. They are views, made at the scrape: nothing is counted twice, two
// names never disagree, and a step costs the same with or without them.
#pragma once

#include <vector>

#include <prometheus/labels.h>
#include <prometheus/metric_family.h>

#include "r1d/telemetry/metrics.h"

namespace r1d::telemetry {

// One series of a dialect.
struct View {
  const char* name;
  const char* help;
  const char* source;         // the r1d_* family it shows, whose type it has
  prometheus::Labels labels;  // its own
  // Which of the source's samples count: those that carry one of these sets of labels; all when
  // there is none. A gauge or counter adds them up, a histogram has one.
  std::vector<prometheus::Labels> of = {};
  bool share = false;  // the value over the sum of all the source's samples; 0 when that is 0
  std::vector<double> buckets = {};  // a histogram's, each one of the source's; empty: the same
};

// Immutable, so thread-safe.
class Dialects {
 public:
  explicit Dialects(const ModelLabels& model);

  // `families`: those of r1d, sorted by name.
  [[nodiscard]] std::vector<prometheus::MetricFamily> collect(
      const std::vector<prometheus::MetricFamily>& families) const;

  [[nodiscard]] const std::vector<View>& views() const { return views_; }

 private:
  std::vector<View> views_;  // series of one family stand together
  prometheus::MetricFamily cache_config_;
};

}  // namespace r1d::telemetry
