// SPDX-License-Identifier: Apache-2.0
#include "r1d/checkpoint/weight_load.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <map>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/clock.h"
#include "r1d/base/exceptions.h"
#include "r1d/base/log.h"
#include "r1d/base/mutex.h"
#include "r1d/base/status.h"

#include "checkpoint/bulk_file.h"
#include "checkpoint/errors.h"
#include "checkpoint/load_chunk.h"
#include "checkpoint/read_plan.h"

namespace r1d::checkpoint {
namespace {

// Large enough for any disk's full rate with a few in flight, small enough that memory stays small
// and progress shows. Small models are cut finer, so that all threads have something to do.
constexpr int64_t kMaxChunkBytes = 4 << 20;
constexpr int64_t kMinChunkBytes = 256 << 10;
constexpr int64_t kChunksWanted = 64;

// Room for padding between the pieces of a slot.
constexpr int64_t kSlotBytes = kMaxChunkBytes + (64 << 10);
constexpr int64_t kPieceAlignment = 128;
constexpr int32_t kMinSlots = 4;  // a rank: two being copied while two are filled

int32_t thread_count(int32_t wanted) {
  if (wanted > 0) return wanted;
  return std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()), 4, 32);
}

int64_t padded(int64_t bytes) {
  return (bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
}

Strip strip_of(const WeightTarget& target) {
  const TensorSlice& held = target.bytes.held;
  const TensorSlice& slice = target.slice;
  R1D_CHECK(held.rows.begin <= slice.rows.begin && slice.rows.end <= held.rows.end);
  R1D_CHECK(held.cols.begin <= slice.cols.begin && slice.cols.end <= held.cols.end);
  const int64_t width = dtype_bytes(target.dtype);
  const int64_t stride = held.cols.size() * width;
  const int64_t begin = target.bytes.begin + (slice.rows.begin - held.rows.begin) * stride +
                        (slice.cols.begin - held.cols.begin) * width;
  Strip strip = make_strip(begin, stride, slice.cols.size() * width, slice.rows.size());
  strip.dest = target.dest;
  strip.staged = target.staged;
  return strip;
}

std::optional<RetryCause> retry_cause(int error) {
  switch (error) {
    case EIO:
      return RetryCause::kIo;
    case ESTALE:
      return RetryCause::kStale;
    case ETIMEDOUT:
      return RetryCause::kTimeout;
    default:
      return std::nullopt;
  }
}

std::string error_text(const ReadOutcome& outcome) {
  const std::string text = std::generic_category().message(outcome.error);
  return outcome.injected ? text + " (fault point checkpoint.read)" : text;
}

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

// What passes between the reading threads and one rank's.
struct RankQueue {
  std::byte* staging = nullptr;
  std::vector<int32_t> free_slots;
  std::deque<Filled> filled;
  int64_t arrived_bytes = 0;   // in memory of the host; not yet told
  base::CondVar work;          // something for the rank
  base::CondVar slot_is_free;  // something for the readers
};

}  // namespace

class WeightLoad::Impl {
 public:
  Impl(const LoadOptions& options, int32_t num_ranks, std::stop_token stop)
      : options_(options),
        num_ranks_(num_ranks),
        num_threads_(thread_count(options.num_threads)),
        log_(base::make_logger("checkpoint")),
        targets_(static_cast<size_t>(num_ranks)),
        running_(num_threads_),
        ranks_(static_cast<size_t>(num_ranks)) {
    for (int32_t i = 0; i < num_threads_; ++i) readers_.emplace_back([this] { run_reader(); });
    on_stop_.emplace(std::move(stop), [this] { abort(cancelled("stopped while loading")); });
  }

  ~Impl() {
    on_stop_.reset();
    abort(cancelled("the load was given up"));
    for (std::thread& reader : readers_) reader.join();
  }

