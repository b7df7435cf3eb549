// SPDX-License-Identifier: Apache-2.0
// The command line: each subcommand fills its options and leaves an action for run().
#include "r1d/cli/cli.h"

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "r1d/base/exceptions.h"
#include "r1d/base/log.h"
#include "r1d/base/status.h"
#include "r1d/base/version.h"
#include "r1d/config/config.h"
#include "r1d/device/gpu_info.h"
#include "r1d/ops/cpu_ops.h"

#include "cli/bench/bench.h"
#include "cli/commands.h"
#include "cli/plan.h"
#include "cli/settings.h"

namespace r1d::cli {
namespace {

using Action = std::function<absl::Status()>;

struct ServeFlags {
  std::string config_file;
  std::string port_file;
  int ready_fd = -1;
  std::vector<std::string> faults;
  bool check_config = false;
  bool print_config = false;
  Settings settings;
};

base::LogFormat log_format(const std::string& name) {
  if (name == "json") return base::LogFormat::kJson;
  return name == "text" ? base::LogFormat::kText : base::LogFormat::kAuto;
}

absl::Status run_serve(const ServeFlags& flags) {
  const config::Sources sources = flags.settings.sources(flags.config_file);
  R1D_ASSIGN_OR_RETURN(const config::Loaded loaded, config::load(sources));
  const config::Config& config = loaded.config;
  R1D_RETURN_IF_ERROR(config::require_model(config));
  if (flags.print_config) std::fputs(config::print(config).c_str(), stdout);
  if (flags.check_config) std::puts("configuration ok");
  if (flags.print_config || flags.check_config) return absl::OkStatus();
  base::init_logging(config.log.level, log_format(config.log.format));
  R1D_RETURN_IF_ERROR(arm_faults(flags.faults));
  return serve({.config = config,
                .sources = sources,
                .port_file = flags.port_file,
                .ready_fd = flags.ready_fd});
}

void add_serve(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("serve", "Load a model and answer over gRPC until SIGTERM");
  auto flags = std::make_shared<ServeFlags>();
  command->add_option(
      "--config", flags->config_file, "YAML file; flags and R1D_SECTION__KEY override it");
  command->add_option(
      "--port-file",
      flags->port_file,
      "Write {\"grpc\": port, \"management\": port} here once both listeners are bound");
  command->add_option("--ready-fd",
                      flags->ready_fd,
                      "Write the same to this file descriptor once requests are served");
  command->add_option("--fault", flags->faults, "Arm a fault point, for tests; see `r1d faults`")
      ->allow_extra_args(false);
  command->add_flag("--check-config", flags->check_config, "Check the configuration and exit");
  command->add_flag(
      "--print-config", flags->print_config, "Print the whole configuration and exit");
  flags->settings.add_to(*command);
  command->callback([flags, &action] { action = [flags] { return run_serve(*flags); }; });
}

struct ConfigFlags {
  std::string file;
  Settings settings;
};

void add_config(CLI::App& app, Action& action) {
  CLI::App* config = app.add_subcommand("config", "Check or show a configuration, without a model");
  config->require_subcommand(1);
  CLI::App* check = config->add_subcommand(
      "check", "Whether `serve` would take a file, with the environment and flags behind it");
  auto checked = std::make_shared<ConfigFlags>();
  check->add_option("--config,file", checked->file, "YAML file")->required();
  checked->settings.add_to(*check);
  check->callback([checked, &action] {
    action = [checked] { return check_config(checked->settings.sources(checked->file)); };
  });
  CLI::App* show = config->add_subcommand("show", "Every value, and where it came from, as YAML");
  auto shown = std::make_shared<ConfigFlags>();
  show->add_option("--config,file", shown->file, "YAML file");
  shown->settings.add_to(*show);
  show->callback([shown, &action] {
    action = [shown] { return show_config(shown->settings.sources(shown->file)); };
  });
}

void add_inspect(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("inspect", "Print what a checkpoint holds and what a rank needs");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("model", options->dir, "Hugging Face or packed directory")->required();
  command->add_option("--world-size",
                      options->world_size,
                      "Ranks to share the model; default: 1, or what it is packed for");
  command->add_flag("--expert-parallel", options->expert_parallel, "Whole experts a rank");
  command->callback([options, &action] { action = [options] { return inspect(*options); }; });
}

void add_pack(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "pack",
      "Write a checkpoint as one file a rank, with checksums, for one world size; serve it with "
      "`serve --model DIR --world-size N`");
  auto options = std::make_shared<PackCommandOptions>();
  command->add_option("model", options->model, "Hugging Face directory")->required();
  command->add_option("--world-size", options->world_size, "Ranks that will serve it")
      ->required()
      ->check(CLI::Range(1, 64));
  command->add_flag("--expert-parallel",
                    options->expert_parallel,
                    "Whole experts a rank: for engine.expert_parallel");
  command->add_option("--output", options->output, "Directory to make, or an empty one")
      ->required();
  command->add_option("--threads", options->num_threads, "That read and write; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--verify", options->verify, "Read all of it back against its checksums");
  command->callback([options, &action] { action = [options] { return pack(*options); }; });
}

void add_verify(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "verify", "Read a packed directory against its checksums, a checkpoint's headers and sizes");
  auto options = std::make_shared<VerifyOptions>();
  command->add_option("dir", options->dir, "Packed or Hugging Face directory")->required();
  command->add_option("--threads", options->num_threads, "That read; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return verify(*options); }; });
}

void add_make_checkpoint(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "make-checkpoint", "Write a model's directory with seeded weights, whole or less deep");
  auto options = std::make_shared<MakeCheckpointOptions>();
  command->add_option("dir", options->dir, "Directory to make, or an empty one")->required();
  command->add_option("--model-config", options->model_config, "config.json of the model")
      ->required();
  command->add_option("--layers", options->layers, "num_hidden_layers; default: the model's");
  command->add_option(
      "--dense-layers", options->dense_layers, "first_k_dense_replace; default: the model's");
  command->add_option("--experts", options->experts, "n_routed_experts; default: the model's");
  command->add_option("--seed", options->seed, "Of the weights")->capture_default_str();
  command->add_option("--shard-size", options->shard_bytes, "Bytes of a file at most, e.g. 5GB")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback(
      [options, &action] { action = [options] { return make_checkpoint(*options); }; });
}

