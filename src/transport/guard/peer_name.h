// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <boost/asio/ip/tcp.hpp>

namespace r1d::transport {

// "127.0.0.1:41234", "[::1]:41234"; "" when the client is gone already.
[[nodiscard]] std::string peer_text(const boost::asio::ip::tcp::socket& client);

// Gives one end of a socket pair a name, so that whoever holds the other end reads the client's
// address in it: gRPC's peer() is "unix-abstract:127.0.0.1:41234/PID.NUMBER". A convenience; a
// system without abstract names leaves the peer nameless.
void name_socket(int fd, const std::string& client);

}  // namespace r1d::transport
