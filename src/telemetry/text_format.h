// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include <prometheus/metric_family.h>

namespace r1d::telemetry {

// The families in Prometheus' text format 0.0.4, as prometheus-cpp writes them but for numbers that
// need a 17th digit to be read back, and in a fraction of its time: into one string instead of a
// stream.
[[nodiscard]] std::string text_format(const std::vector<prometheus::MetricFamily>& families);

}  // namespace r1d::telemetry
