// SPDX-License-Identifier: Apache-2.0
// A yardstick: the same product in oneDNN, where its development package is installed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace r1d::bench {

// Version and instruction set of oneDNN; empty when it was not there at build time.
[[nodiscard]] std::string dnnl_description();

// Returns a call that computes y = x W^T for x [tokens, cols] and W [rows, cols], both of the type
// named and of ordinary values, y f32, with the weights already in the layout that oneDNN wants. It
// runs on OpenMP's threads (OMP_NUM_THREADS). Empty when this CPU or build cannot.
[[nodiscard]] std::function<void()> dnnl_matmul(bool bf16,
                                                int64_t tokens,
                                                int64_t rows,
                                                int64_t cols);

}  // namespace r1d::bench
