// SPDX-License-Identifier: Apache-2.0
// HTTP/2 framing (RFC 9113, sections 4 and 6), as much of it as the guard needs.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace r1d::transport {

using Bytes = std::span<const uint8_t>;

// The first bytes of every client.
constexpr std::string_view kClientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

enum class FrameType : uint8_t {
  kData = 0,
  kHeaders = 1,
  kPriority = 2,
  kRstStream = 3,
  kSettings = 4,
  kPushPromise = 5,
  kPing = 6,
  kGoaway = 7,
  kWindowUpdate = 8,
  kContinuation = 9,  // what is above is unknown, and to be ignored
};

constexpr uint8_t kEndStream = 0x1;   // DATA, HEADERS
constexpr uint8_t kAck = 0x1;         // SETTINGS, PING
constexpr uint8_t kEndHeaders = 0x4;  // HEADERS, CONTINUATION

constexpr uint32_t kNoError = 0x0;
constexpr uint32_t kProtocolError = 0x1;
constexpr uint32_t kEnhanceYourCalm = 0xB;

struct Frame {
  uint32_t length = 0;  // of the payload
  FrameType type = FrameType::kData;
  uint8_t flags = 0;
  uint32_t stream = 0;  // 0: the connection
  uint32_t value = 0;   // the first four payload bytes of RST_STREAM and WINDOW_UPDATE, else 0

  [[nodiscard]] bool has(uint8_t flag) const { return (flags & flag) != 0; }
};

// Cuts a byte stream into frames, whatever pieces it comes in. Payloads are passed over, not kept.
class FrameReader {
 public:
  // Calls `on_frame(const Frame&) -> bool` once a header (and `Frame::value`) is there; false stops
  // the reading, and feed() returns false.
  template <typename OnFrame>
  bool feed(Bytes bytes, OnFrame&& on_frame) {
    while (!bytes.empty()) {
      if (payload_left_ > 0) {
        const size_t passed = std::min<size_t>(payload_left_, bytes.size());
        payload_left_ -= static_cast<uint32_t>(passed);
        bytes = bytes.subspan(passed);
        continue;
      }
      const size_t taken = std::min(wanted_ - held_, bytes.size());
      std::copy_n(bytes.begin(), taken, head_.begin() + static_cast<ptrdiff_t>(held_));
      held_ += taken;
      bytes = bytes.subspan(taken);
      if (held_ < wanted_) return true;
      if (wanted_ == kHeaderBytes && has_value()) {
        wanted_ = kHeaderBytes + kValueBytes;
        continue;
      }
      if (!on_frame(take_frame())) return false;
    }
    return true;
  }

  // Nothing of a frame has come, or all of it.
  [[nodiscard]] bool at_boundary() const { return held_ == 0 && payload_left_ == 0; }

 private:
  static constexpr size_t kHeaderBytes = 9;
  static constexpr size_t kValueBytes = 4;

  [[nodiscard]] uint32_t number(size_t begin, size_t size) const {
    uint32_t value = 0;
    for (size_t i = begin; i < begin + size; ++i) value = value << 8 | head_[i];
    return value;
  }
  [[nodiscard]] bool has_value() const {
    const auto type = static_cast<FrameType>(head_[3]);
    return (type == FrameType::kRstStream || type == FrameType::kWindowUpdate) &&
           number(0, 3) >= kValueBytes;
  }
  Frame take_frame() {
    Frame frame;
    frame.length = number(0, 3);
    frame.type = static_cast<FrameType>(head_[3]);
    frame.flags = head_[4];
    frame.stream = number(5, 4) & 0x7FFFFFFF;
    if (wanted_ > kHeaderBytes) frame.value = number(kHeaderBytes, kValueBytes);
    payload_left_ = frame.length - static_cast<uint32_t>(wanted_ - kHeaderBytes);
    wanted_ = kHeaderBytes;
    held_ = 0;
    return frame;
  }

  std::array<uint8_t, kHeaderBytes + kValueBytes> head_{};
  size_t held_ = 0;  // bytes in head_, of wanted_
  size_t wanted_ = kHeaderBytes;
  uint32_t payload_left_ = 0;
};

// A GOAWAY frame that tells a client `why`. `first`: the client has heard nothing yet, so SETTINGS
// go before it, and no stream was acted upon; else any may have been, and must not be repeated.
[[nodiscard]] std::string goaway_bytes(uint32_t error, std::string_view why, bool first);

}  // namespace r1d::transport
