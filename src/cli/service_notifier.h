// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>

#include <spdlog/logger.h>

#include "r1d/base/clock.h"

namespace r1d::cli {

// Tells systemd (or whoever reads NOTIFY_SOCKET) how the daemon is: sd_notify(3) over a datagram
// socket of our own. Without the variable every call does nothing. A message that does not fit into
// the socket's buffer is dropped: no call blocks. Threads: thread-safe.
class ServiceNotifier {
 public:
  // Reads NOTIFY_SOCKET (a path, or @name for an abstract socket), WATCHDOG_USEC and WATCHDOG_PID.
  ServiceNotifier();
  ~ServiceNotifier();
  ServiceNotifier(const ServiceNotifier&) = delete;
  ServiceNotifier& operator=(const ServiceNotifier&) = delete;

  // One line for `systemctl status`.
  void status(const std::string& text);
  void ready(const std::string& status);
  // Around a reload of the configuration; ready() ends it.
  void reloading();
  void stopping(const std::string& status);
  // Starting or stopping may take `more` from now on.
  void extend_timeout(Duration more);
  void beat();  // nothing when the watchdog is off

  // How often the watchdog wants to hear beat() at least; none: it is off.
  [[nodiscard]] std::optional<Duration> watchdog() const { return watchdog_; }

 private:
  void send(const std::string& message);

  const std::shared_ptr<spdlog::logger> log_;
  int socket_ = -1;
  std::optional<Duration> watchdog_;
};

}  // namespace r1d::cli
