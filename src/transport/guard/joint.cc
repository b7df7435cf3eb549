// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/joint.h"

#include <array>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <random>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <utility>

namespace r1d::transport {
namespace {

// Loopback takes microseconds; more only if somebody is in the way, and then there is the other
// kind.
constexpr int kPatienceMs = 100;

// Closes a socket unless it is released.
class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// 127.x.y.z: names a connection that has ended can keep its ports for a minute, and there are
// sixteen million addresses.
sockaddr_in random_loopback_address() {
  std::random_device random;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK & 0xFF000000U) | htonl(1 + random() % 0xFFFFFE);
  return address;
}

sockaddr* generic(sockaddr_in& address) {
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): what socket calls take
  return reinterpret_cast<sockaddr*>(&address);
}

bool same(const sockaddr_in& a, const sockaddr_in& b) {
  return a.sin_family == b.sin_family && a.sin_port == b.sin_port &&
         a.sin_addr.s_addr == b.sin_addr.s_addr;
}

// Small writes are not held back, and none waits.
bool make_prompt(int fd) {
  const int yes = 1;
  return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)) == 0 &&
         fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0;
}

// Waits for the handshake, which is with ourselves.
bool connect_to(int fd, sockaddr_in address) {
  const timeval patience{.tv_sec = 0, .tv_usec = 1000 * kPatienceMs};
  return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) == 0 &&
         connect(fd, generic(address), sizeof(address)) == 0;
}

std::optional<Joint> over_loopback() {
  sockaddr_in address = random_loopback_address();
  socklen_t size = sizeof(address);
  const Socket listener(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (listener.fd() < 0 || bind(listener.fd(), generic(address), size) != 0 ||
      listen(listener.fd(), 1) != 0 || getsockname(listener.fd(), generic(address), &size) != 0) {
    return std::nullopt;
  }
  Socket near(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  size = sizeof(name);
  if (near.fd() < 0 || !connect_to(near.fd(), address) ||
      getsockname(near.fd(), generic(name), &size) != 0) {
    return std::nullopt;
  }
  Socket far(accept_from(listener.fd(), name, kPatienceMs));
  if (far.fd() < 0 || !make_prompt(near.fd()) || !make_prompt(far.fd())) return std::nullopt;
  return Joint{near.release(), far.release(), AF_INET};
}

std::optional<Joint> of_unix_sockets() {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return std::nullopt;
  }
  return Joint{ends[0], ends[1], AF_UNIX};
}

}  // namespace

int accept_from(int listener, const sockaddr_in& peer, int timeout_ms) {
  pollfd arrival{.fd = listener, .events = POLLIN, .revents = 0};
  while (poll(&arrival, 1, timeout_ms) == 1) {
    sockaddr_in name{};
    socklen_t size = sizeof(name);
    Socket found(accept4(listener, generic(name), &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (found.fd() < 0) return -1;
    if (same(name, peer)) return found.release();
  }
  return -1;
}

std::optional<Joint> make_joint() {
  const std::optional<Joint> joint = over_loopback();
  return joint.has_value() ? joint : of_unix_sockets();
}

}  // namespace r1d::transport
