// SPDX-License-Identifier: Apache-2.0
#include "tests/support/test_data.h"

#include <cstdlib>

namespace r1d::test {

std::string data(const std::string& file) {
  const char* const moved = std::getenv("R1D_TEST_DATA_DIR");
  return std::string(moved != nullptr ? moved : R1D_TEST_DATA) + "/" + file;
}

}  // namespace r1d::test
