// SPDX-License-Identifier: Apache-2.0
// Arguments of builtins, checked: each says which argument is of the wrong kind.
#pragma once

#include <cstdint>
#include <string_view>

#include <absl/status/statusor.h>

#include "r1d/base/status.h"

#include "jinja/builtins.h"

namespace r1d::jinja {

[[nodiscard]] inline absl::StatusOr<int64_t> integer_or(const Value& value,
                                                        int64_t otherwise,
                                                        std::string_view what) {
  int64_t storage = 0;
  if (value.is_undefined() || value.is<None>()) return otherwise;
  if (as_integer(value, &storage) != nullptr) return storage;
  return invalid_argument("{} is a '{}', not an integer", what, type_name(value));
}

// Never null.
[[nodiscard]] inline absl::StatusOr<const Text*> text_of(const Value& value,
                                                         std::string_view what) {
  if (const Text* text = value.text()) return text;
  if (value.is_undefined()) return undefined_error(value);
  return invalid_argument("{} is a '{}', not a string", what, type_name(value));
}

}  // namespace r1d::jinja
