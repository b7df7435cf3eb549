// SPDX-License-Identifier: Apache-2.0
#include "r1d/transport/management_server.h"

#include <algorithm>
#include <exception>
#include <thread>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include "r1d/base/exceptions.h"
#include "r1d/base/fault.h"
#include "r1d/base/log.h"
#include "r1d/base/status.h"
#include "r1d/base/thread.h"

#include "transport/http/connection.h"
#include "transport/http/request.h"
#include "transport/listener.h"

namespace r1d::transport {
namespace {

using boost::asio::ip::tcp;
using boost::system::error_code;

class Server final : public ManagementServer {
 public:
  Server(ManagementOptions options, ManagementRoutes routes)
      : options_(std::move(options)),
        routes_(std::move(routes)),
        answer_([this](const RequestParser& request) { return answer(request); }),
        listener_(io_, log_) {}

  // What is pending holds its connection, and goes with io_: sockets close, clients see the end.
  ~Server() override {
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status start() {
    R1D_RETURN_IF_ERROR(listener_.open("management server", options_.address));
    listener_.start([this] { return io_.get_executor(); },
                    [this](tcp::socket socket) { take(std::move(socket)); });
    thread_ = std::thread([this] { run(); });
    return absl::OkStatus();
  }

  [[nodiscard]] int32_t port() const override { return listener_.port(); }

 private:
  // An exception (out of memory) ends the connection it came from, not the daemon.
  void run() {
    base::become_quick_thread("r1d-management");
    while (!io_.stopped()) {
      try {
        io_.run();
      } catch (const std::exception& e) {
        log_->error("a connection was dropped: {}", e.what());
      }
    }
  }

  void take(tcp::socket socket) {
    if (num_open_ >= options_.max_connections) return turn_away(std::move(socket));
    std::make_shared<Connection>(std::move(socket), options_, answer_, num_open_)->start();
  }

  // Says so as far as the empty send buffer takes it, without waiting, and closes.
  static void turn_away(tcp::socket socket) {
    static constexpr char kReply[] =
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
        "Content-Length: 21\r\nConnection: close\r\n\r\ntoo many connections\n";
    error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(boost::asio::buffer(kReply, sizeof(kReply) - 1), ignored);
    socket.shutdown(tcp::socket::shutdown_send, ignored);
  }

  [[nodiscard]] HttpReply answer(const RequestParser& request) const {
    try {
      base::hit_fault(base::FaultPoint::kHttp);
      return route(request);
    } catch (...) {
      log_->error("a request was answered 500: {}", message_of(base::caught_status()));
      return plain_reply(500, "internal error");
    }
  }

  // A route that has a query string is meant for that string alone.
  [[nodiscard]] HttpReply route(const RequestParser& request) const {
    if (!is_method_known(request)) return plain_reply(405, "expected GET or HEAD");
    const std::string target = target_of(request);
    const std::string path = path_of(request);
    const auto is = [this](const std::string& name) {
      return std::find_if(
          routes_.begin(), routes_.end(), [&](const auto& route) { return route.first == name; });
    };
    auto found = is(target);
    if (found == routes_.end()) found = is(path);
    if (found != routes_.end()) return found->second();
    std::string known;
    for (const auto& [name, handler] : routes_) {
      if (name.find('?') == std::string::npos) known += " " + name;
    }
    return plain_reply(404, "not found; there are" + known);
  }

  const ManagementOptions options_;
  const ManagementRoutes routes_;
  const Answer answer_;
  const std::shared_ptr<spdlog::logger> log_ = base::make_logger("http");
  int32_t num_open_ = 0;  // the server's thread alone, and the destructor after it
  boost::asio::io_context io_{1};
  Listener listener_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ManagementServer>> ManagementServer::start(
    const ManagementOptions& options, ManagementRoutes routes) {
  auto server = std::make_unique<Server>(options, std::move(routes));
  R1D_RETURN_IF_ERROR(server->start());
  return server;
}

}  // namespace r1d::transport
