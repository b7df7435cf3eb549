// SPDX-License-Identifier: Apache-2.0
// Rows of the paged latent cache, in any of its formats. `latent` of a row's `pages.width` values
// are latents, the others rope's.
#pragma once

#include <cstdint>

#include "r1d/ops/ops.h"

#include "ops/cpu/kernels.h"

namespace r1d::ops::cpu {

// The sequence's block table covers its context with blocks that exist.
void check_blocks(const LatentPages& pages, const SequenceSpan& span);

// Rows [position, position + count): where they lie in the pages or, of an e4m3 cache, as f32 in
// `scratch` [count, width]. `rows`: room for `count` pointers, which the list borrows.
[[nodiscard]] RowList latent_rows(const LatentPages& pages,
                                  int64_t latent,
                                  const SequenceSpan& span,
                                  int64_t position,
                                  int64_t count,
                                  float* scratch,
                                  const void** rows);

// One row's latents and rope values as f32.
void load_latent(const LatentPages& pages,
                 int64_t latent,
                 const SequenceSpan& span,
                 int64_t position,
                 float* latents,
                 float* rope);

// Writes one row, rounded to the pages' format.
void store_latent(const LatentPages& pages,
                  int64_t latent,
                  const SequenceSpan& span,
                  int64_t position,
                  const float* values);

}  // namespace r1d::ops::cpu
