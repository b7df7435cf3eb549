// SPDX-License-Identifier: Apache-2.0
// `r1d serve`: builds the stages bottom-up, runs them until a signal or a lost engine, drains.
#include <atomic>
#include <cstdio>
#include <fstream>
#include <memory>
#include <unistd.h>
#include <utility>

#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include "r1d/base/clock.h"
#include "r1d/base/log.h"
#include "r1d/base/status.h"
#include "r1d/base/version.h"
#include "r1d/scheduler/step_loop.h"
#include "r1d/telemetry/metrics.h"
#include "r1d/transport/management_server.h"

#include "cli/commands.h"
#include "cli/lifecycle.h"
#include "cli/progress_bar.h"
#include "cli/setup.h"

namespace r1d::cli {
namespace {

using admission::Frontend;
using transport::HttpReply;

// How long cut streams may take to hear that they were cut, once nothing runs any more.
constexpr std::chrono::milliseconds kStreamGrace{5000};

// All stages of one daemon, in the order they are built; members are destroyed in reverse.
class Daemon {
 public:
  Daemon(const ServeOptions& options, Lifecycle& lifecycle)
      : options_(options),
        config_(options.config),
        lifecycle_(lifecycle),
        log_(base::make_logger("r1d")) {}

  // Both listeners first: a taken port shows before minutes of loading, and probes see the load.
  absl::Status bind() {
    log_->info("r1d {} starting, pid {}", base::version(), getpid());
    R1D_ASSIGN_OR_RETURN(management_,
                         transport::ManagementServer::start(
                             {.address = config_.server.management_address}, routes()));
    R1D_ASSIGN_OR_RETURN(grpc_,
                         transport::GrpcServer::start(
                             grpc_options(config_.server), frontend_, transport_metrics_, clock_));
    log_->info("listening: grpc port {}, management port {}", grpc_->port(), management_->port());
    return write_port_file();
  }

  absl::Status load() {
    const TimePoint start = clock_.now();
    R1D_ASSIGN_OR_RETURN(files_, open_model(config_));
    ProgressBar bar("loading " + files_.name);
    R1D_ASSIGN_OR_RETURN(engine_,
                         engine::Engine::create(*files_.weights,
                                                engine_options(config_),
                                                files_.last_token_id,
                                                [&](double fraction) -> absl::Status {
                                                  load_fraction_.store(fraction);
                                                  startup_metrics_.load_progress(fraction);
                                                  bar.update(fraction);
                                                  if (!lifecycle_.stop_requested())
                                                    return absl::OkStatus();
                                                  return cancelled("stopped while loading");
                                                }));
    startup_metrics_.load_seconds(seconds_between(start, clock_.now()));
    return absl::OkStatus();
  }

  void start() {
    loop_ = std::make_unique<scheduler::StepLoop>(
        scheduler_options(config_.scheduler, engine_->cache()),
        *engine_,
        engine_metrics_,
        clock_,
        [this](const absl::Status& why) {
          frontend_.fail(why);
          lifecycle_.engine_lost(why);
        });
    loop_->start();
    running_loop_.store(loop_.get());
    frontend_.attach(admission_limits(files_, engine_->cache()), files_.text, *loop_);
    grpc_->model_loaded(served_model(files_, config_, *engine_));
    startup_metrics_.ready(true);
    log_->info("ready: {} on {}, {} ranks, {} KV blocks of {} tokens, max_model_len {}",
               files_.name,
               engine_->device(),
               config_.engine.world_size,
               engine_->cache().num_blocks,
               config_.scheduler.block_size,
               engine_->cache().max_model_len);
    tell_ready();
  }

  // In this order: balancers hear it first, then clients are refused, then running work ends, then
  // streams close, then the loop stops (nothing can reach it any more). Probes answer to the last.
  void drain() {
    startup_metrics_.ready(false);
    grpc_->set_serving(false);
    frontend_.begin_drain();
    log_->info("draining: up to {} ms for running requests", config_.server.drain_timeout.count());
    const int64_t cut = loop_->drain(config_.server.drain_timeout);
    if (cut > 0) log_->warn("drain limit passed: {} sequences were cancelled", cut);
    grpc_->shutdown(kStreamGrace);
    frontend_.detach();
    running_loop_.store(nullptr);
    loop_->stop();
    log_->info("stopped");
  }

