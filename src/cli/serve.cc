// SPDX-License-Identifier: Apache-2.0
// `r1d serve`: builds the stages bottom-up, runs them until a signal or a lost engine, drains.
#include <cstdlib>
#include <memory>
#include <unistd.h>
#include <utility>

#include "r1d/base/clock.h"
#include "r1d/base/fault.h"
#include "r1d/base/log.h"
#include "r1d/base/status.h"
#include "r1d/base/version.h"
#include "r1d/scheduler/step_loop.h"
#include "r1d/telemetry/metrics.h"
#include "r1d/transport/management_server.h"

#include "cli/commands.h"
#include "cli/lifecycle.h"
#include "cli/load_report.h"
#include "cli/memory_report.h"
#include "cli/port_file.h"
#include "cli/probes.h"
#include "cli/progress_bar.h"
#include "cli/reload.h"
#include "cli/service_notifier.h"
#include "cli/setup.h"
#include "cli/stall_watch.h"
#include "cli/stop_grace.h"

namespace r1d::cli {
namespace {

using admission::Frontend;

// How long cut streams may take to hear that they were cut, once nothing runs any more.
constexpr std::chrono::milliseconds kStreamGrace{5000};

// How long a supervisor is asked to wait for the next sign of progress while loading: no read
// takes so long with all its retries, and neither does the warm-up.
constexpr std::chrono::seconds kLoadPatience{120};
constexpr std::chrono::seconds kLoadReportEvery{1};

// How long a load may take to notice that it is to stop.
constexpr std::chrono::seconds kLoadStopGrace{5};

// Threads that cannot be joined are left, so nothing is torn down; every client has its answer.
[[noreturn]] void leave_at_once() {
  base::flush_logging(kLastRecords);
  std::_Exit(EXIT_FAILURE);
}

// All stages of one daemon, in the order they are built; members are destroyed in reverse.
class Daemon {
 public:
  Daemon(const ServeOptions& options, Lifecycle& lifecycle)
      : options_(options),
        config_(options.config),
        lifecycle_(lifecycle),
        live_(options.config, options.sources),
        log_(base::make_logger("r1d")) {}

  // Both listeners first: a taken port shows before minutes of loading, and probes see the load.
  absl::Status bind() {
    log_->info("r1d {} starting, pid {}", base::version(), getpid());
    const std::string faults = base::armed_fault_specs();
    startup_metrics_.live(true);
    if (!faults.empty()) log_->warn("armed faults: {}; not for production", faults);
    R1D_ASSIGN_OR_RETURN(management_,
                         transport::ManagementServer::start(
                             {.address = config_.server.management_address}, probes_.routes()));
    R1D_ASSIGN_OR_RETURN(
        grpc_,
        transport::GrpcServer::start(grpc_options(config_), frontend_, transport_metrics_, clock_));
    log_->info("listening: grpc port {}, management port {}", grpc_->port(), management_->port());
    if (options_.port_file.empty()) return absl::OkStatus();
    return write_port_file(options_.port_file, ports());
  }

  absl::Status load() {
    const TimePoint start = clock_.now();
    const StopGrace grace(lifecycle_.stop_token(), kLoadStopGrace, [this] {
      log_->error("a read of the model does not end; leaving without it");
      leave_at_once();
    });
    notifier_.extend_timeout(kLoadPatience);
    R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kLoadStart));
    R1D_ASSIGN_OR_RETURN(files_, open_model(config_));
    ProgressBar bar("loading " + files_.name);
    R1D_ASSIGN_OR_RETURN(engine_,
                         engine::Engine::create(
                             *files_.weights,
                             engine_options(config_),
                             files_.last_token_id,
                             [&](double fraction) -> absl::Status {
                               bar.update(fraction);
                               return loaded(fraction);
                             },
                             [this](const engine::MemoryPlan& plan) {
                               report_memory_plan(plan, *log_, memory_metrics_);
                             },
                             lifecycle_.stop_token()));
    report_memory_use(engine_->memory(), *log_, memory_metrics_);
    startup_metrics_.load_seconds(seconds_between(start, clock_.now()));
    tell_load(engine_->load_report(), *log_, startup_metrics_);
    return absl::OkStatus();
  }

