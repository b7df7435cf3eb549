// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>

namespace r1d::base {

// Where to listen: a name or a numeric address, and a TCP port; port 0 lets the system choose.
struct Address {
  std::string host;  // "127.0.0.1", "localhost", "::1" (no brackets)
  uint16_t port = 0;
};

// Reads "host:port" or "[IPv6]:port". kInvalidArgument says what is missing or wrong; nothing is
// looked up.
[[nodiscard]] absl::StatusOr<Address> parse_address(std::string_view text);

// "127.0.0.1:8081", "[::1]:8081": what parse_address reads.
[[nodiscard]] std::string format_address(const Address& address);

}  // namespace r1d::base
