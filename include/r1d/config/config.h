// SPDX-License-Identifier: Apache-2.0
// Flags, environment and file become one validated, immutable Config. Precedence: flag, then
// R1D_SECTION__KEY, then the YAML file, then the default. One table (src/config/schema.cc) holds
// every key with its type, unit, range, default and help; it drives parsing, --help, --print-config
// and docs/configuration.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::config {

struct ModelSettings {
  std::string path;  // model.path: Hugging Face directory
  std::string name;  // model.name: name clients see; default: the directory's last part
  std::string load_format = "auto";  // model.load_format: auto | safetensors | dummy
  std::string config_file;           // model.config_file: config.json for load_format dummy
  uint64_t dummy_seed = 1;           // model.dummy_seed
  std::string tokenizer;             // model.tokenizer: default: the model's directory
};

struct ChatSettings {
  std::string template_file;          // chat.template_file: default: the checkpoint's own
  bool match_control_tokens = false;  // chat.match_control_tokens
};

struct EngineSettings {
  std::string device = "auto";          // engine.device: auto (cuda if there is a GPU) | cpu | cuda
  int32_t world_size = 1;               // engine.world_size: 1, 2, 4 or 8
  int32_t num_threads = 0;              // engine.num_threads: all ranks together; 0 = one a core
  bool expert_parallel = false;         // engine.expert_parallel: whole experts a rank
  std::string kv_cache_dtype = "auto";  // engine.kv_cache_dtype: auto | f32 | bf16
  int64_t kv_cache_memory_bytes = 0;  // engine.kv_cache_memory: a rank; 0 = what there is to spare
  bool bf16_dot = false;              // engine.bf16_dot: see ops::CpuOptions
  bool deterministic = false;         // engine.deterministic: see ops::CudaOptions
  bool cuda_graphs = true;            // engine.cuda_graphs
  bool load_mtp = false;              // engine.load_mtp: load the MTP layers as well
};

struct SchedulerSettings {
  int32_t max_batch_size = 64;
  std::chrono::milliseconds batch_timeout{10};
  int32_t max_num_batched_tokens = 32768;
  int32_t max_model_len = 0;  // 0: the model's, as far as the cache holds it
  int32_t block_size = 64;
  int32_t max_waiting_requests = 1024;
  bool prefix_cache = true;
  std::chrono::milliseconds priority_aging{10000};
};

struct ServerSettings {
  std::string grpc_address = "127.0.0.1:50051";       // server.grpc_address; port 0 = any
  std::string management_address = "127.0.0.1:8081";  // server.management_address
  bool reflection = true;                             // server.reflection
  int32_t max_request_bytes = 4 << 20;                // server.max_request_bytes
  int32_t stream_buffer_tokens = 4096;        // unread tokens before a slow reader is cancelled
  int32_t max_concurrent_streams = 1024;      // server.max_concurrent_streams, per connection
  int32_t max_connections = 10000;            // server.max_connections
  int32_t max_connections_per_address = 512;  // server.max_connections_per_address
  std::chrono::milliseconds drain_timeout{600000};      // server.drain_timeout
  std::chrono::milliseconds liveness_timeout{30000};    // no progress for so long = dead
  std::chrono::milliseconds max_request_time{3600000};  // a deadline for requests without one
};

struct LogSettings {
  std::string level = "info";   // log.level: trace | debug | info | warn | error
  std::string format = "text";  // log.format: text | json
};

struct Config {
  ModelSettings model;
  ChatSettings chat;
  EngineSettings engine;
  SchedulerSettings scheduler;
  ServerSettings server;
  LogSettings log;
};

// (key, value) as given on the command line: {"engine.world_size", "2"}.
using Overrides = std::vector<std::pair<std::string, std::string>>;

// Reads `yaml_path` ("" = none), then `environment` (NAME=VALUE entries; those not starting with
// R1D_ are ignored), then `flags`. kInvalidArgument names file, line, key, expected, found and, for
// an unknown key, the nearest known one.
[[nodiscard]] absl::StatusOr<Config> load(const std::string& yaml_path,
                                          const std::vector<std::string>& environment,
                                          const Overrides& flags);

// The same from YAML text; `origin` stands for the file's name in errors.
[[nodiscard]] absl::StatusOr<Config> parse_yaml(const std::string& text, const std::string& origin);

// One line of the schema table, for --help and the flags of `r1d serve`.
struct KeyInfo {
  std::string key;   // "scheduler.max_batch_size"
  std::string flag;  // "--max-batch-size"
  std::string type;  // "integer", "duration", "bytes", "string", "boolean", "choice"
  std::string default_value;
  std::string range;
  std::string help;
};
[[nodiscard]] std::vector<KeyInfo> keys();

// The whole configuration as YAML, every key with its value.
[[nodiscard]] std::string print(const Config& config);

// docs/configuration.md, generated from the table; a test holds the file against it.
[[nodiscard]] std::string reference_markdown();

}  // namespace r1d::config
