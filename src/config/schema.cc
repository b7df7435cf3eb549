// SPDX-License-Identifier: Apache-2.0
#include "config/schema.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace r1d::config {
namespace {

constexpr int64_t kSecond = 1000;  // durations are in milliseconds
constexpr int64_t kHour = 3600 * kSecond;
constexpr int64_t kKi = int64_t{1} << 10;
constexpr int64_t kGi = int64_t{1} << 30;
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();

struct Range {
  int64_t min;
  int64_t max;
};

using Choices = std::vector<std::string_view>;

// A key in the making: `number(...).in("tokens").live()`.
struct Row {
  Key key;

  Row in(std::string_view unit) && {
    key.unit = unit;
    return std::move(*this);
  }
  Row alias(std::string_view name) && {
    key.alias = name;
    return std::move(*this);
  }
  Row variable(std::string_view name) && {
    key.variable = name;
    return std::move(*this);
  }
  Row live() && {
    key.live = true;
    return std::move(*this);
  }
  operator Key() const { return key; }  // NOLINT(google-explicit-constructor): a table of keys
};

Row plain(Type type,
          std::string_view name,
          std::string_view flag,
          FieldRef field,
          std::string_view help) {
  Row row;
  row.key.name = name;
  row.key.flag = flag;
  row.key.type = type;
  row.key.field = field;
  row.key.help = help;
  return row;
}

Row number(Type type,
           std::string_view name,
           std::string_view flag,
           FieldRef field,
           Range range,
           std::string_view help) {
  Row row = plain(type, name, flag, field, help);
  row.key.min = range.min;
  row.key.max = range.max;
  return row;
}

// A text, or an integer, out of a list.
Row choice(Type type,
           std::string_view name,
           std::string_view flag,
           FieldRef field,
           Choices choices,
           std::string_view help) {
  Row row = number(type, name, flag, field, {0, kLargest}, help);
  row.key.choices = std::move(choices);
  return row;
}

#define R1D_FIELD(member) \
  +[](Config& c) -> decltype((std::declval<Config&>().member)) { return c.member; }

// clang-format off
std::vector<Key> make_schema() {
  using enum Type;
  return {
    plain(kString, "model.path", "--model", R1D_FIELD(model.path),
          "Directory of the checkpoint: config.json, safetensors or packed files, tokenizer. "
          "Required unless model.load_format is dummy.").variable("MODEL_PATH"),
    plain(kString, "model.name", "--model-name", R1D_FIELD(model.name),
          "Name that clients see. Empty: the last part of model.path."),
    choice(kChoice, "model.load_format", "--load-format", R1D_FIELD(model.load_format),
           {"auto", "safetensors", "packed", "dummy"},
           "Where weights come from. auto: the files of `r1d pack` where there are any, else "
           "safetensors. dummy: random weights of the shapes that model.config_file gives, for "
           "benchmarks."),
    choice(kChoice, "model.load_mode", "--load-mode", R1D_FIELD(model.load_mode),
           {"auto", "cached", "direct"},
           "How weights are read. cached: through the page cache, so that the next start finds them there. "
           "direct: past it, where the file system can. auto: direct if the host has not the memory to keep "
           "them."),
    number(kInteger, "model.load_threads", "--load-threads", R1D_FIELD(model.load_threads), {0, 256},
           "Threads that read weights, all ranks together. 0: one per core, 4 to 32.").in("threads"),
    plain(kString, "model.config_file", "--model-config", R1D_FIELD(model.config_file),
          "The config.json that dummy weights are made for."),
    number(kInteger, "model.dummy_seed", "--dummy-seed", R1D_FIELD(model.dummy_seed), {0, kLargest},
           "Seed of dummy weights; the same seed gives the same weights."),
    plain(kBoolean, "model.verify_checksums", "--verify-checksums",
          R1D_FIELD(model.verify_checksums),
          "Compare packed weights with their checksums while they are loaded. Safetensors files "
          "have none."),
    plain(kString, "model.tokenizer", "--tokenizer", R1D_FIELD(model.tokenizer),
          "A tokenizer.json, or the directory of one with its tokenizer_config.json. Empty: "
          "model.path, where it may be missing; prompts are token ids then."),

    plain(kString, "chat.template_file", "--chat-template", R1D_FIELD(chat.template_file),
          "A Jinja chat template to use in place of the checkpoint's own."),
    plain(kBoolean, "chat.match_control_tokens", "--match-control-tokens",
          R1D_FIELD(chat.match_control_tokens),
          "Control tokens written inside messages count as such, as they do with Hugging Face. Off: "
          "they stay plain text, and nobody can end a message by writing its end token."),

    choice(kChoice, "engine.device", "--device", R1D_FIELD(engine.device), {"auto", "cpu", "cuda"},
           "Where the model runs. auto: the GPU when this build and this machine have one, else the CPU."),
    choice(kChoice, "engine.inference_mode", "--inference-mode", R1D_FIELD(engine.inference_mode),
           {"tensor_parallel"},
           "How the ranks share the model. There is one way; the key lets deployments that name theirs "
           "be checked.").variable("INFERENCE_MODE"),
    choice(kInteger, "engine.world_size", "--world-size", R1D_FIELD(engine.world_size),
           {"1", "2", "4", "8"},
           "Ranks that share the model by tensor parallelism: heads, experts, vocabulary and "
           "intermediate sizes are cut into so many parts.").in("ranks"),
    number(kInteger, "engine.num_threads", "--num-threads", R1D_FIELD(engine.num_threads), {0, 4096},
           "Compute threads of all ranks together, at least one a rank. 0: one per core.").in("threads"),
    plain(kBoolean, "engine.expert_parallel", "--expert-parallel", R1D_FIELD(engine.expert_parallel),
          "Each rank holds whole experts instead of a part of every expert."),
    choice(kChoice, "engine.kv_cache_dtype", "--kv-cache-dtype", R1D_FIELD(engine.kv_cache_dtype),
           {"auto", "f32", "bf16", "fp8"},
           "Number format of the latent KV cache. auto: f32 on the CPU, bf16 on a GPU (which has no f32). fp8: "
           "e4m3 latents with a scale per 128 values, bf16 rope values; 57 % of bf16's bytes."),
    number(kBytes, "engine.kv_cache_memory", "--kv-cache-memory", R1D_FIELD(engine.kv_cache_memory_bytes),
           {0, kGi << 20},
           "Memory of the latent KV cache on each rank. 0: a quarter of the free RAM; on a GPU what the "
           "weights leave."),
    plain(kBoolean, "engine.bf16_dot", "--bf16-dot", R1D_FIELD(engine.bf16_dot),
          "Use the CPU's bf16 dot-product instructions where it has them; activations "
          "are rounded to bf16. Measured no faster so far."),
    plain(kBoolean, "engine.deterministic", "--deterministic", R1D_FIELD(engine.deterministic),
          "On a GPU: a request's tokens do not depend on what else is in its batch. Costs speed; the CPU "
          "is always so."),
    plain(kBoolean, "engine.cuda_graphs", "--cuda-graphs", R1D_FIELD(engine.cuda_graphs),
          "On a GPU: record decode steps once and replay them. Off only to look for faults."),
    choice(kChoice, "engine.numa", "--numa", R1D_FIELD(engine.numa), {"auto", "off"},
           "On a host with several NUMA nodes, auto keeps each rank's threads and memory at one of them: a "
           "GPU's rank at its GPU, ranks of the CPU spread evenly."),
    plain(kBoolean, "engine.load_mtp", "--load-mtp", R1D_FIELD(engine.load_mtp),
          "Load the multi-token prediction layers too. Nothing runs them yet."),

    number(kInteger, "scheduler.max_batch_size", "--max-batch-size", R1D_FIELD(scheduler.max_batch_size),
           {1, 4096},
           "Sequences in one step at most.").in("sequences"),
    number(kDuration, "scheduler.batch_timeout", "--batch-timeout", R1D_FIELD(scheduler.batch_timeout),
           {0, 10 * kSecond},
           "How long an idle engine may wait for more requests before its first step. 0ms: not at "
           "all. A busy engine never waits."),
    number(kInteger, "scheduler.max_num_batched_tokens", "--max-num-batched-tokens",
           R1D_FIELD(scheduler.max_num_batched_tokens), {1, 1 << 17},
           "Tokens in one step at most, prefill and decode together; longer prompts are computed in "
           "chunks. At least scheduler.max_batch_size.").in("tokens").alias("scheduler.max_tokens"),
    number(kInteger, "scheduler.max_model_len", "--max-model-len", R1D_FIELD(scheduler.max_model_len),
           {0, 1 << 20},
           "Prompt and output tokens of a sequence at most; 2 or more. 0: what the model allows, as "
           "far as the KV cache holds it.").in("tokens"),
    number(kInteger, "scheduler.block_size", "--block-size", R1D_FIELD(scheduler.block_size), {1, 1024},
           "Tokens in a KV cache block.").in("tokens"),
    number(kInteger, "scheduler.max_waiting_requests", "--max-waiting-requests",
           R1D_FIELD(scheduler.max_waiting_requests), {1, 1 << 20},
           "Requests that may wait; one more is refused with RESOURCE_EXHAUSTED.").in("requests").live(),
    plain(kBoolean, "scheduler.prefix_cache", "--prefix-cache", R1D_FIELD(scheduler.prefix_cache),
          "Reuse the KV cache blocks of prompts that begin with the same tokens."),
    number(kDuration, "scheduler.priority_aging", "--priority-aging", R1D_FIELD(scheduler.priority_aging),
           {1, kHour},
           "Waiting this long counts as one priority level, so that no request starves."),

    plain(kAddress, "server.grpc_address", "--grpc-address", R1D_FIELD(server.grpc_address),
          "Where the gRPC API listens. Port 0: any free port."),
    plain(kAddress, "server.management_address", "--management-address",
          R1D_FIELD(server.management_address),
          "Where /metrics, /livez, /readyz, /startupz and /version are served. Port 0: any free port."),
    plain(kBoolean, "server.reflection", "--reflection", R1D_FIELD(server.reflection),
          "Let clients list the services and messages of the gRPC API."),
    number(kBytes, "server.max_request_bytes", "--max-request-bytes",
           R1D_FIELD(server.max_request_bytes), {kKi, kGi},
           "Size of a gRPC request message at most."),
    number(kInteger, "server.stream_buffer_tokens", "--stream-buffer-tokens",
           R1D_FIELD(server.stream_buffer_tokens), {1, 1 << 20},
           "Tokens of a stream that wait for its reader at most; a slower reader is cancelled.")
        .in("tokens").live(),
    number(kInteger, "server.max_concurrent_streams", "--max-concurrent-streams",
           R1D_FIELD(server.max_concurrent_streams), {1, 100000},
           "Calls in flight on one connection at most.").in("calls"),
    number(kInteger, "server.max_connections", "--max-connections", R1D_FIELD(server.max_connections),
           {1, 1000000},
           "Connections to the gRPC port at most; each takes three file descriptors, and fewer are taken "
           "where the process may not open so many.").in("connections"),
    number(kInteger, "server.max_connections_per_address", "--max-connections-per-address",
           R1D_FIELD(server.max_connections_per_address), {1, 1000000},
           "Connections from one client address at most (IPv6: from one /64). Raise it where many clients "
           "come through one proxy with a connection each.").in("connections"),
    number(kDuration, "server.drain_timeout", "--drain-timeout", R1D_FIELD(server.drain_timeout),
           {0, 24 * kHour},
           "After SIGTERM, how long running requests may take to finish; then they are cancelled.")
        .live(),
    number(kDuration, "server.liveness_timeout", "--liveness-timeout",
           R1D_FIELD(server.liveness_timeout), {100, 24 * kHour},
           "When no step has moved for so long, /livez fails, health is NOT_SERVING, running requests end "
           "UNAVAILABLE and the step is aborted. On the CPU parts of a layer count, on a GPU whole steps.").live(),
    number(kDuration, "server.recovery_timeout", "--recovery-timeout",
           R1D_FIELD(server.recovery_timeout), {100, 24 * kHour},
           "How long an engine that has stalled may take to move again; requests that wait then go on, "
           "later all end UNAVAILABLE and the process exits with status 1.").live(),
    number(kDuration, "server.max_request_time", "--max-request-time",
           R1D_FIELD(server.max_request_time), {1, 168 * kHour},
           "A request's time at most, and its deadline when it brings none. A change counts for requests "
           "that come later.").live(),

    choice(kChoice, "log.level", "--log-level", R1D_FIELD(log.level),
           {"trace", "debug", "info", "warn", "error"},
           "The least severe records that are written, to standard error.").live(),
    choice(kChoice, "log.format", "--log-format", R1D_FIELD(log.format),
           {"auto", "text", "json"},
           "A readable line, or one JSON object, per record. auto: text on a terminal, else json."),
    plain(kBoolean, "log.requests", "--log-requests", R1D_FIELD(log.requests),
          "Write a record for each finished request: lengths, times, outcome, never its text. Off: "
          "only for those that failed by a fault of the server."),
  };
}
// clang-format on

#undef R1D_FIELD

}  // namespace

std::span<const Key> schema() {
  static const std::vector<Key> keys = make_schema();
  return keys;
}

size_t index_of(const Key& key) {
  return static_cast<size_t>(&key - schema().data());
}

const Key* find_key(std::string_view name) {
  const auto keys = schema();
  const auto it = std::find_if(keys.begin(), keys.end(), [&](const Key& key) {
    return key.name == name || (!key.alias.empty() && key.alias == name);
  });
  return it == keys.end() ? nullptr : &*it;
}

bool is_section(std::string_view name) {
  const auto keys = schema();
  return std::any_of(
      keys.begin(), keys.end(), [&](const Key& key) { return key.section() == name; });
}

}  // namespace r1d::config
