// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <netinet/in.h>
#include <optional>

namespace r1d::transport {

// The two ends of a stream within the process. Both take no time to read or write (O_NONBLOCK).
struct Joint {
  int guard_end = -1;
  int server_end = -1;
  int family = 0;  // AF_INET, AF_UNIX
};

// A TCP connection over loopback, or a pair of Unix sockets where there is no loopback; none when
// file descriptors run out. The caller owns both ends.
//
// TCP, because a Unix socket wakes its writer whenever the reader has taken something, whether it
// waits for room or not: gRPC's thread would be woken once more for each message that the guard
// passes on. Nobody else can get hold of an end: it listens for an instant at a random address of
// 127.0.0.0/8 and takes the connection that comes from its own other end.
[[nodiscard]] std::optional<Joint> make_joint();

// The next connection at `listener` (non-blocking) that comes from `peer`; others are closed. -1
// when none comes within `timeout_ms`.
[[nodiscard]] int accept_from(int listener, const sockaddr_in& peer, int timeout_ms);

}  // namespace r1d::transport
