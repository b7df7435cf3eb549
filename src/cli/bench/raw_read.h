// SPDX-License-Identifier: Apache-2.0
// What the files of a model give when they are only read: the yardstick of `r1d bench load`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::cli::bench {

// The weight files of a directory, sorted by name. kNotFound when there are none.
[[nodiscard]] absl::StatusOr<std::vector<std::string>> weight_files(const std::string& dir);

// Has the system forget what it keeps of the files in memory, as after a start of the machine.
[[nodiscard]] absl::Status drop_from_cache(const std::vector<std::string>& files);

struct RawRead {
  int64_t bytes = 0;
  double seconds = 0;
};
// All bytes of the files in reads of 4 MiB, in file order, by `num_threads` threads into a buffer
// each, which nobody looks at; past the page cache if `direct`.
[[nodiscard]] absl::StatusOr<RawRead> read_raw(const std::vector<std::string>& files,
                                               bool direct,
                                               int32_t num_threads);

}  // namespace r1d::cli::bench
