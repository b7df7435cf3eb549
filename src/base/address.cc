// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/address.h"

#include <algorithm>
#include <charconv>

#include "r1d/base/status.h"

namespace r1d::base {
namespace {

constexpr std::string_view kAlphanumeric =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

bool consists_of(std::string_view text, std::string_view extra) {
  return std::all_of(text.begin(), text.end(), [extra](char c) {
    return kAlphanumeric.find(c) != std::string_view::npos ||
           extra.find(c) != std::string_view::npos;
  });
}

absl::StatusOr<uint16_t> parse_port(std::string_view text) {
  uint16_t port = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, port);
  if (text.empty() || error != std::errc() || stop != end) {
    return invalid_argument("expected a port from 0 to 65535 after the last colon");
  }
  return port;
}

}  // namespace

absl::StatusOr<Address> parse_address(std::string_view text) {
  const bool bracketed = text.starts_with('[');
  const size_t host_end = bracketed ? text.find(']') : text.rfind(':');
  if (bracketed && host_end == std::string_view::npos) {
    return invalid_argument("expected ']' after the IPv6 address");
  }
  const size_t colon = bracketed ? host_end + 1 : host_end;
  if (colon >= text.size() || text[colon] != ':') {
    return invalid_argument("expected host:port, for example 127.0.0.1:8081 or [::1]:8081");
  }
  const std::string_view host = text.substr(bracketed ? 1 : 0, host_end - (bracketed ? 1 : 0));
  if (host.empty())
    return invalid_argument("expected a host before the port, for example 127.0.0.1");
  if (!bracketed && host.find(':') != std::string_view::npos) {
    return invalid_argument("expected an IPv6 address in brackets, for example [::1]:8081");
  }
  // A zone ("%eth0") may follow a link-local IPv6 address.
  if (!consists_of(host, bracketed ? ":.%-_" : ".-_")) {
    return invalid_argument("expected a host of letters, digits, dots and dashes");
  }
  R1D_ASSIGN_OR_RETURN(const uint16_t port, parse_port(text.substr(colon + 1)));
  return Address{std::string(host), port};
}

std::string format_address(const Address& address) {
  const bool ipv6 = address.host.find(':') != std::string::npos;
  if (ipv6) return fmt::format("[{}]:{}", address.host, address.port);
  return fmt::format("{}:{}", address.host, address.port);
}

}  // namespace r1d::base
