// SPDX-License-Identifier: Apache-2.0
#include "r1d/config/config.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string_view>

#include "r1d/base/address.h"
#include "r1d/base/status.h"

#include "config/schema.h"
#include "config/suggest.h"
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

absl::Status apply_yaml(const std::string& text, const std::string& origin, Config& config) {
  R1D_ASSIGN_OR_RETURN(const std::vector<YamlEntry> entries, read_yaml(text, origin));
  for (const YamlEntry& entry : entries) {
    const absl::Status status = set_value(*entry.key, entry.value, config);
    if (!status.ok()) return invalid_argument("{}:{}: {}", origin, entry.line, message_of(status));
  }
  return absl::OkStatus();
}

const Key* find_by_environment(std::string_view name) {
  for (const Key& key : schema()) {
    if (key.environment() == name) return &key;
  }
  return nullptr;
}

// Variables without "__" are not ours to judge: Kubernetes gives every pod R1D_PORT and
// R1D_SERVICE_HOST when a Service is called r1d.
absl::Status apply_environment(const std::vector<std::string>& environment, Config& config) {
  for (const std::string& entry : environment) {
    const size_t equals = entry.find('=');
    const std::string_view name = std::string_view(entry).substr(0, equals);
    if (equals == std::string::npos || !name.starts_with("R1D_")) continue;
    if (name.find("__") == std::string_view::npos) continue;
    const Key* key = find_by_environment(name);
    if (key == nullptr) return invalid_argument("{}", unknown_environment(name));
    const absl::Status status = set_value(*key, std::string_view(entry).substr(equals + 1), config);
    if (!status.ok()) return invalid_argument("environment {}: {}", name, message_of(status));
  }
  return absl::OkStatus();
}

absl::Status apply_flags(const Overrides& flags, Config& config) {
  for (const auto& [name, value] : flags) {
    const Key* key = find_key(name);
    if (key == nullptr) return invalid_argument("{}", unknown_name(name));
    const absl::Status status = set_value(*key, value, config);
    if (!status.ok()) return invalid_argument("flag {}: {}", key->flag, message_of(status));
  }
  return absl::OkStatus();
}

bool same_listener(const std::string& a, const std::string& b) {
  const auto first = base::parse_address(a);
  const auto second = base::parse_address(b);
  return first.ok() && second.ok() && first->port != 0 && first->port == second->port &&
         first->host == second->host;
}

// What one key's range cannot say.
absl::Status check_together(const Config& config) {
  const SchedulerSettings& scheduler = config.scheduler;
  if (scheduler.max_num_batched_tokens < scheduler.max_batch_size) {
    return invalid_argument(
        "scheduler.max_num_batched_tokens: expected at least scheduler.max_batch_size ({}), so "
        "that every "
        "running sequence can decode in each step, found {}",
        scheduler.max_batch_size,
        scheduler.max_num_batched_tokens);
  }
  if (scheduler.max_model_len == 1) {
    return invalid_argument(
        "scheduler.max_model_len: expected 0 or at least 2 (one prompt and one output token), "
        "found 1");
  }
  if (config.engine.num_threads != 0 && config.engine.num_threads < config.engine.world_size) {
    return invalid_argument(
        "engine.num_threads: expected 0 or at least engine.world_size ({}), found {}",
        config.engine.world_size,
        config.engine.num_threads);
  }
  if (same_listener(config.server.grpc_address, config.server.management_address)) {
    return invalid_argument(
        "server.management_address: expected another address than server.grpc_address, found {}",
        config.server.management_address);
  }
  return absl::OkStatus();
}

absl::Status check_model_source(const ModelSettings& model) {
  if (model.load_format == "dummy") {
    if (!model.config_file.empty()) return absl::OkStatus();
    return invalid_argument(
        "model.config_file: load_format dummy needs a config.json; give it with --model-config "
        "FILE");
  }
  if (!model.path.empty()) return absl::OkStatus();
  return invalid_argument(
      "model.path: expected the directory of a checkpoint; give it with --model DIR (or use "
      "--load-format dummy "
      "--model-config FILE for random weights)");
}

}  // namespace

absl::StatusOr<Config> load(const std::string& yaml_path,
                            const std::vector<std::string>& environment,
                            const Overrides& flags) {
  Config config;
  if (!yaml_path.empty()) {
    R1D_ASSIGN_OR_RETURN(const std::string text, read_file(yaml_path));
    R1D_RETURN_IF_ERROR(apply_yaml(text, yaml_path, config));
  }
  R1D_RETURN_IF_ERROR(apply_environment(environment, config));
  R1D_RETURN_IF_ERROR(apply_flags(flags, config));
  R1D_RETURN_IF_ERROR(check_together(config));
  R1D_RETURN_IF_ERROR(check_model_source(config.model));
  return config;
}

absl::StatusOr<Config> parse_yaml(const std::string& text, const std::string& origin) {
  Config config;
  R1D_RETURN_IF_ERROR(apply_yaml(text, origin, config));
  const absl::Status status = check_together(config);
  if (!status.ok()) return invalid_argument("{}: {}", origin, message_of(status));
  return config;
}

}  // namespace r1d::config