  void start() {
    loop_ = std::make_unique<scheduler::StepLoop>(
        scheduler_options(config_.scheduler, engine_->cache()),
        *engine_,
        engine_metrics_,
        clock_,
        [this](const absl::Status& why) { lost(why); },
        [this](bool under_way) { show_health({.recovering = under_way}); });
    loop_->start();
    registry_.add_dialects(metric_labels(files_, config_, *engine_));
    frontend_.attach(
        admission_limits(files_, engine_->cache()), files_.text, *loop_);  // /readyz: yes
    grpc_->model_loaded(served_model(files_, config_, *engine_));
    startup_metrics_.ready(true);
    watch_ = std::make_unique<StallWatch>(
        stall_limits(config_),
        notifier_.watchdog(),
        StallWatch::Callbacks{.look = [this](Duration patience) { return loop_->alive(patience); },
                              .changed = [this](bool moves) { moves ? moving() : stalled(); },
                              .give_up = [this] { give_up(); },
                              .beat = [this] { notifier_.beat(); }});
    log_->info("ready: {} on {}, {} ranks, {} KV blocks of {} tokens, max_model_len {}",
               files_.name,
               engine_->device(),
               config_.engine.world_size,
               engine_->cache().num_blocks,
               config_.scheduler.block_size,
               engine_->cache().max_model_len);
    notifier_.ready("serving " + files_.name);
    if (options_.ready_fd < 0) return;
    const absl::Status told = tell_ports(options_.ready_fd, ports());
    if (!told.ok()) log_->warn("{}", message_of(told));
  }

  // Keys that may change while the daemon runs; requests go on.
  void reload() {
    notifier_.reloading();
    live_.reload(*log_, [this](const config::Config& config) {
      base::set_log_level(config.log.level);
      grpc_->change_limits(grpc_limits(config.server));
      loop_->set_max_waiting_requests(config.scheduler.max_waiting_requests);
      watch_->set_limits(stall_limits(config));
    });
    notifier_.ready(watch_->moves() ? "serving " + files_.name : "stalled: no step moves");
  }

  // In this order: balancers hear it first, then clients are refused, then running work ends, then
  // nobody watches the steps, then streams close, then the loop stops (nothing can reach it any
  // more). Probes answer to the last.
  // False when a step does not end: then nothing of the engine may be destroyed either.
  [[nodiscard]] bool drain() {
    const std::chrono::milliseconds limit = live_.active()->server.drain_timeout;
    notifier_.stopping("draining");
    notifier_.extend_timeout(limit + 2 * kStreamGrace);
    show_health({.draining = true});
    frontend_.begin_drain();
    log_->info("draining: up to {} ms for running requests", limit.count());
    const std::optional<int64_t> cut = loop_->drain(limit);
    if (cut.value_or(0) > 0) log_->warn("drain limit passed: {} sequences were cancelled", *cut);
    watch_.reset();
    if (!cut.has_value()) {
      log_->error("the step in flight does not end; leaving without it");
      grpc_->end_calls(unavailable("the server is shutting down"), transport::Calls::kAll);
    }
    grpc_->shutdown(kStreamGrace);
    if (!cut.has_value()) return false;
    frontend_.detach();
    loop_->stop();
    log_->info("stopped");
    return true;
  }

 private:
  // Why health may say no; a change of either counts.
  struct Reasons {
    std::optional<bool> draining = std::nullopt;
    std::optional<bool> stalled = std::nullopt;
    std::optional<bool> recovering = std::nullopt;
  };

  static StallWatch::Limits stall_limits(const config::Config& config) {
    return {.stall = config.server.liveness_timeout, .recovery = config.server.recovery_timeout};
  }

