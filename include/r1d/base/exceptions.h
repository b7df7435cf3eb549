// SPDX-License-Identifier: Apache-2.0
// r1d throws nothing, but allocations and libraries do. Where a thread or a request ends, what was
// thrown becomes a Status.
#pragma once

#include <utility>

#include <absl/status/status.h>

namespace r1d::base {

// Inside a catch block: what was caught. kResourceExhausted for std::bad_alloc, else kInternal.
[[nodiscard]] absl::Status caught_status();

// What `body` returns, or what it threw. `body`: () -> absl::Status.
template <class Body>
[[nodiscard]] absl::Status without_exceptions(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    return caught_status();
  }
}

}  // namespace r1d::base
