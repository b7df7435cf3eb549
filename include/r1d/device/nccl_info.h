// SPDX-License-Identifier: Apache-2.0
// Whether NCCL is there, which one, and how it is set. No CUDA types: host code reads this header.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::device {

// "2.28.9". kFailedPrecondition: built without NCCL, or libnccl.so.2 cannot be loaded; says which.
[[nodiscard]] absl::StatusOr<std::string> nccl_version();

// Environment variables that NCCL listens to (NCCL_*, and what changes GPUs under it), by name.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> nccl_settings();

}  // namespace r1d::device
