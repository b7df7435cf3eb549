// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace r1d::config {

// Letters to insert, delete or replace to turn one text into the other (Levenshtein).
[[nodiscard]] size_t edit_distance(std::string_view a, std::string_view b);

struct UnknownName {
  std::string message;  // `unknown key "engine.wrold_size"; did you mean engine.world_size?`
  std::string meant;    // the key, alias or section that is spelled most like it
};

// For a name that is no section and no key. One without a dot is compared with sections and with
// the last parts of keys.
[[nodiscard]] UnknownName unknown_name(std::string_view name);

// The same for the name of an environment variable; `meant` is a key.
[[nodiscard]] UnknownName unknown_environment(std::string_view name);

}  // namespace r1d::config
