// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace r1d {

// A size for people: "84.81 GB", "4.50 MB", "2.69 kB", "512 B"; decimal units.
[[nodiscard]] std::string readable_bytes(int64_t bytes);

// Digits in groups of three: "163,840".
[[nodiscard]] std::string readable_count(int64_t count);

}  // namespace r1d
