// SPDX-License-Identifier: Apache-2.0
// Reads the Prometheus text format back, strictly: what a scraper would refuse fails the test.
#pragma once

#include <cstdlib>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace r1d::telemetry {

struct ExposedFamily {
  std::string help;
  std::string type;
  std::map<std::string, double> samples;  // by the text before the value: `name{label="value"}`
};

using Exposition = std::map<std::string, ExposedFamily>;

// `r1d_step_seconds_bucket{le="1"}` -> `r1d_step_seconds` when that is a histogram.
inline std::string family_of(const std::string& series, const Exposition& families) {
  const std::string name = series.substr(0, series.find('{'));
  for (const char* suffix : {"_bucket", "_sum", "_count"}) {
    const std::string tail = suffix;
    if (name.size() <= tail.size() || !name.ends_with(tail)) continue;
    const auto it = families.find(name.substr(0, name.size() - tail.size()));
    if (it != families.end() && it->second.type == "histogram") return it->first;
  }
  return name;
}

inline Exposition parse_exposition(const std::string& text) {
  Exposition families;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash;
    std::string kind;
    std::string name;
    if (line.starts_with("# ")) {
      words >> hash >> kind >> name >> std::ws;
      std::string rest;
      std::getline(words, rest);
      (kind == "HELP" ? families[name].help : families[name].type) = rest;
      continue;
    }
    const size_t blank = line.rfind(' ');
    if (blank == std::string::npos) {
      ADD_FAILURE() << "no value in line: " << line;
      continue;
    }
    const std::string series = line.substr(0, blank);
    char* end = nullptr;
    const double value = std::strtod(line.c_str() + blank + 1, &end);
    EXPECT_EQ(*end, '\0') << "not a number in line: " << line;
    const std::string family = family_of(series, families);
    EXPECT_TRUE(families.contains(family)) << "no TYPE before line: " << line;
    EXPECT_TRUE(families[family].samples.emplace(series, value).second) << "twice: " << line;
  }
  return families;
}

// The value of one series; fails the test and gives -1 when it is not there.
inline double sample(const std::string& text, const std::string& series) {
  const Exposition families = parse_exposition(text);
  const auto family = families.find(family_of(series, families));
  if (family != families.end()) {
    const auto it = family->second.samples.find(series);
    if (it != family->second.samples.end()) return it->second;
  }
  ADD_FAILURE() << "no series " << series << " in\n" << text;
  return -1;
}

inline size_t count_series(const std::string& text) {
  size_t count = 0;
  for (const auto& [name, family] : parse_exposition(text)) count += family.samples.size();
  return count;
}

}  // namespace r1d::telemetry
