// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/check.h"

#include <cstdio>
#include <cstdlib>

#include "r1d/base/log.h"

namespace r1d::base {

void check_failed(const char* file, int line, const char* condition) {
  flush_logging(std::chrono::milliseconds(500));  // what led here
  std::fprintf(stderr, "%s:%d: invariant broken: %s\n", file, line, condition);
  std::abort();
}

}  // namespace r1d::base
