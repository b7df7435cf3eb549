// SPDX-License-Identifier: Apache-2.0
// Error texts about files that others wrote.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "r1d/base/text.h"

namespace r1d::checkpoint {

// "[16, 128]".
[[nodiscard]] std::string shape_text(std::span<const int64_t> shape);

// 688574839360 -> "688,574,839,360".
[[nodiscard]] std::string grouped(int64_t value);

}  // namespace r1d::checkpoint
