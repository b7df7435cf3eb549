// SPDX-License-Identifier: Apache-2.0
// Rows of the paged latent cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "r1d/base/check.h"
#include "r1d/ops/ops.h"

namespace r1d::ops::cpu {

// The sequence's block table covers its context with blocks that exist.
inline void check_blocks(const LatentPages& pages, const SequenceSpan& span) {
  const int64_t blocks = (span.context_len + pages.block_size - 1) / pages.block_size;
  R1D_CHECK(static_cast<int64_t>(span.block_table.size()) >= blocks);
  for (const BlockId id : span.block_table.first(static_cast<size_t>(blocks))) {
    R1D_CHECK(id >= 0 && id < pages.num_blocks);
  }
}

inline std::byte* latent_row(const LatentPages& pages, const SequenceSpan& span, int64_t position) {
  const int64_t block = span.block_table[static_cast<size_t>(position / pages.block_size)];
  const int64_t row = block * pages.block_size + position % pages.block_size;
  return static_cast<std::byte*>(pages.data) + row * pages.width * dtype_bytes(pages.dtype);
}

// Rows [position, position + count) into `rows`.
inline void latent_rows(const LatentPages& pages,
                        const SequenceSpan& span,
                        int64_t position,
                        int64_t count,
                        const void** rows) {
  for (int64_t i = 0; i < count; ++i) rows[i] = latent_row(pages, span, position + i);
}

// Writes one row, rounded to the pages' dtype.
inline void store_row(const LatentPages& pages,
                      const SequenceSpan& span,
                      int64_t position,
                      const float* values) {
  std::byte* row = latent_row(pages, span, position);
  if (pages.dtype == DType::kF32) {
    std::memcpy(row, values, static_cast<size_t>(pages.width) * sizeof(float));
    return;
  }
  auto* out = reinterpret_cast<uint16_t*>(row);
  for (int64_t i = 0; i < pages.width; ++i) out[i] = f32_to_bf16(values[i]);
}

}  // namespace r1d::ops::cpu