 private:
  transport::ManagementRoutes routes() {
    return {{"/metrics", [this] { return metrics(); }},
            {"/livez", [this] { return liveness(); }},
            {"/readyz", [this] { return readiness(); }},
            {"/startupz", [this] { return startup(); }},
            {"/version", [] { return version(); }}};
  }

  HttpReply metrics() const {
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = registry_.render()};
  }

  // Loading never fails liveness: a restart would only begin it again.
  HttpReply liveness() const {
    const scheduler::StepLoop* loop = running_loop_.load();
    if (loop == nullptr || loop->alive(config_.server.liveness_timeout)) return {.body = "ok\n"};
    return {.status = 503,
            .body = fmt::format("the step loop has not moved for {} ms\n",
                                config_.server.liveness_timeout.count())};
  }

  HttpReply readiness() const {
    switch (frontend_.state()) {
      case Frontend::State::kServing:
        return {.body = "ok\n"};
      case Frontend::State::kLoading:
        return {.status = 503, .body = "loading\n"};
      case Frontend::State::kDraining:
        return {.status = 503, .body = "draining\n"};
      case Frontend::State::kFailed:
        break;
    }
    return {.status = 503, .body = "the engine was lost\n"};
  }

  HttpReply startup() const {
    if (frontend_.state() != Frontend::State::kLoading) return {.body = "ok\n"};
    return {.status = 503, .body = fmt::format("loading {:.1f} %\n", load_fraction_.load() * 100)};
  }

  static HttpReply version() {
    const nlohmann::json body{{"name", "r1d"}, {"version", base::version()}};
    return {.content_type = "application/json", .body = body.dump() + "\n"};
  }

  // Whole or not at all: whoever waits for the file never reads half of it.
  absl::Status write_port_file() const {
    if (options_.port_file.empty()) return absl::OkStatus();
    const std::string temporary = options_.port_file + ".tmp";
    {
      std::ofstream file(temporary);
      file << ports();
      if (!file.flush())
        return invalid_argument("--port-file {}: cannot be written", options_.port_file);
    }
    if (std::rename(temporary.c_str(), options_.port_file.c_str()) != 0) {
      return invalid_argument("--port-file {}: cannot be written", options_.port_file);
    }
    return absl::OkStatus();
  }

  [[nodiscard]] std::string ports() const {
    return nlohmann::json{{"grpc", grpc_->port()}, {"management", management_->port()}}.dump() +
           "\n";
  }

  // Whoever started this process with a pipe hears that it serves.
  void tell_ready() const {
    if (options_.ready_fd < 0) return;
    const std::string line = ports();
    if (::write(options_.ready_fd, line.data(), line.size()) < 0)
      log_->warn("--ready-fd: cannot be written");
    ::close(options_.ready_fd);
  }

  const ServeOptions& options_;
  const config::Config& config_;
  Lifecycle& lifecycle_;
  const std::shared_ptr<spdlog::logger> log_;
  const SteadyClock clock_;
  telemetry::Registry registry_;
  telemetry::EngineMetrics engine_metrics_{registry_};
  telemetry::TransportMetrics transport_metrics_{registry_};
  telemetry::StartupMetrics startup_metrics_{registry_, base::version()};
  std::atomic<double> load_fraction_{0};
  std::atomic<scheduler::StepLoop*> running_loop_{nullptr};
  ModelFiles files_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<scheduler::StepLoop> loop_;
  Frontend frontend_{clock_};
  std::unique_ptr<transport::GrpcServer> grpc_;
  std::unique_ptr<transport::ManagementServer> management_;
};

}  // namespace

absl::Status serve(const ServeOptions& options) {
  raise_file_limit();
  Lifecycle lifecycle;
  Daemon daemon(options, lifecycle);
  R1D_RETURN_IF_ERROR(daemon.bind());
  if (const absl::Status loaded = daemon.load(); !loaded.ok()) {
    return lifecycle.stop_requested() ? absl::OkStatus() : loaded;
  }
  daemon.start();
  const absl::Status outcome = lifecycle.wait();
  daemon.drain();
  return outcome;
}

}  // namespace r1d::cli
