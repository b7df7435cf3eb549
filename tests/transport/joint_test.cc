// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/joint.h"

#include <arpa/inet.h>
#include <cerrno>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <set>
#include <string>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

#include <gtest/gtest.h>

namespace r1d::transport {
namespace {

sockaddr* generic(sockaddr_in& address) {
  return reinterpret_cast<sockaddr*>(&address);
}

sockaddr_in name_of(int fd) {
  sockaddr_in name{};
  socklen_t size = sizeof(name);
  EXPECT_EQ(getsockname(fd, generic(name), &size), 0);
  return name;
}

sockaddr_in peer_of(int fd) {
  sockaddr_in name{};
  socklen_t size = sizeof(name);
  EXPECT_EQ(getpeername(fd, generic(name), &size), 0);
  return name;
}

std::string text(const sockaddr_in& name) {
  char host[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &name.sin_addr, host, sizeof(host));
  return std::string(host) + ":" + std::to_string(ntohs(name.sin_port));
}

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof(value);
  EXPECT_EQ(getsockopt(fd, level, name, &value, &size), 0);
  return value;
}

int listen_somewhere() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(bind(fd, generic(address), sizeof(address)), 0);
  EXPECT_EQ(listen(fd, 4), 0);
  return fd;
}

int connect_to(int listener) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = name_of(listener);
  EXPECT_EQ(connect(fd, generic(address), sizeof(address)), 0);
  return fd;
}

// Waits for it; "" at the end.
std::string read_some(int fd) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  char bytes[64];
  const ssize_t count = read(fd, bytes, sizeof(bytes));
  return count <= 0 ? "" : std::string(bytes, static_cast<size_t>(count));
}

TEST(JointTest, JoinsItsTwoEndsAndNobodyElse) {
  const auto joint = make_joint();
  ASSERT_TRUE(joint);
  ASSERT_EQ(joint->family, AF_INET) << "this machine has no loopback";
  const int ends[] = {joint->guard_end, joint->server_end};
  EXPECT_EQ(text(name_of(ends[0])), text(peer_of(ends[1])));
  EXPECT_EQ(text(name_of(ends[1])), text(peer_of(ends[0])));
  for (const int fd : ends) {
    EXPECT_EQ(ntohl(peer_of(fd).sin_addr.s_addr) >> 24, 127U);
    EXPECT_EQ(option(fd, IPPROTO_TCP, TCP_NODELAY), 1);
    EXPECT_NE(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  }
  ASSERT_EQ(write(ends[0], "up", 2), 2);
  ASSERT_EQ(write(ends[1], "down", 4), 4);
  EXPECT_EQ(read_some(ends[1]), "up");
  EXPECT_EQ(read_some(ends[0]), "down");
  close(ends[0]);
  EXPECT_EQ(read_some(ends[1]), "");
  close(ends[1]);
}

TEST(JointTest, LeavesNoDoorOpen) {
  const auto joint = make_joint();
  ASSERT_TRUE(joint);
  ASSERT_EQ(joint->family, AF_INET);
  sockaddr_in door = name_of(joint->server_end);
  const int stranger = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_NE(connect(stranger, generic(door), sizeof(door)), 0);
  EXPECT_EQ(errno, ECONNREFUSED);
  for (const int fd : {stranger, joint->guard_end, joint->server_end}) close(fd);
}

TEST(JointTest, UsesAnotherAddressEachTime) {
  std::set<std::string> names;
  for (int i = 0; i < 50; ++i) {
    const auto joint = make_joint();
    ASSERT_TRUE(joint);
    names.insert(text(name_of(joint->server_end)));
    close(joint->guard_end);
    close(joint->server_end);
  }
  EXPECT_EQ(names.size(), 50U);
}

TEST(JointTest, TakesTheConnectionOfItsOwnAndClosesThoseOfStrangers) {
  const int listener = listen_somewhere();
  const int stranger = connect_to(listener);
  const int own = connect_to(listener);
  const int accepted = accept_from(listener, name_of(own), 10'000);
  ASSERT_GE(accepted, 0);
  EXPECT_EQ(text(peer_of(accepted)), text(name_of(own)));
  EXPECT_EQ(read_some(stranger), "");
  for (const int fd : {listener, stranger, own, accepted}) close(fd);
}

TEST(JointTest, DoesNotWaitForEverForItsOwn) {
  const int listener = listen_somewhere();
  const int stranger = connect_to(listener);
  const sockaddr_in nobody = name_of(listener);
  EXPECT_EQ(accept_from(listener, nobody, 20), -1);
  close(stranger);
  close(listener);
}

TEST(JointTest, SaysWhenFileDescriptorsRunOutAndKeepsNone) {
  rlimit files{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
  const int probe = dup(0);
  close(probe);
  rlimit few = files;
  few.rlim_cur = static_cast<rlim_t>(probe) + 1;  // one more
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  const auto joint = make_joint();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
  EXPECT_FALSE(joint);
  const int after = dup(0);
  EXPECT_EQ(after, probe);
  close(after);
}

}  // namespace
}  // namespace r1d::transport
