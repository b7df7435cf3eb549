// SPDX-License-Identifier: Apache-2.0
// The schema and a configuration, written out for people.
#include <string_view>

#include <fmt/format.h>

#include "config/schema.h"

namespace r1d::config {
namespace {

// A double-quoted YAML scalar. Values hold no control characters, so that only two need escaping.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

std::string yaml_value(const Key& key, const Config& config) {
  const std::string value = get_value(key, config);
  const bool text = key.type == Type::kString || key.type == Type::kAddress;
  return text ? quoted(value) : value;
}

constexpr std::string_view kIntroduction = R"(# Configuration

Every setting has a key, a flag of `r1d serve` and an environment variable. Where several give a value, the flag wins,
then the environment, then the file, then the default.

- File: YAML, `r1d serve --config r1d.yaml`. A section per table below, plain values below it; `configs/r1d.yaml`
  names every key. Unknown keys, keys given twice, lists and anchors are errors that name the line.
- Environment: `R1D_SECTION__KEY`, with two underscores between section and key: `R1D_ENGINE__WORLD_SIZE=2`.
  Variables without two underscores in a row are ignored.
- Flags: `--world-size 2`. `r1d serve --print-config` shows what holds in the end.

Values: a *duration* is a number with `ms`, `s`, `m` or `h`; a plain number is milliseconds. *Bytes* take the suffixes
`K`, `M`, `G` (powers of 1000) and `Ki`, `Mi`, `Gi` (powers of 1024). A *boolean* is `true` or `false`; an *address* is
`host:port`, an IPv6 host in brackets.
)";

void add_row(const Key& key, std::string& out) {
  const std::string value = get_value(key, Config{});
  const std::string shown = value.empty() ? "empty" : "`" + value + "`";
  const std::string range = key.range();
  out += fmt::format("| `{}` | `{}` | {} | {}{}{} | {} |\n",
                     key.name,
                     key.flag,
                     shown,
                     key.type_name(),
                     range.empty() ? "" : ": ",
                     range,
                     key.help);
}

}  // namespace

std::vector<KeyInfo> keys() {
  std::vector<KeyInfo> infos;
  for (const Key& key : schema()) {
    infos.push_back({.key = std::string(key.name),
                     .flag = std::string(key.flag),
                     .type = std::string(key.type_name()),
                     .default_value = get_value(key, Config{}),
                     .range = key.range(),
                     .help = std::string(key.help)});
  }
  return infos;
}

std::string print(const Config& config) {
  std::string out;
  std::string_view section;
  for (const Key& key : schema()) {
    if (key.section() != section) {
      section = key.section();
      out += fmt::format("{}:\n", section);
    }
    out += fmt::format("  {}: {}\n", key.last_part(), yaml_value(key, config));
  }
  return out;
}

std::string reference_markdown() {
  std::string out(kIntroduction);
  std::string_view section;
  for (const Key& key : schema()) {
    if (key.section() != section) {
      section = key.section();
      out += fmt::format(
          "\n## {}\n\n| key | flag | default | values | meaning |\n|---|---|---|---|---|\n",
          section);
    }
    add_row(key, out);
  }
  out += "\nThis page is generated: `R1D_UPDATE_DOCS=1 build/host/tests/r1d_config_test`.\n";
  return out;
}

}  // namespace r1d::config
