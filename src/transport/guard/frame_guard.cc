// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/frame_guard.h"

#include <algorithm>

namespace r1d::transport {
namespace {

// DATA below this carries no message worth a frame, unless it ends its stream.
constexpr uint32_t kSmallDataBytes = 64;
// Of frames whose size has no other bound (GOAWAY, unknown types).
constexpr uint32_t kMaxOtherBytes = 16 << 10;
constexpr uint32_t kSettingBytes = 6;

Violation malformed(std::string_view what) {
  return {Refusal::kFrame, what};
}

}  // namespace

FrameGuard::FrameGuard(const GuardLimits& limits, TimePoint now)
    : limits_(limits), budget_(limits, now), resets_(limits, now) {}

std::optional<Violation> FrameGuard::client_bytes(Bytes bytes, TimePoint now) {
  if (!take_preface(bytes)) return Violation{Refusal::kNotHttp2, "no HTTP/2 client preface"};
  Verdict verdict;
  client_frames_.feed(bytes, [&](const Frame& frame) {
    verdict = judge(frame, now);
    return !verdict.has_value();
  });
  return verdict;
}

std::optional<Violation> FrameGuard::server_bytes(Bytes bytes, TimePoint now) {
  Verdict verdict;
  server_frames_.feed(bytes, [&](const Frame& frame) {
    // A stream that the client makes the server reset costs what a reset of its own does.
    // NO_ERROR is no reset: the answer was complete before the request was.
    if (frame.type == FrameType::kRstStream && frame.value != kNoError) {
      verdict = judge_reset(frame, now);
    }
    note_answer(frame);
    return !verdict.has_value();
  });
  return verdict;
}

bool FrameGuard::take_preface(Bytes& bytes) {
  const size_t count = std::min(bytes.size(), kClientPreface.size() - preface_bytes_);
  const std::string_view expected = kClientPreface.substr(preface_bytes_, count);
  if (!std::equal(expected.begin(), expected.end(), bytes.begin())) return false;
  preface_bytes_ += count;
  bytes = bytes.subspan(count);
  return true;
}

std::optional<Violation> FrameGuard::judge(const Frame& frame, TimePoint now) {
  if (!settings_seen_) return judge_first(frame, now);
  if (block_stream_ != 0) {
    if (frame.type == FrameType::kContinuation && frame.stream == block_stream_) {
      return judge_fragment(frame);
    }
    return malformed("another frame within a header block");
  }
  switch (frame.type) {
    case FrameType::kData:
      if (frame.stream == 0) return malformed("DATA without a stream");
      if (frame.length >= kSmallDataBytes || frame.has(kEndStream)) return std::nullopt;
      return spend(now);
    case FrameType::kHeaders:
      return judge_headers(frame, now);
    case FrameType::kSettings:
      return judge_settings(frame, now);
    case FrameType::kRstStream:
      if (const Verdict form = judge_form(frame, 4, true)) return form;
      if (const Verdict rate = judge_reset(frame, now)) return rate;
      return spend(now);
    case FrameType::kWindowUpdate:
      return judge_window_update(frame, now);
    case FrameType::kPing:
      if (const Verdict form = judge_form(frame, 8, false)) return form;
      return spend(now);
    case FrameType::kPriority:
      if (const Verdict form = judge_form(frame, 5, true)) return form;
      return spend(now);
    case FrameType::kContinuation:
      return malformed("CONTINUATION without HEADERS");
    case FrameType::kPushPromise:
      return malformed("PUSH_PROMISE from a client");
    case FrameType::kGoaway:
      break;
  }
  if (frame.length > kMaxOtherBytes) return malformed("a frame of more than 16 KiB");
  return spend(now);
}

std::optional<Violation> FrameGuard::judge_first(const Frame& frame, TimePoint now) {
  if (frame.type != FrameType::kSettings || frame.has(kAck)) {
    return malformed("the first frame is not SETTINGS");
  }
  settings_seen_ = true;
  return judge_settings(frame, now);
}

std::optional<Violation> FrameGuard::judge_headers(const Frame& frame, TimePoint now) {
  if (frame.stream % 2 == 0) return malformed("HEADERS on a stream that no client opens");
  if (frame.stream > last_stream_) {
    last_stream_ = frame.stream;
    resets_.opened(frame.stream, now);
    budget_.earn(limits_.control_per_stream);
  } else if (const Verdict rate = spend(now)) {  // trailers, which no gRPC client sends
    return rate;
  }
  block_stream_ = frame.stream;
  block_bytes_ = 0;
  block_continuations_ = -1;
  return judge_fragment(frame);
}

std::optional<Violation> FrameGuard::judge_fragment(const Frame& frame) {
  block_bytes_ += frame.length;
  if (block_bytes_ > limits_.max_header_block_bytes) {
    return Violation{Refusal::kHeaderBlock, "the headers of a request are too long"};
  }
  if (++block_continuations_ > limits_.max_continuations) {
    return Violation{Refusal::kHeaderBlock, "the headers of a request come in too many frames"};
  }
  if (frame.has(kEndHeaders)) block_stream_ = 0;
  return std::nullopt;
}

std::optional<Violation> FrameGuard::judge_settings(const Frame& frame, TimePoint now) {
  if (frame.stream != 0) return malformed("SETTINGS with a stream");
  if (frame.length % kSettingBytes != 0 || (frame.has(kAck) && frame.length != 0)) {
    return malformed("SETTINGS of a wrong size");
  }
  if (frame.length > static_cast<uint32_t>(limits_.max_settings) * kSettingBytes) {
    return malformed("too many settings in a frame");
  }
  return spend(now);
}

std::optional<Violation> FrameGuard::judge_reset(const Frame& frame, TimePoint now) {
  if (frame.stream > last_stream_) return malformed("RST_STREAM of a stream that was never opened");
  if (resets_.reset(frame.stream, now)) return std::nullopt;
  return Violation{Refusal::kResetRate, "too many streams were reset right after they were opened"};
}

std::optional<Violation> FrameGuard::judge_window_update(const Frame& frame, TimePoint now) {
  if (frame.length != 4) return malformed("WINDOW_UPDATE of a wrong size");
  if ((frame.value & 0x7FFFFFFF) == 0) return malformed("WINDOW_UPDATE by nothing");
  return spend(now);
}

std::optional<Violation> FrameGuard::judge_form(const Frame& frame,
                                                uint32_t length,
                                                bool of_stream) {
  if (frame.length != length) return malformed("a frame of a wrong size");
  if ((frame.stream != 0) != of_stream) return malformed("a frame on a wrong stream");
  return std::nullopt;
}

std::optional<Violation> FrameGuard::spend(TimePoint now) {
  if (budget_.spend(now)) return std::nullopt;
  return Violation{Refusal::kControlRate, "too many frames that carry no request"};
}

// What a client may react to. Not every frame: answers to its own PING and SETTINGS earn nothing.
void FrameGuard::note_answer(const Frame& frame) {
  switch (frame.type) {
    case FrameType::kData:
    case FrameType::kHeaders:
      return budget_.earn(limits_.control_per_answer_frame);
    case FrameType::kSettings:
    case FrameType::kPing:
      if (!frame.has(kAck)) budget_.earn(1);
      return;
    default:
      return;
  }
}

}  // namespace r1d::transport
