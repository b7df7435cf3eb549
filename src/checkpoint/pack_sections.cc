// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/pack_sections.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>

#include "r1d/base/check.h"
#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/base/thread_pool.h"

#include "checkpoint/pack_meter.h"
#include "checkpoint/packed_checksum.h"

namespace r1d::checkpoint {
namespace {

// Rows of one section that are read, hashed and written at a time; near the caches meanwhile.
constexpr int64_t kBandBytes = 4 << 20;

struct Task {
  size_t rank = 0;
  size_t section = 0;
};

std::vector<Task> all_tasks(const std::vector<RankFile>& ranks) {
  size_t longest = 0;
  for (const RankFile& rank : ranks) longest = std::max(longest, rank.layout.sections.size());
  std::vector<Task> tasks;
  for (size_t section = 0; section < longest; ++section) {
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      if (section < ranks[rank].layout.sections.size()) tasks.push_back({rank, section});
    }
  }
  return tasks;
}

int64_t total_bytes(const std::vector<RankFile>& ranks) {
  int64_t bytes = 0;
  for (const RankFile& rank : ranks) {
    for (const PackedSection& section : rank.layout.sections) bytes += section.num_bytes();
  }
  return bytes;
}

// bf16 -> f32, from the front half of `values` to all of it.
void widen(std::span<std::byte> values) {
  for (size_t i = values.size() / sizeof(float); i-- > 0;) {
    uint16_t bits = 0;
    std::memcpy(&bits, values.data() + i * sizeof(bits), sizeof(bits));
    const float value = bf16_to_f32(bits);
    std::memcpy(values.data() + i * sizeof(value), &value, sizeof(value));
  }
}

class SectionWriter {
 public:
  SectionWriter(const WeightSource& source, int64_t piece_bytes, PackMeter& meter)
      : source_(source), piece_bytes_(piece_bytes), meter_(meter) {}

  absl::Status write(RankFile& rank, size_t index, std::vector<std::byte>& buffer) const {
    const PackedSection& section = rank.layout.sections[index];
    PieceHasher hasher(piece_bytes_,
                       std::span(rank.checksums)
                           .subspan(static_cast<size_t>(section.first_piece),
                                    static_cast<size_t>(section.num_pieces(piece_bytes_))));
    const int64_t step = std::max<int64_t>(kBandBytes / section.row_bytes(), 1);
    int64_t offset = section.offset;
    for (int64_t row = section.slice.rows.begin; row < section.slice.rows.end; row += step) {
      const Range rows{row, std::min(row + step, section.slice.rows.end)};
      buffer.resize(static_cast<size_t>(rows.size() * section.row_bytes()));
      R1D_RETURN_IF_ERROR(read(section, rows, buffer));
      hasher.add(buffer);
      R1D_RETURN_IF_ERROR(rank.file->write_at(offset, buffer));
      rank.file->start_writeback(offset, std::ssize(buffer));
      offset += std::ssize(buffer);
      R1D_RETURN_IF_ERROR(meter_.add(std::ssize(buffer)));
    }
    hasher.finish();
    return absl::OkStatus();
  }

 private:
  absl::Status read(const PackedSection& section, Range rows, std::span<std::byte> dest) const {
    const TensorSlice slice{.rows = rows, .cols = section.slice.cols};
    R1D_ASSIGN_OR_RETURN(const StoredTensor stored, source_.find(section.name));
    if (stored.dtype == section.dtype) return source_.read(section.name, slice, dest);
    R1D_CHECK(section.dtype == DType::kF32 && stored.dtype == DType::kBF16);
    R1D_RETURN_IF_ERROR(source_.read(section.name, slice, dest.first(dest.size() / 2)));
    widen(dest);
    return absl::OkStatus();
  }

  const WeightSource& source_;
  const int64_t piece_bytes_;
  PackMeter& meter_;
};

}  // namespace

absl::Status write_sections(const WeightSource& source,
                            std::vector<RankFile>& ranks,
                            const PackOptions& options) {
  const std::vector<Task> tasks = all_tasks(ranks);
  const int32_t num_threads = std::max(options.num_threads, 1);
  std::vector<std::vector<std::byte>> buffers(static_cast<size_t>(num_threads));
  PackMeter meter(total_bytes(ranks), options.progress);
  const SectionWriter writer(source, options.piece_bytes, meter);
  FirstError first_error;
  base::ThreadPool pool(num_threads);
  pool.parallel_for(std::ssize(tasks), [&](int64_t i, int32_t thread) {
    if (first_error.is_set()) return;
    const Task task = tasks[static_cast<size_t>(i)];
    first_error.set(
        writer.write(ranks[task.rank], task.section, buffers[static_cast<size_t>(thread)]));
  });
  return first_error.take();
}

}  // namespace r1d::checkpoint
