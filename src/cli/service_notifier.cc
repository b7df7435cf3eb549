// SPDX-License-Identifier: Apache-2.0
#include "cli/service_notifier.h"

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "r1d/base/log.h"
#include "r1d/base/status.h"

namespace r1d::cli {
namespace {

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

// The number in a variable; none when it is not set or is none.
std::optional<int64_t> number_in(const char* name) {
  const std::string_view text = variable(name);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

absl::StatusOr<int> connect_to(std::string_view name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if ((name.front() != '/' && name.front() != '@') || name.size() >= sizeof(address.sun_path)) {
    return invalid_argument("expected a path or @name of at most {} bytes",
                            sizeof(address.sun_path) - 1);
  }
  std::memcpy(address.sun_path, name.data(), name.size());
  if (name.front() == '@') address.sun_path[0] = '\0';
  // An abstract name is as long as it is; a path ends with a zero.
  const size_t length =
      offsetof(sockaddr_un, sun_path) + name.size() + (name.front() == '/' ? 1 : 0);
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return unavailable("{}", std::strerror(errno));
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(length)) ==
      0) {
    return fd;
  }
  const int error = errno;
  ::close(fd);
  return unavailable("{}", std::strerror(error));
}

int64_t microseconds(Duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

}  // namespace

ServiceNotifier::ServiceNotifier() : log_(base::make_logger("r1d")) {
  const std::string_view name = variable("NOTIFY_SOCKET");
  if (name.empty()) return;
  const absl::StatusOr<int> connected = connect_to(name);
  if (!connected.ok()) {
    log_->warn("NOTIFY_SOCKET {}: {}; nobody is told", name, message_of(connected.status()));
    return;
  }
  socket_ = *connected;
  const auto period = number_in("WATCHDOG_USEC");
  const auto pid = number_in("WATCHDOG_PID");
  const bool ours = !pid.has_value() || *pid == ::getpid();
  if (period.value_or(0) > 0 && ours) watchdog_ = std::chrono::microseconds(*period);
}

ServiceNotifier::~ServiceNotifier() {
  if (socket_ >= 0) ::close(socket_);
}

void ServiceNotifier::status(const std::string& text) {
  send("STATUS=" + text);
}

void ServiceNotifier::ready(const std::string& status) {
  send("READY=1\nSTATUS=" + status);
}

void ServiceNotifier::reloading() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const int64_t usec = int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000;
  send(fmt::format("RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=reloading the configuration", usec));
}

void ServiceNotifier::stopping(const std::string& status) {
  send("STOPPING=1\nSTATUS=" + status);
}

void ServiceNotifier::extend_timeout(Duration more) {
  send(fmt::format("EXTEND_TIMEOUT_USEC={}", microseconds(more)));
}

void ServiceNotifier::beat() {
  if (watchdog_.has_value()) send("WATCHDOG=1");
}

void ServiceNotifier::send(const std::string& message) {
  if (socket_ < 0) return;
  if (::send(socket_, message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    log_->debug("NOTIFY_SOCKET: {}", std::strerror(errno));
  }
}

}  // namespace r1d::cli
