// SPDX-License-Identifier: Apache-2.0
// Where the files that tests read lie.
#pragma once

#include <string>

namespace r1d::test {

// The path of a file below tests/data; $R1D_TEST_DATA_DIR names another place for programs that run
// without the tree. Known to one source file, so that objects of one checkout serve another.
[[nodiscard]] std::string data(const std::string& file);

}  // namespace r1d::test
