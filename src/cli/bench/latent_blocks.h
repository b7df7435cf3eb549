// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "r1d/ops/latent_format.h"

namespace r1d::cli::bench {

// Blocks of an e4m3 cache whose values are random and of unit size.
[[nodiscard]] std::vector<std::byte> random_fp8_blocks(const ops::LatentFormat& format,
                                                       int32_t block_size,
                                                       int32_t count);

}  // namespace r1d::cli::bench
