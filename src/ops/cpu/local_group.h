// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/mutex.h"

namespace r1d::ops::cpu {

// The `local` communicator: ranks are threads of this process. Every rank makes the same calls in
// the same order, each from its own thread; a rank that waits sleeps. Data passes through memory
// that the group owns, so that a rank may go away after abort() while another still reads.
// Lifecycle: shared by the ranks' Ops objects, gone with the last.
// Threads: collectives by the rank's thread; abort() by any.
class LocalGroup {
 public:
  explicit LocalGroup(int32_t world_size);
  LocalGroup(const LocalGroup&) = delete;
  LocalGroup& operator=(const LocalGroup&) = delete;

  [[nodiscard]] int32_t world_size() const { return world_size_; }

  // Bytes that one rank's slots hold when the largest collective passes `largest` elements a rank.
  [[nodiscard]] static int64_t slot_bytes(int32_t world_size, int64_t largest);
  // Takes them, so that no collective does. Before the ranks' threads run.
  void reserve(int32_t rank, int64_t largest);

  // data = sum over ranks, added in rank order: the same bits on every rank. Same size everywhere.
  [[nodiscard]] absl::Status all_reduce_sum(int32_t rank, std::span<float> data);

  // A rank's columns [first_col, first_col + cols) of a [rows, *] matrix; data [rows, cols] dense.
  struct Columns {
    std::span<const float> data;
    int64_t cols = 0;
    int64_t first_col = 0;
  };
  // Rank 0 receives all ranks' columns into out, rows `stride` apart. `out` is null elsewhere.
  [[nodiscard]] absl::Status gather_columns(int32_t rank,
                                            const Columns& own,
                                            float* out,
                                            int64_t stride);

  // Returns when every rank has called it.
  [[nodiscard]] absl::Status barrier();

  // Present and later collectives return kUnavailable, until rejoin().
  void abort();

  // Makes the group as new, once every rank has called it; none may be in a collective any more.
  void rejoin(int32_t rank);

  // Returns kUnavailable when abort() has come: a rank whose part in a collective is lost.
  [[nodiscard]] absl::Status wait_for_abort();

 private:
  // What one rank shows to the others in one round.
  struct Slot {
    std::vector<float> data;
    int64_t count = 0;  // elements of `data` in this round
    int64_t first_col = 0;
    int64_t cols = 0;
    bool more = false;  // the rank has something left after this round
  };
  using Slots = std::vector<Slot>;

  // Publishes this rank's slot of the round and waits for the others'. The slots may be read until
  // this rank's next round: that one uses the other set, and the one after it begins only when
  // every rank has left this round.
  [[nodiscard]] absl::StatusOr<const Slots*> exchange(int32_t rank,
                                                      std::span<const float> data,
                                                      const Columns& columns,
                                                      bool more);

  const int32_t world_size_;
  std::array<Slots, 2> rounds_;        // each rank writes its own slot only
  std::vector<uint64_t> round_count_;  // [rank], each touched by its rank only
  base::Mutex mu_;
  base::CondVar changed_;  // the last rank arrived, or abort
  int32_t arrived_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
  bool aborted_ ABSL_GUARDED_BY(mu_) = false;
  int32_t rejoined_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace r1d::ops::cpu
