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

bool takes_all(const std::string& host) {
  return host == "0.0.0.0" || host == "::";
}

bool same_listener(const std::string& a, const std::string& b) {
  const auto first = base::parse_address(a);
  const auto second = base::parse_address(b);
  return first.ok() && second.ok() && first->port != 0 && first->port == second->port &&
         (first->host == second->host || takes_all(first->host) || takes_all(second->host));
}

class Checks {
 public:
  Checks(const Loaded& loaded, Problems& problems)
      : loaded_(loaded), config_(loaded.config), problems_(problems) {}

  void all() {
    model();
    engine();
    scheduler();
    server();
  }

 private:
  // `f.yaml:3: a: expected more than b, found "1"; b is "2" (default)`. The line is that of the
  // first key which somebody gave.
  void clash(std::string_view name, std::string_view other_name, std::string_view expected) {
    if (is_doubtful(name) || is_doubtful(other_name)) return;
    const Given key = given(loaded_, name);
    const Given other = given(loaded_, other_name);
    const std::string& place = key.is_default() ? other.origin : key.origin;
    problems_.add({fmt::format("{}: {}: expected {}, found {}{}; {} is {} ({})",
                               place,
                               key.name,
                               expected,
                               key.value,
                               key.is_default() ? " (default)" : "",
                               other.name,
                               other.value,
                               other.origin)});
  }
  [[nodiscard]] bool is_doubtful(std::string_view name) const {
    return problems_.is_doubtful(*find_key(name));
  }

  void model() {
    const ModelSettings& model = config_.model;
    if (model.load_format != "dummy") return;
    if (model.config_file.empty()) {
      clash("model.config_file",
            "model.load_format",
            "the config.json that dummy weights are made for (--model-config FILE)");
    }
    const bool has_tokenizer = !model.path.empty() || !model.tokenizer.empty();
    if (!has_tokenizer && !config_.chat.template_file.empty()) {
      clash("model.tokenizer",
            "chat.template_file",
            "a tokenizer, without which no chat can be rendered");
    }
  }

  void engine() {
    const EngineSettings& engine = config_.engine;
    if (engine.num_threads != 0 && engine.num_threads < engine.world_size) {
      clash("engine.num_threads",
            "engine.world_size",
            "0 or at least engine.world_size, a thread for every rank");
    }
    if (engine.device == "cuda" && engine.kv_cache_dtype == "f32") {
      clash("engine.kv_cache_dtype",
            "engine.device",
            "auto, bf16 or fp8, the formats of a GPU's cache");
    }
  }

  void scheduler() {
    const SchedulerSettings& scheduler = config_.scheduler;
    if (scheduler.max_num_batched_tokens < scheduler.max_batch_size) {
      clash("scheduler.max_num_batched_tokens",
            "scheduler.max_batch_size",
            "at least scheduler.max_batch_size, so that every running sequence can decode in each "
            "step");
    }
    if (scheduler.max_model_len == 1) {
      problems_.add(
          {fmt::format("{}: scheduler.max_model_len: expected 0 or at least 2 (one "
                       "prompt and one output token), found \"1\"",
                       given(loaded_, "scheduler.max_model_len").origin)});
    }
  }

  void server() {
    const ServerSettings& server = config_.server;
    if (!same_listener(server.grpc_address, server.management_address)) return;
    clash("server.management_address",
          "server.grpc_address",
          "another address than server.grpc_address");
  }

  const Loaded& loaded_;
  const Config& config_;
  Problems& problems_;
};

}  // namespace

std::string& origin_of(Loaded& loaded, const Key& key) {
  return loaded.origins.at(index_of(key));
}

const std::string& origin_of(const Loaded& loaded, const Key& key) {
  return loaded.origins.at(index_of(key));
}

void check_together(const Loaded& loaded, Problems& problems) {
  Checks(loaded, problems).all();
}

absl::Status require_model(const Config& config) {
  if (config.model.load_format == "dummy" || !config.model.path.empty()) return absl::OkStatus();
  return invalid_argument(
      "model.path: expected the directory of a checkpoint; give it with --model DIR (or use "
      "--load-format dummy --model-config FILE for random weights)");
}

}  // namespace r1d::config
