// SPDX-License-Identifier: Apache-2.0
// `r1d bench serve` and `r1d bench report`.
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <memory>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "r1d/base/file.h"
#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"
#include "r1d/base/version.h"
#include "r1d/v1/inference.grpc.pb.h"

#include "cli/bench/bench.h"
#include "cli/bench/report.h"
#include "cli/bench/scrape.h"
#include "cli/bench/units.h"
#include "cli/interrupts.h"
#include "cli/progress_bar.h"

namespace r1d::cli::bench {
namespace {

// The load under way, which Ctrl-C stops; before and between, Ctrl-C keeps the next from starting.
// Thread-safe.
class Stoppable {
 public:
  // False when it was interrupted before.
  bool set(Load* load) {
    const base::MutexLock lock(mu_);
    load_ = load;
    return !stopped_;
  }
  void stop() {
    const base::MutexLock lock(mu_);
    stopped_ = true;
    if (load_ != nullptr) load_->stop();
  }

 private:
  base::Mutex mu_;
  Load* load_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

struct Server {
  v1::GetModelResponse model;
  v1::GetServerInfoResponse info;
};

absl::Status to_status(const std::string& address, const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      fmt::format("{}: {}", address, status.error_message()));
}

absl::StatusOr<Server> ask_server(const std::string& address) {
  const auto stub = v1::InferenceService::NewStub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(10);
  Server server;
  grpc::ClientContext model_context;
  model_context.set_deadline(deadline);
  grpc::Status status = stub->GetModel(&model_context, v1::GetModelRequest(), &server.model);
  if (!status.ok()) return to_status(address, status);
  grpc::ClientContext info_context;
  info_context.set_deadline(deadline);
  status = stub->GetServerInfo(&info_context, v1::GetServerInfoRequest(), &server.info);
  if (!status.ok()) return to_status(address, status);
  return server;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::map<std::string, std::string> server_facts(const std::string& address, const Server& server) {
  return {{"address", address},
          {"version", server.info.version()},
          {"model", server.model.name()},
          {"device", server.info.device()},
          {"ranks", std::to_string(server.info.world_size())}};
}

std::map<std::string, std::string> workload_facts(const ServeOptions& options) {
  const LoadOptions& load = options.load;
  const WorkloadOptions& workload = options.workload;
  std::map<std::string, std::string> facts;
  if (load.rate) {
    facts["rate"] = fmt::format("{:g}/s {}", *load.rate, load.poisson ? "poisson" : "constant");
  } else {
    facts["concurrency"] = std::to_string(load.concurrency);
  }
  if (load.num_requests) facts["requests"] = std::to_string(*load.num_requests);
  if (load.seconds) facts["duration"] = format_seconds(*load.seconds);
  if (!workload.requests_file.empty()) {
    facts["requests file"] = workload.requests_file;
  } else if (!workload.lengths_file.empty()) {
    facts["lengths"] = workload.lengths_file;
  } else {
    facts["input"] = workload.input.text();
    facts["output"] = workload.output.text();
  }
  if (workload.shared_prefix > 0) facts["shared prefix"] = std::to_string(workload.shared_prefix);
  facts["method"] = load.unary ? "unary" : "streamed";
  facts["connections"] = std::to_string(load.num_connections);
  facts["seed"] = std::to_string(load.seed);
  return facts;
}

std::string label_of(const ServeOptions& options) {
  if (!options.label.empty()) return options.label;
  if (options.load.rate) return fmt::format("{:g}/s", *options.load.rate);
  return fmt::format("{} at a time", options.load.concurrency);
}

// Some requests that nobody counts: connections open, caches and arenas fill.
void warm_up(const ServeOptions& options, const Workload& workload, Stoppable& stoppable) {
  if (options.num_warmup == 0) return;
  LoadOptions load_options = options.load;
  load_options.rate.reset();
  load_options.concurrency = std::min(options.num_warmup, 16);
  load_options.num_requests = options.num_warmup;
  load_options.seconds.reset();
  Load load(load_options, workload, nullptr);
  if (stoppable.set(&load)) static_cast<void>(load.run());
  stoppable.set(nullptr);
}

absl::StatusOr<RunLog> measure(const ServeOptions& options,
                               const Workload& workload,
                               Stoppable& stoppable) {
  ProgressBar bar("bench");
  Load load(options.load, workload, [&bar](double share) { bar.update(share); });
  if (!stoppable.set(&load)) return cancelled("interrupted before the first request");
  RunLog log = load.run();
  stoppable.set(nullptr);
  return log;
}

absl::StatusOr<Result> run(const ServeOptions& options, Stoppable& stoppable) {
  R1D_ASSIGN_OR_RETURN(const Server server, ask_server(options.load.address));
  R1D_ASSIGN_OR_RETURN(const Workload workload,
                       Workload::open(options.workload, server.model.last_token_id()));
  warm_up(options, workload, stoppable);
  ProcessUse before;
  if (!options.management.empty()) {
    R1D_ASSIGN_OR_RETURN(before, scrape_process(options.management));
  }
  const std::string started_at = utc_now();
  R1D_ASSIGN_OR_RETURN(const RunLog log, measure(options, workload, stoppable));
  Result result = summarize(log, options.goal);
  if (!options.management.empty()) {
    // A daemon that is gone by now costs this figure alone.
    const auto after = scrape_process(options.management);
    if (after.ok()) {
      result.server_cost =
          ServerCost{after->cpu_seconds - before.cpu_seconds, after->resident_bytes};
    }
  }
  result.label = label_of(options);
  result.started_at = started_at;
  result.version = base::version();
  result.server = server_facts(options.load.address, server);
  result.workload = workload_facts(options);
  return result;
}

absl::StatusOr<std::vector<Result>> read_results(const std::vector<std::string>& files) {
  constexpr int64_t kMostBytes = 64 << 20;
  std::vector<Result> results;
  for (const std::string& file : files) {
    const auto text = read_text_file(file, kMostBytes);
    if (!text.ok()) return with_context(text.status(), file);
    auto result = result_from_json(*text);
    if (!result.ok()) return with_context(result.status(), file);
    results.push_back(*std::move(result));
  }
  return results;
}

}  // namespace

absl::Status write_file(const char* flag, const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  if (!file.flush()) return invalid_argument("{} {}: cannot be written", flag, path);
  return absl::OkStatus();
}

absl::Status serve(const ServeOptions& options) {
  Stoppable stoppable;
  const Interrupts interrupts([&stoppable] { stoppable.stop(); });  // before gRPC starts threads
  R1D_ASSIGN_OR_RETURN(const Result result, run(options, stoppable));
  std::fputs(render_table(result).c_str(), stdout);
  if (!options.json.empty())
    R1D_RETURN_IF_ERROR(write_file("--json", options.json, to_json(result).dump(1) + "\n"));
  if (!options.html.empty())
    R1D_RETURN_IF_ERROR(write_file("--html", options.html, render_html(std::span(&result, 1))));
  if (result.num_ok == 0) return unavailable("{}: no request came through", options.load.address);
  return absl::OkStatus();
}

absl::Status report(const ReportOptions& options) {
  R1D_ASSIGN_OR_RETURN(const std::vector<Result> results, read_results(options.files));
  if (!options.html.empty()) return write_file("--html", options.html, render_html(results));
  std::fputs((results.size() == 1 ? render_table(results[0]) : render_comparison(results)).c_str(),
             stdout);
  return absl::OkStatus();
}

}  // namespace r1d::cli::bench
