// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::checkpoint {

// All tensors of a small safetensors file whose dtype is F32, by name; for reference data beside a
// checkpoint. Checked as a shard is; other dtypes are refused by file and tensor name.
[[nodiscard]] absl::StatusOr<std::map<std::string, std::vector<float>>> read_f32_tensors(
    const std::string& path);

}  // namespace r1d::checkpoint
