// SPDX-License-Identifier: Apache-2.0
// Flags, environment and file become one validated, immutable Config. Precedence: flag, then
// R1D_SECTION__KEY, then the YAML file, then the default. One table (src/config/schema.cc) holds
// every key with its type, unit, range, default and help, and whether it can change while the
// daemon runs; it drives parsing, --help, `r1d config`, configs/r1d.yaml and docs/configuration.md.
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
  std::string load_format = "auto";  // model.load_format: auto | safetensors | packed | dummy
  std::string load_mode = "auto";    // model.load_mode: auto | cached | direct
  int32_t load_threads = 0;          // model.load_threads: that read weights; 0 = a core each
  std::string config_file;           // model.config_file: config.json for load_format dummy
  uint64_t dummy_seed = 1;           // model.dummy_seed
  bool verify_checksums = true;      // model.verify_checksums: of packed weights, while loading
  std::string tokenizer;             // model.tokenizer: default: the model's directory
};

struct ChatSettings {
  std::string template_file;          // chat.template_file: default: the checkpoint's own
  bool match_control_tokens = false;  // chat.match_control_tokens
};

struct EngineSettings {
  std::string device = "auto";  // engine.device: auto (cuda if there is a GPU) | cpu | cuda
  std::string inference_mode = "tensor_parallel";  // engine.inference_mode: the only one
  int32_t world_size = 1;                          // engine.world_size: 1, 2, 4 or 8
  int32_t num_threads = 0;              // engine.num_threads: all ranks together; 0 = one a core
  bool expert_parallel = false;         // engine.expert_parallel: whole experts a rank
  std::string kv_cache_dtype = "auto";  // engine.kv_cache_dtype: auto | f32 | bf16 | fp8
  int64_t kv_cache_memory_bytes = 0;  // engine.kv_cache_memory: a rank; 0 = what there is to spare
  bool bf16_dot = false;              // engine.bf16_dot: see ops::CpuOptions
  bool deterministic = false;         // engine.deterministic: see ops::CudaOptions
  bool cuda_graphs = true;            // engine.cuda_graphs
  std::string numa = "auto";          // engine.numa: auto | off
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
  std::chrono::milliseconds liveness_timeout{10000};    // no progress for so long = stalled
  std::chrono::milliseconds recovery_timeout{15000};    // stalled for so long = lost
  std::chrono::milliseconds max_request_time{3600000};  // a deadline for requests without one
};

struct LogSettings {
  std::string level = "info";   // log.level: trace | debug | info | warn | error
  std::string format = "auto";  // log.format: auto (text on a terminal) | text | json
  bool requests = true;         // log.requests: a record for each finished request
};

struct Config {
  ModelSettings model;
  ChatSettings chat;
  EngineSettings engine;
  SchedulerSettings scheduler;
  ServerSettings server;
  LogSettings log;
};

// (key, value) as given on the command line: {"engine.world_size", "2"}. A key's alias will do.
using Overrides = std::vector<std::pair<std::string, std::string>>;

// What a configuration is made of. Read again as it is for a reload.
struct Sources {
  std::string file{};                      // YAML; "": none
  std::vector<std::string> environment{};  // NAME=VALUE; what does not name a key is ignored
  Overrides flags{};
};

constexpr const char* kDefaultOrigin = "default";

struct Loaded {
  Config config;
  // Where each value came from, in the order of keys(): "default", "r1d.yaml:7",
  // "environment R1D_LOG__LEVEL", "flag --log-level".
  std::vector<std::string> origins;
};

// kInvalidArgument names file, line, key, expected, found and, for an unknown name, the nearest
// known one; where two values do not go together, both keys and where each value came from.
[[nodiscard]] absl::StatusOr<Loaded> load(const Sources& sources);

// Every such error, one line each: those of the file by line, then environment, flags, and values
// that do not go together (left out where an error before leaves one of them in doubt). Empty when
// load() succeeds, else the first is load()'s.
[[nodiscard]] std::vector<std::string> problems(const Sources& sources);

// OK when the configuration says which model to serve. Apart from load(), because a file may well
// leave that to a flag or a variable.
[[nodiscard]] absl::Status require_model(const Config& config);

// A file alone, from its text; `origin` stands for its name in errors.
[[nodiscard]] absl::StatusOr<Config> parse_yaml(const std::string& text, const std::string& origin);

// One line of the schema table, for --help and the flags of `r1d serve`.
struct KeyInfo {
  std::string key;         // "scheduler.max_num_batched_tokens"
  std::string flag;        // "--max-num-batched-tokens"
  std::string alias;       // "scheduler.max_tokens"; "": none
  std::string alias_flag;  // "--max-tokens"
  std::string type;  // "integer", "duration", "bytes", "string", "boolean", "choice", "address"
  std::string default_value;
  std::string range;  // with its unit: "1 to 4096 tokens"
  std::string help;
  bool live = false;  // a reload may change it
};
[[nodiscard]] std::vector<KeyInfo> keys();

// The word that is spelled most like `text`, for "did you mean"; "" when none is near.
[[nodiscard]] std::string nearest(const std::string& text, const std::vector<std::string>& words);

// The whole configuration as YAML, every key with its value.
[[nodiscard]] std::string print(const Config& config);
// The same, with where each value came from as a comment behind it.
[[nodiscard]] std::string print(const Loaded& loaded);

struct Change {
  std::string key;
  std::string before;
  std::string after;
  std::string origin;  // of `after`
};

// What a newly read configuration makes of the one in force: keys that can change while the daemon
// runs take their new values, all others keep theirs until it is started again.
struct Reload {
  Config config;                // to be in force from now on
  std::vector<Change> applied;  // in `config`
  std::vector<Change> waiting;  // for a restart
};
[[nodiscard]] Reload reload(const Config& active, const Loaded& next);

// docs/configuration.md and configs/r1d.yaml, generated from the table; tests hold the files
// against them.
[[nodiscard]] std::string reference_markdown();
[[nodiscard]] std::string example_yaml();

}  // namespace r1d::config
