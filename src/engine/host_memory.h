// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace r1d::engine {

// Bytes this process may still take: MemAvailable, and no more than the cgroup's limit leaves.
// `root` is "" in the daemon; tests point it at a folder that holds proc/ and sys/.
[[nodiscard]] int64_t spare_host_bytes(const std::string& root);

// Bytes of this process's memory that are in RAM; 0 when the kernel does not say.
[[nodiscard]] int64_t resident_bytes(const std::string& root);

}  // namespace r1d::engine
