// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/status.h>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <spdlog/logger.h>

namespace r1d::transport {

// Accepts TCP connections at one "host:port", on every address the host has ("localhost" has two)
// and one port. Goes on when accepting fails for a while, as without file descriptors.
// Threads: confined to `io`'s, but for open() and start() before it runs.
class Listener {
 public:
  using Socket = boost::asio::ip::tcp::socket;

  Listener(boost::asio::io_context& io, std::shared_ptr<spdlog::logger> log)
      : io_(io), log_(std::move(log)) {}

  // Binds; "[::]" takes IPv4 as well, and addresses that this machine does not have are passed
  // over. kInvalidArgument when `address` is no host:port, kUnavailable with the reason when it
  // cannot listen there. `what` names the listener in both.
  [[nodiscard]] absl::Status open(const std::string& what, const std::string& address);
  [[nodiscard]] int32_t port() const { return port_; }

  // Calls `on_client` with each client's socket, which is of the executor that `next_executor`
  // gave.
  void start(std::function<boost::asio::any_io_executor()> next_executor,
             std::function<void(Socket)> on_client);
  // No client comes any more; the port is free.
  void close();

 private:
  struct Door {
    boost::asio::ip::tcp::acceptor acceptor;
    boost::asio::steady_timer pause;
  };

  void accept(Door& door);
  void pause(Door& door, const boost::system::error_code& error);

  boost::asio::io_context& io_;
  const std::shared_ptr<spdlog::logger> log_;
  std::vector<Door> doors_;
  int32_t port_ = 0;
  bool closed_ = false;
  std::function<boost::asio::any_io_executor()> next_executor_;
  std::function<void(Socket)> on_client_;
};

}  // namespace r1d::transport
