// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::checkpoint {

// model.safetensors.index.json: which file of the directory holds which tensor. Nothing but
// `weight_map` is read; the sizes in `metadata` are wrong in published files.
struct CheckpointIndex {
  std::vector<std::string> files;                    // sorted, each once
  std::unordered_map<std::string, int32_t> file_of;  // tensor name -> index into `files`
};

// Refuses file names that lead out of the directory.
[[nodiscard]] absl::StatusOr<CheckpointIndex> parse_index(std::string_view text);

}  // namespace r1d::checkpoint
