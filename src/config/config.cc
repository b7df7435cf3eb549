// SPDX-License-Identifier: Apache-2.0
#include "r1d/config/config.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <string_view>
#include <utility>

#include "r1d/base/status.h"

#include "config/checks.h"
#include "config/problems.h"
#include "config/schema.h"
#include "config/suggest.h"
#include "config/values.h"
#include "config/yaml_reader.h"

namespace r1d::config {
namespace {

// At most one byte more than the limit, so that an endless file is refused like a long one.
absl::StatusOr<std::string> read_file(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::string text(kMaxYamlBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in.is_open() || in.bad()) {
    return invalid_argument("{}: cannot read the configuration: {}", path, std::strerror(errno));
  }
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kMaxYamlBytes) {
    return invalid_argument("{}: expected at most {} bytes, found more", path, kMaxYamlBytes);
  }
  return text;
}

// What one source gives: values on top of those of the source before it. A key may come under
// several names, as long as they agree; under one name the last counts.
class Layer {
 public:
  explicit Layer(Loaded& loaded) : loaded_(loaded) {}

  // `name`: how the key was written here, kept as a view; `origin`: where.
  absl::Status set(const Key& key,
                   std::string_view name,
                   std::string_view text,
                   const std::string& origin) {
    const std::string before = get_value(key, loaded_.config);
    const absl::Status status = set_value(key, text, loaded_.config);
    if (!status.ok()) return invalid_argument("{}: {}", origin, message_of(status));
    const auto [given, first] = names_.try_emplace(&key, name);
    if (!first && given->second != name && get_value(key, loaded_.config) != before) {
      return invalid_argument("{}: two names of {} disagree: expected {} as in {}, found {}",
                              origin,
                              key.name,
                              quote(before),
                              origin_of(loaded_, key),
                              quote(text));
    }
    origin_of(loaded_, key) = origin;
    return absl::OkStatus();
  }

 private:
  Loaded& loaded_;
  std::map<const Key*, std::string_view> names_;  // under which each key came first
};

struct Outcome {
  Loaded loaded{.config = {}, .origins = std::vector<std::string>(schema().size(), kDefaultOrigin)};
  Problems problems;

  void note(const absl::Status& status, const Key& key, int line = 0) {
    if (!status.ok()) problems.add({message_of(status), std::string(key.name), line});
  }
};

void apply_yaml(const std::string& text, const std::string& origin, Outcome& outcome) {
  YamlFile file = read_yaml(text, origin);
  for (Problem& problem : file.problems) outcome.problems.add(std::move(problem));
  if (!file.complete) outcome.problems.doubt_all();
  Layer layer(outcome.loaded);
  for (const YamlEntry& entry : file.entries) {
    const std::string place = fmt::format("{}:{}", origin, entry.line);
    outcome.note(layer.set(*entry.key, entry.name, entry.value, place), *entry.key, entry.line);
  }
  outcome.problems.sort_by_line();
}

void apply_file(const std::string& path, Outcome& outcome) {
  const absl::StatusOr<std::string> text = read_file(path);
  if (text.ok()) return apply_yaml(*text, path, outcome);
  outcome.problems.add({message_of(text.status())});
  outcome.problems.doubt_all();
}

struct Variable {
  std::string_view name;
  std::string_view value;
};

bool names(const Variable& variable, const Key& key) {
  if (variable.name.starts_with("R1D_")) {
    return variable.name == key.environment() || variable.name == key.alias_environment();
  }
  // Deployments set names from outside for several programs, and leave them empty where unused.
  return variable.name == key.variable && !variable.value.empty();
}

const Key* find_by_variable(const Variable& variable) {
  for (const Key& key : schema()) {
    if (names(variable, key)) return &key;
  }
  return nullptr;
}

// R1D_LOG_LEVEL is a slip for R1D_LOG__LEVEL.
bool lacks_an_underscore(std::string_view name) {
  for (const Key& key : schema()) {
    std::string slip = key.environment();
    slip.erase(slip.find("__"), 1);
    if (slip == name) return true;
  }
  return false;
}

// Other variables are not ours to judge: Kubernetes gives every pod R1D_PORT and R1D_SERVICE_HOST
// when a Service is called r1d.
bool seems_ours(std::string_view name) {
  if (!name.starts_with("R1D_")) return false;
  return name.find("__") != std::string_view::npos || lacks_an_underscore(name);
}

void apply_environment(const std::vector<std::string>& environment, Outcome& outcome) {
  Layer layer(outcome.loaded);
  for (const std::string& entry : environment) {
    const size_t equals = entry.find('=');
    if (equals == std::string::npos) continue;
    const std::string_view text(entry);
    const Variable variable{text.substr(0, equals), text.substr(equals + 1)};
    if (const Key* key = find_by_variable(variable); key != nullptr) {
      const std::string place = fmt::format("environment {}", variable.name);
      outcome.note(layer.set(*key, variable.name, variable.value, place), *key);
    } else if (seems_ours(variable.name)) {
      const UnknownName unknown = unknown_environment(variable.name);
      outcome.problems.add({unknown.message, unknown.meant});
    }
  }
}

void apply_flags(const Overrides& flags, Outcome& outcome) {
  Layer layer(outcome.loaded);
  for (const auto& [name, value] : flags) {
    const Key* key = find_key(name);
    if (key == nullptr) {
      const UnknownName unknown = unknown_name(name);
      outcome.problems.add({unknown.message, unknown.meant});
      continue;
    }
    const std::string flag = name == key->name ? std::string(key->flag) : key->alias_flag();
    outcome.note(layer.set(*key, name, value, "flag " + flag), *key);
  }
}

Outcome read(const Sources& sources) {
  Outcome outcome;
  if (!sources.file.empty()) apply_file(sources.file, outcome);
  apply_environment(sources.environment, outcome);
  apply_flags(sources.flags, outcome);
  check_together(outcome.loaded, outcome.problems);
  return outcome;
}

}  // namespace

absl::StatusOr<Loaded> load(const Sources& sources) {
  Outcome outcome = read(sources);
  if (!outcome.problems.empty()) return invalid_argument("{}", outcome.problems.first());
  return std::move(outcome.loaded);
}

std::vector<std::string> problems(const Sources& sources) {
  return read(sources).problems.messages();
}

absl::StatusOr<Config> parse_yaml(const std::string& text, const std::string& origin) {
  Outcome outcome;
  apply_yaml(text, origin, outcome);
  check_together(outcome.loaded, outcome.problems);
  if (!outcome.problems.empty()) return invalid_argument("{}", outcome.problems.first());
  return outcome.loaded.config;
}

}  // namespace r1d::config
