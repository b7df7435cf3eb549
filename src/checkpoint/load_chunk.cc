// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/load_chunk.h"

#include <algorithm>

namespace r1d::checkpoint {
namespace {

// The system takes 1024 pieces a call; one in place may need another before it.
constexpr size_t kMaxPieces = 1000;

}  // namespace

Scatter scatter(const ReadPlan& plan, const Chunk& chunk, std::byte* bytes) {
  Scatter made;
  int64_t at = chunk.begin;  // pieces cover [chunk.begin, at)
  const auto add = [&](std::byte* to, int64_t until) {
    if (until > at) made.pieces.push_back({to, static_cast<size_t>(until - at)});
    at = until;
  };
  const std::span<const uint32_t> ids = plan.strips_of(chunk);
  int64_t taken = chunk.begin;  // where the strips so far end
  for (size_t i = 0; i < ids.size(); ++i) {
    const Strip& strip = plan.strips[ids[i]];
    const int64_t begin = std::max(strip.begin, chunk.begin);
    const int64_t end = std::min(strip.end(), chunk.end);
    const bool alone =
        begin >= taken && (i + 1 == ids.size() || plan.strips[ids[i + 1]].begin >= end);
    taken = std::max(taken, end);
    if (strip.staged || !strip.contiguous() || !alone || made.pieces.size() >= kMaxPieces) {
      made.rest.push_back(ids[i]);
      continue;
    }
    add(bytes + (at - chunk.begin), begin);
    add(strip.dest + strip.bytes_before(begin), end);
  }
  add(bytes + (at - chunk.begin), chunk.end);
  return made;
}

std::vector<StagedPiece> pieces_of(const ReadPlan& plan,
                                   const Chunk& chunk,
                                   const std::byte* bytes) {
  std::vector<StagedPiece> pieces;
  for (const uint32_t id : plan.strips_of(chunk)) {
    const Strip& strip = plan.strips[id];
    const int64_t begin = std::max(strip.begin, chunk.begin);
    pieces.push_back({.device = strip.dest + strip.bytes_before(begin),
                      .staged = bytes + (begin - chunk.begin),
                      .bytes = std::min(strip.end(), chunk.end) - begin});
  }
  return pieces;
}

}  // namespace r1d::checkpoint
