// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "r1d/base/random.h"

namespace r1d::cli::bench {

// When requests are due in open loop: the same times for the same seed, whatever the server does.
class Arrivals {
 public:
  // `rate`: a second, above 0. Without `poisson` they come at even distances.
  Arrivals(double rate, bool poisson, uint64_t seed)
      : rate_(rate), poisson_(poisson), seed_(seed) {}

  // Seconds from the start, never less than before. The first is due at once.
  double next() {
    const double due = due_;
    const double gap = poisson_ ? -std::log(1 - base::random_unit(seed_, count_)) : 1;
    ++count_;
    due_ += gap / rate_;
    return due;
  }

 private:
  const double rate_;
  const bool poisson_;
  const uint64_t seed_;
  uint64_t count_ = 0;
  double due_ = 0;
};

}  // namespace r1d::cli::bench
