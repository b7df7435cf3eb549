// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/local_group.h"

#include <algorithm>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

namespace r1d::ops::cpu {
namespace {

// Elements of one round: 1 MiB of f32. Two rounds' slots of all ranks stay allocated.
constexpr size_t kRoundElements = size_t{1} << 18;

absl::Status aborted_status() {
  return unavailable("the local communicator was aborted");
}

// Copies elements [begin, begin + part.size()) of a dense [*, cols] matrix into columns of `out`.
void place_columns(
    std::span<const float> part, int64_t begin, int64_t cols, float* out, int64_t stride) {
  size_t done = 0;
  while (done < part.size()) {
    const int64_t index = begin + static_cast<int64_t>(done);
    const int64_t col = index % cols;
    const size_t count = std::min(part.size() - done, static_cast<size_t>(cols - col));
    std::copy_n(part.data() + done, count, out + index / cols * stride + col);
    done += count;
  }
}

}  // namespace

LocalGroup::LocalGroup(int32_t world_size)
    : world_size_(world_size), round_count_(static_cast<size_t>(world_size), 0) {
  R1D_CHECK(world_size >= 1);
  for (Slots& slots : rounds_) slots.resize(static_cast<size_t>(world_size));
}

int64_t LocalGroup::slot_bytes(int32_t world_size, int64_t largest) {
  if (world_size == 1) return 0;  // nothing is exchanged
  const int64_t elements = std::min(largest, static_cast<int64_t>(kRoundElements));
  return 2 * elements * static_cast<int64_t>(sizeof(float));
}

void LocalGroup::reserve(int32_t rank, int64_t largest) {
  if (world_size_ == 1) return;
  const size_t elements = std::min(static_cast<size_t>(largest), kRoundElements);
  for (Slots& slots : rounds_) slots[static_cast<size_t>(rank)].data.resize(elements);
}

absl::StatusOr<const LocalGroup::Slots*> LocalGroup::exchange(int32_t rank,
                                                              std::span<const float> data,
                                                              const Columns& columns,
                                                              bool more) {
  const auto r = static_cast<size_t>(rank);
  Slots& slots = rounds_[round_count_[r]++ % 2];
  Slot& own = slots[r];
  if (own.data.size() < data.size()) own.data.resize(data.size());
  std::copy(data.begin(), data.end(), own.data.begin());
  own.count = static_cast<int64_t>(data.size());
  own.first_col = columns.first_col;
  own.cols = columns.cols;
  own.more = more;
  R1D_RETURN_IF_ERROR(barrier());
  return &slots;
}

absl::Status LocalGroup::all_reduce_sum(int32_t rank, std::span<float> data) {
  if (world_size_ == 1) return barrier();
  for (size_t begin = 0; begin < data.size(); begin += kRoundElements) {
    const std::span<float> part =
        data.subspan(begin, std::min(kRoundElements, data.size() - begin));
    R1D_ASSIGN_OR_RETURN(const Slots* slots, exchange(rank, part, {}, false));
    for (const Slot& slot : *slots) R1D_CHECK(slot.count == static_cast<int64_t>(part.size()));
    std::copy_n((*slots)[0].data.begin(), part.size(), part.begin());
    for (size_t r = 1; r < slots->size(); ++r) {
      const float* other = (*slots)[r].data.data();
      for (size_t i = 0; i < part.size(); ++i) part[i] += other[i];
    }
  }
  return absl::OkStatus();
}

absl::Status LocalGroup::gather_columns(int32_t rank,
                                        const Columns& own,
                                        float* out,
                                        int64_t stride) {
  bool more = true;
  for (size_t begin = 0; more; begin += kRoundElements) {
    const size_t at = std::min(begin, own.data.size());
    const std::span<const float> part =
        own.data.subspan(at, std::min(kRoundElements, own.data.size() - at));
    const bool own_more = at + part.size() < own.data.size();
    R1D_ASSIGN_OR_RETURN(const Slots* slots, exchange(rank, part, own, own_more));
    more = false;
    for (const Slot& slot : *slots) {
      more = more || slot.more;
      if (out == nullptr || slot.count == 0) continue;
      const std::span<const float> received(slot.data.data(), static_cast<size_t>(slot.count));
      place_columns(received, static_cast<int64_t>(begin), slot.cols, out + slot.first_col, stride);
    }
  }
  return absl::OkStatus();
}

absl::Status LocalGroup::barrier() {
  base::MutexLock lock(mu_);
  if (aborted_) return aborted_status();
  const uint64_t generation = generation_;
  if (++arrived_ == world_size_) {
    arrived_ = 0;
    ++generation_;
    changed_.notify_all();
    return absl::OkStatus();
  }
  while (generation_ == generation && !aborted_) changed_.wait(mu_);
  return generation_ != generation ? absl::OkStatus() : aborted_status();
}

void LocalGroup::abort() {
  base::MutexLock lock(mu_);
  aborted_ = true;
  changed_.notify_all();
}

void LocalGroup::rejoin(int32_t rank) {
  round_count_[static_cast<size_t>(rank)] = 0;
  base::MutexLock lock(mu_);
  const uint64_t generation = generation_;
  if (++rejoined_ < world_size_) {
    while (generation_ == generation) changed_.wait(mu_);
    return;
  }
  rejoined_ = arrived_ = 0;
  aborted_ = false;
  ++generation_;
  changed_.notify_all();
}

absl::Status LocalGroup::wait_for_abort() {
  base::MutexLock lock(mu_);
  while (!aborted_) changed_.wait(mu_);
  return aborted_status();
}

}  // namespace r1d::ops::cpu
