// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/slice_read.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

namespace r1d::checkpoint {
namespace {

// A system call costs about 0.5 us, in which some 4 to 8 KiB can be copied from the page cache:
// columns that skip less than this are cheaper to read along and drop. A slice of R1's expert
// down_proj at world size 8 has 256 of every 2,048 bytes, and there are 106 million such rows.
constexpr int64_t kMaxSkippedBytes = 8 << 10;
constexpr int64_t kReadBytes = 1 << 20;

struct RowLayout {
  int64_t stored_bytes;  // of a whole stored row
  int64_t begin;         // of the wanted bytes in it
  int64_t wanted_bytes;
};

absl::Status read_row_by_row(const RowLayout& row,
                             Range rows,
                             std::span<std::byte> dest,
                             const ReadBytes& read_bytes) {
  const auto wanted = static_cast<size_t>(row.wanted_bytes);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    R1D_RETURN_IF_ERROR(read_bytes(r * row.stored_bytes + row.begin, dest.first(wanted)));
    dest = dest.subspan(wanted);
  }
  return absl::OkStatus();
}

// Reads bands of whole rows and keeps the wanted columns.
absl::Status read_by_bands(const RowLayout& row,
                           Range rows,
                           std::span<std::byte> dest,
                           const ReadBytes& read_bytes) {
  const int64_t rows_per_band =
      std::min(std::max<int64_t>(kReadBytes / row.stored_bytes, 1), rows.size());
  const auto band_bytes = static_cast<size_t>(rows_per_band * row.stored_bytes);
  const auto band = std::make_unique_for_overwrite<std::byte[]>(band_bytes);
  std::byte* out = dest.data();
  for (int64_t first = rows.begin; first < rows.end; first += rows_per_band) {
    const int64_t num_rows = std::min(rows_per_band, rows.end - first);
    // The last row's bytes behind the wanted ones are not needed.
    const int64_t length = (num_rows - 1) * row.stored_bytes + row.begin + row.wanted_bytes;
    R1D_RETURN_IF_ERROR(
        read_bytes(first * row.stored_bytes, {band.get(), static_cast<size_t>(length)}));
    for (int64_t r = 0; r < num_rows; ++r, out += row.wanted_bytes) {
      std::memcpy(out,
                  band.get() + r * row.stored_bytes + row.begin,
                  static_cast<size_t>(row.wanted_bytes));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void check_slice(const StoredTensor& stored, const TensorSlice& slice, size_t dest_bytes) {
  if (slice.empty()) {
    R1D_CHECK(dest_bytes == 0);
    return;
  }
  R1D_CHECK(0 <= slice.rows.begin && slice.rows.end <= stored.rows);
  R1D_CHECK(0 <= slice.cols.begin && slice.cols.end <= stored.cols);
  const int64_t bytes = slice.rows.size() * slice.cols.size() * dtype_bytes(stored.dtype);
  R1D_CHECK(dest_bytes == static_cast<size_t>(bytes));
}

absl::Status read_slice(const StoredTensor& stored,
                        const TensorSlice& slice,
                        std::span<std::byte> dest,
                        const ReadBytes& read_bytes) {
  check_slice(stored, slice, dest.size());
  if (slice.empty()) return absl::OkStatus();
  const int64_t width = dtype_bytes(stored.dtype);
  const RowLayout row{.stored_bytes = stored.cols * width,
                      .begin = slice.cols.begin * width,
                      .wanted_bytes = slice.cols.size() * width};
  if (row.wanted_bytes == row.stored_bytes) {
    return read_bytes(slice.rows.begin * row.stored_bytes, dest);
  }
  const bool skips_little = row.stored_bytes - row.wanted_bytes <= kMaxSkippedBytes;
  return skips_little ? read_by_bands(row, slice.rows, dest, read_bytes)
                      : read_row_by_row(row, slice.rows, dest, read_bytes);
}

}  // namespace r1d::checkpoint
