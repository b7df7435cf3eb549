// SPDX-License-Identifier: Apache-2.0
#include "transport/http/request.h"

#include <boost/beast/http/error.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/http/verb.hpp>

namespace r1d::transport {

namespace http = boost::beast::http;

void set_limits(RequestParser& parser) {
  parser.header_limit(kMaxHeadBytes);
  parser.body_limit(0);
}

std::optional<HttpReply> refuse_bytes(const boost::system::error_code& error) {
  if (error.category() != http::make_error_code(http::error::bad_method).category()) {
    return std::nullopt;
  }
  // The client left: between two requests, or within one.
  if (error == http::error::end_of_stream || error == http::error::partial_message) {
    return std::nullopt;
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return plain_reply(431, "the request head is longer than 16 KiB");
  }
  if (error == http::error::body_limit) return plain_reply(413, "no request body is taken here");
  return plain_reply(400, "not an HTTP/1.1 request: " + error.message());
}

std::optional<HttpReply> refuse_head(const RequestParser& parser) {
  const auto& head = parser.get();
  // Every transfer coding, not only chunked: with any of them the body's end is the client's to
  // say. A Content-Length above 0 never comes here, as the parser's body limit refuses it.
  const bool coded = head.find(http::field::transfer_encoding) != head.end();
  if (coded) return plain_reply(413, "no request body is taken here");
  // RFC 9112, 3.2.
  if (head.version() == 11 && head.count(http::field::host) != 1) {
    return plain_reply(400, "expected one Host header");
  }
  return std::nullopt;
}

bool is_method_known(const RequestParser& parser) {
  const http::verb method = parser.get().method();
  return method == http::verb::get || method == http::verb::head;
}

std::string target_of(const RequestParser& parser) {
  const auto target = parser.get().target();
  return {target.data(), target.size()};
}

std::string path_of(const RequestParser& parser) {
  const std::string text = target_of(parser);
  return text.substr(0, text.find('?'));
}

HttpReply plain_reply(int32_t status, const std::string& reason) {
  HttpReply reply;
  reply.status = status;
  reply.body = reason + "\n";
  return reply;
}

}  // namespace r1d::transport
