// SPDX-License-Identifier: Apache-2.0
#include "cli/local_daemon.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

#include "r1d/base/json.h"
#include "r1d/base/status.h"

namespace r1d::cli {
namespace {

constexpr JsonLimits kPortJson{4096, 2, 64, 16};

// In the child, after fork(): nothing but calls that are safe there.
[[noreturn]] void run_child(pid_t parent, const char* model_dir, const char* ready_fd) {
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(1);  // the parent died before the line above
  ::setpgid(0, 0);                        // Ctrl-C at the terminal is the client's alone
  ::execl("/proc/self/exe",
          "r1d",
          "serve",
          "--model",
          model_dir,
          "--ready-fd",
          ready_fd,
          "--grpc-address",
          "127.0.0.1:0",
          "--management-address",
          "127.0.0.1:0",
          "--log-level",
          "warn",
          static_cast<char*>(nullptr));
  ::_exit(127);
}

// The line that the child writes when it serves. Its end of the pipe also closes when it dies.
absl::StatusOr<int> read_port(int pipe_end) {
  std::string line;
  std::array<char, 256> buffer{};
  ssize_t count = 0;
  do {
    count = ::read(pipe_end, buffer.data(), buffer.size());
    if (count > 0) line.append(buffer.data(), static_cast<size_t>(count));
  } while (count > 0 || (count < 0 && errno == EINTR));
  const absl::StatusOr<Json> ports = parse_json(line, kPortJson);
  if (!ports.ok() || !ports->contains("grpc")) {
    return unavailable("the model could not be served; the lines above say why");
  }
  return (*ports)["grpc"].get<int>();
}

}  // namespace

absl::StatusOr<LocalDaemon> LocalDaemon::start(const std::string& model_dir) {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) return internal_error("pipe: {}", std::strerror(errno));
  ::fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  const std::string ready_fd = std::to_string(ends[1]);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) run_child(parent, model_dir.c_str(), ready_fd.c_str());
  ::close(ends[1]);
  LocalDaemon daemon(child);
  const absl::StatusOr<int> port =
      child > 0 ? read_port(ends[0]) : internal_error("fork: {}", std::strerror(errno));
  ::close(ends[0]);
  if (!port.ok()) return port.status();
  daemon.address_ = fmt::format("127.0.0.1:{}", *port);
  return daemon;
}

LocalDaemon::LocalDaemon(LocalDaemon&& other) noexcept
    : child_(std::exchange(other.child_, -1)), address_(std::move(other.address_)) {}

LocalDaemon::~LocalDaemon() {
  if (child_ <= 0) return;
  ::kill(child_, SIGTERM);
  int status = 0;
  while (::waitpid(child_, &status, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace r1d::cli
