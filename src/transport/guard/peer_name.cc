// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/peer_name.h"

#include <atomic>
#include <cstddef>
#include <cstring>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "r1d/base/address.h"

namespace r1d::transport {

std::string peer_text(const boost::asio::ip::tcp::socket& client) {
  boost::system::error_code error;
  const auto endpoint = client.remote_endpoint(error);
  if (error) return "";
  return base::format_address({endpoint.address().to_string(), endpoint.port()});
}

void name_socket(int fd, const std::string& client) {
  // Names are unique on the machine, clients' addresses are not: two daemons may have one client.
  static std::atomic<uint64_t> next_number{0};
  const std::string name =
      client + "/" + std::to_string(getpid()) + "." + std::to_string(next_number++);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (name.size() + 1 > sizeof(address.sun_path)) return;
  std::memcpy(address.sun_path + 1, name.data(), name.size());  // a leading 0: no file
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): what bind takes
  static_cast<void>(bind(fd, reinterpret_cast<const sockaddr*>(&address), size));
}

}  // namespace r1d::transport
