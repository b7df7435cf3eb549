// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/packed_checksum.h"

#include <algorithm>
#include <xxhash.h>

#include "r1d/base/check.h"

namespace r1d::checkpoint {
namespace {

internal::HashState new_state() {
  internal::HashState state(XXH3_createState());
  R1D_CHECK(state != nullptr);
  return state;
}

}  // namespace

void internal::FreeHashState::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}

uint64_t checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

DigestBuilder::DigestBuilder() : state_(new_state()) {
  XXH3_128bits_reset(state_.get());
}

void DigestBuilder::add(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}

Digest DigestBuilder::finish() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
  return {.low = hash.low64, .high = hash.high64};
}

PieceHasher::PieceHasher(int64_t piece_bytes, std::span<uint64_t> checksums)
    : piece_bytes_(piece_bytes), left_(checksums), state_(new_state()) {
  XXH3_64bits_reset(state_.get());
}

void PieceHasher::add(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const int64_t count = std::min(piece_bytes_ - filled_, std::ssize(bytes));
    XXH3_64bits_update(state_.get(), bytes.data(), static_cast<size_t>(count));
    filled_ += count;
    bytes = bytes.subspan(static_cast<size_t>(count));
    if (filled_ == piece_bytes_) end_piece();
  }
}

void PieceHasher::finish() {
  if (filled_ > 0) end_piece();
  R1D_CHECK(left_.empty());
}

void PieceHasher::end_piece() {
  R1D_CHECK(!left_.empty());
  left_.front() = XXH3_64bits_digest(state_.get());
  left_ = left_.subspan(1);
  filled_ = 0;
  XXH3_64bits_reset(state_.get());
}

}  // namespace r1d::checkpoint
