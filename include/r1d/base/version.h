// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace r1d::base {

// "0.1.0", from the VERSION file.
[[nodiscard]] const char* version();

}  // namespace r1d::base
