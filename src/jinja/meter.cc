// SPDX-License-Identifier: Apache-2.0
#include "jinja/meter.h"

#include "r1d/base/status.h"

namespace r1d::jinja {
namespace {

// `count` may be near the largest size_t; the sum is not formed before it is known to fit.
absl::Status charge(int64_t* used, size_t count, int64_t limit, const char* name) {
  if (count <= static_cast<uint64_t>(limit - *used)) {
    *used += static_cast<int64_t>(count);
    return absl::OkStatus();
  }
  return resource_exhausted("the template passes its limit of {} {}", limit, name);
}

}  // namespace

absl::Status Meter::step(int64_t count) {
  return charge(&steps_, static_cast<size_t>(count), limits_.steps, "steps");
}

absl::Status Meter::scan(size_t bytes) {
  return charge(&steps_, bytes / 64, limits_.steps, "steps");
}

absl::Status Meter::make(size_t bytes) {
  R1D_RETURN_IF_ERROR(charge(&memory_bytes_, bytes, limits_.memory_bytes, "bytes of memory"));
  return scan(bytes);
}

absl::Status Meter::output(size_t bytes) {
  return charge(&output_bytes_, bytes, limits_.output_bytes, "bytes of output");
}

absl::Status Meter::nest(int depth) const {
  if (depth <= limits_.depth) return absl::OkStatus();
  return resource_exhausted("a value passes the limit of {} levels of nesting", limits_.depth);
}

absl::Status Meter::enter() {
  if (++run_depth_ <= limits_.run_depth) return absl::OkStatus();
  return resource_exhausted("the template passes its limit of {} levels of depth",
                            limits_.run_depth);
}

}  // namespace r1d::jinja