  absl::Status read(std::vector<WeightTarget> targets,
                    StagedCopy* copy,
                    const BytesArrived& arrived) {
    std::deque<InFlight> in_flight;
    const absl::Status served = base::without_exceptions([&]() -> absl::Status {
      R1D_ASSIGN_OR_RETURN(const int32_t rank, join(std::move(targets), copy));
      return serve(rank, copy, arrived, in_flight);
    });
    if (!served.ok()) abort(served);
    // Whatever happened: nobody may go on writing to what the caller may now free.
    if (!in_flight.empty()) {
      const absl::Status waited = copy->wait(in_flight.back().ticket);
      if (!waited.ok()) abort(waited);
    }
    return leave();
  }

  void abort(const absl::Status& why) {
    const base::MutexLock lock(mu_);
    if (!failure_.ok()) return;
    failure_ = why;
    failed_.store(true);
    wake_all();
  }

  [[nodiscard]] LoadReport report() const {
    const base::MutexLock lock(mu_);
    LoadReport report{.bytes_read = bytes_read_.load(),
                      .seconds = seconds_,
                      .num_threads = num_threads_,
                      .num_files = static_cast<int32_t>(files_.size())};
    for (const auto& file : files_) report.num_direct_files += file->direct() ? 1 : 0;
    for (size_t i = 0; i < kNumRetryCauses; ++i) report.retries[i] = retries_[i].load();
    return report;
  }

 private:
  // ---- a rank's thread ----

  // The rank's number, in the order of coming. The last one to come has the reading begin.
  absl::StatusOr<int32_t> join(std::vector<WeightTarget> targets, StagedCopy* copy) {
    const bool staged = std::any_of(
        targets.begin(), targets.end(), [](const WeightTarget& target) { return target.staged; });
    std::byte* staging = nullptr;
    const int32_t num_slots = std::max(kMinSlots, 2 * num_threads_ / num_ranks_);
    if (staged) {
      R1D_CHECK(copy != nullptr);
      R1D_ASSIGN_OR_RETURN(staging, copy->allocate(static_cast<size_t>(num_slots * kSlotBytes)));
    }
    int32_t rank = 0;
    {
      const base::MutexLock lock(mu_);
      R1D_CHECK(num_joined_ < num_ranks_);
      rank = num_joined_;
      RankQueue& queue = ranks_[static_cast<size_t>(rank)];
      queue.staging = staging;
      for (int32_t slot = 0; staged && slot < num_slots; ++slot) queue.free_slots.push_back(slot);
      targets_[static_cast<size_t>(rank)] = std::move(targets);
      if (++num_joined_ < num_ranks_ || !failure_.ok()) return rank;
    }
    begin_reading();
    return rank;
  }

  // All have joined: nobody else touches the plan yet.
  void begin_reading() {
    const TimePoint now = clock_.now();
    std::map<const File*, size_t> number_of;
    std::vector<std::vector<Strip>> strips;
    int64_t total = 0;
    for (size_t rank = 0; rank < targets_.size(); ++rank) {
      for (size_t i = 0; i < targets_[rank].size(); ++i) {
        const WeightTarget& target = targets_[rank][i];
        const auto [found, is_new] = number_of.try_emplace(target.bytes.file, files_.size());
        if (is_new) {
          files_.push_back(std::make_unique<BulkFile>(
              *target.bytes.file, target.bytes.file_name, options_.direct));
          strips.emplace_back();
        }
        Strip strip = strip_of(target);
        strip.rank = static_cast<int32_t>(rank);
        strip.target = static_cast<uint32_t>(i);
        total += strip.bytes();
        strips[found->second].push_back(strip);
      }
    }
    const int64_t fine = (total / kChunksWanted + kReadBlock - 1) / kReadBlock * kReadBlock;
    const int64_t chunk_bytes = std::clamp(fine, kMinChunkBytes, kMaxChunkBytes);
    for (size_t file = 0; file < files_.size(); ++file) {
      add_file(static_cast<int32_t>(file), std::move(strips[file]), chunk_bytes, plan_);
    }
    tell_fallback();
    const base::MutexLock lock(mu_);
    begin_ = now;
    started_ = true;
    start_.notify_all();
  }

