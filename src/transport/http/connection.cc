// SPDX-License-Identifier: Apache-2.0
#include "transport/http/connection.h"

#include <chrono>
#include <utility>

#include <boost/beast/http/field.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>

namespace r1d::transport {

namespace http = boost::beast::http;
using boost::system::error_code;

namespace {

// Room for a head at the limit and the beginning of what follows it.
constexpr size_t kBufferBytes = 2 * kMaxHeadBytes;

// How much of a refused client's remaining bytes is read away, and for how long.
constexpr size_t kDiscardBytes = 256 << 10;
constexpr std::chrono::seconds kDiscardTime{1};

}  // namespace

Connection::Connection(boost::asio::ip::tcp::socket socket,
                       const ManagementOptions& options,
                       const Answer& answer,
                       int32_t& num_open)
    : stream_(std::move(socket)),
      options_(options),
      answer_(answer),
      num_open_(num_open),
      buffer_(kBufferBytes) {
  ++num_open_;
}

Connection::~Connection() {
  --num_open_;
}

void Connection::start() {
  read_head();
}

void Connection::read_head() {
  parser_.emplace();
  set_limits(*parser_);
  // One deadline for the whole head: a byte now and then does not extend it.
  stream_.expires_after(options_.head_timeout);
  http::async_read_header(
      stream_,
      buffer_,
      *parser_,
      [self = shared_from_this()](const error_code& error, size_t /*num_bytes*/) {
        self->on_head(error);
      });
}

void Connection::on_head(const error_code& error) {
  if (error) {
    std::optional<HttpReply> refusal = refuse_bytes(error);
    if (refusal) reply(*std::move(refusal), false);
    return;
  }
  if (std::optional<HttpReply> refusal = refuse_head(*parser_)) {
    return reply(*std::move(refusal), false);
  }
  reply(answer_(*parser_), parser_->get().keep_alive());
}

void Connection::reply(HttpReply content, bool keep_alive) {
  response_ = {};
  // In the client's version, which decides how a kept connection is announced.
  response_.version(parser_->get().version() == 10 ? 10 : 11);
  response_.result(static_cast<unsigned>(content.status));
  response_.set(http::field::content_type, content.content_type);
  response_.set(http::field::cache_control, "no-store");
  if (content.status == 405) response_.set(http::field::allow, "GET, HEAD");
  response_.content_length(content.body.size());
  response_.keep_alive(keep_alive);
  const bool wants_body = parser_->get().method() != http::verb::head;
  if (wants_body) response_.body() = std::move(content.body);
  stream_.expires_after(options_.write_timeout);
  http::async_write(stream_,
                    response_,
                    [self = shared_from_this()](const error_code& error, size_t /*num_bytes*/) {
                      self->on_written(error);
                    });
}

void Connection::on_written(const error_code& error) {
  if (error) return;
  if (response_.keep_alive()) return read_head();
  linger();
}

// A socket closed with bytes unread is reset, and a reset may overtake the reply. So the sending
// side ends first, and what the client still sends is read away, within limits.
void Connection::linger() {
  error_code ignored;
  stream_.socket().shutdown(boost::asio::ip::tcp::socket::shutdown_send, ignored);
  stream_.expires_after(kDiscardTime);
  discard(kDiscardBytes);
}

void Connection::discard(size_t num_bytes_left) {
  buffer_.clear();
  stream_.async_read_some(
      buffer_.prepare(kBufferBytes),
      [self = shared_from_this(), num_bytes_left](const error_code& error, size_t num_bytes) {
        if (!error && num_bytes < num_bytes_left) self->discard(num_bytes_left - num_bytes);
      });
}

}  // namespace r1d::transport
