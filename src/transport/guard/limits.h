// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "r1d/base/clock.h"

namespace r1d::transport {

// What a client may ask of the server's HTTP/2 layer. The defaults let every known gRPC client work
// as hard as it likes, and stop the floods that gRPC 1.51 does not stand.
struct GuardLimits {
  size_t max_header_block_bytes = 16 << 10;  // as on the wire, HEADERS and CONTINUATION together
  int32_t max_continuations = 8;             // of one block; one is usual, an empty one costs too
  int32_t max_settings = 32;                 // of one SETTINGS frame

  // From the connection to the client's SETTINGS, and from HEADERS to END_HEADERS.
  std::chrono::milliseconds handshake_timeout{10000};
  std::chrono::milliseconds header_timeout{10000};

  // Rapid resets: of the streams opened within `reset_window`, if there are `min_streams` or more,
  // at most half may be reset before they are `young_stream` old. Ordinary cancels stay below.
  std::chrono::milliseconds reset_window{10000};
  std::chrono::milliseconds young_stream{1000};
  int64_t min_streams = 500;

  // Frames that carry no request (PING, SETTINGS, WINDOW_UPDATE, RST_STREAM, nearly empty DATA,
  // ...) cost a credit each. Credits come with time, with streams and with what the server answers,
  // because clients acknowledge, measure and give way in proportion to that.
  int64_t control_burst = 1000;
  int64_t control_per_second = 100;
  int64_t control_per_answer_frame = 4;
  int64_t control_per_stream = 2;  // it may be cancelled, and its window widened
};

// Why a client was refused or cut; the values of r1d_connections_refused_total{reason}.
enum class Refusal : uint8_t {
  kConnectionLimit,
  kAddressLimit,
  kNotHttp2,
  kTimeout,
  kFrame,
  kHeaderBlock,
  kResetRate,
  kControlRate,
};
[[nodiscard]] constexpr const char* refusal_name(Refusal reason) {
  constexpr const char* kNames[] = {"connection_limit",
                                    "address_limit",
                                    "not_http2",
                                    "timeout",
                                    "frame",
                                    "header_block",
                                    "reset_rate",
                                    "control_rate"};
  return kNames[static_cast<size_t>(reason)];
}

struct Violation {
  Refusal reason = Refusal::kFrame;
  std::string_view what;  // a literal, for the log and the client
};

}  // namespace r1d::transport
