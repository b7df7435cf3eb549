// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include <absl/status/statusor.h>

namespace r1d::jinja {

// What stands between the quotes, with Python's escapes resolved; unknown escapes stay as they are.
[[nodiscard]] absl::StatusOr<std::string> decode_string_literal(std::string_view body);

}  // namespace r1d::jinja