  // How much of the weights is there. One call at a time, from the ranks' threads; an error stops
  // the load. A supervisor hears of progress alone: a load that stands still runs into its limit.
  absl::Status loaded(double fraction) {
    probes_.set_load_fraction(fraction);
    startup_metrics_.load_progress(fraction);
    const TimePoint now = clock_.now();
    if (fraction >= 1 || now - load_reported_ >= kLoadReportEvery) {
      load_reported_ = now;
      notifier_.status(fmt::format("loading {}: {:.0f} %", files_.name, fraction * 100));
      notifier_.extend_timeout(kLoadPatience);
    }
    if (!lifecycle_.stop_requested()) return absl::OkStatus();
    return cancelled("stopped while loading");
  }

  // No step moves: new work is sent elsewhere, what runs ends, and the step is aborted. Ranks that
  // wait for each other come back from that, and the loop recovers; a hung one does not, see
  // give_up(). Meanwhile the watchdog hears nothing.
  void stalled() {
    const auto limit = live_.active()->server.liveness_timeout.count();
    const std::string why = fmt::format("no step has moved for {} ms", limit);
    engine_metrics_.stalled();
    log_->error("{}: NOT_SERVING, running requests end, the step is aborted", why);
    notifier_.status("stalled: no step moves");
    show_health({.stalled = true});
    grpc_->end_calls(unavailable("{}", why), transport::Calls::kRunning);
    engine_->interrupt(deadline_exceeded("{}", why));
  }

  void moving() {
    log_->warn("steps move again");
    notifier_.status("serving " + files_.name);
    show_health({.stalled = false});
  }

  // The step does not come back, so its thread cannot end the requests; drain() leaves without it.
  void give_up() {
    const auto limit = live_.active()->server.recovery_timeout.count();
    const absl::Status why =
        unavailable("the engine hangs: an aborted step has not ended for {} ms", limit);
    log_->error("{}", message_of(why));
    lost(why);
    grpc_->end_calls(why, transport::Calls::kAll);
  }

  void lost(const absl::Status& why) {
    frontend_.fail(why);
    startup_metrics_.live(false);
    lifecycle_.engine_lost(why);
  }

  void show_health(const Reasons& change) {
    const base::MutexLock lock(health_mu_);
    draining_ = change.draining.value_or(draining_);
    stalled_ = change.stalled.value_or(stalled_);
    recovering_ = change.recovering.value_or(recovering_);
    const bool fit = !stalled_ && !recovering_;
    frontend_.set_stalled(!fit);
    startup_metrics_.ready(fit && !draining_);
    startup_metrics_.live(!stalled_);
    const bool serving = fit && !draining_;
    if (std::exchange(serving_, serving) != serving) grpc_->set_serving(serving);
  }

  [[nodiscard]] Ports ports() const {
    return {.grpc = grpc_->port(), .management = management_->port()};
  }

  const ServeOptions& options_;
  const config::Config& config_;  // as at the start
  Lifecycle& lifecycle_;
  LiveConfig live_;
  const std::shared_ptr<spdlog::logger> log_;
  const SteadyClock clock_;
  telemetry::Registry registry_;
  telemetry::EngineMetrics engine_metrics_{registry_};
  telemetry::TransportMetrics transport_metrics_{registry_};
  telemetry::StartupMetrics startup_metrics_{registry_, base::version()};
  telemetry::MemoryMetrics memory_metrics_{registry_};
  ServiceNotifier notifier_;
  TimePoint load_reported_;
  base::Mutex health_mu_;
  bool draining_ ABSL_GUARDED_BY(health_mu_) = false;
  bool stalled_ ABSL_GUARDED_BY(health_mu_) = false;
  bool recovering_ ABSL_GUARDED_BY(health_mu_) = false;
  bool serving_ ABSL_GUARDED_BY(health_mu_) = true;  // as watchers were told last
  ModelFiles files_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<scheduler::StepLoop> loop_;
  Frontend frontend_{clock_};
  Probes probes_{registry_, frontend_};
  std::unique_ptr<transport::GrpcServer> grpc_;
  std::unique_ptr<transport::ManagementServer> management_;
  std::unique_ptr<StallWatch> watch_;
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
  std::optional<absl::Status> outcome;
  while (!(outcome = lifecycle.wait())) daemon.reload();
  if (!daemon.drain()) leave_at_once();
  return *outcome;
}

}  // namespace r1d::cli
