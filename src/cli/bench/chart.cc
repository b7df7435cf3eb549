// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "cli/bench/units.h"

namespace r1d::cli::bench {
namespace {

constexpr double kWidth = 560;
constexpr double kHeight = 300;
constexpr double kLeft = 70;
constexpr double kRight = 16;
constexpr double kTop = 30;
constexpr double kBottom = 48;

// From values to places on the picture, and the ticks between.
class Axis {
 public:
  // `from`, `to`: places of the lowest and the highest value.
  Axis(double from, double to) : from_(from), to_(to) {}

  void set_linear(double highest) {
    ticks_ = linear_ticks(highest);
    high_ = ticks_.back();
  }
  void set_log(double lowest, double highest) {
    log_ = true;
    const double first = std::floor(std::log10(lowest));
    const double last = std::max(std::ceil(std::log10(highest)), first + 1);
    for (double power = first; power <= last; ++power) ticks_.push_back(std::pow(10, power));
    low_ = first;
    high_ = last;
  }
  [[nodiscard]] double place(double value) const {
    const double at = ((log_ ? std::log10(value) : value) - low_) / (high_ - low_);
    return from_ + at * (to_ - from_);
  }
  [[nodiscard]] bool shows(double value) const {
    return std::isfinite(value) && (!log_ || value > 0);
  }
  [[nodiscard]] const std::vector<double>& ticks() const { return ticks_; }

 private:
  const double from_;
  const double to_;
  bool log_ = false;
  double low_ = 0;
  double high_ = 1;
  std::vector<double> ticks_;
};

struct Extent {
  double x_high = 0;
  double y_high = 0;
  double y_low = std::numeric_limits<double>::infinity();  // above 0
};

Extent extent_of(const Chart& chart) {
  Extent extent;
  for (const Chart::Line& line : chart.lines) {
    for (const auto& [x, y] : line.points) {
      extent.x_high = std::max(extent.x_high, x);
      extent.y_high = std::max(extent.y_high, y);
      if (y > 0) extent.y_low = std::min(extent.y_low, y);
    }
  }
  return extent;
}

std::string tick_text(double value, bool seconds) {
  if (!seconds) return fmt::format("{:g}", value);
  if (value == 0) return "0";
  if (value >= 1) return fmt::format("{:g} s", value);
  return value >= 1e-3 ? fmt::format("{:g} ms", value * 1e3) : fmt::format("{:g} us", value * 1e6);
}

std::string draw_axes(const Chart& chart, const Axis& x, const Axis& y) {
  std::string svg;
  for (const double tick : y.ticks()) {
    const double at = y.place(tick);
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\"/>"
        "<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
        kLeft,
        at,
        kWidth - kRight,
        at,
        kLeft - 6,
        at + 4,
        tick_text(tick, chart.y_is_seconds));
  }
  for (const double tick : x.ticks()) {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:g}</text>\n",
                       x.place(tick),
                       kHeight - kBottom + 18,
                       tick);
  }
  svg += fmt::format(
      "<text class=\"title\" x=\"{}\" y=\"18\">{}</text>\n", kLeft, escape_html(chart.title));
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + kWidth - kRight) / 2,
                     kHeight - 10,
                     escape_html(chart.x_label));
  svg += fmt::format("<text x=\"{0}\" y=\"18\" text-anchor=\"end\">{1}</text>\n",
                     kWidth - kRight,
                     escape_html(chart.y_label));
  return svg;
}

std::string draw_line(const Chart::Line& line, const Axis& x, const Axis& y) {
  std::string points;
  std::string dots;
  for (const auto& [at, value] : line.points) {
    if (!y.shows(value)) continue;
    points += fmt::format("{:.1f},{:.1f} ", x.place(at), y.place(value));
    if (!line.dots) continue;
    dots += fmt::format("<circle class=\"c{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"/>",
                        line.colour,
                        x.place(at),
                        y.place(value));
  }
  if (points.empty()) return "";
  points.pop_back();
  return fmt::format("<g><title>{}</title><polyline class=\"l c{}\"{} points=\"{}\"/>{}</g>\n",
                     escape_html(line.name),
                     line.colour,
                     line.dashed ? " stroke-dasharray=\"5 4\"" : "",
                     points,
                     dots);
}

}  // namespace

std::string escape_html(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t' ? '?' : c;
    }
  }
  return escaped;
}

std::vector<double> linear_ticks(double highest) {
  if (!(highest > 0) || !std::isfinite(highest)) return {0, 1};
  const double power = std::pow(10, std::floor(std::log10(highest / 5)));
  double step = power;
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    step = factor * power;
    if (highest / step <= 6) break;
  }
  std::vector<double> ticks;
  for (int i = 0; ticks.empty() || ticks.back() < highest * (1 - 1e-9); ++i)
    ticks.push_back(i * step);
  return ticks;
}

std::string render_svg(const Chart& chart) {
  const Extent extent = extent_of(chart);
  Axis x(kLeft, kWidth - kRight);
  Axis y(kHeight - kBottom, kTop + 10);
  x.set_linear(extent.x_high);
  if (chart.log_y && std::isfinite(extent.y_low)) {
    y.set_log(extent.y_low, extent.y_high);
  } else {
    y.set_linear(extent.y_high);
  }
  std::string svg = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n",
                                kWidth,
                                kHeight,
                                escape_html(chart.title));
  svg += draw_axes(chart, x, y);
  for (const Chart::Line& line : chart.lines) svg += draw_line(line, x, y);
  return svg + "</svg>\n";
}

}  // namespace r1d::cli::bench
