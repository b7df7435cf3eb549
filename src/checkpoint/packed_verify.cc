// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <utility>

#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/base/thread_pool.h"
#include "r1d/checkpoint/packed.h"

#include "checkpoint/pack_meter.h"
#include "checkpoint/packed_set.h"

namespace r1d::checkpoint {
namespace {

constexpr size_t kMostFindings = 8;

// One section, with the bytes between it and what follows.
struct CheckTask {
  const PackedFile* file = nullptr;
  size_t index = 0;
};

int64_t next_begin(const CheckTask& task) {
  const auto& sections = task.file->sections();
  return task.index + 1 < sections.size() ? sections[task.index + 1].offset
                                          : task.file->page().file_bytes;
}

class Verifier {
 public:
  explicit Verifier(PackMeter& meter) : meter_(meter) {}

  // An error that is no finding ends the verification.
  absl::Status verify(const CheckTask& task, std::vector<std::byte>& buffer) {
    const PackedSection& section = task.file->sections()[task.index];
    absl::Status found = read_section(task, buffer);
    if (found.ok()) found = read_padding(task, buffer);
    if (absl::IsDataLoss(found)) {
      note(found);
    } else if (!found.ok()) {
      return found;
    }
    return meter_.add(next_begin(task) - section.offset);
  }

  void take(VerifiedPack& verified) {
    const base::MutexLock lock(mu_);
    verified.num_damaged = num_damaged_;
    verified.findings = std::move(findings_);
  }

 private:
  static absl::Status read_section(const CheckTask& task, std::vector<std::byte>& buffer) {
    const int64_t num_bytes = task.file->sections()[task.index].num_bytes();
    const int64_t piece_bytes = task.file->page().piece_bytes;
    for (int64_t at = 0; at < num_bytes; at += piece_bytes) {
      buffer.resize(static_cast<size_t>(std::min(piece_bytes, num_bytes - at)));
      R1D_RETURN_IF_ERROR(task.file->read(task.index, at, buffer, /*verify=*/true));
    }
    return absl::OkStatus();
  }

  static absl::Status read_padding(const CheckTask& task, std::vector<std::byte>& buffer) {
    const int64_t begin = task.file->sections()[task.index].end();
    buffer.resize(static_cast<size_t>(next_begin(task) - begin));
    if (buffer.empty()) return absl::OkStatus();
    R1D_RETURN_IF_ERROR(task.file->read_raw(begin, buffer));
    const auto odd = std::find_if(
        buffer.begin(), buffer.end(), [](std::byte value) { return value != std::byte{0}; });
    if (odd == buffer.end()) return absl::OkStatus();
    return data_loss("{}: byte {}, behind the section, is not zero",
                     task.file->place_of(task.index),
                     begin + (odd - buffer.begin()));
  }

  void note(const absl::Status& found) {
    const base::MutexLock lock(mu_);
    ++num_damaged_;
    if (findings_.size() < kMostFindings) findings_.push_back(message_of(found));
  }

  PackMeter& meter_;
  base::Mutex mu_;
  int64_t num_damaged_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::string> findings_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<VerifiedPack> verify_packed(const std::string& dir,
                                           int32_t num_threads,
                                           const PackProgress& progress) {
  R1D_ASSIGN_OR_RETURN(const PackedSet set, open_packed_set(dir, {}));
  std::vector<CheckTask> tasks;
  VerifiedPack verified;
  int64_t data_bytes = 0;
  for (const PackedFile& file : set.files) {
    for (size_t i = 0; i < file.sections().size(); ++i) tasks.push_back({&file, i});
    verified.num_bytes += file.page().file_bytes;
    data_bytes += file.page().file_bytes - file.page().data_begin;
  }
  verified.num_sections = std::ssize(tasks);
  PackMeter meter(data_bytes, progress);
  Verifier verifier(meter);
  FirstError first_error;
  base::ThreadPool pool(std::max(num_threads, 1));
  std::vector<std::vector<std::byte>> buffers(static_cast<size_t>(pool.num_threads()));
  pool.parallel_for(std::ssize(tasks), [&](int64_t i, int32_t thread) {
    if (first_error.is_set()) return;
    first_error.set(
        verifier.verify(tasks[static_cast<size_t>(i)], buffers[static_cast<size_t>(thread)]));
  });
  R1D_RETURN_IF_ERROR(first_error.take());
  verifier.take(verified);
  return verified;
}

}  // namespace r1d::checkpoint
