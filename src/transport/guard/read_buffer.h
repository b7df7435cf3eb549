// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace r1d::transport {

// Bytes on their way in one direction. Its size follows the use: ten thousand idle connections are
// cheap, and a busy one moves much at a time. Invariant: what is held ends within the buffer.
class ReadBuffer {
 public:
  static constexpr size_t kMinBytes = 4 << 10;
  static constexpr size_t kMaxBytes = 64 << 10;

  // Room for the next read, behind what is held.
  [[nodiscard]] uint8_t* room() { return bytes_.data() + end_; }
  [[nodiscard]] size_t room_bytes() const { return bytes_.size() - end_; }
  [[nodiscard]] const uint8_t* held() const { return bytes_.data() + begin_; }
  [[nodiscard]] size_t held_bytes() const { return end_ - begin_; }

  void filled(size_t count) { end_ += count; }
  void passed_on(size_t count) {
    begin_ += count;
    if (begin_ == end_) fit();
  }

 private:
  // Empty now: half as large when the last reads filled little, larger when they filled all.
  void fit() {
    if (end_ == bytes_.size() && bytes_.size() < kMaxBytes) {
      resize(4 * bytes_.size());
    } else if (end_ < bytes_.size() / 16 && bytes_.size() > kMinBytes) {
      if (++num_small_ == kSmallReads) resize(kMinBytes);
    } else {
      num_small_ = 0;
    }
    begin_ = end_ = 0;
  }
  void resize(size_t size) {
    bytes_ = std::vector<uint8_t>(size);
    num_small_ = 0;
  }

  static constexpr int32_t kSmallReads = 32;  // in a row, before memory is given back

  std::vector<uint8_t> bytes_ = std::vector<uint8_t>(kMinBytes);
  size_t begin_ = 0;
  size_t end_ = 0;
  int32_t num_small_ = 0;
};

}  // namespace r1d::transport
