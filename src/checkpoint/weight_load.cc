// SPDX-License-Identifier: Apache-2.0
#include "r1d/checkpoint/weight_load.h"

#include <algorithm>
#include <map>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/exceptions.h"
#include "r1d/base/status.h"

#include "checkpoint/errors.h"
#include "checkpoint/weight_load_impl.h"

namespace r1d::checkpoint {
namespace {

// Small models are cut finer, so that all threads have something to do.
constexpr int64_t kMinChunkBytes = 256 << 10;
constexpr int64_t kChunksWanted = 64;

constexpr int32_t kMinSlots = 4;  // a rank: two being copied while two are filled

int32_t thread_count(int32_t wanted) {
  if (wanted > 0) return wanted;
  return std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()), 4, 32);
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
  strip.piece_bytes = target.bytes.check.piece_bytes;
  if (strip.piece_bytes > 0) {
    R1D_CHECK(slice.rows == held.rows && slice.cols == held.cols);
    R1D_CHECK(strip.piece_bytes <= kMostCheckedPieceBytes);
  }
  strip.staged = target.staged;
  return strip;
}

}  // namespace

WeightLoad::Impl::Impl(const LoadOptions& options, int32_t num_ranks, std::stop_token stop)
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

WeightLoad::Impl::~Impl() {
  on_stop_.reset();
  abort(cancelled("the load was given up"));
  for (std::thread& reader : readers_) reader.join();
}

absl::Status WeightLoad::Impl::read(std::vector<WeightTarget> targets,
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

void WeightLoad::Impl::abort(const absl::Status& why) {
  const base::MutexLock lock(mu_);
  if (!failure_.ok()) return;
  failure_ = why;
  failed_.store(true);
  wake_all();
}

void WeightLoad::Impl::wake_all() {
  start_.notify_all();
  ended_.notify_all();
  retry_.notify_all();
  for (RankQueue& queue : ranks_) {
    queue.work.notify_all();
    queue.slot_is_free.notify_all();
  }
}

LoadReport WeightLoad::Impl::report() const {
  const base::MutexLock lock(mu_);
  LoadReport report{.bytes_read = bytes_read_.load(),
                    .seconds = seconds_,
                    .num_threads = num_threads_,
                    .num_files = static_cast<int32_t>(files_.size())};
  for (const auto& file : files_) report.num_direct_files += file->direct() ? 1 : 0;
  for (size_t i = 0; i < kNumRetryCauses; ++i) report.retries[i] = retries_[i].load();
  return report;
}

absl::StatusOr<int32_t> WeightLoad::Impl::join(std::vector<WeightTarget> targets,
                                               StagedCopy* copy) {
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

void WeightLoad::Impl::begin_reading() {
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

void WeightLoad::Impl::tell_fallback() {
  if (!options_.direct) return;
  for (const auto& file : files_) {
    if (file->direct()) continue;
    log_->warn("{}: its file system cannot be read past the page cache; read through it",
               file->name());
    return;
  }
}

absl::Status WeightLoad::Impl::serve(int32_t rank,
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

bool WeightLoad::Impl::next_work(int32_t rank,
                                 bool may_wait,
                                 int64_t& bytes,
                                 std::optional<Filled>& filled) {
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

absl::Status WeightLoad::Impl::leave() {
  const base::MutexLock lock(mu_);
  while (running_ > 0) ended_.wait(mu_);
  seconds_ = seconds_between(begin_, clock_.now());  // the last rank's stays
  return failure_;
}

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
