// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include "r1d/telemetry/metrics.h"

#include "transport/guard/connection_table.h"
#include "transport/guard/frame_guard.h"
#include "transport/guard/limits.h"
#include "transport/guard/read_buffer.h"
#include "transport/guard/refusal_log.h"

namespace r1d::transport {

// Gives the server its end of a joint; the server owns it from then on.
using HandOver = std::function<void(int fd)>;

// What the connections of a guard share; outlives them.
struct GuardShared {
  const GuardLimits& limits;
  telemetry::TransportMetrics& metrics;
  RefusalLog& log;
  const HandOver& hand_over;
  const std::atomic<bool>& accepts;  // else no one is handed over
};

// One client: its bytes are judged and carried to the server, the server's are carried back.
//
// Lifecycle: start() once -> handshake (the server knows nothing of it) -> open (a joint
// leads to the server) -> lingering (the server's end is closed, the client's is shut; what it
// still sends is thrown away, for a second) -> gone. Shared, because each pending operation holds
// it; with the last of them it ends and closes its sockets. Threads: confined to its executor's.
// Back pressure: a direction reads again once all that it read is passed on.
class Relay : public std::enable_shared_from_this<Relay> {
 public:
  Relay(boost::asio::ip::tcp::socket client,
        std::unique_ptr<ConnectionTable::Place> place,
        const GuardShared& shared);
  void start();

 private:
  using Socket = boost::asio::generic::stream_protocol::socket;
  using ErrorCode = boost::system::error_code;
  enum class State : uint8_t { kHandshake, kOpen, kLingering, kClosed };

  // One direction.
  struct Way {
    Socket& from;
    Socket& to;
    bool from_client;
    ReadBuffer buffer{};
    bool reads = false;  // something, from `from`
    bool waits = false;  // for room at `to`
  };

  void read(Way& way);
  void on_read(Way& way, const ErrorCode& error, size_t count);
  void pass_on(Way& way);
  void wait_for_room(Way& way);
  void on_end(Way& way, const ErrorCode& error);
  void on_broken(const Way& way);

  [[nodiscard]] bool open();
  void set_deadline(std::chrono::milliseconds delay, const char* what);
  void clear_deadline();
  void watch_header_block();

  void refuse(const Violation& violation);
  void say_goodbye(const Violation& violation);
  size_t send_now(std::string_view bytes);
  void linger();
  void on_discarded(const ErrorCode& error, size_t count);
  void close();

  const GuardShared& shared_;
  const std::string peer_;
  const std::unique_ptr<ConnectionTable::Place> place_;
  Socket client_;
  Socket server_;  // our end of the joint; closed unless kOpen
  Way up_{.from = client_, .to = server_, .from_client = true};
  Way down_{.from = server_, .to = client_, .from_client = false};
  FrameGuard guard_;
  State state_ = State::kHandshake;
  bool client_ended_ = false;           // it sends no more
  boost::asio::steady_timer deadline_;  // of the handshake, a header block or lingering
  uint32_t watched_block_ = 0;          // the header block that the deadline is for
  boost::asio::steady_timer stall_;     // of a client that takes nothing
  size_t num_discarded_ = 0;
};

}  // namespace r1d::transport
