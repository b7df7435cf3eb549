// SPDX-License-Identifier: Apache-2.0
// Short ways to a rendering, and the fixtures that Python's jinja2 wrote.
#pragma once

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/status.h"
#include "r1d/jinja/template.h"

#include "tests/support/test_data.h"

namespace r1d::jinja::test {

// 2025-01-20 12:00 UTC: the same day in nearly every time zone.
inline std::chrono::system_clock::time_point noon() {
  return std::chrono::system_clock::from_time_t(1'737'374'400);
}

inline absl::StatusOr<std::vector<Segment>> segments_of(std::string_view source,
                                                        Json data = Json::object(),
                                                        const Limits& limits = {}) {
  R1D_ASSIGN_OR_RETURN(const Template parsed, Template::parse(source, limits));
  return parsed.render(
      {.trusted = Json::object(), .data = std::move(data), .marked = {}, .now = noon()});
}

// The text, or the error's.
inline std::string render(std::string_view source,
                          Json data = Json::object(),
                          const Limits& limits = {}) {
  const auto segments = segments_of(source, std::move(data), limits);
  return segments.ok() ? joined(*segments) : "error: " + message_of(segments.status());
}

inline std::string fixture(const std::string& name) {
  std::ifstream file(r1d::test::data("templates/") + name);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::vector<Json> json_lines(const std::string& name) {
  std::vector<Json> lines;
  std::istringstream file(fixture(name));
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

}  // namespace r1d::jinja::test
