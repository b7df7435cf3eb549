// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/guard.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <future>
#include <sys/resource.h>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/buffer.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include "r1d/base/log.h"
#include "r1d/base/status.h"
#include "r1d/base/thread.h"

#include "transport/guard/peer_name.h"
#include "transport/guard/refusal_log.h"
#include "transport/listener.h"

namespace r1d::transport {
namespace {

// A connection takes its socket and a joint. The rest of the process keeps some for itself.
constexpr int32_t kFilesPerConnection = 3;
constexpr int64_t kReservedFiles = 256;

// One thread carries about a hundred thousand messages a second.
size_t num_workers() {
  return std::clamp<size_t>(std::thread::hardware_concurrency() / 4, 1, 4);
}

// As many as there are file descriptors for.
int32_t affordable_connections(int32_t wanted, spdlog::logger& log) {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur == RLIM_INFINITY) return wanted;
  const int64_t spare = static_cast<int64_t>(files.rlim_cur) - kReservedFiles;
  const int64_t affordable = std::max<int64_t>(spare / kFilesPerConnection, 1);
  if (affordable >= wanted) return wanted;
  log.info(
      "server.max_connections: {} instead of {}, as the process may open {} files only (ulimit -n)",
      affordable,
      wanted,
      files.rlim_cur);
  return static_cast<int32_t>(affordable);
}

ConnectionTable::Limits affordable(ConnectionTable::Limits limits, spdlog::logger& log) {
  limits.total = affordable_connections(limits.total, log);
  return limits;
}

// A thread and the connections it carries.
class Worker {
 public:
  Worker() : keep_running_(io_.get_executor()) {}
  ~Worker() { stop(); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  boost::asio::io_context& io() { return io_; }
  void start(spdlog::logger& log) {
    thread_ = std::thread([this, &log] { run(log); });
  }
  // Runs `task` on the thread and returns when it has.
  template <typename Task>
  void call(Task task) {
    std::promise<void> done;
    boost::asio::post(io_, [&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }
  void stop() {
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }

 private:
  // An exception (out of memory) ends the connection it came from, not the daemon.
  void run(spdlog::logger& log) {
    base::become_quick_thread("r1d-guard");
    while (!io_.stopped()) {
      try {
        io_.run();
      } catch (const std::exception& e) {
        log.error("a connection was dropped: {}", e.what());
      }
    }
  }

  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> keep_running_;
  std::thread thread_;
};

class GuardImpl final : public Guard {
 public:
  GuardImpl(const GuardOptions& options, telemetry::TransportMetrics& metrics)
      : options_(options),
        metrics_(metrics),
        table_(affordable(options.connections, *log_), metrics),
        workers_(num_workers()),
        listener_(workers_.front().io(), log_) {}

  // Pending operations hold their connections, and go with the workers.
  ~GuardImpl() override {
    for (Worker& worker : workers_) worker.stop();
  }

  absl::Status open() { return listener_.open("server.grpc_address", options_.address); }

  [[nodiscard]] int32_t port() const override { return listener_.port(); }

  void start(HandOver hand_over) override {
    hand_over_ = std::move(hand_over);
    accepts_.store(true);
    listener_.start([this] { return next_executor(); },
                    [this](Listener::Socket socket) { take(std::move(socket)); });
    for (Worker& worker : workers_) worker.start(*log_);
  }

  // What a worker is doing when the flag falls ends before its turn comes to say so.
  void stop_accepting() override {
    if (!accepts_.exchange(false)) return;
    workers_.front().call([this] { listener_.close(); });
    for (Worker& worker : workers_) worker.call([] {});
  }

  void finish(std::chrono::milliseconds limit) override {
    if (table_.wait_for_none_open(std::chrono::steady_clock::now() + limit)) return;
    log_->warn("clients still take what was sent to them, and are cut");
  }

 private:
  boost::asio::any_io_executor next_executor() {
    next_worker_ = (next_worker_ + 1) % workers_.size();
    return workers_[next_worker_].io().get_executor();
  }

  // On the listener's thread.
  void take(Listener::Socket socket) {
    boost::system::error_code error;
    const auto endpoint = socket.remote_endpoint(error);
    if (error) return;  // gone already
    Refusal why_not{};
    auto place = table_.take(endpoint.address(), why_not);
    if (place == nullptr) return turn_away(std::move(socket), why_not);
    const auto executor = socket.get_executor();
    auto relay = std::make_shared<Relay>(std::move(socket), std::move(place), shared_);
    boost::asio::post(executor, [relay = std::move(relay)] { relay->start(); });
  }

  // Says so as far as the empty send buffer takes it, without waiting, and closes.
  void turn_away(Listener::Socket socket, Refusal reason) {
    constexpr std::string_view kWhat = "too many connections";
    metrics_.connection_refused(refusal_name(reason));
    refusals_.write(peer_text(socket), reason, kWhat);
    const std::string goodbye = goaway_bytes(kEnhanceYourCalm, kWhat, true);
    boost::system::error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(boost::asio::buffer(goodbye), ignored);
    socket.shutdown(Listener::Socket::shutdown_send, ignored);
  }

  const GuardOptions options_;
  telemetry::TransportMetrics& metrics_;
  const std::shared_ptr<spdlog::logger> log_ = base::make_logger("transport");
  RefusalLog refusals_{log_};
  ConnectionTable table_;
  HandOver hand_over_;
  std::atomic<bool> accepts_{false};
  const GuardShared shared_{options_.limits, metrics_, refusals_, hand_over_, accepts_};
  std::vector<Worker> workers_;
  size_t next_worker_ = 0;  // the listener's thread
  Listener listener_;       // on the first worker
};

}  // namespace

absl::StatusOr<std::unique_ptr<Guard>> Guard::listen(const GuardOptions& options,
                                                     telemetry::TransportMetrics& metrics) {
  auto guard = std::make_unique<GuardImpl>(options, metrics);
  R1D_RETURN_IF_ERROR(guard->open());
  return guard;
}

}  // namespace r1d::transport
