// SPDX-License-Identifier: Apache-2.0
// The command line of `r1d bench`.
#include <charconv>
#include <cmath>
#include <memory>

#include <CLI/CLI.hpp>

#include "r1d/base/address.h"
#include "r1d/base/status.h"

#include "cli/bench/bench.h"
#include "cli/bench/units.h"

namespace r1d::cli::bench {
namespace {

using Action = std::function<absl::Status()>;

// What CLI11 prints when a value is refused; "" when it is not.
std::string complaint(const absl::Status& status) {
  return status.ok() ? std::string() : message_of(status);
}
std::string complaint(bool valid, const std::string& expected) {
  return valid ? std::string() : "expected " + expected;
}

// In place of CLI::PositiveNumber, whose message ends with the largest double in all its digits.
std::string positive(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);
  return complaint(read.ec == std::errc() && read.ptr == end && value > 0 && std::isfinite(value),
                   fmt::format("a number above 0, found {}", text));
}

// "64x4096" -> (64, 4096).
bool parse_pair(const std::string& text, char separator, std::pair<int32_t, int32_t>& pair) {
  const std::vector<std::string> sides = split(text, separator);
  return sides.size() == 2 && CLI::detail::lexical_cast(sides[0], pair.first) &&
         CLI::detail::lexical_cast(sides[1], pair.second) && pair.second > 0;
}

CLI::Option* add_lengths(CLI::App& command,
                         const std::string& flag,
                         Lengths& lengths,
                         const char* fallback,
                         const std::string& help) {
  lengths = Lengths::parse(fallback).value();
  return command
      .add_option_function<std::string>(
          flag,
          [&lengths](const std::string& text) { lengths = Lengths::parse(text).value(); },
          help)
      ->check([](const std::string& text) { return complaint(Lengths::parse(text).status()); })
      ->type_name("LENGTH")
      ->default_str(fallback);
}

template <typename T>
CLI::Option* add_seconds(CLI::App& command,
                         const std::string& flag,
                         T& seconds,
                         const std::string& help) {
  return command
      .add_option_function<std::string>(
          flag, [&seconds](const std::string& text) { seconds = *parse_seconds(text); }, help)
      ->check([](const std::string& text) {
        return complaint(parse_seconds(text).has_value(), "a duration such as 500ms, 30s or 2m");
      })
      ->type_name("DURATION");
}

void check_address(CLI::Option* option) {
  option->check(
      [](const std::string& text) { return complaint(base::parse_address(text).status()); });
}

void add_load_flags(CLI::App& command, LoadOptions& load) {
  check_address(command.add_option("--address", load.address, "host:port of the daemon")
                    ->capture_default_str());
  CLI::Option* rate =
      command.add_option("--rate", load.rate, "Open loop: requests a second, whatever comes back")
          ->check(positive);
  command
      .add_option_function<std::string>(
          "--arrivals",
          [&load](const std::string& name) { load.poisson = name == "poisson"; },
          "Of an open loop: poisson or constant distances")
      ->check(CLI::IsMember({"poisson", "constant"}))
      ->default_str("poisson")
      ->needs(rate);
  command.add_option("--concurrency", load.concurrency, "Closed loop: requests in flight")
      ->check(CLI::Range(1, 65'536))
      ->capture_default_str()
      ->excludes(rate);
  command.add_option("--requests", load.num_requests, "Requests to send; default 100, or by time")
      ->check(positive);
  add_seconds(command, "--duration", load.seconds, "Sends nothing later; what runs may end");
  add_seconds(command, "--timeout", load.timeout_seconds, "Deadline of a request")
      ->default_str("10m");
  command.add_flag("--unary", load.unary, "Whole answers instead of streams: no first token");
  command.add_option("--connections", load.num_connections, "To spread requests over")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

void add_workload_flags(CLI::App& command, WorkloadOptions& workload) {
  CLI::Option* file =
      command
          .add_option("--requests-file",
                      workload.requests_file,
                      "JSON lines with text, token_ids or messages, and max_tokens; in turn")
          ->check(CLI::ExistingFile);
  CLI::Option* lengths =
      command
          .add_option(
              "--lengths-file", workload.lengths_file, "Lines of INPUT OUTPUT tokens, in turn")
          ->check(CLI::ExistingFile)
          ->excludes(file);
  add_lengths(command,
              "--input-len",
              workload.input,
              "128",
              "Prompt tokens: N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:MAX]")
      ->excludes(file)
      ->excludes(lengths);
  add_lengths(command, "--output-len", workload.output, "64", "Output tokens, likewise")
      ->excludes(lengths);
  command
      .add_option("--shared-prefix",
                  workload.shared_prefix,
                  "Tokens that all prompts begin with, besides their own")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str()
      ->excludes(file);
  command.add_option("--temperature", workload.temperature, "0: greedy")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  command.add_flag_function(
      "--ignore-eos,!--no-ignore-eos",
      [&workload](int64_t given) { workload.ignore_eos = given > 0; },
      "Go on to the length asked for; default with random tokens");
  command.add_option("--seed", workload.seed, "Of arrivals, lengths and tokens")
      ->capture_default_str();
}

absl::Status run_serve(ServeOptions options) {
  options.load.seed = options.workload.seed;
  if (!options.load.num_requests && !options.load.seconds) options.load.num_requests = 100;
  if (options.load.unary && options.goal &&
      (options.goal->limits.count("ttft") != 0 || options.goal->limits.count("tpot") != 0)) {
    return invalid_argument("--goodput: with --unary there is e2e alone");
  }
  return serve(options);
}

void add_serve(CLI::App& bench, Action& action) {
  CLI::App* command = bench.add_subcommand("serve", "Put a load on a running daemon");
  auto options = std::make_shared<ServeOptions>();
  options->load.address = "127.0.0.1:50051";
  options->load.num_connections = 4;
  options->load.concurrency = 8;
  add_load_flags(*command, options->load);
  add_workload_flags(*command, options->workload);
  command->add_option("--warmup", options->num_warmup, "Requests before, which are not counted")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command
      ->add_option_function<std::string>(
          "--goodput",
          [options](const std::string& text) { options->goal = Goal::parse(text).value(); },
          "Counts requests within limits, e.g. ttft:500ms,tpot:50ms,e2e:10s")
      ->check([](const std::string& text) { return complaint(Goal::parse(text).status()); })
      ->type_name("GOAL");
  check_address(command->add_option(
      "--management",
      options->management,
      "host:port of the daemon's management port: says what processor time the load cost it"));
  command->add_option("--label", options->label, "Name of the run in reports");
  command->add_option("--json", options->json, "File to write the result to");
  command->add_option("--html", options->html, "File to write a report with charts to");
  command->callback([options, &action] { action = [options] { return run_serve(*options); }; });
}

void add_report(CLI::App& bench, Action& action) {
  CLI::App* command =
      bench.add_subcommand("report", "Show or compare what `bench serve --json` wrote");
  auto options = std::make_shared<ReportOptions>();
  command->add_option("files", options->files, "JSON files, the first as yardstick")
      ->required()
      ->check(CLI::ExistingFile);
  command->add_option("--html", options->html, "File to write a report with charts to");
  command->callback([options, &action] { action = [options] { return report(*options); }; });
}

struct OfflineFlags {
  OfflineOptions options;
  RankShardOptions shard_options;
  std::string load_format;
  std::vector<std::string> decode = {"1x4096", "16x4096", "64x4096"};
  std::string shard;
};

absl::Status run_offline(OfflineFlags& flags) {
  OfflineOptions& options = flags.options;
  if (options.model.empty() == options.model_config.empty())
    return invalid_argument("expected one of --model DIR and --model-config FILE");
  if (!flags.load_format.empty() &&
      (flags.load_format == "dummy") == options.model_config.empty()) {
    return invalid_argument(
        "--load-format {}: dummy goes with --model-config, safetensors with --model",
        flags.load_format);
  }
  if (flags.shard.empty()) return offline(options);
  if (options.model_config.empty())
    return invalid_argument("--rank-shard: expected --model-config, its weights are dummies");
  RankShardOptions& shard = flags.shard_options;
  shard.model_config = options.model_config;
  shard.deterministic = options.deterministic;
  shard.expert_parallel = options.expert_parallel;
  shard.kv_cache_dtype = options.kv_cache_dtype;
  if (options.repeats > 0) shard.repeats = options.repeats;
  std::pair<int32_t, int32_t> pair;
  parse_pair(flags.shard, '/', pair);
  shard.rank = pair.first;
  shard.world_size = pair.second;
  for (const std::string& text : flags.decode) {
    parse_pair(text, 'x', pair);
    shard.decode.push_back(pair);
  }
  return rank_shard(shard);
}

void add_model_flags(CLI::App& command, OfflineFlags& flags) {
  OfflineOptions& options = flags.options;
  CLI::Option* model = command.add_option("--model", options.model, "Hugging Face directory");
  command
      .add_option("--model-config", options.model_config, "config.json of a model; dummy weights")
      ->excludes(model);
  command.add_option("--load-format", flags.load_format, "Said by the two above; for scripts")
      ->check(CLI::IsMember({"dummy", "safetensors"}));
  command.add_option("--device", options.device, "Where the model runs")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command.add_option("--world-size", options.world_size, "Ranks")
      ->check(CLI::IsMember({1, 2, 4, 8}))
      ->capture_default_str();
  command.add_option("--num-threads", options.num_threads, "Of all ranks; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_flag("--expert-parallel", options.expert_parallel, "Whole experts a rank");
  command.add_flag("--bf16-dot", options.bf16_dot, "As engine.bf16_dot");
  command.add_flag("--deterministic", options.deterministic, "As engine.deterministic");
  command.add_option("--kv-cache-dtype", options.kv_cache_dtype, "Latent cache")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "fp8"}))
      ->capture_default_str();
}

void add_shape_flags(CLI::App& command, OfflineOptions& options) {
  command.add_option("--batch", options.batches, "Requests side by side, e.g. 1,8,32")
      ->check(CLI::Range(1, 4096))
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("--input-len", options.input_tokens, "Prompt tokens of each")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--output-len", options.output_tokens, "Output tokens of each")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      .add_option("--max-num-batched-tokens", options.max_num_batched_tokens, "Of a step at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--block-size", options.block_size, "Tokens a KV block")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--seed", options.seed, "Of weights and tokens")->capture_default_str();
  command.add_option("--json", options.json, "File to write the result to");
}

void add_shard_flags(CLI::App& command, OfflineFlags& flags) {
  RankShardOptions& options = flags.shard_options;
  CLI::Option* shard =
      command
          .add_option(
              "--rank-shard",
              flags.shard,
              "One rank's steps on a GPU, kernel by kernel: which rank of how many, e.g. 0/8")
          ->check([](const std::string& text) {
            std::pair<int32_t, int32_t> pair;
            const bool valid =
                parse_pair(text, '/', pair) && pair.first >= 0 && pair.first < pair.second;
            return complaint(valid, "RANK/WORLD, e.g. 0/8");
          })
          ->group("One rank");
  command
      .add_flag("--all-ranks",
                options.all_ranks,
                "All of them instead, a GPU each, with their collectives")
      ->needs(shard)
      ->group("One rank");
  command.add_option("--decode", flags.decode, "Decode steps to measure, BATCHxCONTEXT")
      ->check([](const std::string& text) {
        std::pair<int32_t, int32_t> pair;
        return complaint(parse_pair(text, 'x', pair) && pair.first > 0,
                         "BATCHxCONTEXT, e.g. 64x4096");
      })
      ->delimiter(',')
      ->capture_default_str()
      ->needs(shard)
      ->group("One rank");
  command.add_option("--prefill", options.prefill, "Chunks to measure, tokens")
      ->check(CLI::Range(1, 1 << 20))
      ->delimiter(',')
      ->needs(shard)
      ->group("One rank");
  command
      .add_option("--collective-us",
                  options.collective_us,
                  "Microseconds of each collective that is left out; added in a line of its own")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str()
      ->needs(shard)
      ->group("One rank");
  command.add_flag("--per-op,!--no-per-op", options.per_op, "Time each kind of kernel alone, too")
      ->needs(shard)
      ->group("One rank");
}

void add_offline(CLI::App& bench, Action& action) {
  CLI::App* command =
      bench.add_subcommand("offline", "Batches through scheduler and engine, no server");
  auto flags = std::make_shared<OfflineFlags>();
  flags->options.repeats = 0;
  add_model_flags(*command, *flags);
  add_shape_flags(*command, flags->options);
  command
      ->add_option("--repeats",
                   flags->options.repeats,
                   "Runs of a batch, the median one is told (default 3); of a rank's step (20)")
      ->check(CLI::Range(1, 10000));
  command->add_flag(
      "--read-bandwidth",
      flags->options.read_bandwidth,
      "Read memory in turn with decode steps, on as many threads, and tell the share of "
      "that rate at which decode reads weights (CPU)");
  add_shard_flags(*command, *flags);
  command->callback([flags, &action] { action = [flags] { return run_offline(*flags); }; });
}

void add_weights(CLI::App& bench, Action& action) {
  CLI::App* command = bench.add_subcommand(
      "load", "Weights from disk to every rank, beside a plain read of the same files");
  auto options = std::make_shared<WeightsOptions>();
  command
      ->add_option("model",
                   options->model,
                   "Hugging Face directory, or a packed one (its checksums are not compared)")
      ->required();
  command->add_option("--world-size", options->world_size, "Ranks")
      ->check(CLI::IsMember({1, 2, 4, 8}))
      ->capture_default_str();
  command->add_flag("--expert-parallel", options->expert_parallel, "Whole experts a rank");
  command->add_option("--mode", options->mode, "As model.load_mode")
      ->check(CLI::IsMember({"cached", "direct"}))
      ->capture_default_str();
  command->add_option("--threads", options->num_threads, "As model.load_threads")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  command->add_option("--device", options->device, "Where the weights go")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "Passes of each kind; the median counts")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_option("--json", options->json, "File to write the result to");
  command->callback([options, &action] { action = [options] { return weights(*options); }; });
}

}  // namespace
}  // namespace r1d::cli::bench

namespace r1d::cli {

void add_bench(CLI::App& app, std::function<absl::Status()>& action) {
  CLI::App* command = app.add_subcommand("bench", "Measure");
  command->require_subcommand(1);
  bench::add_serve(*command, action);
  bench::add_report(*command, action);
  bench::add_offline(*command, action);
  bench::add_collectives(*command, action);
  bench::add_weights(*command, action);
}

}  // namespace r1d::cli
