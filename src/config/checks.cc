// SPDX-License-Identifier: Apache-2.0
#include "config/checks.h"

#include <string_view>

#include "r1d/base/address.h"
#include "r1d/base/check.h"
#include "r1d/base/status.h"

#include "config/values.h"

namespace r1d::config {
namespace {

// One key with its value and the place it came from.
struct Given {
  std::string_view name;
  std::string value;
  std::string origin;
  [[nodiscard]] bool is_default() const { return origin == kDefaultOrigin; }
};

Given given(const Loaded& loaded, std::string_view name) {
  const Key* key = find_key(name);
  R1D_CHECK(key != nullptr);
  return {key->name, quote(get_value(*key, loaded.config)), origin_of(loaded, *key)};
}

// `f.yaml:3: a: expected more than b, found "1"; b is "2" (default)`. The line is that of the first
// key which somebody gave.
absl::Status clash(const Loaded& loaded,
                   std::string_view name,
                   std::string_view other_name,
                   std::string_view expected) {
  const Given key = given(loaded, name);
  const Given other = given(loaded, other_name);
  const std::string& place = key.is_default() ? other.origin : key.origin;
  return invalid_argument("{}: {}: expected {}, found {}{}; {} is {} ({})",
                          place,
                          key.name,
                          expected,
                          key.value,
                          key.is_default() ? " (default)" : "",
                          other.name,
                          other.value,
                          other.origin);
}

bool takes_all(const std::string& host) {
  return host == "0.0.0.0" || host == "::";
}

bool same_listener(const std::string& a, const std::string& b) {
  const auto first = base::parse_address(a);
  const auto second = base::parse_address(b);
  return first.ok() && second.ok() && first->port != 0 && first->port == second->port &&
         (first->host == second->host || takes_all(first->host) || takes_all(second->host));
}

absl::Status check_scheduler(const Loaded& loaded) {
  const SchedulerSettings& scheduler = loaded.config.scheduler;
  if (scheduler.max_num_batched_tokens < scheduler.max_batch_size) {
    return clash(loaded,
                 "scheduler.max_num_batched_tokens",
                 "scheduler.max_batch_size",
                 "at least scheduler.max_batch_size, so that every running sequence can decode in "
                 "each step");
  }
  if (scheduler.max_model_len == 1) {
    return invalid_argument(
        "{}: scheduler.max_model_len: expected 0 or at least 2 (one prompt and one output token), "
        "found \"1\"",
        given(loaded, "scheduler.max_model_len").origin);
  }
  return absl::OkStatus();
}

absl::Status check_engine(const Loaded& loaded) {
  const EngineSettings& engine = loaded.config.engine;
  if (engine.num_threads != 0 && engine.num_threads < engine.world_size) {
    return clash(loaded,
                 "engine.num_threads",
                 "engine.world_size",
                 "0 or at least engine.world_size, a thread for every rank");
  }
  if (engine.device == "cuda" && engine.kv_cache_dtype == "f32") {
    return clash(loaded,
                 "engine.kv_cache_dtype",
                 "engine.device",
                 "auto or bf16, the only formats of a GPU's cache");
  }
  return absl::OkStatus();
}

absl::Status check_model(const Loaded& loaded) {
  const ModelSettings& model = loaded.config.model;
  if (model.load_format != "dummy") return absl::OkStatus();
  if (model.config_file.empty()) {
    return clash(loaded,
                 "model.config_file",
                 "model.load_format",
                 "the config.json that dummy weights are made for (--model-config FILE)");
  }
  const bool has_tokenizer = !model.path.empty() || !model.tokenizer.empty();
  if (!has_tokenizer && !loaded.config.chat.template_file.empty()) {
    return clash(loaded,
                 "model.tokenizer",
                 "chat.template_file",
                 "a tokenizer, without which no chat can be rendered");
  }
  return absl::OkStatus();
}

}  // namespace

std::string& origin_of(Loaded& loaded, const Key& key) {
  return loaded.origins.at(index_of(key));
}

const std::string& origin_of(const Loaded& loaded, const Key& key) {
  return loaded.origins.at(index_of(key));
}

absl::Status check_together(const Loaded& loaded) {
  R1D_RETURN_IF_ERROR(check_model(loaded));
  R1D_RETURN_IF_ERROR(check_engine(loaded));
  R1D_RETURN_IF_ERROR(check_scheduler(loaded));
  const ServerSettings& server = loaded.config.server;
  if (same_listener(server.grpc_address, server.management_address)) {
    return clash(loaded,
                 "server.management_address",
                 "server.grpc_address",
                 "another address than server.grpc_address");
  }
  return absl::OkStatus();
}

absl::Status require_model(const Config& config) {
  if (config.model.load_format == "dummy" || !config.model.path.empty()) return absl::OkStatus();
  return invalid_argument(
      "model.path: expected the directory of a checkpoint; give it with --model DIR (or use "
      "--load-format dummy --model-config FILE for random weights)");
}

}  // namespace r1d::config
