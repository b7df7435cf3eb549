// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>

#include "r1d/jinja/template.h"

#include "jinja/syntax.h"

namespace r1d::jinja {

struct ParsedTemplate {
  Body body;
  std::set<std::string, std::less<>> names_read;
};

// kInvalidArgument names the line, and by name whatever is not supported.
[[nodiscard]] absl::StatusOr<ParsedTemplate> parse_template(std::string_view source,
                                                            const Limits& limits);

}  // namespace r1d::jinja
