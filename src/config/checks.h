// SPDX-License-Identifier: Apache-2.0
// What the range of one key cannot say.
#pragma once

#include <string>

#include "r1d/config/config.h"

#include "config/problems.h"
#include "config/schema.h"

namespace r1d::config {

// Where the key's value came from. `key`: of schema().
[[nodiscard]] std::string& origin_of(Loaded& loaded, const Key& key);
[[nodiscard]] const std::string& origin_of(const Loaded& loaded, const Key& key);

// Values that do not go together: each problem names both keys and where each value came from.
// Nothing is said where one of the keys is in doubt.
void check_together(const Loaded& loaded, Problems& problems);

}  // namespace r1d::config