  void tell_fallback() {
    if (!options_.direct) return;
    for (const auto& file : files_) {
      if (file->direct()) continue;
      log_->warn("{}: its file system cannot be read past the page cache; read through it",
                 file->name());
      return;
    }
  }

  // Tells what arrived, sends what is staged, until all readers have ended or something failed.
  absl::Status serve(int32_t rank,
                     StagedCopy* copy,
                     const BytesArrived& arrived,
                     std::deque<InFlight>& in_flight) {
    while (true) {
      int64_t bytes = 0;
      std::optional<Filled> filled;
      if (!next_work(rank, in_flight.empty(), bytes, filled)) return absl::OkStatus();
      if (bytes > 0) R1D_RETURN_IF_ERROR(arrived(bytes));
      if (filled) {
        R1D_RETURN_IF_ERROR(send(*filled, *copy, in_flight));
      } else if (!in_flight.empty()) {
        R1D_RETURN_IF_ERROR(retire(rank, *copy, arrived, in_flight));
      }
    }
  }

  // False at the end. Waits only when `may_wait`: copies in flight are waited for elsewhere.
  bool next_work(int32_t rank, bool may_wait, int64_t& bytes, std::optional<Filled>& filled) {
    const base::MutexLock lock(mu_);
    RankQueue& queue = ranks_[static_cast<size_t>(rank)];
    while (may_wait && failure_.ok() && queue.filled.empty() && queue.arrived_bytes == 0 &&
           running_ > 0) {
      queue.work.wait(mu_);
    }
    if (!failure_.ok()) return false;
    bytes = std::exchange(queue.arrived_bytes, 0);
    if (!queue.filled.empty()) {
      filled = std::move(queue.filled.front());
      queue.filled.pop_front();
    }
    return bytes > 0 || filled.has_value() || !may_wait;
  }

  static absl::Status send(const Filled& filled,
                           StagedCopy& copy,
                           std::deque<InFlight>& in_flight) {
    InFlight sent{.slot = filled.slot};
    for (const StagedPiece& piece : filled.pieces) {
      R1D_ASSIGN_OR_RETURN(
          sent.ticket, copy.copy(piece.device, {piece.staged, static_cast<size_t>(piece.bytes)}));
      sent.bytes += piece.bytes;
    }
    in_flight.push_back(sent);
    return absl::OkStatus();
  }