void add_golden(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "golden",
      "Compare the engine with recorded logits and tokens (golden.json, golden.safetensors)");
  auto options = std::make_shared<GoldenOptions>();
  command->add_option("dir", options->dir, "Checkpoint or packed directory with golden files")
      ->required();
  command->add_option("--world-size", options->world_size, "Ranks")
      ->check(CLI::IsMember({1, 2, 4, 8}))
      ->capture_default_str();
  command->add_option("--batch", options->batch, "Sequences side by side")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--chunk", options->chunk, "Tokens a step at most; 0: whole prompts")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--block-size", options->block_size, "Tokens a KV block")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--kv-cache-dtype", options->kv_cache_dtype, "Latent cache")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "fp8"}))
      ->capture_default_str();
  command->add_option("--device", options->device, "Where the model runs")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_flag("--deterministic", options->deterministic, "On a GPU: as engine.deterministic");
  command
      ->add_option("--tolerance",
                   options->tolerance,
                   "Relative L2 error of the logits that passes; 0: by device and formats")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_flag("--prefix-hit",
                    options->prefix_hit,
                    "Ask twice, judge the answers that used the prefix cache");
  command->add_flag("--preempt", options->preempt, "Take all blocks away every few steps");
  command->add_flag("--expert-parallel", options->expert_parallel, "Whole experts a rank");
  command->add_flag(
      "--bf16-dot", options->bf16_dot, "AVX-512 BF16 products where the CPU has them");
  command->callback([options, &action] { action = [options] { return golden(*options); }; });
}

void add_generate(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("generate", "Ask a running daemon and stream the tokens");
  auto options = std::make_shared<GenerateOptions>();
  command->add_option("--address", options->address, "host:port")->capture_default_str();
  CLI::Option_group* prompt = command->add_option_group("prompt");
  prompt->add_option("--token-ids", options->token_ids, "Prompt, comma separated")->delimiter(',');
  prompt->add_option("--text", options->text, "Prompt, no chat template around it");
  prompt->require_option(1);
  command->add_option("--max-tokens", options->max_tokens, "Output tokens at most")
      ->capture_default_str();
  command->add_option("--temperature", options->temperature, "0: greedy")->capture_default_str();
  command->callback([options, &action] { action = [options] { return generate(*options); }; });
}

