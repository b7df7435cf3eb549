// SPDX-License-Identifier: Apache-2.0
// How whoever started the daemon learns its ports.
#pragma once

#include <cstdint>
#include <string>

#include <absl/status/status.h>

namespace r1d::cli {

struct Ports {
  int32_t grpc = 0;
  int32_t management = 0;
};

// {"grpc": port, "management": port} and an end of line. Whole or not at all: whoever waits for the
// file never reads half of it.
[[nodiscard]] absl::Status write_port_file(const std::string& path, const Ports& ports);

// The same to a file descriptor, which is closed.
[[nodiscard]] absl::Status tell_ports(int fd, const Ports& ports);

}  // namespace r1d::cli
