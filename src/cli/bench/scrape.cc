// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/scrape.h"

#include <chrono>
#include <iterator>
#include <sstream>

#include <boost/asio/ip/tcp.hpp>

#include "r1d/base/address.h"
#include "r1d/base/status.h"

#include "cli/bench/units.h"

namespace r1d::cli::bench {

absl::StatusOr<double> metric_value(const std::string& exposition, const std::string& name) {
  std::istringstream lines(exposition);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name + " ")) continue;
    const auto value = parse_number(line.substr(name.size() + 1));
    if (value) return *value;
  }
  return not_found("the metric {} is not there", name);
}

absl::StatusOr<ProcessUse> scrape_process(const std::string& address) {
  R1D_ASSIGN_OR_RETURN(const base::Address parsed, base::parse_address(address));
  boost::asio::ip::tcp::iostream http;
  http.expires_after(std::chrono::seconds(10));
  http.connect(parsed.host, std::to_string(parsed.port));
  http << "GET /metrics HTTP/1.1\r\nHost: " << address << "\r\nConnection: close\r\n\r\n"
       << std::flush;
  const std::string answer{std::istreambuf_iterator<char>(http), {}};
  if (!answer.starts_with("HTTP/1.1 200")) {
    return unavailable("{}: no /metrics there{}",
                       address,
                       http.error() ? ": " + http.error().message() : std::string());
  }
  ProcessUse use;
  R1D_ASSIGN_OR_RETURN(use.cpu_seconds, metric_value(answer, "process_cpu_seconds_total"));
  R1D_ASSIGN_OR_RETURN(use.resident_bytes, metric_value(answer, "process_resident_memory_bytes"));
  return use;
}

}  // namespace r1d::cli::bench
