// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <boost/asio/ip/tcp.hpp>

namespace r1d::transport {

// "127.0.0.1:41234", "[::1]:41234"; "" when the client is gone already.
[[nodiscard]] std::string peer_text(const boost::asio::ip::tcp::socket& client);

}  // namespace r1d::transport
