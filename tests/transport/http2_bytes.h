// SPDX-License-Identifier: Apache-2.0
// HTTP/2 frames as bytes, right or wrong as a test wants them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "transport/guard/frame.h"

namespace r1d::transport {

inline std::string number_bytes(uint32_t value, size_t size) {
  std::string bytes;
  for (size_t i = size; i-- > 0;) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
  return bytes;
}

// A frame header that announces `length`, whatever follows.
inline std::string frame_head(FrameType type, uint8_t flags, uint32_t stream, size_t length) {
  return number_bytes(static_cast<uint32_t>(length), 3) +
         number_bytes(static_cast<uint32_t>(type), 1) + number_bytes(flags, 1) +
         number_bytes(stream, 4);
}

inline std::string frame_bytes(FrameType type,
                               uint8_t flags,
                               uint32_t stream,
                               std::string_view payload = "") {
  return frame_head(type, flags, stream, payload.size()) + std::string(payload);
}

// What every client begins with.
inline std::string client_start() {
  return std::string(kClientPreface) + frame_bytes(FrameType::kSettings, 0, 0);
}

inline std::string open_stream(uint32_t stream, size_t header_bytes = 40) {
  return frame_bytes(FrameType::kHeaders, kEndHeaders, stream, std::string(header_bytes, 'h'));
}

inline std::string reset_stream(uint32_t stream, uint32_t code = 8) {
  return frame_bytes(FrameType::kRstStream, 0, stream, number_bytes(code, 4));
}

inline std::string ping() {
  return frame_bytes(FrameType::kPing, 0, 0, "01234567");
}

inline std::string window_update(uint32_t stream, uint32_t by) {
  return frame_bytes(FrameType::kWindowUpdate, 0, stream, number_bytes(by, 4));
}

}  // namespace r1d::transport
