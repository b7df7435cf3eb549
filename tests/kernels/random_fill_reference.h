// SPDX-License-Identifier: Apache-2.0
// The CPU's dummy weights behind plain types, so that nvcc sees none of the headers they are built
// from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "r1d/base/dtype.h"

namespace r1d::kernels::test {

struct ReferenceTensor {
  std::string name;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
};

// The tensors of a small model's make_dummy_source(config, seed), one of each kind.
[[nodiscard]] std::vector<ReferenceTensor> reference_tensors();

// Its read().
[[nodiscard]] std::vector<uint8_t> reference_read(uint64_t seed,
                                                  const ReferenceTensor& tensor,
                                                  int64_t row_begin,
                                                  int64_t row_end,
                                                  int64_t col_begin,
                                                  int64_t col_end);

}  // namespace r1d::kernels::test
