// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/relay.h"

#include <chrono>
#include <optional>
#include <unistd.h>
#include <utility>

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>

#include "transport/guard/joint.h"
#include "transport/guard/peer_name.h"

namespace r1d::transport {
namespace {

using std::chrono::steady_clock;

// A client whose socket takes nothing for so long is gone, or wants to hold the connection.
constexpr std::chrono::seconds kStallTime{60};
// How much of a closed client's remaining bytes is read away, and for how long, so that it hears
// why.
constexpr size_t kLingerBytes = 256 << 10;
constexpr std::chrono::seconds kLingerTime{1};

constexpr std::string_view kHttp1Reply =
    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: "
    "close\r\n\r\n"
    "this port speaks gRPC (HTTP/2); metrics and probes are on the management port\n";

}  // namespace

Relay::Relay(boost::asio::ip::tcp::socket client,
             std::unique_ptr<ConnectionTable::Place> place,
             const GuardShared& shared)
    : shared_(shared),
      peer_(peer_text(client)),
      place_(std::move(place)),
      client_(std::move(client)),
      server_(client_.get_executor()),
      guard_(shared.limits, steady_clock::now()),
      deadline_(client_.get_executor()),
      stall_(client_.get_executor()) {}

void Relay::start() {
  ErrorCode ignored;
  client_.set_option(boost::asio::ip::tcp::no_delay(true), ignored);
  client_.non_blocking(true, ignored);
  set_deadline(shared_.limits.handshake_timeout, "no HTTP/2 handshake in time");
  read(up_);
}

void Relay::read(Way& way) {
  way.reads = true;
  way.from.async_read_some(
      boost::asio::buffer(way.buffer.room(), way.buffer.room_bytes()),
      [this, self = shared_from_this(), &way](const ErrorCode& error, size_t count) {
        on_read(way, error, count);
      });
}

void Relay::on_read(Way& way, const ErrorCode& error, size_t count) {
  way.reads = false;
  if (state_ == State::kClosed || (state_ == State::kLingering && !way.from_client)) return;
  if (state_ == State::kLingering) return on_discarded(error, count);
  if (error) return on_end(way, error);
  const Bytes bytes(way.buffer.room(), count);
  way.buffer.filled(count);
  const auto violation = way.from_client ? guard_.client_bytes(bytes, steady_clock::now())
                                         : guard_.server_bytes(bytes, steady_clock::now());
  if (violation) return refuse(*violation);
  if (state_ == State::kHandshake) {
    if (!guard_.is_handshake_done()) return read(way);
    if (!open()) return;
  }
  if (way.from_client) watch_header_block();
  pass_on(way);
}

void Relay::pass_on(Way& way) {
  while (way.buffer.held_bytes() > 0) {
    ErrorCode error;
    const size_t count =
        way.to.write_some(boost::asio::buffer(way.buffer.held(), way.buffer.held_bytes()), error);
    if (error == boost::asio::error::would_block) return wait_for_room(way);
    if (error) return on_broken(way);
    way.buffer.passed_on(count);
  }
  read(way);
}

void Relay::wait_for_room(Way& way) {
  way.waits = true;
  if (!way.from_client) {
    stall_.expires_after(kStallTime);
    stall_.async_wait([this, self = shared_from_this()](const ErrorCode& /*error*/) {
      const bool passed = steady_clock::now() >= stall_.expiry();
      if (passed && down_.waits) refuse({Refusal::kTimeout, "the client takes nothing"});
    });
  }
  way.to.async_wait(Socket::wait_write,
                    [this, self = shared_from_this(), &way](const ErrorCode& error) {
                      way.waits = false;
                      if (state_ != State::kOpen) return;
                      if (!way.from_client) stall_.cancel();
                      return error ? on_broken(way) : pass_on(way);
                    });
}

// There is nothing more to read on this way.
void Relay::on_end(Way& way, const ErrorCode& error) {
  if (!way.from_client) return linger();  // what the server sent is all passed on
  const bool half_closed = error == boost::asio::error::eof && state_ == State::kOpen;
  if (!half_closed) return close();
  client_ended_ = true;
  ErrorCode ignored;
  server_.shutdown(Socket::shutdown_send, ignored);
}

// Nothing more can be passed on this way. If it is up, the server is done with this client; what it
// sent before is still carried down, and ends with on_end().
void Relay::on_broken(const Way& way) {
  if (!way.from_client) close();
}

bool Relay::open() {
  if (!shared_.accepts.load()) {
    close();
    return false;
  }
  const std::optional<Joint> joint = make_joint();
  if (!joint) {
    refuse({Refusal::kConnectionLimit, "no file descriptor is left"});
    return false;
  }
  ErrorCode error;
  server_.assign(boost::asio::generic::stream_protocol(joint->family, 0), joint->guard_end, error);
  if (error) ::close(joint->guard_end);
  if (!error) server_.non_blocking(true, error);
  if (error) {
    ::close(joint->server_end);
    close();
    return false;
  }
  state_ = State::kOpen;
  place_->open();
  clear_deadline();
  shared_.hand_over(joint->server_end);
  read(down_);
  return true;
}

void Relay::set_deadline(std::chrono::milliseconds delay, const char* what) {
  deadline_.expires_after(delay);
  deadline_.async_wait([this, self = shared_from_this(), what](const ErrorCode& /*error*/) {
    // Cancelled, or set anew in the meantime.
    if (steady_clock::now() < deadline_.expiry() || state_ == State::kClosed) return;
    if (state_ == State::kLingering) return close();
    refuse({Refusal::kTimeout, what});
  });
}

void Relay::clear_deadline() {
  deadline_.expires_at(steady_clock::time_point::max());
}

void Relay::watch_header_block() {
  if (guard_.header_block() == watched_block_) return;
  watched_block_ = guard_.header_block();
  if (watched_block_ == 0) return clear_deadline();
  set_deadline(shared_.limits.header_timeout, "the headers of a request did not end in time");
}

void Relay::refuse(const Violation& violation) {
  shared_.metrics.connection_refused(refusal_name(violation.reason));
  shared_.log.write(peer_, violation.reason, violation.what);
  say_goodbye(violation);
  linger();
}

// As far as the client takes it at once, and where it can stand.
void Relay::say_goodbye(const Violation& violation) {
  const bool is_first = state_ == State::kHandshake;
  if (violation.reason == Refusal::kNotHttp2) {
    const uint8_t first = up_.buffer.held_bytes() > 0 ? *up_.buffer.held() : 0;
    if (first >= 'A' && first <= 'Z') send_now(kHttp1Reply);
    return;
  }
  if (down_.waits) return;
  while (down_.buffer.held_bytes() > 0) {
    const size_t count =
        send_now({reinterpret_cast<const char*>(down_.buffer.held()), down_.buffer.held_bytes()});
    if (count == 0) return;
    down_.buffer.passed_on(count);
  }
  if (!guard_.is_server_between_frames()) return;
  const uint32_t code = violation.reason == Refusal::kFrame ? kProtocolError : kEnhanceYourCalm;
  send_now(goaway_bytes(code, violation.what, is_first));
}

size_t Relay::send_now(std::string_view bytes) {
  ErrorCode ignored;
  return client_.write_some(boost::asio::buffer(bytes.data(), bytes.size()), ignored);
}

void Relay::linger() {
  state_ = State::kLingering;
  ErrorCode ignored;
  server_.close(ignored);
  stall_.cancel();
  client_.shutdown(Socket::shutdown_send, ignored);
  if (ignored || client_ended_) return close();
  set_deadline(kLingerTime, "");
  if (up_.reads) return;
  up_.buffer = ReadBuffer();
  read(up_);
}

void Relay::on_discarded(const ErrorCode& error, size_t count) {
  num_discarded_ += count;
  if (error || num_discarded_ > kLingerBytes) return close();
  read(up_);
}

void Relay::close() {
  state_ = State::kClosed;
  ErrorCode ignored;
  client_.close(ignored);
  server_.close(ignored);
  deadline_.cancel();
  stall_.cancel();
}

}  // namespace r1d::transport
