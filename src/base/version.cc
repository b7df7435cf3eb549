// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/version.h"

namespace r1d::base {

const char* version() {
  return R1D_VERSION;
}

}  // namespace r1d::base
