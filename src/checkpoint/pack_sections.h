// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include <absl/status/status.h>

#include "r1d/checkpoint/packed.h"
#include "r1d/checkpoint/weight_source.h"

#include "checkpoint/new_file.h"
#include "checkpoint/packed_layout.h"

namespace r1d::checkpoint {

// A rank's file while it is written.
struct RankFile {
  PackedLayout layout;
  std::vector<uint64_t> checksums;  // by piece; filled in by write_sections()
  NewFile* file = nullptr;
};

// Copies every section of all ranks from `source` to its place, on several threads, and fills in
// the checksums. The ranks' slices of a tensor are read one soon after the other, so that a tensor
// comes from the disk once. The first error ends it.
[[nodiscard]] absl::Status write_sections(const WeightSource& source,
                                          std::vector<RankFile>& ranks,
                                          const PackOptions& options);

}  // namespace r1d::checkpoint
