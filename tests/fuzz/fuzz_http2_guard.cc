// SPDX-License-Identifier: Apache-2.0
// Any bytes as what a client sends, whole and in pieces: the guard's verdict is the same, and what
// it lets through keeps the rules as a reader of its own sees them. The first byte of the input is
// the size of the pieces; with its highest bit the preface and SETTINGS go before the input.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "r1d/base/check.h"

#include "transport/guard/frame_guard.h"

namespace r1d::transport {
namespace {

Bytes as_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::optional<Violation> judge(std::string_view bytes, size_t piece_bytes, FrameGuard& guard) {
  while (!bytes.empty()) {
    const std::string_view piece = bytes.substr(0, piece_bytes);
    if (const auto violation = guard.client_bytes(as_bytes(piece), {})) return violation;
    bytes.remove_prefix(piece.size());
  }
  return std::nullopt;
}

uint32_t number(std::string_view bytes) {
  uint32_t value = 0;
  for (const char c : bytes) value = value << 8 | static_cast<uint8_t>(c);
  return value;
}

// Of bytes that were let through: no header block is too long, and none is broken into.
void check_header_blocks(std::string_view bytes) {
  bytes.remove_prefix(std::min(bytes.size(), kClientPreface.size()));
  uint32_t open_stream = 0;
  size_t block_bytes = 0;
  while (bytes.size() >= 9) {
    const uint32_t length = number(bytes.substr(0, 3));
    const uint32_t type = number(bytes.substr(3, 1));
    const uint32_t stream = number(bytes.substr(5, 4)) & 0x7FFFFFFF;
    const bool has_value = type == 3 || type == 8;  // RST_STREAM, WINDOW_UPDATE: judged with it
    if (has_value && length >= 4 && bytes.size() < 13) return;
    R1D_CHECK(!has_value || length == 4);
    R1D_CHECK(open_stream == 0 || (type == 9 && stream == open_stream));
    R1D_CHECK(type != 9 || open_stream != 0);
    const bool of_block = type == 1 || type == 9;
    if (of_block) {
      block_bytes = (type == 1 ? 0 : block_bytes) + length;
      R1D_CHECK(block_bytes <= GuardLimits().max_header_block_bytes);
      open_stream = (number(bytes.substr(4, 1)) & kEndHeaders) != 0 ? 0 : stream;
    }
    bytes.remove_prefix(std::min<size_t>(bytes.size(), 9 + length));
  }
}

void run(std::string_view input) {
  const auto first = static_cast<uint8_t>(input.empty() ? 0 : input.front());
  input.remove_prefix(std::min<size_t>(input.size(), 1));
  std::string bytes;
  if (first >= 0x80) bytes = std::string(kClientPreface) + std::string("\0\0\0\4\0\0\0\0\0", 9);
  bytes += input;

  FrameGuard whole({}, {});
  FrameGuard pieces({}, {});
  const auto violation = judge(bytes, bytes.size(), whole);
  const auto same = judge(bytes, 1 + (first & 0x7F), pieces);
  R1D_CHECK(violation.has_value() == same.has_value());
  if (violation) {
    R1D_CHECK(violation->reason == same->reason && violation->what == same->what);
    return;
  }
  R1D_CHECK(whole.header_block() == pieces.header_block());
  check_header_blocks(bytes);
  // The same bytes as the server's: read without judging their form.
  static_cast<void>(whole.server_bytes(as_bytes(bytes), {}));
}

}  // namespace
}  // namespace r1d::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  r1d::transport::run({reinterpret_cast<const char*>(data), size});
  return 0;
}