void add_chat(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("chat", "Talk to a model at the terminal");
  auto options = std::make_shared<ChatOptions>();
  CLI::Option* model = command->add_option(
      "model", options->model, "Hugging Face directory; a daemon is run for it");
  command->add_option("--address", options->address, "host:port of a running daemon")
      ->capture_default_str()
      ->excludes(model);
  command->add_option("--system", options->system, "System message");
  command->add_option("--temperature", options->temperature, "0: greedy; default: the model's");
  command->add_option("--max-tokens", options->max_tokens, "Output tokens of an answer at most");
  command->add_option("--thinking-budget", options->thinking_budget, "Tokens of a thought at most");
  command->callback([options, &action] { action = [options] { return chat(*options); }; });
}

void add_tokenize(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("tokenize", "Lines of standard input to token ids, or back");
  auto options = std::make_shared<TokenizeOptions>();
  command->add_option("--tokenizer", options->tokenizer, "tokenizer.json, or a directory of one")
      ->required();
  command->add_flag("--decode", options->decode, "Token ids to text");
  command->add_flag("--jsonl",
                    options->jsonl,
                    "A JSON object a line: \"text\" in and \"ids\" out, or the reverse");
  command->add_flag("--plain", options->plain, "Control tokens in the text are ordinary text");
  command->add_flag("--skip-special", options->skip_special, "Decode without BOS and the like");
  command->callback([options, &action] { action = [options] { return tokenize(*options); }; });
}

void add_render(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "render", "A conversation (JSON on standard input) through a chat template");
  auto options = std::make_shared<RenderOptions>();
  command->add_option("--tokenizer", options->tokenizer, "Directory of tokenizer.json")->required();
  command->add_option(
      "--chat-template", options->chat_template, "Jinja file; default: the directory's");
  command->add_flag("--ids", options->ids, "Print one JSON object: prompt and token ids");
  command->callback([options, &action] { action = [options] { return render(*options); }; });
}

void add_faults(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("faults", "List the fault points and what each does, for tests");
  command->callback([&action] { action = [] { return list_faults(); }; });
}

void add_version(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("version", "Print the version and what this machine offers");
  command->callback([&action] {
    action = [] {
      fmt::print("r1d {}\ncpu: {}\ngpu: {}\n",
                 base::version(),
                 ops::cpu_target(/*bf16_dot=*/true),
                 device::describe_gpus());
      return absl::OkStatus();
    };
  });
}

// For a flag that the subcommand does not know: the one it has that is spelled most like it.
void suggest_flags(const CLI::App& app) {
  for (const CLI::App* command : app.get_subcommands()) {
    std::vector<std::string> known;
    for (const CLI::Option* option : command->get_options()) {
      known.push_back("--" + option->get_single_name());
    }
    for (const std::string& word : command->remaining()) {
      const std::string flag = word.substr(0, word.find('='));
      const std::string near = flag.starts_with("--") ? config::nearest(flag, known) : "";
      if (!near.empty()) fmt::print(stderr, "{}: did you mean {}?\n", flag, near);
    }
    suggest_flags(*command);
  }
}

}  // namespace

int run(int argc, char** argv) {
  CLI::App app("r1d serves DeepSeek-R1 / V3 checkpoints as they are");
  app.require_subcommand(0, 1);  // none at all is caught below: so an unknown word is named
  app.set_version_flag("--version", std::string("r1d ") + base::version());
  Action action;
  add_serve(app, action);
  add_config(app, action);
  add_chat(app, action);
  add_generate(app, action);
  add_tokenize(app, action);
  add_render(app, action);
  add_inspect(app, action);
  add_plan(app, action);
  add_pack(app, action);
  add_verify(app, action);
  add_make_checkpoint(app, action);
  add_golden(app, action);
  add_bench(app, action);
  add_faults(app, action);
  add_version(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError& error) {
    app.exit(error);
    suggest_flags(app);
    return 2;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!action) {
    std::fputs(app.help().c_str(), stderr);
    return 2;
  }
  const absl::Status status = base::without_exceptions(action);
  base::flush_logging(kLastRecords);
  if (status.ok()) return 0;
  std::fprintf(stderr, "r1d: %s\n", message_of(status).c_str());
  return 1;
}

}  // namespace r1d::cli
