// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "transport/guard/frame.h"
#include "transport/guard/limits.h"
#include "transport/guard/rates.h"

namespace r1d::transport {

// Judges one HTTP/2 connection by its frame headers: form, order, size of header blocks, rates.
// Decodes no header and keeps no payload, so it takes constant memory and no input can hold it up.
// Not thread-safe. After a violation it is not to be used again.
class FrameGuard {
 public:
  FrameGuard(const GuardLimits& limits, TimePoint now);

  // The next bytes in either direction, in whatever pieces. With a violation they must not be
  // passed on and the connection is to be closed.
  [[nodiscard]] std::optional<Violation> client_bytes(Bytes bytes, TimePoint now);
  [[nodiscard]] std::optional<Violation> server_bytes(Bytes bytes, TimePoint now);

  // The client's preface and the header of its SETTINGS have come: it speaks HTTP/2.
  [[nodiscard]] bool is_handshake_done() const { return settings_seen_; }
  // The stream whose headers are not complete, CONTINUATION being owed; 0: none.
  [[nodiscard]] uint32_t header_block() const { return block_stream_; }
  // A frame of ours may follow what the server sent so far.
  [[nodiscard]] bool is_server_between_frames() const { return server_frames_.at_boundary(); }

 private:
  using Verdict = std::optional<Violation>;

  [[nodiscard]] bool take_preface(Bytes& bytes);
  [[nodiscard]] Verdict judge(const Frame& frame, TimePoint now);
  [[nodiscard]] Verdict judge_first(const Frame& frame, TimePoint now);
  [[nodiscard]] Verdict judge_headers(const Frame& frame, TimePoint now);
  [[nodiscard]] Verdict judge_fragment(const Frame& frame);
  [[nodiscard]] Verdict judge_settings(const Frame& frame, TimePoint now);
  [[nodiscard]] Verdict judge_reset(const Frame& frame, TimePoint now);
  [[nodiscard]] Verdict judge_window_update(const Frame& frame, TimePoint now);
  // A frame whose payload has one size and which belongs to a stream, or to the connection.
  [[nodiscard]] static Verdict judge_form(const Frame& frame, uint32_t length, bool of_stream);
  [[nodiscard]] Verdict spend(TimePoint now);
  void note_answer(const Frame& frame);

  const GuardLimits limits_;
  ControlBudget budget_;
  ResetWindow resets_;
  FrameReader client_frames_;
  FrameReader server_frames_;
  size_t preface_bytes_ = 0;
  bool settings_seen_ = false;
  uint32_t last_stream_ = 0;   // the highest the client has opened
  uint32_t block_stream_ = 0;  // see header_block()
  size_t block_bytes_ = 0;
  int32_t block_continuations_ = 0;
};

}  // namespace r1d::transport
