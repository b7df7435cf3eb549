// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include <absl/status/status.h>

#include "r1d/checkpoint/shard_plan.h"
#include "r1d/checkpoint/weight_source.h"

namespace r1d::checkpoint {

// WeightSource::read()'s contract with its caller: the slice lies in the tensor, and `dest` has its
// size. A breach is a fault of ours.
void check_slice(const StoredTensor& stored, const TensorSlice& slice, size_t dest_bytes);

// Reads bytes of one stored tensor from `offset`.
using ReadBytes = std::function<absl::Status(int64_t offset, std::span<std::byte> dest)>;

// Copies the rows x cols of `slice` out of a row-major tensor, dense, to `dest`.
[[nodiscard]] absl::Status read_slice(const StoredTensor& stored,
                                      const TensorSlice& slice,
                                      std::span<std::byte> dest,
                                      const ReadBytes& read_bytes);

}  // namespace r1d::checkpoint
