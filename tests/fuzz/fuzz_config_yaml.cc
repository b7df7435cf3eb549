// SPDX-License-Identifier: Apache-2.0
// Any bytes as a configuration file: refused with a message that begins with the file's name, or
// accepted, and then print() writes what reads back the same, and a reload changes what it says it
// changes.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "r1d/base/check.h"
#include "r1d/base/status.h"
#include "r1d/config/config.h"

#include "config/yaml_reader.h"

namespace {

void check_reload(const r1d::config::Config& config) {
  const r1d::config::Config active;
  const std::vector<std::string> origins(r1d::config::keys().size(), "fuzz:1");
  const r1d::config::Reload result = r1d::config::reload(active, {config, origins});
  const bool differs = r1d::config::print(config) != r1d::config::print(active);
  R1D_CHECK(differs == !(result.applied.empty() && result.waiting.empty()));
  const bool changed = r1d::config::print(result.config) != r1d::config::print(active);
  R1D_CHECK(changed == !result.applied.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const r1d::config::YamlFile file = r1d::config::read_yaml(text, "fuzz");
  R1D_CHECK(file.problems.size() <= r1d::config::kMaxProblems + 2);
  for (const r1d::config::Problem& problem : file.problems) {
    R1D_CHECK(problem.message.starts_with("fuzz:"));
    R1D_CHECK(problem.message.find('\n') == std::string::npos);
  }
  const auto config = r1d::config::parse_yaml(text, "fuzz");
  if (!config.ok()) {
    R1D_CHECK(r1d::message_of(config.status()).starts_with("fuzz:"));
    return 0;
  }
  const std::string printed = r1d::config::print(*config);
  const auto again = r1d::config::parse_yaml(printed, "printed");
  R1D_CHECK(again.ok());
  R1D_CHECK(r1d::config::print(*again) == printed);
  check_reload(*config);
  return 0;
}
