// SPDX-License-Identifier: Apache-2.0
// XXH3 (github.com/Cyan4973/xxHash): finds altered bytes at the speed of memory. It is no
// signature.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

struct XXH3_state_s;

namespace r1d::checkpoint {

[[nodiscard]] uint64_t checksum(std::span<const std::byte> bytes);

struct Digest {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const Digest&) const = default;
};

namespace internal {
struct FreeHashState {
  void operator()(XXH3_state_s* state) const;
};
using HashState = std::unique_ptr<XXH3_state_s, FreeHashState>;
}  // namespace internal

// 128 bits over all that was added.
class DigestBuilder {
 public:
  DigestBuilder();
  void add(std::span<const std::byte> bytes);
  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  [[nodiscard]] Digest finish() const;

 private:
  internal::HashState state_;
};

// The checksums of the pieces of a section whose bytes come in order, in portions of any size.
class PieceHasher {
 public:
  // `checksums` gets one value a piece.
  PieceHasher(int64_t piece_bytes, std::span<uint64_t> checksums);
  void add(std::span<const std::byte> bytes);
  void finish();  // the last piece may be short

 private:
  void end_piece();

  const int64_t piece_bytes_;
  std::span<uint64_t> left_;
  int64_t filled_ = 0;  // of the present piece
  internal::HashState state_;
};

}  // namespace r1d::checkpoint
