// SPDX-License-Identifier: Apache-2.0
// Error texts about files that others wrote.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <absl/status/status.h>

namespace r1d::checkpoint {

// `text` fit for one line of a log: bytes outside printable ASCII become '?', a long text is cut.
[[nodiscard]] std::string printable(std::string_view text, size_t max_chars = 160);

// "context: message", same code.
[[nodiscard]] absl::Status with_context(const absl::Status& status, std::string_view context);

// "[16, 128]".
[[nodiscard]] std::string shape_text(std::span<const int64_t> shape);

// 688574839360 -> "688,574,839,360".
[[nodiscard]] std::string grouped(int64_t value);

}  // namespace r1d::checkpoint
