// SPDX-License-Identifier: Apache-2.0
#include "cli/port_file.h"

#include <cstdio>
#include <fstream>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "r1d/base/status.h"

namespace r1d::cli {
namespace {

std::string to_line(const Ports& ports) {
  return nlohmann::json{{"grpc", ports.grpc}, {"management", ports.management}}.dump() + "\n";
}

}  // namespace

absl::Status write_port_file(const std::string& path, const Ports& ports) {
  const std::string temporary = path + ".tmp";
  bool written = false;
  {
    std::ofstream file(temporary);
    file << to_line(ports);
    written = static_cast<bool>(file.flush());
  }
  if (written && std::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  return invalid_argument("--port-file {}: cannot be written", path);
}

absl::Status tell_ports(int fd, const Ports& ports) {
  const std::string line = to_line(ports);
  const bool written = ::write(fd, line.data(), line.size()) >= 0;
  ::close(fd);
  return written ? absl::OkStatus() : invalid_argument("--ready-fd: cannot be written");
}

}  // namespace r1d::cli
