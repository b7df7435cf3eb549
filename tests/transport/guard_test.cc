// SPDX-License-Identifier: Apache-2.0
// A guard on loopback between plain sockets: the test plays the client and the server.
#include "transport/guard/guard.h"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <deque>
#include <fcntl.h>
#include <future>
#include <memory>
#include <string>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/telemetry/metrics.h"

#include "tests/transport/http2_bytes.h"

namespace r1d::transport {
namespace {

using boost::asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::StartsWith;

// The server's end of one connection: blocking reads and writes.
class ServerEnd {
 public:
  explicit ServerEnd(int fd) : fd_(fd) {
    timeval patience{.tv_sec = 60, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    const int flags = fcntl(fd_, F_GETFL);
    fcntl(fd_, F_SETFL, flags & ~O_NONBLOCK);
  }
  ServerEnd(ServerEnd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~ServerEnd() { close(); }

  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  bool write(const std::string& bytes) const {
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t count = ::send(fd_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (count <= 0) return false;
      at += static_cast<size_t>(count);
    }
    return true;
  }
  // `size` bytes, or fewer when the client ends before.
  [[nodiscard]] std::string read(size_t size) const {
    std::string bytes(size, '\0');
    size_t held = 0;
    while (held < size) {
      const ssize_t count = ::recv(fd_, bytes.data() + held, size - held, 0);
      if (count <= 0) break;
      held += static_cast<size_t>(count);
    }
    bytes.resize(held);
    return bytes;
  }
  // At the client's end, and by no time limit.
  [[nodiscard]] bool at_end() const {
    char byte = 0;
    const ssize_t count = ::recv(fd_, &byte, 1, 0);
    return count == 0 || (count < 0 && errno == ECONNRESET);
  }

 private:
  int fd_;
};

class GuardTest : public testing::Test {
 protected:
  GuardTest() {
    std::signal(SIGPIPE, SIG_IGN);
    options_.address = "127.0.0.1:0";
  }
  ~GuardTest() override {
    if (guard_ != nullptr) guard_->stop_accepting();
  }

  void start() {
    auto guard = Guard::listen(options_, metrics_);
    ASSERT_TRUE(guard.ok()) << guard.status();
    guard_ = *std::move(guard);
    guard_->start([this](int fd) {
      const base::MutexLock lock(mu_);
      arrived_.emplace_back(fd);
      changed_.notify_all();
    });
  }

  tcp::socket connect(const char* host = "127.0.0.1") {
    tcp::socket socket(io_);
    socket.connect({boost::asio::ip::make_address(host), static_cast<uint16_t>(guard_->port())});
    return socket;
  }

  // The next connection that reaches the server.
  ServerEnd accept() {
    const base::MutexLock lock(mu_);
    while (arrived_.empty()) changed_.wait(mu_);
    ServerEnd end = std::move(arrived_.front());
    arrived_.pop_front();
    return end;
  }
  size_t num_arrived() {
    const base::MutexLock lock(mu_);
    return arrived_.size();
  }

  // A client that is through the handshake, and the server's end of it.
  std::pair<tcp::socket, ServerEnd> connected() {
    tcp::socket client = connect();
    send(client, client_start());
    ServerEnd server = accept();
    EXPECT_EQ(server.read(client_start().size()), client_start());
    return {std::move(client), std::move(server)};
  }

  static bool send(tcp::socket& socket, const std::string& bytes) {
    error_code error;
    boost::asio::write(socket, boost::asio::buffer(bytes), error);
    return !error;
  }
  static std::string read(tcp::socket& socket, size_t size) {
    std::string bytes;
    error_code error;
    boost::asio::read(
        socket, boost::asio::dynamic_buffer(bytes), boost::asio::transfer_exactly(size), error);
    return bytes;
  }
  // Until the guard closes.
  static std::string read_all(tcp::socket& socket) {
    std::string bytes;
    error_code error;
    boost::asio::read(socket, boost::asio::dynamic_buffer(bytes), error);
    return bytes;
  }

  [[nodiscard]] std::string metric(const std::string& name) const {
    const std::string text = registry_.render();
    const size_t at = text.find("\n" + name + " ");
    if (at == std::string::npos) return "";
    const size_t value = at + name.size() + 2;
    return text.substr(value, text.find('\n', value) - value);
  }
  void wait_for_metric(const std::string& name, const std::string& value) {
    while (metric(name) != value) std::this_thread::yield();
  }

  GuardOptions options_;
  telemetry::Registry registry_;
  telemetry::TransportMetrics metrics_{registry_};
  boost::asio::io_context io_;
  base::Mutex mu_;
  base::CondVar changed_;
  std::deque<ServerEnd> arrived_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<Guard> guard_;
};

TEST_F(GuardTest, CarriesBytesBothWays) {
  start();
  auto [client, server] = connected();
  const std::string request = open_stream(1) + frame_bytes(FrameType::kData, kEndStream, 1, "hi");
  ASSERT_TRUE(send(client, request));
  EXPECT_EQ(server.read(request.size()), request);
  const std::string answer = frame_bytes(FrameType::kData, 0, 1, "hello");
  ASSERT_TRUE(server.write(answer));
  EXPECT_EQ(read(client, answer.size()), answer);
  EXPECT_EQ(metric("r1d_connections{state=\"open\"}"), "1");
}

TEST_F(GuardTest, CarriesMuchBothWaysAtOnceUnchanged) {
  start();
  auto [client, server] = connected();
  std::string up = open_stream(1);
  std::string down;
  for (int i = 0; i < 2000; ++i) {
    const std::string payload(static_cast<size_t>(i * 37 % 16384), static_cast<char>(i));
    up += frame_bytes(FrameType::kData, payload.size() < 64 ? kEndStream : 0, 1, payload);
    down += frame_bytes(FrameType::kData, 0, 1, payload);
  }
  auto sent_up = std::async(std::launch::async, [&, &c = client] { return send(c, up); });
  auto sent_down = std::async(std::launch::async, [&, &s = server] { return s.write(down); });
  auto read_up =
      std::async(std::launch::async, [&, &s = server] { return s.read(up.size()) == up; });
  EXPECT_EQ(read(client, down.size()), down);
  EXPECT_TRUE(sent_up.get() && sent_down.get() && read_up.get());
}

TEST_F(GuardTest, HoldsLittleForAClientThatDoesNotRead) {
  start();
  auto [client, server] = connected();
  const std::string frame = frame_bytes(FrameType::kData, 0, 1, std::string(16384, 'd'));
  std::promise<void> stuck;
  std::thread writer([&, &s = server] {
    for (int i = 0; i < 4096; ++i) {
      if (!s.write(frame)) break;
    }
    stuck.set_value();
  });
  EXPECT_EQ(stuck.get_future().wait_for(milliseconds(300)), std::future_status::timeout)
      << "64 MiB are more than all buffers";
  EXPECT_EQ(read(client, frame.size()), frame);
  client.close();
  writer.join();
}

TEST_F(GuardTest, PassesAHalfCloseOn) {
  start();
  auto [client, server] = connected();
  client.shutdown(tcp::socket::shutdown_send);
  EXPECT_TRUE(server.at_end());
  const std::string last = frame_bytes(FrameType::kData, kEndStream, 1, "last");
  ASSERT_TRUE(server.write(last));
  server.close();
  EXPECT_EQ(read_all(client), last);
}

TEST_F(GuardTest, TellsTheServerOfAClientThatVanished) {
  start();
  auto [client, server] = connected();
  client.set_option(boost::asio::socket_base::linger(true, 0));
  client.close();  // a reset
  EXPECT_TRUE(server.at_end());
  wait_for_metric("r1d_connections{state=\"open\"}", "0");
}

TEST_F(GuardTest, DeliversWhatTheServerSentBeforeItClosed) {
  start();
  auto [client, server] = connected();
  // What the kernel has under way then; TCP throws away the rest where bytes were left unread.
  std::string bytes;
  for (int i = 0; i < 5; ++i) bytes += frame_bytes(FrameType::kData, 0, 1, std::string(8000, 'd'));
  ASSERT_TRUE(server.write(bytes));
  ASSERT_TRUE(send(client, ping()));  // never read by the server
  server.close();
  EXPECT_EQ(read_all(client), bytes);
}

TEST_F(GuardTest, TheServerHearsNothingOfAClientWithoutAHandshake) {
  start();
  tcp::socket client = connect();
  ASSERT_TRUE(send(client, client_start().substr(0, 30)));
  wait_for_metric("r1d_connections{state=\"handshake\"}", "1");
  client.close();
  wait_for_metric("r1d_connections{state=\"handshake\"}", "0");
  EXPECT_EQ(num_arrived(), 0U);
}

TEST_F(GuardTest, EndsASlowHandshake) {
  options_.limits.handshake_timeout = milliseconds(50);
  start();
  tcp::socket silent = connect();
  tcp::socket slow = connect();
  ASSERT_TRUE(send(slow, client_start().substr(0, 30)));
  EXPECT_THAT(read_all(silent), HasSubstr("no HTTP/2 handshake in time"));
  EXPECT_THAT(read_all(slow), HasSubstr("no HTTP/2 handshake in time"));
  EXPECT_EQ(metric("r1d_connections_refused_total{reason=\"timeout\"}"), "2");
  EXPECT_EQ(num_arrived(), 0U);
}

TEST_F(GuardTest, EndsASlowHeaderBlock) {
  options_.limits.header_timeout = milliseconds(50);
  start();
  auto [client, server] = connected();
  ASSERT_TRUE(send(client, frame_bytes(FrameType::kHeaders, 0, 1, "h")));
  EXPECT_THAT(read_all(client), HasSubstr("did not end in time"));
  EXPECT_EQ(server.read(100).size(), 10U) << "and the server hears the end";
}

TEST_F(GuardTest, LeavesAnIdleConnectionAlone) {
  options_.limits.header_timeout = milliseconds(1);
  options_.limits.handshake_timeout = milliseconds(50);
  start();
  auto [client, server] = connected();
  const std::string block = frame_bytes(FrameType::kHeaders, 0, 1, "h") +
                            frame_bytes(FrameType::kContinuation, kEndHeaders, 1, "h");
  ASSERT_TRUE(send(client, block));
  EXPECT_EQ(server.read(block.size()), block);
  tcp::socket later = connect();
  EXPECT_THAT(read_all(later), HasSubstr("no HTTP/2 handshake in time"));  // 50 ms have passed
  ASSERT_TRUE(send(client, ping()));
  EXPECT_EQ(server.read(ping().size()), ping());
}

TEST_F(GuardTest, CutsAFloodAndSaysWhy) {
  start();
  auto [client, server] = connected();
  const std::string answer = frame_bytes(FrameType::kSettings, 0, 0);
  ASSERT_TRUE(server.write(answer));
  EXPECT_EQ(read(client, answer.size()), answer);
  std::string flood = frame_bytes(FrameType::kHeaders, 0, 1, "h");
  for (int i = 0; i < 100000; ++i) flood += frame_bytes(FrameType::kContinuation, 0, 1, "hhhhhhhh");
  send(client, flood);  // the rest of it is refused
  EXPECT_LT(server.read(flood.size()).size(), 16U << 10);
  EXPECT_TRUE(server.at_end());
  wait_for_metric("r1d_connections_refused_total{reason=\"header_block\"}", "1");
  wait_for_metric("r1d_connections{state=\"open\"}", "0");
}

TEST_F(GuardTest, AnOrdinaryOffenderReadsTheReason) {
  start();
  auto [client, server] = connected();
  ASSERT_TRUE(send(client, open_stream(2)));
  EXPECT_THAT(read_all(client), HasSubstr("HEADERS on a stream that no client opens"));
  EXPECT_TRUE(server.at_end());
  EXPECT_EQ(metric("r1d_connections_refused_total{reason=\"frame\"}"), "1");
}

TEST_F(GuardTest, DoesNotSpeakWithinAFrameOfTheServer) {
  start();
  auto [client, server] = connected();
  const std::string part = frame_bytes(FrameType::kData, 0, 1, "whole").substr(0, 11);
  ASSERT_TRUE(server.write(part));
  EXPECT_EQ(read(client, part.size()), part);
  ASSERT_TRUE(send(client, open_stream(2)));
  EXPECT_EQ(read_all(client), "");
}

TEST_F(GuardTest, AnswersHttp1WithTheWayToGo) {
  start();
  tcp::socket client = connect();
  ASSERT_TRUE(send(client, "GET /metrics HTTP/1.1\r\nHost: r1d\r\n\r\n"));
  const std::string reply = read_all(client);
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(reply, HasSubstr("management port"));
  tcp::socket tls = connect();
  ASSERT_TRUE(send(tls, "\x16\x03\x01"));
  EXPECT_EQ(read_all(tls), "");
  EXPECT_EQ(metric("r1d_connections_refused_total{reason=\"not_http2\"}"), "2");
}

TEST_F(GuardTest, TurnsAwayConnectionsBeyondTheLimits) {
  options_.connections = {.total = 3, .per_address = 2};
  start();
  auto [first, first_server] = connected();
  {
    auto [second, second_server] = connected();
    tcp::socket third = connect();
    EXPECT_THAT(read_all(third), HasSubstr("too many connections"));
    EXPECT_EQ(metric("r1d_connections_refused_total{reason=\"address_limit\"}"), "1");
  }
  wait_for_metric("r1d_connections{state=\"open\"}", "1");
  auto [again, again_server] = connected();
}

TEST_F(GuardTest, LimitsAllConnectionsTogether) {
  options_.connections = {.total = 1, .per_address = 2};
  start();
  auto [first, first_server] = connected();
  tcp::socket second = connect();
  EXPECT_THAT(read_all(second), HasSubstr("too many connections"));
  EXPECT_EQ(metric("r1d_connections_refused_total{reason=\"connection_limit\"}"), "1");
}

TEST_F(GuardTest, HandsNobodyOverOnceItHasStopped) {
  start();
  auto [client, server] = connected();
  tcp::socket late = connect();
  ASSERT_TRUE(send(late, client_start().substr(0, 30)));
  wait_for_metric("r1d_connections{state=\"handshake\"}", "1");
  guard_->stop_accepting();
  error_code error;
  tcp::socket refused(io_);
  refused.connect(
      {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(guard_->port())}, error);
  EXPECT_EQ(error, boost::asio::error::connection_refused);
  ASSERT_TRUE(send(late, client_start().substr(30)));
  EXPECT_EQ(read_all(late), "");
  EXPECT_EQ(num_arrived(), 0U);
  // Who is through stays.
  ASSERT_TRUE(server.write(ping()));
  EXPECT_EQ(read(client, ping().size()), ping());
}

TEST_F(GuardTest, FinishesWhenClientsHaveWhatWasSent) {
  start();
  auto [client, server] = connected();
  std::string bytes;
  for (int i = 0; i < 100; ++i) {
    bytes += frame_bytes(FrameType::kData, 0, 1, std::string(16384, 'd'));
  }
  std::thread writer([&, &s = server] {
    EXPECT_TRUE(s.write(bytes));
    s.close();
  });
  auto received = std::async(std::launch::async, [&, &c = client] {
    std::string all = read_all(c);
    c.close();
    return all;
  });
  writer.join();
  guard_->stop_accepting();
  guard_->finish(std::chrono::minutes(1));
  guard_.reset();
  EXPECT_EQ(received.get(), bytes);
}

TEST_F(GuardTest, DoesNotWaitForEverForAClientThatDoesNotRead) {
  start();
  auto [client, server] = connected();
  guard_->stop_accepting();
  guard_->finish(milliseconds(20));  // the server's end is open still
  guard_.reset();
  EXPECT_EQ(read_all(client), "");
  EXPECT_TRUE(server.at_end());
}

TEST_F(GuardTest, ServesManyConnectionsAtOnce) {
  options_.connections = {.total = 1000, .per_address = 1000};
  start();
  std::vector<std::pair<tcp::socket, ServerEnd>> all;
  for (int i = 0; i < 300; ++i) all.push_back(connected());
  for (auto& [client, server] : all) ASSERT_TRUE(send(client, ping()));
  for (auto& [client, server] : all) {
    EXPECT_EQ(server.read(ping().size()), ping());
    ASSERT_TRUE(server.write(ping()));
  }
  for (auto& [client, server] : all) EXPECT_EQ(read(client, ping().size()), ping());
  EXPECT_EQ(metric("r1d_connections{state=\"open\"}"), "300");
  all.clear();
  wait_for_metric("r1d_connections{state=\"open\"}", "0");
}

TEST_F(GuardTest, ListensOnEveryAddressOfAHost) {
  options_.address = "localhost:0";
  ASSERT_NO_FATAL_FAILURE(start());
  tcp::socket v4 = connect("127.0.0.1");
  ASSERT_TRUE(send(v4, client_start()));
  accept();
}

TEST_F(GuardTest, ServesIpv6AndIpv4OnOnePort) {
  options_.address = "[::]:0";
  auto guard = Guard::listen(options_, metrics_);
  if (!guard.ok()) GTEST_SKIP() << "no IPv6 here: " << guard.status();
  guard->reset();
  start();
  for (const char* host : {"127.0.0.1", "::1"}) {
    tcp::socket client = connect(host);
    ASSERT_TRUE(send(client, client_start()));
    const ServerEnd server = accept();
    EXPECT_EQ(server.read(client_start().size()), client_start());
  }
}

TEST(ConnectionTableTest, CountsAClientsNetworkAsOneAddress) {
  const auto counted = [](const char* text) {
    return counted_address(boost::asio::ip::make_address(text)).to_string();
  };
  EXPECT_EQ(counted("192.0.2.7"), "192.0.2.7");
  EXPECT_EQ(counted("::ffff:192.0.2.7"), "192.0.2.7");
  EXPECT_EQ(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
  EXPECT_EQ(counted("2001:db8:1:2:ffff::1"), "2001:db8:1:2::");
}

TEST(ReadBufferTest, GrowsWithUseAndShrinksAgain) {
  ReadBuffer buffer;
  const size_t small = buffer.room_bytes();
  EXPECT_EQ(small, ReadBuffer::kMinBytes);
  for (int i = 0; i < 4; ++i) {
    buffer.filled(buffer.room_bytes());
    buffer.passed_on(buffer.held_bytes());
  }
  EXPECT_EQ(buffer.room_bytes(), ReadBuffer::kMaxBytes);
  for (int i = 0; i < 100; ++i) {
    buffer.filled(10);
    buffer.passed_on(4);
    EXPECT_EQ(buffer.held_bytes(), 6U);
    buffer.passed_on(6);
  }
  EXPECT_EQ(buffer.room_bytes(), small);
}

}  // namespace
}  // namespace r1d::transport
