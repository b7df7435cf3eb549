// SPDX-License-Identifier: Apache-2.0
#include "r1d/config/config.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <string_view>

#include "r1d/base/status.h"

#include "config/checks.h"
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

absl::Status apply_yaml(const std::string& text, const std::string& origin, Loaded& loaded) {
  R1D_ASSIGN_OR_RETURN(const std::vector<YamlEntry> entries, read_yaml(text, origin));
  Layer layer(loaded);
  for (const YamlEntry& entry : entries) {
    R1D_RETURN_IF_ERROR(
        layer.set(*entry.key, entry.name, entry.value, fmt::format("{}:{}", origin, entry.line)));
  }
  return absl::OkStatus();
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

absl::Status apply_environment(const std::vector<std::string>& environment, Loaded& loaded) {
  Layer layer(loaded);
  for (const std::string& entry : environment) {
    const size_t equals = entry.find('=');
    if (equals == std::string::npos) continue;
    const std::string_view text(entry);
    const Variable variable{text.substr(0, equals), text.substr(equals + 1)};
    if (const Key* key = find_by_variable(variable); key != nullptr) {
      R1D_RETURN_IF_ERROR(layer.set(
          *key, variable.name, variable.value, fmt::format("environment {}", variable.name)));
    } else if (seems_ours(variable.name)) {
      return invalid_argument("{}", unknown_environment(variable.name));
    }
  }
  return absl::OkStatus();
}

absl::Status apply_flags(const Overrides& flags, Loaded& loaded) {
  Layer layer(loaded);
  for (const auto& [name, value] : flags) {
    const Key* key = find_key(name);
    if (key == nullptr) return invalid_argument("{}", unknown_name(name));
    const std::string flag = name == key->name ? std::string(key->flag) : key->alias_flag();
    R1D_RETURN_IF_ERROR(layer.set(*key, name, value, "flag " + flag));
  }
  return absl::OkStatus();
}

Loaded defaults() {
  return {.config = {}, .origins = std::vector<std::string>(schema().size(), kDefaultOrigin)};
}

}  // namespace

absl::StatusOr<Loaded> load(const Sources& sources) {
  Loaded loaded = defaults();
  if (!sources.file.empty()) {
    R1D_ASSIGN_OR_RETURN(const std::string text, read_file(sources.file));
    R1D_RETURN_IF_ERROR(apply_yaml(text, sources.file, loaded));
  }
  R1D_RETURN_IF_ERROR(apply_environment(sources.environment, loaded));
  R1D_RETURN_IF_ERROR(apply_flags(sources.flags, loaded));
  R1D_RETURN_IF_ERROR(check_together(loaded));
  return loaded;
}

absl::StatusOr<Config> parse_yaml(const std::string& text, const std::string& origin) {
  Loaded loaded = defaults();
  R1D_RETURN_IF_ERROR(apply_yaml(text, origin, loaded));
  R1D_RETURN_IF_ERROR(check_together(loaded));
  return loaded.config;
}

}  // namespace r1d::config