  // Waits for the oldest copy and gives its slot back.
  absl::Status retire(int32_t rank,
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

  // Waits until no reader is left.
  absl::Status leave() {
    const base::MutexLock lock(mu_);
    while (running_ > 0) ended_.wait(mu_);
    seconds_ = seconds_between(begin_, clock_.now());  // the last rank's stays
    return failure_;
  }

  // ---- reading threads ----

  void run_reader() {
    wait_for_start();
    const absl::Status status = base::without_exceptions([this] { return read_chunks(); });
    if (!status.ok()) abort(status);
    if (num_finished_.fetch_add(1) + 1 == num_threads_) check_files();
    const base::MutexLock lock(mu_);
    if (--running_ == 0) wake_all();
  }

  void wait_for_start() {
    const base::MutexLock lock(mu_);
    while (!started_ && failure_.ok()) start_.wait(mu_);
  }

  // Which were changed after their headers were read.
  void check_files() {
    if (failed_.load()) return;
    for (const auto& file : files_) {
      const absl::Status status = file->file().check_unchanged();
      if (!status.ok()) abort(with_context(status, file->name()));
    }
  }

  absl::Status read_chunks() {
    std::optional<BlockBuffer> buffer;
    while (!failed_.load()) {
      const size_t next = next_chunk_.fetch_add(1);
      if (next >= plan_.chunks.size()) break;
      const Chunk& chunk = plan_.chunks[next];
      if (chunk.sole_rank >= 0) {
        R1D_RETURN_IF_ERROR(read_to_slot(chunk));
      } else {
        if (!buffer) {
          R1D_ASSIGN_OR_RETURN(buffer, BlockBuffer::take(kMaxChunkBytes + 2 * kReadBlock));
        }
        R1D_RETURN_IF_ERROR(read_and_deal(chunk, buffer->data()));
      }
      bytes_read_.fetch_add(chunk.bytes());
    }
    return absl::OkStatus();
  }

  // Straight into staging memory, from where the device takes it.
  absl::Status read_to_slot(const Chunk& chunk) {
    const std::optional<Slot> slot = take_slot(chunk.sole_rank);
    if (!slot) return absl::OkStatus();
    R1D_RETURN_IF_ERROR(retrying(chunk, [&](BulkFile& file) {
      return file.read_blocks(chunk.begin, chunk.end, slot->memory);
    }));
    const std::byte* bytes = slot->memory + chunk.begin % kReadBlock;
    hand_over(chunk.sole_rank, {slot->index, pieces_of(plan_, chunk, bytes)});
    return absl::OkStatus();
  }

  // In place where that can be; the rest is dealt out to its ranks from `buffer`.
  absl::Status read_and_deal(const Chunk& chunk, std::byte* buffer) {
    std::byte* bytes = buffer + chunk.begin % kReadBlock;
    Scatter scattered;
    R1D_RETURN_IF_ERROR(retrying(chunk, [&](BulkFile& file) {
      if (file.direct()) {
        const std::span<const uint32_t> ids = plan_.strips_of(chunk);
        scattered.rest.assign(ids.begin(), ids.end());
        return file.read_blocks(chunk.begin, chunk.end, buffer);
      }
      scattered = scatter(plan_, chunk, bytes);
      return file.read(chunk.begin, chunk.end, scattered.pieces);
    }));
    deal(chunk, bytes, scattered.rest);
    return absl::OkStatus();
  }

  // `rest`: strips that are not in place yet.
  void deal(const Chunk& chunk, const std::byte* bytes, std::span<const uint32_t> rest) {
    std::vector<uint32_t> staged;
    for (const uint32_t id : rest) {
      const Strip& strip = plan_.strips[id];
      if (strip.staged) {
        staged.push_back(id);
      } else {
        gather(strip, chunk.begin, chunk.end, bytes, strip.dest + strip.bytes_before(chunk.begin));
      }
    }
    tell_arrived(chunk);
    std::stable_sort(staged.begin(), staged.end(), [this](uint32_t a, uint32_t b) {
      return plan_.strips[a].rank < plan_.strips[b].rank;
    });
    for (size_t begin = 0; begin < staged.size();) {
      const std::optional<Slot> slot = take_slot(plan_.strips[staged[begin]].rank);
      if (!slot) return;
      begin += stage(chunk, bytes, std::span(staged).subspan(begin), *slot);
    }
  }

  struct Slot {
    int32_t index = 0;
    std::byte* memory = nullptr;
  };

  // Fills a slot with the first strips, of one rank and as many as it holds. Returns how many.
  size_t stage(const Chunk& chunk,
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

  // Bytes of a chunk that are in memory of the host now.
  void tell_arrived(const Chunk& chunk) {
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

  // Waits for one; none when the load has failed. A reader holds one slot at a time, so that those
  // who wait only wait for copies.
  std::optional<Slot> take_slot(int32_t rank) {
    const base::MutexLock lock(mu_);
    RankQueue& queue = ranks_[static_cast<size_t>(rank)];
    while (failure_.ok() && queue.free_slots.empty()) queue.slot_is_free.wait(mu_);
    if (!failure_.ok()) return std::nullopt;
    const int32_t index = queue.free_slots.back();
    queue.free_slots.pop_back();
    return Slot{.index = index, .memory = queue.staging + index * kSlotBytes};
  }

  void hand_over(int32_t rank, Filled filled) {
    const base::MutexLock lock(mu_);
    RankQueue& queue = ranks_[static_cast<size_t>(rank)];
    queue.filled.push_back(std::move(filled));
    queue.work.notify_one();
  }

  // `attempt`: BulkFile& -> ReadOutcome, of the whole chunk.
  template <class Attempt>
  absl::Status retrying(const Chunk& chunk, const Attempt& attempt) {
    BulkFile& file = *files_[static_cast<size_t>(chunk.file)];
    for (int32_t count = 1;; ++count) {
      const ReadOutcome outcome = attempt(file);
      if (outcome.done == chunk.bytes()) return absl::OkStatus();
      const absl::Status failed = failure(chunk, outcome, count);
      const std::optional<RetryCause> cause = retry_cause(outcome.error);
      if (!cause || count >= options_.max_attempts) return failed;
      const auto pause = options_.first_retry * (int64_t{1} << (count - 1));
      log_->warn("{}; tried again in {} ms", message_of(failed), pause.count());
      retries_[static_cast<size_t>(*cause)].fetch_add(1);
      if (!wait_unless_failed(pause)) return failed;
    }
  }

  [[nodiscard]] absl::Status failure(const Chunk& chunk,
                                     const ReadOutcome& outcome,
                                     int32_t attempts) const {
    const BulkFile& file = *files_[static_cast<size_t>(chunk.file)];
    const int64_t at = chunk.begin + outcome.done;
    const std::string where = fmt::format("{}: tensor {}", file.name(), tensor_at(chunk, at));
    if (outcome.error == 0) {
      return data_loss("{}: file ends at byte {}, {} bytes too early", where, at, chunk.end - at);
    }
    return data_loss("{}: read at byte {} failed ({}): {}",
                     where,
                     at,
                     attempts == 1 ? "once" : fmt::format("{} times", attempts),
                     error_text(outcome));
  }

  [[nodiscard]] std::string tensor_at(const Chunk& chunk, int64_t offset) const {
    const std::span<const uint32_t> ids = plan_.strips_of(chunk);
    const auto found = std::find_if(ids.begin(), ids.end(), [&](uint32_t id) {
      return plan_.strips[id].begin <= offset && offset < plan_.strips[id].end();
    });
    const Strip& strip = plan_.strips[found == ids.end() ? ids.front() : *found];
    return targets_[static_cast<size_t>(strip.rank)][strip.target].name;
  }

  // False when the load failed meanwhile.
  bool wait_unless_failed(std::chrono::milliseconds pause) {
    const TimePoint until = clock_.now() + pause;
    const base::MutexLock lock(mu_);
    while (failure_.ok() && clock_.now() < until) retry_.wait_until(mu_, until);
    return failure_.ok();
  }

  void wake_all() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    start_.notify_all();
    ended_.notify_all();
    retry_.notify_all();
    for (RankQueue& queue : ranks_) {
      queue.work.notify_all();
      queue.slot_is_free.notify_all();
    }
  }

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

WeightLoad::WeightLoad(const LoadOptions& options, int32_t num_ranks, std::stop_token stop)
    : impl_(std::make_unique<Impl>(options, num_ranks, std::move(stop))) {}
WeightLoad::~WeightLoad() = default;

absl::Status WeightLoad::read(std::vector<WeightTarget> targets,
                              StagedCopy* copy,
                              const BytesArrived& arrived) {
  return impl_->read(std::move(targets), copy, arrived);
}

void WeightLoad::abort(const absl::Status& why) {
  impl_->abort(why);
}

LoadReport WeightLoad::report() const {
  return impl_->report();
}

}  // namespace r1d::checkpoint
