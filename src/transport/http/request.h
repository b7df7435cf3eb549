// SPDX-License-Identifier: Apache-2.0
// Which requests the management port takes: limits of the parser and the verdict on a head. Pure
// functions, so that a fuzzer runs what the server runs.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>

#include "r1d/transport/management_server.h"

namespace r1d::transport {

constexpr size_t kMaxHeadBytes = 16 << 10;

using RequestParser = boost::beast::http::request_parser<boost::beast::http::empty_body>;

void set_limits(RequestParser& parser);

// The answer to bytes that are no acceptable head; none when `error` is not the parser's (the
// connection ended, timed out, ...).
[[nodiscard]] std::optional<HttpReply> refuse_bytes(const boost::system::error_code& error);

// The answer to a whole head that cannot be served whatever its path: it announces a body or lacks
// what HTTP/1.1 asks for. The connection must close after it, as what follows is not understood.
[[nodiscard]] std::optional<HttpReply> refuse_head(const RequestParser& parser);

// GET or HEAD.
[[nodiscard]] bool is_method_known(const RequestParser& parser);

// The path and the query string, as sent.
[[nodiscard]] std::string target_of(const RequestParser& parser);

// The target up to its query string.
[[nodiscard]] std::string path_of(const RequestParser& parser);

// "reason\n" with that status.
[[nodiscard]] HttpReply plain_reply(int32_t status, const std::string& reason);

}  // namespace r1d::transport
