// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/peer_name.h"

#include "r1d/base/address.h"

namespace r1d::transport {

std::string peer_text(const boost::asio::ip::tcp::socket& client) {
  boost::system::error_code error;
  const auto endpoint = client.remote_endpoint(error);
  if (error) return "";
  return base::format_address({endpoint.address().to_string(), endpoint.port()});
}

}  // namespace r1d::transport
