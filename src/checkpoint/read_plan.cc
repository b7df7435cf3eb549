// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/read_plan.h"

#include <algorithm>
#include <cstring>

#include "r1d/base/check.h"

namespace r1d::checkpoint {
namespace {

// A request costs a disk about as much as this many bytes in sequence.
constexpr int64_t kMaxGapBytes = 64 << 10;
constexpr int64_t kMinSoleBytes = 1 << 20;
constexpr int32_t kShared = -1;

// Neighbouring bytes with one owner.
struct Run {
  int64_t begin = 0;
  int64_t end = 0;
  int32_t owner = kShared;

  [[nodiscard]] bool is_sole() const { return owner != kShared && end - begin >= kMinSoleBytes; }
};

int32_t owner_of(const Strip& strip) {
  return strip.staged && strip.contiguous() ? strip.rank : kShared;
}

// Strips that overlap become one run that is shared; neighbours with the same owner one run.
std::vector<Run> find_runs(const std::vector<Strip>& strips) {
  std::vector<Run> regions;
  for (const Strip& strip : strips) {
    if (!regions.empty() && strip.begin < regions.back().end) {
      regions.back().end = std::max(regions.back().end, strip.end());
      regions.back().owner = kShared;
    } else {
      regions.push_back({strip.begin, strip.end(), owner_of(strip)});
    }
  }
  std::vector<Run> runs;
  for (const Run& region : regions) {
    const bool joins = !runs.empty() && runs.back().owner == region.owner &&
                       region.begin - runs.back().end <= kMaxGapBytes;
    if (joins) {
      runs.back().end = region.end;
    } else {
      runs.push_back(region);
    }
  }
  return runs;
}

// Cuts runs into chunks; small and shared ones together.
class Cutter {
 public:
  Cutter(int32_t file,
         int64_t chunk_bytes,
         std::span<const Strip> strips,
         std::vector<Chunk>& chunks)
      : file_(file), chunk_bytes_(chunk_bytes), strips_(strips), chunks_(chunks) {}

  void add(const Run& run) {
    if (run.is_sole()) {
      flush();
      cut(run);
    } else if (pending_.end > pending_.begin && run.begin - pending_.end <= kMaxGapBytes) {
      pending_.end = run.end;
    } else {
      flush();
      pending_ = {run.begin, run.end, kShared};
    }
  }

  void flush() {
    cut(pending_);
    pending_ = {};
  }

 private:
  // Ends of reads are ends of blocks, so that no block is read twice for it.
  void cut(const Run& run) {
    for (int64_t begin = run.begin; begin < run.end;) {
      const int64_t limit = (begin + chunk_bytes_) / kReadBlock * kReadBlock;
      const int64_t end = whole_pieces(begin, std::min(run.end, limit));
      chunks_.push_back({.begin = begin, .end = end, .file = file_, .sole_rank = run.owner});
      begin = end;
    }
  }

  // Where a read from `begin` ends that would end at `end`: before the piece that is cut there, or
  // behind it where nothing else is read.
  [[nodiscard]] int64_t whole_pieces(int64_t begin, int64_t end) const {
    const auto next = std::partition_point(
        strips_.begin(), strips_.end(), [&](const Strip& strip) { return strip.begin < end; });
    if (next == strips_.begin()) return end;
    const Strip& strip = *std::prev(next);
    if (strip.piece_bytes == 0 || strip.end() <= end) return end;
    const int64_t before = end - (end - strip.begin) % strip.piece_bytes;
    return before > begin ? before : std::min(before + strip.piece_bytes, strip.end());
  }

  const int32_t file_;
  const int64_t chunk_bytes_;
  const std::span<const Strip> strips_;
  std::vector<Chunk>& chunks_;
  Run pending_;
};

// Which strips each chunk of a file has bytes of. Both are in file order.
void assign_strips(std::span<Chunk> chunks, uint32_t first_strip, ReadPlan& plan) {
  std::vector<uint32_t> open;
  auto next = first_strip;
  for (Chunk& chunk : chunks) {
    while (next < plan.strips.size() && plan.strips[next].begin < chunk.end) open.push_back(next++);
    chunk.first_strip = static_cast<uint32_t>(plan.strip_ids.size());
    plan.strip_ids.insert(plan.strip_ids.end(), open.begin(), open.end());
    chunk.num_strips = static_cast<uint32_t>(open.size());
    std::erase_if(open, [&](uint32_t id) { return plan.strips[id].end() <= chunk.end; });
  }
  R1D_CHECK(open.empty() && next == plan.strips.size());
}

}  // namespace

int64_t Strip::bytes_before(int64_t offset) const {
  const int64_t past = std::clamp<int64_t>(offset - begin, 0, end() - begin);
  const int64_t row = past / stride;
  return row * width + std::min(past - row * stride, width);
}

Strip make_strip(int64_t begin, int64_t stride, int64_t width, int64_t rows) {
  R1D_CHECK(rows > 0 && 0 < width && width <= stride);
  if (width == stride)
    return {.begin = begin, .stride = rows * width, .width = rows * width, .rows = 1};
  return {.begin = begin, .stride = stride, .width = width, .rows = rows};
}

int64_t gather(
    const Strip& strip, int64_t begin, int64_t end, const std::byte* bytes, std::byte* out) {
  const int64_t total = strip.bytes_before(end) - strip.bytes_before(begin);
  int64_t left = total;
  int64_t done = strip.bytes_before(begin);
  while (left > 0) {
    const int64_t row = done / strip.width;
    const int64_t col = done % strip.width;
    const int64_t count = std::min(left, strip.width - col);
    const int64_t at = strip.begin + row * strip.stride + col - begin;
    std::memcpy(out, bytes + at, static_cast<size_t>(count));
    out += count;
    done += count;
    left -= count;
  }
  return total;
}

void add_file(int32_t file, std::vector<Strip> strips, int64_t chunk_bytes, ReadPlan& plan) {
  R1D_CHECK(chunk_bytes >= kReadBlock && chunk_bytes % kReadBlock == 0);
  std::sort(strips.begin(), strips.end(), [](const Strip& a, const Strip& b) {
    return a.begin < b.begin;
  });
  const size_t first_chunk = plan.chunks.size();
  Cutter cutter(file, chunk_bytes, strips, plan.chunks);
  for (const Run& run : find_runs(strips)) cutter.add(run);
  cutter.flush();
  const auto first_strip = static_cast<uint32_t>(plan.strips.size());
  plan.strips.insert(plan.strips.end(), strips.begin(), strips.end());
  assign_strips(std::span(plan.chunks).subspan(first_chunk), first_strip, plan);
}

}  // namespace r1d::checkpoint
