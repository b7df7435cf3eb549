// SPDX-License-Identifier: Apache-2.0
// The schema and a configuration, written out for people.
#include <algorithm>
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

constexpr std::string_view kExampleHead = R"(# SPDX-License-Identifier: Apache-2.0
# r1d's configuration with every key at its default: `r1d serve --config configs/r1d.yaml --model DIR`. A key left out
# keeps its default; R1D_SECTION__KEY variables override what stands here, and flags override those. Durations: ms, s, m, h.
# Bytes: K, M, G, Ki, Mi, Gi. docs/configuration.md says more. Generated: R1D_UPDATE_DOCS=1 build/host/tests/r1d_config_test.
)";

constexpr std::string_view kIntroduction = R"(# Configuration

Every setting has a key, a flag of `r1d serve` and an environment variable. Where several give a value, the flag wins,
then the environment, then the file, then the default.

- File: YAML, `r1d serve --config r1d.yaml`. A section per table below, plain values below it;
  [configs/r1d.yaml](../configs/r1d.yaml) names every key with its default. Unknown keys, keys given twice, lists and
  anchors are errors that name the line.
- Environment: `R1D_SECTION__KEY`, with two underscores between section and key: `R1D_ENGINE__WORLD_SIZE=2`. A name that
  lacks one of the two, or that no key has, is refused; what Kubernetes sets (`R1D_PORT`, `R1D_SERVICE_HOST`) is ignored.
- Flags: `--world-size 2`.

Values: a *duration* is a number with `ms`, `s`, `m` or `h`; a plain number is milliseconds. *Bytes* take the suffixes
`K`, `M`, `G` (powers of 1000) and `Ki`, `Mi`, `Gi` (powers of 1024). A *boolean* is `true` or `false`; an *address* is
`host:port`, an IPv6 host in brackets.

## Check and show

    r1d config check r1d.yaml     # "ok", or every error with file, line, key and what was expected; exit status 0 or 1
    r1d config show r1d.yaml --max-batch-size 8

`check` judges what `r1d serve --config r1d.yaml` would: the file, the environment, flags behind it, and values that do
not go together. It tells every error, one a line and in that order; those of the file by line. Where the text stops being YAML the
rest is not judged, and nothing is said of values that an earlier error leaves in doubt. It opens no model. `show` prints every value as YAML with the place it came from as a comment (`default`,
`r1d.yaml:7`, `environment R1D_LOG__LEVEL`, `flag --log-level`). `r1d serve --check-config` and `--print-config` do much
the same, and want a model named. No key holds a secret, so nothing is masked.

## Other names

)";

constexpr std::string_view kReload = R"(
Names from outside count like the variable of their key, and not at all when empty. Two names of one key may stand side by
side in the file, in the environment or among the flags as long as they agree; else both places are named. `INFERENCE_MODE`
sets nothing, as there is one mode: it lets a deployment that asks for another one fail at the start.

## Reload

SIGHUP has a running daemon read the file again, with the environment and flags it was started with. Keys marked *live*
below change at once; running requests go on. Any other key that changed keeps its value, and a warning names it: it waits
for a restart. A file with an error changes nothing: the error is logged with file and line, and the configuration in
force stays. A signal that comes while the model loads is answered once it is loaded; one that comes during the drain is
ignored. A flag or a variable still wins over the file, so a key given there cannot change. SIGHUP never ends the daemon:
one that was started in a terminal outlives it.
)";

void add_aliases(std::string& out) {
  out += "| also | means |\n|---|---|\n";
  for (const Key& key : schema()) {
    if (!key.variable.empty())
      out += fmt::format("| variable `{}` | `{}` |\n", key.variable, key.name);
    if (key.alias.empty()) continue;
    out += fmt::format("| key `{}`, flag `{}`, variable `{}` | `{}` |\n",
                       key.alias,
                       key.alias_flag(),
                       key.alias_environment(),
                       key.name);
  }
}

// "integer: 1 to 4096 sequences"
std::string values(const Key& key) {
  const std::string range = key.range();
  return fmt::format("{}{}{}", key.type_name(), range.empty() ? "" : ": ", range);
}

void add_row(const Key& key, std::string& out) {
  const std::string value = get_value(key, Config{});
  out += fmt::format("| `{}` | `{}` | {} | {} | {}{} |\n",
                     key.name,
                     key.flag,
                     value.empty() ? "empty" : "`" + value + "`",
                     values(key),
                     key.live ? "*Live.* " : "",
                     key.help);
}

// As comment lines of at most 100 columns.
void add_comment(std::string_view text, std::string& out) {
  constexpr size_t kColumns = 96;
  while (!text.empty()) {
    size_t end = text.size();
    if (end > kColumns) end = text.rfind(' ', kColumns);
    if (end == std::string_view::npos) end = text.size();
    out += fmt::format("  # {}\n", text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// All keys, with a heading where a section begins.
template <typename AddSection, typename AddKey>
void for_each_key(AddSection add_section, AddKey add_key) {
  std::string_view section;
  for (const Key& key : schema()) {
    if (key.section() != section) {
      section = key.section();
      add_section(section);
    }
    add_key(key);
  }
}

// A file's name may hold anything.
std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, '?');
  return text;
}

std::string print(const Config& config, const std::vector<std::string>* origins) {
  std::string out;
  for_each_key([&](std::string_view section) { out += fmt::format("{}:\n", section); },
               [&](const Key& key) {
                 out += fmt::format("  {}: {}", key.last_part(), yaml_value(key, config));
                 if (origins != nullptr) out += "  # " + one_line((*origins)[index_of(key)]);
                 out += '\n';
               });
  return out;
}

}  // namespace

std::vector<KeyInfo> keys() {
  std::vector<KeyInfo> infos;
  for (const Key& key : schema()) {
    infos.push_back({.key = std::string(key.name),
                     .flag = std::string(key.flag),
                     .alias = std::string(key.alias),
                     .alias_flag = key.alias_flag(),
                     .type = std::string(key.type_name()),
                     .default_value = get_value(key, Config{}),
                     .range = key.range(),
                     .help = std::string(key.help),
                     .live = key.live});
  }
  return infos;
}

std::string print(const Config& config) {
  return print(config, nullptr);
}

std::string print(const Loaded& loaded) {
  return print(loaded.config, &loaded.origins);
}

std::string reference_markdown() {
  std::string out(kIntroduction);
  add_aliases(out);
  out += kReload;
  for_each_key(
      [&](std::string_view section) {
        out += fmt::format(
            "\n## {}\n\n| key | flag | default | values | meaning |\n|---|---|---|---|---|\n",
            section);
      },
      [&](const Key& key) { add_row(key, out); });
  out += "\nThis page is generated: `R1D_UPDATE_DOCS=1 build/host/tests/r1d_config_test`.\n";
  return out;
}

std::string example_yaml() {
  std::string out(kExampleHead);
  for_each_key([&](std::string_view section) { out += fmt::format("\n{}:\n", section); },
               [&](const Key& key) {
                 const std::string value = yaml_value(key, Config{});
                 add_comment(key.help, out);
                 add_comment(fmt::format("{}; default {}{}",
                                         values(key),
                                         value,
                                         key.live ? "; live: SIGHUP applies a change" : ""),
                             out);
                 out += fmt::format("  {}: {}\n", key.last_part(), value);
               });
  return out;
}

}  // namespace r1d::config
