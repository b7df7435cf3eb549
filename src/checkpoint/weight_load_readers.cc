// SPDX-License-Identifier: Apache-2.0
// Reading threads: chunk after chunk of the plan, tried again where that may help.
#include <algorithm>
#include <cerrno>
#include <system_error>

#include "r1d/base/exceptions.h"
#include "r1d/base/status.h"

#include "checkpoint/errors.h"
#include "checkpoint/weight_load_impl.h"

namespace r1d::checkpoint {
namespace {

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

}  // namespace

void WeightLoad::Impl::run_reader() {
  wait_for_start();
  const absl::Status status = base::without_exceptions([this] { return read_chunks(); });
  if (!status.ok()) abort(status);
  if (num_finished_.fetch_add(1) + 1 == num_threads_) check_files();
  const base::MutexLock lock(mu_);
  if (--running_ == 0) wake_all();
}

void WeightLoad::Impl::wait_for_start() {
  const base::MutexLock lock(mu_);
  while (!started_ && failure_.ok()) start_.wait(mu_);
}

void WeightLoad::Impl::check_files() {
  if (failed_.load()) return;
  for (const auto& file : files_) {
    const absl::Status status = file->file().check_unchanged();
    if (!status.ok()) abort(with_context(status, file->name()));
  }
}

// `attempt`: BulkFile& -> ReadOutcome, of the whole chunk.
template <class Attempt>
absl::Status WeightLoad::Impl::retrying(const Chunk& chunk, const Attempt& attempt) {
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

absl::Status WeightLoad::Impl::read_chunks() {
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

absl::Status WeightLoad::Impl::read_to_slot(const Chunk& chunk) {
  const std::optional<Slot> slot = take_slot(chunk.sole_rank);
  if (!slot) return absl::OkStatus();
  R1D_RETURN_IF_ERROR(retrying(chunk, [&](BulkFile& file) {
    return file.read_blocks(chunk.begin, chunk.end, slot->memory);
  }));
  const std::byte* bytes = slot->memory + chunk.begin % kReadBlock;
  R1D_RETURN_IF_ERROR(compare_pieces(chunk, bytes));
  hand_over(chunk.sole_rank, {slot->index, pieces_of(plan_, chunk, bytes)});
  return absl::OkStatus();
}

absl::Status WeightLoad::Impl::read_and_deal(const Chunk& chunk, std::byte* buffer) {
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
  return deal(chunk, bytes, scattered.rest);
}

absl::Status WeightLoad::Impl::compare_pieces(const Chunk& chunk, const std::byte* bytes) const {
  for (const uint32_t id : plan_.strips_of(chunk)) {
    const Strip& strip = plan_.strips[id];
    if (strip.piece_bytes == 0) continue;
    const PieceCheck& check = targets_[static_cast<size_t>(strip.rank)][strip.target].bytes.check;
    const int64_t end = std::min(strip.end(), chunk.end);
    for (int64_t at = std::max(strip.begin, chunk.begin); at < end;) {
      const std::byte* piece =
          strip.staged ? bytes + (at - chunk.begin) : strip.dest + (at - strip.begin);
      const int64_t size = std::min(strip.piece_bytes, strip.end() - at);
      R1D_RETURN_IF_ERROR(check.compare((at - strip.begin) / strip.piece_bytes,
                                        {piece, static_cast<size_t>(size)}));
      at += size;
    }
  }
  return absl::OkStatus();
}

absl::Status WeightLoad::Impl::failure(const Chunk& chunk,
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

std::string WeightLoad::Impl::tensor_at(const Chunk& chunk, int64_t offset) const {
  const std::span<const uint32_t> ids = plan_.strips_of(chunk);
  const auto found = std::find_if(ids.begin(), ids.end(), [&](uint32_t id) {
    return plan_.strips[id].begin <= offset && offset < plan_.strips[id].end();
  });
  const Strip& strip = plan_.strips[found == ids.end() ? ids.front() : *found];
  return targets_[static_cast<size_t>(strip.rank)][strip.target].name;
}

bool WeightLoad::Impl::wait_unless_failed(std::chrono::milliseconds pause) {
  const TimePoint until = clock_.now() + pause;
  const base::MutexLock lock(mu_);
  while (failure_.ok() && clock_.now() < until) retry_.wait_until(mu_, until);
  return failure_.ok();
}

}  // namespace r1d::checkpoint
