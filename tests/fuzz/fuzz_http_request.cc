// SPDX-License-Identifier: Apache-2.0
// Any bytes as a request on the management port, in two pieces, through the parser and the verdicts
// that the server uses. The first byte of the input says where the second piece begins.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <boost/asio/buffer.hpp>
#include <boost/beast/core/flat_buffer.hpp>

#include "r1d/base/check.h"

#include "transport/http/request.h"

namespace r1d::transport {
namespace {

void append(std::string_view bytes, boost::beast::flat_buffer& buffer) {
  buffer.commit(boost::asio::buffer_copy(buffer.prepare(bytes.size()),
                                         boost::asio::buffer(bytes.data(), bytes.size())));
}

// As http::async_read_header does: more bytes as long as the parser asks for them.
boost::system::error_code parse_head(std::string_view first,
                                     std::string_view second,
                                     RequestParser& parser) {
  boost::beast::flat_buffer buffer;
  boost::system::error_code error;
  for (const std::string_view piece : {first, second}) {
    append(piece, buffer);
    buffer.consume(parser.put(buffer.data(), error));
    if (parser.is_header_done()) return {};
    if (error != boost::beast::http::error::need_more) return error;
  }
  return error;
}

void judge(const RequestParser& parser) {
  if (const auto refusal = refuse_head(parser)) {
    R1D_CHECK(refusal->status == 400 || refusal->status == 413);
    return;
  }
  R1D_CHECK(!parser.chunked() && parser.content_length().value_or(0) == 0);
  R1D_CHECK(path_of(parser).find('?') == std::string::npos);
  R1D_CHECK(path_of(parser).size() < kMaxHeadBytes);
  static_cast<void>(is_method_known(parser));
}

void run(std::string_view bytes) {
  RequestParser parser;
  set_limits(parser);
  const size_t split = bytes.empty() ? 0 : static_cast<uint8_t>(bytes.front());
  bytes.remove_prefix(std::min<size_t>(bytes.size(), 1));
  const std::string_view first = bytes.substr(0, split);
  const auto error = parse_head(first, bytes.substr(first.size()), parser);
  if (!error) return judge(parser);
  if (error == boost::beast::http::error::need_more) return;  // the server would wait on
  const auto refusal = refuse_bytes(error);
  R1D_CHECK(refusal && refusal->status >= 400 && refusal->status < 500);
}

}  // namespace
}  // namespace r1d::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  r1d::transport::run({reinterpret_cast<const char*>(data), size});
  return 0;
}
