// SPDX-License-Identifier: Apache-2.0
// A real server on loopback, spoken to in plain bytes.
#include "r1d/transport/management_server.h"

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <new>
#include <poll.h>
#include <thread>

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::transport {
namespace {

using boost::asio::ip::tcp;
using boost::system::error_code;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr const char* kGetLivez = "GET /livez HTTP/1.1\r\nHost: r1d\r\n\r\n";

// One blocking connection. A read that never ends is ended by the time limit of the test program.
class Client {
 public:
  explicit Client(int32_t port, const char* host = "127.0.0.1") {
    socket_.connect({boost::asio::ip::make_address(host), static_cast<uint16_t>(port)});
  }

  // False when the server does not take it all.
  bool send(const std::string& text) {
    error_code error;
    boost::asio::write(socket_, boost::asio::buffer(text), error);
    return !error;
  }

  // Head and body of the next reply, by its Content-Length; a reply to HEAD has no body.
  std::string read_reply(bool has_body = true) {
    error_code error;
    const size_t head =
        boost::asio::read_until(socket_, boost::asio::dynamic_buffer(received_), "\r\n\r\n", error);
    EXPECT_FALSE(error) << error.message() << " after: " << received_;
    if (error) return {};
    const size_t size = head + (has_body ? content_length(received_) : 0);
    if (received_.size() < size) {
      boost::asio::read(socket_,
                        boost::asio::dynamic_buffer(received_),
                        boost::asio::transfer_exactly(size - received_.size()),
                        error);
    }
    std::string reply = received_.substr(0, size);
    received_.erase(0, size);
    return reply;
  }

  // Everything until the server closes.
  std::string read_all() {
    error_code error;
    boost::asio::read(socket_, boost::asio::dynamic_buffer(received_), error);
    return std::exchange(received_, {});
  }

  std::string request(const std::string& text) {
    send(text);
    return read_reply();
  }

  // Sends no more; the server sees the end.
  void finish_sending() { socket_.shutdown(tcp::socket::shutdown_send); }

  // Waits until the connection is reset, reading nothing.
  void wait_for_reset() {
    pollfd wanted{.fd = socket_.native_handle(), .events = 0, .revents = 0};
    while (poll(&wanted, 1, -1) < 0 && errno == EINTR) {
    }
    EXPECT_NE(wanted.revents & (POLLERR | POLLHUP), 0);
  }

 private:
  static size_t content_length(const std::string& head) {
    const std::string name = "Content-Length: ";
    const size_t at = head.find(name);
    return at == std::string::npos ? 0 : std::stoul(head.substr(at + name.size()));
  }

  boost::asio::io_context io_;
  tcp::socket socket_{io_};
  std::string received_;
};

ManagementRoutes routes() {
  return {{"/livez", [] { return HttpReply{.body = "ok\n"}; }},
          {"/readyz", [] { return HttpReply{.status = 503, .body = "loading\n"}; }},
          {"/metrics", [] {
             return HttpReply{.content_type = "text/plain; version=0.0.4", .body = "a 1\nb 2\n"};
           }}};
}

ManagementOptions any_port() {
  ManagementOptions options;
  options.address = "127.0.0.1:0";
  return options;
}

std::unique_ptr<ManagementServer> start(const ManagementOptions& options = any_port(),
                                        ManagementRoutes with = routes()) {
  auto server = ManagementServer::start(options, std::move(with));
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

int64_t num_open_fds() {
  using Iterator = std::filesystem::directory_iterator;
  return std::distance(Iterator("/proc/self/fd"), Iterator());
}

TEST(ManagementServerTest, AnswersARouteWithItsReply) {
  const auto server = start();
  Client client(server->port());
  const std::string reply = client.request("GET /metrics HTTP/1.1\r\nHost: r1d\r\n\r\n");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(reply, HasSubstr("Content-Type: text/plain; version=0.0.4\r\n"));
  EXPECT_THAT(reply, HasSubstr("Content-Length: 8\r\n"));
  EXPECT_THAT(reply, HasSubstr("Cache-Control: no-store\r\n"));
  EXPECT_THAT(reply, testing::EndsWith("\r\n\r\na 1\nb 2\n"));
  EXPECT_THAT(client.request("GET /readyz HTTP/1.1\r\nHost: r1d\r\n\r\n"),
              StartsWith("HTTP/1.1 503 Service Unavailable\r\n"));
}

TEST(ManagementServerTest, KeepsTheConnectionForTheNextRequest) {
  const auto server = start();
  Client client(server->port());
  for (int i = 0; i < 5; ++i) EXPECT_THAT(client.request(kGetLivez), HasSubstr("\r\n\r\nok\n"));
  client.send(std::string(kGetLivez) + kGetLivez + kGetLivez);
  for (int i = 0; i < 3; ++i) EXPECT_THAT(client.read_reply(), HasSubstr("\r\n\r\nok\n"));
  EXPECT_THAT(client.request("GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
              HasSubstr("Connection: keep-alive\r\n"));
  EXPECT_THAT(client.request(kGetLivez), HasSubstr("\r\n\r\nok\n"));
}

TEST(ManagementServerTest, ClosesWhenTheClientWantsIt) {
  const auto server = start();
  for (const char* text : {"GET /livez HTTP/1.1\r\nHost: r1d\r\nConnection: close\r\n\r\n",
                           "GET /livez HTTP/1.0\r\n\r\n"}) {
    Client client(server->port());
    client.send(text);
    EXPECT_THAT(client.read_all(), testing::EndsWith("\r\n\r\nok\n")) << text;
  }
}

TEST(ManagementServerTest, AnswersAHeadThatComesInPieces) {
  const auto server = start();
  Client client(server->port());
  for (const char c : std::string(kGetLivez)) client.send(std::string(1, c));
  EXPECT_THAT(client.read_reply(), HasSubstr("\r\n\r\nok\n"));
}

TEST(ManagementServerTest, AnswersHeadWithoutABody) {
  const auto server = start();
  Client client(server->port());
  client.send("HEAD /metrics HTTP/1.1\r\nHost: r1d\r\n\r\n");
  const std::string reply = client.read_reply(false);
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(reply, HasSubstr("Content-Length: 8\r\n"));
  EXPECT_THAT(client.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n")) << "no body in between";
}

TEST(ManagementServerTest, IgnoresTheQueryString) {
  const auto server = start();
  Client client(server->port());
  EXPECT_THAT(client.request("GET /livez?verbose=1 HTTP/1.1\r\nHost: r1d\r\n\r\n"),
              HasSubstr("\r\n\r\nok\n"));
}

TEST(ManagementServerTest, ARouteWithAQueryStringIsServedForThatStringAlone) {
  ManagementRoutes with = routes();
  with.emplace_back("/livez?verbose", [] { return HttpReply{.body = "all is well\n"}; });
  const auto server = start(any_port(), with);
  Client client(server->port());
  EXPECT_THAT(client.request("GET /livez?verbose HTTP/1.1\r\nHost: r1d\r\n\r\n"),
              HasSubstr("\r\n\r\nall is well\n"));
  EXPECT_THAT(client.request("GET /livez?verbos HTTP/1.1\r\nHost: r1d\r\n\r\n"),
              HasSubstr("\r\n\r\nok\n"));
  EXPECT_THAT(client.request("GET /lives HTTP/1.1\r\nHost: r1d\r\n\r\n"),
              HasSubstr("not found; there are /livez /readyz /metrics\n"));
}

TEST(ManagementServerTest, AHandlerThatThrowsIsAnswered500AndNothingElseHappens) {
  ManagementRoutes with = routes();
  with.emplace_back("/broken", []() -> HttpReply { throw std::bad_alloc(); });
  const auto server = start(any_port(), with);
  Client client(server->port());
  EXPECT_THAT(client.request("GET /broken HTTP/1.1\r\nHost: r1d\r\n\r\n"),
              StartsWith("HTTP/1.1 500 Internal Server Error\r\n"));
  EXPECT_THAT(client.request("GET /livez HTTP/1.1\r\nHost: r1d\r\n\r\n"),
              HasSubstr("\r\n\r\nok\n"));
}

TEST(ManagementServerTest, NamesItsPathsWhenAskedForAnother) {
  const auto server = start();
  Client client(server->port());
  for (const char* target :
       {"/", "/live", "/livez/", "//livez", "/LIVEZ", "/%6Civez", "http://r1d/livez"}) {
    const std::string reply =
        client.request(std::string("GET ") + target + " HTTP/1.1\r\nHost: r1d\r\n\r\n");
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 404 Not Found\r\n")) << target;
    EXPECT_THAT(reply, HasSubstr("not found; there are /livez /readyz /metrics\n")) << target;
  }
}

TEST(ManagementServerTest, RefusesOtherMethods) {
  const auto server = start();
  Client client(server->port());
  for (const char* method : {"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"}) {
    const std::string reply =
        client.request(std::string(method) + " /livez HTTP/1.1\r\nHost: r1d\r\n\r\n");
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 405 Method Not Allowed\r\n")) << method;
    EXPECT_THAT(reply, HasSubstr("Allow: GET, HEAD\r\n")) << method;
  }
}

TEST(ManagementServerTest, RefusesBodiesAndCloses) {
  const auto server = start();
  for (const char* field : {"Content-Length: 5",
                            "Content-Length: 99999999999999999",
                            "Transfer-Encoding: chunked",
                            "Transfer-Encoding: gzip",
                            "Transfer-Encoding: gzip, chunked"}) {
    Client client(server->port());
    client.send(std::string("GET /livez HTTP/1.1\r\nHost: r1d\r\n") + field + "\r\n\r\nhello" +
                kGetLivez);
    const std::string replies = client.read_all();
    EXPECT_THAT(replies, StartsWith("HTTP/1.1 413 Payload Too Large\r\n")) << field;
    EXPECT_THAT(replies, HasSubstr("Connection: close\r\n")) << field;
    EXPECT_THAT(replies, Not(HasSubstr("200 OK"))) << "what follows is no request: " << field;
  }
  Client client(server->port());
  EXPECT_THAT(client.request("GET /livez HTTP/1.1\r\nHost: r1d\r\nContent-Length: 0\r\n\r\n"),
              StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST(ManagementServerTest, RefusesLongHeads) {
  const auto server = start();
  const std::string start_line = "GET /livez HTTP/1.1\r\nHost: r1d\r\n";
  std::string many_fields = start_line;
  while (many_fields.size() < 20000) many_fields += "X-Field: some value\r\n";
  const std::string one_field = start_line + "X-Field: " + std::string(20000, 'x') + "\r\n";
  const std::string target = "GET /" + std::string(20000, 'x') + " HTTP/1.1\r\nHost: r1d\r\n";
  for (const std::string& head : {many_fields, one_field, target}) {
    Client client(server->port());
    client.send(head + "\r\n");
    EXPECT_THAT(client.read_all(), StartsWith("HTTP/1.1 431 Request Header Fields Too Large\r\n"));
  }
  Client client(server->port());
  EXPECT_THAT(client.request(start_line + "X-Field: " + std::string(15000, 'x') + "\r\n\r\n"),
              StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST(ManagementServerTest, RefusesWhatIsNotHttp) {
  const auto server = start();
  for (const char* text : {"\x16\x03\x01\x02\r\n\r\n",
                           "hello\r\n\r\n",
                           "GET /livez HTTP/2.0\r\nHost: r1d\r\n\r\n",
                           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                           "GET /livez HTTP/1.1\r\n\r\n",
                           "GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                           "GET /livez HTTP/1.1\r\nHost : a\r\n\r\n",
                           "GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
                           "GET /li vez HTTP/1.1\r\nHost: a\r\n\r\n"}) {
    Client client(server->port());
    client.send(text);
    EXPECT_THAT(client.read_all(), StartsWith("HTTP/1.1 400 Bad Request\r\n")) << text;
  }
}

TEST(ManagementServerTest, CutsOffASlowHead) {
  ManagementOptions options = any_port();
  options.head_timeout = std::chrono::milliseconds(50);
  const auto server = start(options);
  Client silent(server->port());
  EXPECT_EQ(silent.read_all(), "");
  Client half(server->port());
  half.send("GET /livez HTT");
  EXPECT_EQ(half.read_all(), "");
}

TEST(ManagementServerTest, ClosesAnIdleConnection) {
  ManagementOptions options = any_port();
  options.head_timeout = std::chrono::seconds(1);  // enough for a busy machine to send the request
  const auto server = start(options);
  Client client(server->port());
  EXPECT_THAT(client.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_EQ(client.read_all(), "");
}

TEST(ManagementServerTest, CutsOffAClientThatDoesNotRead) {
  ManagementOptions options = any_port();
  options.write_timeout = std::chrono::milliseconds(50);
  // More than the sockets of both sides hold.
  const auto server =
      start(options, {{"/big", [] { return HttpReply{.body = std::string(64 << 20, 'x')}; }}});
  Client client(server->port());
  // What follows the request stays unread, so that closing shows at once, as a reset.
  client.send("GET /big HTTP/1.1\r\nHost: r1d\r\n\r\n" + std::string(100000, 'x'));
  client.wait_for_reset();
}

TEST(ManagementServerTest, TurnsAwayConnectionsBeyondTheLimit) {
  ManagementOptions options = any_port();
  options.max_connections = 2;
  const auto server = start(options);
  Client first(server->port());
  Client second(server->port());
  EXPECT_THAT(first.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(second.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n"));
  Client third(server->port());
  const std::string refused = third.read_all();
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 503 Service Unavailable\r\n"));
  EXPECT_THAT(refused, testing::EndsWith("\r\n\r\ntoo many connections\n"));
  EXPECT_THAT(first.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n")) << "others go on";

  // The server closes its side once the connection counts no more.
  first.finish_sending();
  EXPECT_EQ(first.read_all(), "");
  Client fourth(server->port());
  EXPECT_THAT(fourth.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST(ManagementServerTest, ServesManyConnectionsAtOnce) {
  std::atomic<int> calls{0};
  const auto server = start(any_port(), {{"/count", [&calls] {
                                            ++calls;
                                            return HttpReply{.body = std::string(10000, 'x')};
                                          }}});
  constexpr int kThreads = 8;
  constexpr int kConnections = 16;
  constexpr int kRequests = 5;
  std::atomic<int> answered{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      std::vector<std::unique_ptr<Client>> clients;
      for (int c = 0; c < kConnections; ++c) {
        clients.push_back(std::make_unique<Client>(server->port()));
      }
      for (int r = 0; r < kRequests; ++r) {
        for (const auto& client : clients) client->send("GET /count HTTP/1.1\r\nHost: r1d\r\n\r\n");
        for (const auto& client : clients) {
          if (client->read_reply().starts_with("HTTP/1.1 200 OK\r\n")) ++answered;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(answered, kThreads * kConnections * kRequests);
  EXPECT_EQ(calls, kThreads * kConnections * kRequests);
}

TEST(ManagementServerTest, StopsWhileConnectionsAreOpen) {
  auto server = start(any_port(),
                      {{"/big", [] { return HttpReply{.body = std::string(64 << 20, 'x')}; }},
                       {"/livez", [] { return HttpReply{.body = "ok\n"}; }}});
  Client idle(server->port());
  EXPECT_THAT(idle.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n"));
  Client half(server->port());
  half.send("GET /livez HTT");
  Client in_reply(server->port());
  in_reply.send("GET /big HTTP/1.1\r\nHost: r1d\r\n\r\n");
  server.reset();
  EXPECT_EQ(idle.read_all(), "");
  EXPECT_EQ(half.read_all(), "");
  EXPECT_LT(in_reply.read_all().size(), size_t{64} << 20);
}

TEST(ManagementServerTest, LeavesNoSocketBehindAndItsPortFree) {
  const int64_t before = num_open_fds();
  ManagementOptions options = any_port();
  for (int i = 0; i < 5; ++i) {
    auto server = start(options);
    ASSERT_NE(server, nullptr);
    options.address = "127.0.0.1:" + std::to_string(server->port());  // the same port again
    Client open(server->port());
    EXPECT_THAT(open.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n"));
    server.reset();
  }
  EXPECT_EQ(num_open_fds(), before);
}

TEST(ManagementServerTest, SaysWhereItCannotListen) {
  const auto server = start();
  ManagementOptions options;
  options.address = "127.0.0.1:" + std::to_string(server->port());
  const auto second = ManagementServer::start(options, routes());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(message_of(second.status()),
            "management server: cannot listen on " + options.address + ": Address already in use");

  options.address = "192.0.2.1:0";  // RFC 5737: nobody's
  EXPECT_THAT(message_of(ManagementServer::start(options, routes()).status()),
              HasSubstr("cannot listen on 192.0.2.1:0: Cannot assign requested address"));
  options.address = "8081";
  EXPECT_EQ(ManagementServer::start(options, routes()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ManagementServerTest, ListensOnIpv6) {
  ManagementOptions options;
  options.address = "[::1]:0";
  const auto server = ManagementServer::start(options, routes());
  if (!server.ok()) GTEST_SKIP() << "no IPv6 loopback here: " << server.status();
  Client client((*server)->port(), "::1");
  EXPECT_THAT(client.request(kGetLivez), StartsWith("HTTP/1.1 200 OK\r\n"));
}

}  // namespace
}  // namespace r1d::transport
