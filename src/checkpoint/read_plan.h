// SPDX-License-Identifier: Apache-2.0
// From what the ranks want of a file to large reads in file order. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace r1d::checkpoint {

// A rank's part of one tensor: `width` bytes of each of `rows` rows that stand `stride` apart in
// the file, dense in memory from `dest` on.
struct Strip {
  int64_t begin = 0;  // of the first wanted byte in the file
  int64_t stride = 0;
  int64_t width = 0;
  int64_t rows = 0;
  std::byte* dest = nullptr;
  int32_t rank = 0;
  uint32_t target = 0;  // whose: index into the rank's targets
  bool staged = false;  // `dest` is memory of a device
  // Of a contiguous strip: it is cut into pieces of this size, and no read ends within one. 0:
  // anywhere.
  int64_t piece_bytes = 0;

  [[nodiscard]] bool contiguous() const { return rows == 1; }
  [[nodiscard]] int64_t end() const { return begin + (rows - 1) * stride + width; }
  [[nodiscard]] int64_t bytes() const { return rows * width; }
  // How many of the wanted bytes stand before `offset` of the file.
  [[nodiscard]] int64_t bytes_before(int64_t offset) const;
};

// Several rows without a gap are one.
[[nodiscard]] Strip make_strip(int64_t begin, int64_t stride, int64_t width, int64_t rows);

// Copies the strip's bytes within [begin, end) of the file, which stand at `bytes`, to `out`.
// Returns how many.
int64_t gather(
    const Strip& strip, int64_t begin, int64_t end, const std::byte* bytes, std::byte* out);

// One read.
struct Chunk {
  int64_t begin = 0;
  int64_t end = 0;
  int32_t file = 0;
  // All its bytes go to this rank's device, one strip after the other; else -1.
  int32_t sole_rank = -1;
  uint32_t first_strip = 0;  // in ReadPlan::strip_ids
  uint32_t num_strips = 0;

  [[nodiscard]] int64_t bytes() const { return end - begin; }
};

struct ReadPlan {
  std::vector<Strip> strips;  // of a file next to each other, by `begin`
  std::vector<uint32_t> strip_ids;
  std::vector<Chunk> chunks;  // in the order of the files and their bytes

  [[nodiscard]] std::span<const uint32_t> strips_of(const Chunk& chunk) const {
    return std::span(strip_ids).subspan(chunk.first_strip, chunk.num_strips);
  }
};

// A block of a disk or of a direct read.
inline constexpr int64_t kReadBlock = 4096;

// Adds a file's strips, cut into reads of at most `chunk_bytes` (a multiple of kReadBlock) or a
// piece. What is wanted by several ranks is read once. Bytes that nobody wants are read along where
// they are few (64 KiB) between wanted ones. A megabyte and more that one device takes whole is
// read apart from its neighbours, so that it needs no copy on the host.
void add_file(int32_t file, std::vector<Strip> strips, int64_t chunk_bytes, ReadPlan& plan);

}  // namespace r1d::checkpoint
