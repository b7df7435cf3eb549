// SPDX-License-Identifier: Apache-2.0
// What was read, on its way to the ranks: dealt out in memory of the host, or through slots of
// staging memory from which a rank's thread copies to its device.
#include <algorithm>
#include <map>
#include <utility>

#include "r1d/base/status.h"

#include "checkpoint/weight_load_impl.h"

namespace r1d::checkpoint {
namespace {

constexpr int64_t kPieceAlignment = 128;

int64_t padded(int64_t bytes) {
  return (bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
}

}  // namespace

absl::Status WeightLoad::Impl::deal(const Chunk& chunk,
                                    const std::byte* bytes,
                                    std::span<const uint32_t> rest) {
  std::vector<uint32_t> staged;
  for (const uint32_t id : rest) {
    const Strip& strip = plan_.strips[id];
    if (strip.staged) {
      staged.push_back(id);
    } else {
      gather(strip, chunk.begin, chunk.end, bytes, strip.dest + strip.bytes_before(chunk.begin));
    }
  }
  R1D_RETURN_IF_ERROR(compare_pieces(chunk, bytes));
  tell_arrived(chunk);
  std::stable_sort(staged.begin(), staged.end(), [this](uint32_t a, uint32_t b) {
    return plan_.strips[a].rank < plan_.strips[b].rank;
  });
  for (size_t begin = 0; begin < staged.size();) {
    const std::optional<Slot> slot = take_slot(plan_.strips[staged[begin]].rank);
    if (!slot) return absl::OkStatus();
    begin += stage(chunk, bytes, std::span(staged).subspan(begin), *slot);
  }
  return absl::OkStatus();
}

size_t WeightLoad::Impl::stage(const Chunk& chunk,
                               const std::byte* bytes,
                               std::span<const uint32_t> staged,
                               const Slot& slot) {
  const int32_t rank = plan_.strips[staged.front()].rank;
  Filled filled{.slot = slot.index, .pieces = {}};
  int64_t used = 0;
  size_t count = 0;
  for (; count < staged.size(); ++count) {
    const Strip& strip = plan_.strips[staged[count]];
    const int64_t before = strip.bytes_before(chunk.begin);
    const int64_t size = strip.bytes_before(chunk.end) - before;
    if (strip.rank != rank || used + size > kSlotBytes) break;
    gather(strip, chunk.begin, chunk.end, bytes, slot.memory + used);
    if (size > 0) filled.pieces.push_back({strip.dest + before, slot.memory + used, size});
    used += padded(size);
  }
  hand_over(rank, std::move(filled));
  return count;
}

void WeightLoad::Impl::tell_arrived(const Chunk& chunk) {
  std::map<int32_t, int64_t> bytes_of;
  for (const uint32_t id : plan_.strips_of(chunk)) {
    const Strip& strip = plan_.strips[id];
    if (strip.staged) continue;
    bytes_of[strip.rank] += strip.bytes_before(chunk.end) - strip.bytes_before(chunk.begin);
  }
  const base::MutexLock lock(mu_);
  for (const auto& [rank, bytes] : bytes_of) {
    RankQueue& queue = ranks_[static_cast<size_t>(rank)];
    queue.arrived_bytes += bytes;
    queue.work.notify_one();
  }
}

std::optional<WeightLoad::Impl::Slot> WeightLoad::Impl::take_slot(int32_t rank) {
  const base::MutexLock lock(mu_);
  RankQueue& queue = ranks_[static_cast<size_t>(rank)];
  while (failure_.ok() && queue.free_slots.empty()) queue.slot_is_free.wait(mu_);
  if (!failure_.ok()) return std::nullopt;
  const int32_t index = queue.free_slots.back();
  queue.free_slots.pop_back();
  return Slot{.index = index, .memory = queue.staging + index * kSlotBytes};
}

void WeightLoad::Impl::hand_over(int32_t rank, Filled filled) {
  const base::MutexLock lock(mu_);
  RankQueue& queue = ranks_[static_cast<size_t>(rank)];
  queue.filled.push_back(std::move(filled));
  queue.work.notify_one();
}

absl::Status WeightLoad::Impl::send(const Filled& filled,
                                    StagedCopy& copy,
                                    std::deque<InFlight>& in_flight) {
  InFlight sent{.slot = filled.slot};
  for (const StagedPiece& piece : filled.pieces) {
    R1D_ASSIGN_OR_RETURN(sent.ticket,
                         copy.copy(piece.device, {piece.staged, static_cast<size_t>(piece.bytes)}));
    sent.bytes += piece.bytes;
  }
  in_flight.push_back(sent);
  return absl::OkStatus();
}

absl::Status WeightLoad::Impl::retire(int32_t rank,
                                      StagedCopy& copy,
                                      const BytesArrived& arrived,
                                      std::deque<InFlight>& in_flight) {
  const InFlight oldest = in_flight.front();
  R1D_RETURN_IF_ERROR(copy.wait(oldest.ticket));
  in_flight.pop_front();
  {
    const base::MutexLock lock(mu_);
    RankQueue& queue = ranks_[static_cast<size_t>(rank)];
    queue.free_slots.push_back(oldest.slot);
    queue.slot_is_free.notify_one();
  }
  return arrived(oldest.bytes);
}

}  // namespace r1d::checkpoint
