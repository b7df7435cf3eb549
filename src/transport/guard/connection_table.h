// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include <boost/asio/ip/address.hpp>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"
#include "r1d/telemetry/metrics.h"

#include "transport/guard/limits.h"

namespace r1d::transport {

// Counts the clients' connections, in all and by address. Thread-safe; outlives its places.
class ConnectionTable {
 public:
  struct Limits {
    int32_t total = 10000;
    int32_t per_address = 512;  // IPv6: per /64, which is what one client has
  };

  // A connection's share of the limits, and its state in r1d_connections{state}.
  class Place {
   public:
    Place(ConnectionTable& table, boost::asio::ip::address address);
    ~Place();
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    // From "handshake" to "open": it has a connection to the server now.
    void open();

   private:
    ConnectionTable& table_;
    const boost::asio::ip::address address_;
    bool open_ = false;
  };

  ConnectionTable(const Limits& limits, telemetry::TransportMetrics& metrics)
      : limits_(limits), metrics_(metrics) {}

  // A place for a client at `address`, or why there is none.
  [[nodiscard]] std::unique_ptr<Place> take(const boost::asio::ip::address& address,
                                            Refusal& why_not);
  // Returns when no connection is open, or at `deadline`; false then.
  bool wait_for_none_open(TimePoint deadline);

 private:
  const Limits limits_;
  telemetry::TransportMetrics& metrics_;
  base::Mutex mu_;
  base::CondVar none_open_;
  int32_t total_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t open_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<boost::asio::ip::address, int32_t> by_address_ ABSL_GUARDED_BY(mu_);
};

// What connections are counted by: an IPv4 address, also one written as IPv6; of IPv6 the first 64
// bits.
[[nodiscard]] boost::asio::ip::address counted_address(const boost::asio::ip::address& address);

}  // namespace r1d::transport
