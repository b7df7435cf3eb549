// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/exceptions.h"

#include <exception>
#include <new>

#include "r1d/base/status.h"

namespace r1d::base {

absl::Status caught_status() {
  try {
    std::rethrow_exception(std::current_exception());
  } catch (const std::bad_alloc&) {
    return resource_exhausted("out of host memory");
  } catch (const std::exception& error) {
    return internal_error("unexpected exception: {}", error.what());
  } catch (...) {
    return internal_error("unexpected exception of an unknown type");
  }
}

}  // namespace r1d::base
