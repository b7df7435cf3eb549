// SPDX-License-Identifier: Apache-2.0
#include "telemetry/text_format.h"

#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include <fmt/format.h>

namespace r1d::telemetry {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}

  void family(const MetricFamily& family) {
    if (!family.help.empty()) line("# HELP ", family.name, " ", family.help, "\n");
    line("# TYPE ", family.name, " ", type_name(family.type), "\n");
    for (const ClientMetric& metric : family.metric) {
      switch (family.type) {
        case MetricType::Counter:
          sample(family.name, metric, metric.counter.value);
          break;
        case MetricType::Gauge:
          sample(family.name, metric, metric.gauge.value);
          break;
        case MetricType::Histogram:
          histogram(family.name, metric);
          break;
        default:  // none of ours
          break;
      }
    }
  }

 private:
  static std::string_view type_name(MetricType type) {
    if (type == MetricType::Counter) return "counter";
    return type == MetricType::Gauge ? "gauge" : "histogram";
  }

  template <typename... Texts>
  void line(const Texts&... texts) {
    (out_.append(texts), ...);
  }

  // The shortest that reads back.
  void number(double value) {
    if (std::isnan(value)) {
      out_ += "Nan";
    } else if (std::isinf(value)) {
      out_ += value < 0 ? "-Inf" : "+Inf";
    } else if (value >= 0 && value < 1e15 && value == std::floor(value) && !std::signbit(value)) {
      count(static_cast<uint64_t>(value));
    } else {
      const auto text = fmt::format_to_n(digits_.data(), digits_.size(), "{}", value);
      out_.append(digits_.data(), text.size);
    }
  }
  void count(uint64_t value) {
    const fmt::format_int digits(value);
    out_.append(digits.data(), digits.size());
  }

  void escaped(const std::string& text) {
    for (const char c : text) {
      if (c == '\n') {
        out_ += "\\n";
      } else {
        if (c == '\\' || c == '"') out_ += '\\';
        out_ += c;
      }
    }
  }

  void label_list(const ClientMetric& metric) {
    bool first = true;
    for (const auto& label : metric.label) {
      if (!first) out_ += ',';
      first = false;
      line(label.name, "=\"");
      escaped(label.value);
      out_ += '"';
    }
  }

  // The name with its labels, and the blank before the value.
  void head(const std::string& name, std::string_view suffix, const ClientMetric& metric) {
    line(name, suffix);
    if (!metric.label.empty()) {
      out_ += '{';
      label_list(metric);
      out_ += '}';
    }
    out_ += ' ';
  }

  void sample(const std::string& name, const ClientMetric& metric, double value) {
    head(name, "", metric);
    number(value);
    out_ += '\n';
  }

  void histogram(const std::string& name, const ClientMetric& metric) {
    const ClientMetric::Histogram& histogram = metric.histogram;
    head(name, "_count", metric);
    count(histogram.sample_count);
    out_ += '\n';
    head(name, "_sum", metric);
    number(histogram.sample_sum);
    out_ += '\n';
    // The labels are the same in each bucket.
    std::string begin = name + "_bucket{";
    const size_t end = out_.size();
    label_list(metric);
    begin += std::string_view(out_).substr(end);
    out_.resize(end);
    begin += metric.label.empty() ? "le=\"" : ",le=\"";
    double last = -std::numeric_limits<double>::infinity();
    for (const ClientMetric::Bucket& bucket : histogram.bucket) {
      last = bucket.upper_bound;
      write_bucket(begin, last, bucket.cumulative_count);
    }
    const double infinity = std::numeric_limits<double>::infinity();
    if (last != infinity) write_bucket(begin, infinity, histogram.sample_count);
  }
  void write_bucket(const std::string& begin, double bound, uint64_t cumulative) {
    out_ += begin;
    number(bound);
    out_ += "\"} ";
    count(cumulative);
    out_ += '\n';
  }

  std::string& out_;
  std::array<char, 32> digits_{};  // the longest double takes 24
};

}  // namespace

std::string text_format(const std::vector<MetricFamily>& families) {
  std::string out;
  out.reserve(128 << 10);  // of a daemon with its dialects 90 KB
  Writer writer(out);
  for (const MetricFamily& family : families) writer.family(family);
  return out;
}

}  // namespace r1d::telemetry
