// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include <absl/status/statusor.h>

#include "checkpoint/safetensors.h"

namespace r1d::checkpoint {

// The open shards of a directory with every tensor's place. Tensors that r1d ignores are left out.
struct ShardSet {
  struct Place {
    int32_t file_idx = 0;
    int32_t entry_idx = 0;
  };

  std::string listing;  // the file that lists all tensors: the index, or the single file itself
  std::vector<SafetensorsFile> files;
  std::unordered_map<std::string, Place> tensors;

  [[nodiscard]] const TensorEntry& entry(Place place) const {
    return files[static_cast<size_t>(place.file_idx)]
        .tensors()[static_cast<size_t>(place.entry_idx)];
  }
  [[nodiscard]] const std::string& file_name(Place place) const {
    return files[static_cast<size_t>(place.file_idx)].name();
  }
};

// Opens the shards that model.safetensors.index.json names, or the one model.safetensors. An index
// and its shards must agree tensor by tensor. kNotFound when there is neither.
[[nodiscard]] absl::StatusOr<ShardSet> open_shards(const std::string& dir);

}  // namespace r1d::checkpoint
