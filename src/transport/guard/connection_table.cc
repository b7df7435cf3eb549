// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/connection_table.h"

#include <algorithm>

#include <boost/asio/ip/address_v6.hpp>

namespace r1d::transport {

namespace ip = boost::asio::ip;

ip::address counted_address(const ip::address& address) {
  if (!address.is_v6()) return address;
  const ip::address_v6 v6 = address.to_v6();
  if (v6.is_v4_mapped()) return ip::make_address_v4(ip::v4_mapped, v6);
  ip::address_v6::bytes_type bytes = v6.to_bytes();
  std::fill(bytes.begin() + 8, bytes.end(), static_cast<uint8_t>(0));
  return ip::address_v6(bytes);
}

std::unique_ptr<ConnectionTable::Place> ConnectionTable::take(const ip::address& address,
                                                              Refusal& why_not) {
  const ip::address counted = counted_address(address);
  {
    const base::MutexLock lock(mu_);
    if (total_ >= limits_.total) {
      why_not = Refusal::kConnectionLimit;
      return nullptr;
    }
    int32_t& of_address = by_address_[counted];  // one entry a connection at most
    if (of_address >= limits_.per_address) {
      why_not = Refusal::kAddressLimit;
      return nullptr;
    }
    ++of_address;
    ++total_;
  }
  return std::make_unique<Place>(*this, counted);
}

bool ConnectionTable::wait_for_none_open(TimePoint deadline) {
  const base::MutexLock lock(mu_);
  while (open_ > 0 && std::chrono::steady_clock::now() < deadline) {
    none_open_.wait_until(mu_, deadline);
  }
  return open_ == 0;
}

ConnectionTable::Place::Place(ConnectionTable& table, ip::address address)
    : table_(table), address_(std::move(address)) {
  table_.metrics_.connections("handshake", 1);
}

void ConnectionTable::Place::open() {
  table_.metrics_.connections("handshake", -1);
  table_.metrics_.connections("open", 1);
  const base::MutexLock lock(table_.mu_);
  open_ = true;
  ++table_.open_;
}

ConnectionTable::Place::~Place() {
  table_.metrics_.connections(open_ ? "open" : "handshake", -1);
  const base::MutexLock lock(table_.mu_);
  const auto entry = table_.by_address_.find(address_);
  if (--entry->second == 0) table_.by_address_.erase(entry);
  --table_.total_;
  if (open_ && --table_.open_ == 0) table_.none_open_.notify_all();
}

}  // namespace r1d::transport
