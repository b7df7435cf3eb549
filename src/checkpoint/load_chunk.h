// SPDX-License-Identifier: Apache-2.0
// What happens to one chunk: which bytes a read may put in place, and which are copied from where
// they were read to. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <sys/uio.h>
#include <vector>

#include "checkpoint/read_plan.h"

namespace r1d::checkpoint {

// A scattered read of a chunk.
struct Scatter {
  std::vector<iovec> pieces;   // cover the chunk
  std::vector<uint32_t> rest;  // strips whose bytes came to `bytes`, by their order in the chunk
};
// Bytes that one rank alone takes, in one piece and into memory of the host, go in place; all
// others to where they stand in `bytes`, which has room for the chunk.
[[nodiscard]] Scatter scatter(const ReadPlan& plan, const Chunk& chunk, std::byte* bytes);

// Bytes in staging memory and where they are to go.
struct StagedPiece {
  std::byte* device = nullptr;
  const std::byte* staged = nullptr;
  int64_t bytes = 0;
};
// The pieces of a chunk with a sole rank, whose bytes are at `bytes`.
[[nodiscard]] std::vector<StagedPiece> pieces_of(const ReadPlan& plan,
                                                 const Chunk& chunk,
                                                 const std::byte* bytes);

}  // namespace r1d::checkpoint
