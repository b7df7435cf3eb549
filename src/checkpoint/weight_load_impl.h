// SPDX-License-Identifier: Apache-2.0
// What the two sides of a load share: ranks that join, wait and copy to their devices
// (weight_load.cc), threads that read the files (weight_load_readers.cc), and the memory between
// them (weight_load_staging.cc).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "r1d/base/clock.h"
#include "r1d/base/log.h"
#include "r1d/base/mutex.h"
#include "r1d/checkpoint/weight_load.h"

#include "checkpoint/bulk_file.h"
#include "checkpoint/load_chunk.h"
#include "checkpoint/read_plan.h"

namespace r1d::checkpoint {

// Large enough for any disk's full rate with a few in flight, small enough that memory stays small
// and progress shows.
inline constexpr int64_t kMaxChunkBytes = 4 << 20;
static_assert(kMostCheckedPieceBytes <= kMaxChunkBytes);  // a read holds whole pieces

// Room for padding between the pieces of a slot.
inline constexpr int64_t kSlotBytes = kMaxChunkBytes + (64 << 10);

class WeightLoad::Impl {
 public:
  Impl(const LoadOptions& options, int32_t num_ranks, std::stop_token stop);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  absl::Status read(std::vector<WeightTarget> targets,
                    StagedCopy* copy,
                    const BytesArrived& arrived);
  void abort(const absl::Status& why);
  [[nodiscard]] LoadReport report() const;

 private:
  // A filled slot of a rank's staging memory.
  struct Filled {
    int32_t slot = 0;
    std::vector<StagedPiece> pieces;
  };

  // Copies that were started from a slot.
  struct InFlight {
    int32_t slot = 0;
    uint64_t ticket = 0;
    int64_t bytes = 0;
  };

  struct Slot {
    int32_t index = 0;
    std::byte* memory = nullptr;
  };

  // What passes between the reading threads and one rank's.
  struct RankQueue {
    std::byte* staging = nullptr;
    std::vector<int32_t> free_slots;
    std::deque<Filled> filled;
    int64_t arrived_bytes = 0;   // in memory of the host; not yet told
    base::CondVar work;          // something for the rank
    base::CondVar slot_is_free;  // something for the readers
  };

  // ---- a rank's thread ----

  // The rank's number, in the order of coming. The last one to come has the reading begin.
  absl::StatusOr<int32_t> join(std::vector<WeightTarget> targets, StagedCopy* copy);
  // All have joined: nobody else touches the plan yet.
  void begin_reading();
  void tell_fallback();
  // Tells what arrived, sends what is staged, until all readers have ended or something failed.
  absl::Status serve(int32_t rank,
                     StagedCopy* copy,
                     const BytesArrived& arrived,
                     std::deque<InFlight>& in_flight);
  // False at the end. Waits only when `may_wait`: copies in flight are waited for elsewhere.
  bool next_work(int32_t rank, bool may_wait, int64_t& bytes, std::optional<Filled>& filled);
  static absl::Status send(const Filled& filled, StagedCopy& copy, std::deque<InFlight>& in_flight);
  // Waits for the oldest copy and gives its slot back.
  absl::Status retire(int32_t rank,
                      StagedCopy& copy,
                      const BytesArrived& arrived,
                      std::deque<InFlight>& in_flight);
  // Waits until no reader is left.
  absl::Status leave();

  // ---- reading threads ----

  void run_reader();
  void wait_for_start();
  // Which were changed after their headers were read.
  void check_files();
  absl::Status read_chunks();
  // Straight into staging memory, from where the device takes it.
  absl::Status read_to_slot(const Chunk& chunk);
  // In place where that can be; the rest is dealt out to its ranks from `buffer`.
  absl::Status read_and_deal(const Chunk& chunk, std::byte* buffer);
  // Those of the chunk that have checksums: on the host where they are to be, else at `bytes`.
  [[nodiscard]] absl::Status compare_pieces(const Chunk& chunk, const std::byte* bytes) const;
  // `attempt`: BulkFile& -> ReadOutcome, of the whole chunk.
  template <class Attempt>
  absl::Status retrying(const Chunk& chunk, const Attempt& attempt);
  [[nodiscard]] absl::Status failure(const Chunk& chunk,
                                     const ReadOutcome& outcome,
                                     int32_t attempts) const;
  [[nodiscard]] std::string tensor_at(const Chunk& chunk, int64_t offset) const;
  // False when the load failed meanwhile.
  bool wait_unless_failed(std::chrono::milliseconds pause);

  // ---- reading threads: to the ranks ----

  // `rest`: strips that are not in place yet.
  absl::Status deal(const Chunk& chunk, const std::byte* bytes, std::span<const uint32_t> rest);
  // Fills a slot with the first strips, of one rank and as many as it holds. Returns how many.
  size_t stage(const Chunk& chunk,
               const std::byte* bytes,
               std::span<const uint32_t> staged,
               const Slot& slot);
  // Bytes of a chunk that are in memory of the host now.
  void tell_arrived(const Chunk& chunk);
  // Waits for one; none when the load has failed. A reader holds one slot at a time, so that those
  // who wait only wait for copies.
  std::optional<Slot> take_slot(int32_t rank);
  void hand_over(int32_t rank, Filled filled);

  void wake_all() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const LoadOptions options_;
  const int32_t num_ranks_;
  const int32_t num_threads_;
  const SteadyClock clock_;
  const std::shared_ptr<spdlog::logger> log_;

  // Written before `started_`, only read afterwards.
  std::vector<std::vector<WeightTarget>> targets_;  // by rank
  std::vector<std::unique_ptr<BulkFile>> files_;
  ReadPlan plan_;

  std::atomic<size_t> next_chunk_{0};
  std::atomic<bool> failed_{false};
  std::atomic<int32_t> num_finished_{0};  // readers
  std::atomic<int64_t> bytes_read_{0};
  std::array<std::atomic<int64_t>, kNumRetryCauses> retries_{};

  mutable base::Mutex mu_;
  base::CondVar start_;
  base::CondVar ended_;
  base::CondVar retry_;
  bool started_ ABSL_GUARDED_BY(mu_) = false;
  int32_t num_joined_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t running_ ABSL_GUARDED_BY(mu_);  // readers
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  TimePoint begin_ ABSL_GUARDED_BY(mu_);
  double seconds_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<RankQueue> ranks_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> readers_;
  std::optional<std::stop_callback<std::function<void()>>> on_stop_;
};

}  // namespace r1d::checkpoint
