// SPDX-License-Identifier: Apache-2.0
// The subcommands behind run(): each takes its parsed options and returns what went wrong.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <absl/status/status.h>

#include "r1d/config/config.h"

namespace r1d::cli {

// How long the end of the process waits for its last log records to be read.
inline constexpr std::chrono::milliseconds kLastRecords{1000};

struct ServeOptions {
  config::Config config;
  config::Sources sources;  // of `config`, read again on SIGHUP
  std::string port_file;    // "": none; else gets {"grpc": port, "management": port}
  int ready_fd = -1;        // -1: none; else gets the same as a line when the model is served
};
// The daemon: returns when it has drained. kUnavailable when the engine was lost.
[[nodiscard]] absl::Status serve(const ServeOptions& options);

// Whether `r1d serve` would take it.
[[nodiscard]] absl::Status check_config(const config::Sources& sources);
// Every value and where it came from, to standard output.
[[nodiscard]] absl::Status show_config(const config::Sources& sources);
// The fault points, to standard output.
[[nodiscard]] absl::Status list_faults();
// What `specs` and the variable R1D_FAULT name. Before the first stage is built.
[[nodiscard]] absl::Status arm_faults(const std::vector<std::string>& specs);

struct GoldenOptions {
  std::string dir;
  int32_t world_size = 1;
  int32_t batch = 1;  // sequences side by side
  int32_t chunk = 0;  // tokens a step at most; 0: whole prompts
  int32_t block_size = 16;
  bool prefix_hit = false;  // ask twice; the second time the prompt comes from the prefix cache
  bool preempt = false;     // take every sequence's blocks away every few steps
  bool expert_parallel = false;
  bool bf16_dot = false;
  std::string kv_cache_dtype = "auto";
  std::string device = "cpu";
  bool deterministic = false;
  double tolerance = 0;  // relative L2 of the logits; 0: what the device and the formats allow
};
// kFailedPrecondition when a case is outside its tolerance.
[[nodiscard]] absl::Status golden(const GoldenOptions& options);

struct GenerateOptions {
  std::string address = "127.0.0.1:50051";
  std::vector<int32_t> token_ids;  // or
  std::string text;
  int32_t max_tokens = 16;
  double temperature = 0;
};
// A client: streams tokens from a running daemon to standard output.
[[nodiscard]] absl::Status generate(const GenerateOptions& options);

struct TokenizeOptions {
  std::string tokenizer;  // a tokenizer.json or a directory
  bool decode = false;    // ids to text
  bool jsonl = false;     // a JSON object a line, with "text" and "ids"
  bool plain = false;     // control tokens are ordinary text
  bool skip_special = false;
};
// Standard input to standard output, line by line.
[[nodiscard]] absl::Status tokenize(const TokenizeOptions& options);

struct RenderOptions {
  std::string tokenizer;      // directory: bos, eos, and the template unless chat_template is given
  std::string chat_template;  // a Jinja file
  bool ids = false;           // print token ids too
};
// A conversation as JSON on standard input -> the prompt on standard output.
[[nodiscard]] absl::Status render(const RenderOptions& options);

struct ChatOptions {
  std::string model;                        // a directory: a daemon is run for it
  std::string address = "127.0.0.1:50051";  // of a running daemon, without `model`
  std::string system;
  std::optional<double> temperature;
  std::optional<int32_t> max_tokens;
  std::optional<int32_t> thinking_budget;
};
// A conversation at the terminal.
[[nodiscard]] absl::Status chat(const ChatOptions& options);

struct InspectOptions {
  std::string dir;
  std::optional<int32_t> world_size;  // default: 1, or a packed directory's own
  bool expert_parallel = false;
};
[[nodiscard]] absl::Status inspect(const InspectOptions& options);

struct PackCommandOptions {
  std::string model;   // Hugging Face directory
  std::string output;  // to be made, or empty
  int32_t world_size = 1;
  bool expert_parallel = false;
  int32_t num_threads = 0;  // 0: one a core
  bool verify = false;      // read all of it again afterwards
};
// Writes a file a rank; ends early, and leaves nothing, on SIGTERM or SIGINT.
[[nodiscard]] absl::Status pack(const PackCommandOptions& options);

struct VerifyOptions {
  std::string dir;
  int32_t num_threads = 0;  // 0: one a core
};
// Packed files against their checksums; a checkpoint's headers and sizes. kDataLoss when damaged.
[[nodiscard]] absl::Status verify(const VerifyOptions& options);

struct MakeCheckpointOptions {
  std::string dir;           // to be made, or empty
  std::string model_config;  // config.json of the model
  std::optional<int32_t> layers;
  std::optional<int32_t> dense_layers;
  std::optional<int32_t> experts;
  uint64_t seed = 1;
  int64_t shard_bytes = 5'000'000'000;
};
// Writes seeded weights as a Hugging Face directory, without MTP layers.
[[nodiscard]] absl::Status make_checkpoint(const MakeCheckpointOptions& options);

}  // namespace r1d::cli
