// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string_view>

namespace r1d::chat {

// A client's parser should get through what is called well-formed here.
inline constexpr size_t kMaxArgumentsBytes = 1 << 20;
inline constexpr size_t kMaxArgumentsDepth = 64;

// True for one JSON object within the limits, with nothing but space around it. Builds no document.
[[nodiscard]] bool is_json_object(std::string_view text);

}  // namespace r1d::chat
