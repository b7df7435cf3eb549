// SPDX-License-Identifier: Apache-2.0
#include "transport/listener.h"

#include <chrono>
#include <utility>

#include <boost/asio/ip/v6_only.hpp>

#include "r1d/base/address.h"
#include "r1d/base/status.h"

namespace r1d::transport {
namespace {

using boost::asio::ip::tcp;
using boost::system::error_code;

// After a failed accept (no file descriptors left, most likely): long enough not to spin, short
// enough for the next probe.
constexpr std::chrono::seconds kAcceptPause{1};

error_code listen(const tcp::endpoint& endpoint, tcp::acceptor& acceptor) {
  error_code error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error && endpoint.address().is_v6() && endpoint.address().is_unspecified()) {
    acceptor.set_option(boost::asio::ip::v6_only(false), error);
  }
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(tcp::acceptor::max_listen_connections, error);
  return error;
}

// What a name may stand for and the machine may lack, IPv6 most often.
bool is_absent(const error_code& error) {
  return error == boost::asio::error::address_family_not_supported ||
         error == boost::system::errc::address_not_available;
}

}  // namespace

absl::Status Listener::open(const std::string& what, const std::string& address) {
  const absl::StatusOr<base::Address> parsed = base::parse_address(address);
  if (!parsed.ok()) {
    return invalid_argument("{}: {}: {}", what, address, message_of(parsed.status()));
  }
  error_code error;
  const auto candidates = tcp::resolver(io_).resolve(
      parsed->host, std::to_string(parsed->port), tcp::resolver::passive, error);
  auto port = parsed->port;
  for (const auto& candidate : candidates) {
    tcp::acceptor acceptor(io_);
    error = listen({candidate.endpoint().address(), port}, acceptor);
    if (is_absent(error)) continue;
    if (!error) port = acceptor.local_endpoint(error).port();
    if (error) break;
    doors_.push_back({std::move(acceptor), boost::asio::steady_timer(io_)});
  }
  if (doors_.empty() || (error && !is_absent(error))) {
    doors_.clear();
    return unavailable("{}: cannot listen on {}: {}", what, address, error.message());
  }
  port_ = port;
  return absl::OkStatus();
}

void Listener::start(std::function<boost::asio::any_io_executor()> next_executor,
                     std::function<void(Socket)> on_client) {
  next_executor_ = std::move(next_executor);
  on_client_ = std::move(on_client);
  for (Door& door : doors_) accept(door);
}

void Listener::close() {
  closed_ = true;
  doors_.clear();
}

void Listener::accept(Door& door) {
  door.acceptor.async_accept(
      next_executor_(), [this, &door](const error_code& error, tcp::socket socket) {
        if (closed_) return;
        if (error) return pause(door, error);
        accept(door);  // first, so that no trouble with this client ends the accepting
        on_client_(std::move(socket));
      });
}

void Listener::pause(Door& door, const error_code& error) {
  log_->warn("accept failed, trying again in {} s: {}", kAcceptPause.count(), error.message());
  door.pause.expires_after(kAcceptPause);
  door.pause.async_wait([this, &door](const error_code& /*error*/) {
    if (!closed_) accept(door);
  });
}

}  // namespace r1d::transport
