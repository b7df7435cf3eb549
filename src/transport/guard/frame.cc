// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/frame.h"

namespace r1d::transport {
namespace {

void append(uint32_t value, size_t size, std::string& bytes) {
  for (size_t i = size; i-- > 0;) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
}

void append_header(size_t length, FrameType type, std::string& bytes) {
  append(static_cast<uint32_t>(length), 3, bytes);
  append(static_cast<uint32_t>(type), 1, bytes);
  append(0, 1, bytes);  // flags
  append(0, 4, bytes);  // the connection
}

}  // namespace

std::string goaway_bytes(uint32_t error, std::string_view why, bool first) {
  std::string bytes;
  if (first) append_header(0, FrameType::kSettings, bytes);
  append_header(8 + why.size(), FrameType::kGoaway, bytes);
  append(first ? 0 : 0x7FFFFFFF, 4, bytes);
  append(error, 4, bytes);
  bytes += why;
  return bytes;
}

}  // namespace r1d::transport
