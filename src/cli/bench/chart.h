// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace r1d::cli::bench {

// A line chart as SVG. Axes begin at 0, or with `log_y` at the power of ten below the least value
// (points that are not above 0 are left out then).
struct Chart {
  struct Line {
    std::string name;
    int32_t colour = 0;  // an index of the page's palette
    bool dashed = false;
    bool dots = false;  // mark each point
    std::vector<std::pair<double, double>> points;
  };

  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_y = false;
  bool y_is_seconds = false;  // ticks with units
  std::vector<Line> lines;
};

// `text` inside an element or an attribute.
[[nodiscard]] std::string escape_html(const std::string& text);

[[nodiscard]] std::string render_svg(const Chart& chart);

// Where to put ticks on an axis from 0 to `highest`: steps of 1, 2 or 5 times a power of ten, about
// five of them. The last is at or above `highest`.
[[nodiscard]] std::vector<double> linear_ticks(double highest);

}  // namespace r1d::cli::bench
