// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/model_config.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/checkpoint/weight_source.h"

#include "checkpoint/packed_file.h"

namespace r1d::checkpoint {

// The open rank files of a directory and its config.json, which fit each other.
struct PackedSet {
  struct Tensor {
    StoredTensor stored;                // the whole of it
    std::vector<int32_t> section_idxs;  // by rank; -1: that rank has nothing of it
  };

  ModelConfig config;
  std::vector<PackedFile> files;  // by rank
  std::unordered_map<std::string, Tensor> tensors;

  [[nodiscard]] const PackedPage& page() const { return files.front().page(); }
};

// As open_packed() says.
[[nodiscard]] absl::StatusOr<PackedSet> open_packed_set(const std::string& dir,
                                                        const ReadOptions& options);

}  // namespace r1d::checkpoint
