// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>

#include "r1d/transport/management_server.h"

#include "transport/http/request.h"

namespace r1d::transport {

// Answers a request by its path; never blocks.
using Answer = std::function<HttpReply(const RequestParser&)>;

// One client: reads a head, answers, reads the next, until either side has enough.
// Lifecycle: start() once. Shared, because each pending read or write holds the connection; when
// none is left it ends and closes its socket. `answer`, `options` and `num_open` outlive it.
// Threads: confined to the server's thread. Invariant: at most one read or write is pending.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // `num_open` counts connections: one up now, one down at the end.
  Connection(boost::asio::ip::tcp::socket socket,
             const ManagementOptions& options,
             const Answer& answer,
             int32_t& num_open);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void start();

 private:
  void read_head();
  void on_head(const boost::system::error_code& error);
  void reply(HttpReply content, bool keep_alive);
  void on_written(const boost::system::error_code& error);
  void linger();
  void discard(size_t num_bytes_left);

  boost::beast::tcp_stream stream_;
  const ManagementOptions& options_;
  const Answer& answer_;
  int32_t& num_open_;
  boost::beast::flat_buffer buffer_;
  std::optional<RequestParser> parser_;  // one per request
  boost::beast::http::response<boost::beast::http::string_body> response_;
};

}  // namespace r1d::transport
