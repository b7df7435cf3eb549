// SPDX-License-Identifier: Apache-2.0
// Repacks FP8 weights, once at load, into the tiled forms of kernels/common/layout.h. The block
// scales stay as they are.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/common/launch.h"

namespace r1d::kernels {

// row_major [rows, cols] e4m3, contiguous, 16-byte aligned -> tiles [rows * cols] as TiledMatrix
// wants them, 128-byte aligned, not overlapping. rows a multiple of 64, cols of 128.
cudaError_t tile_weight(
    const uint8_t* row_major, int64_t rows, int64_t cols, uint8_t* tiles, const Launch& launch);

// gate, up [intermediate, cols] e4m3 each -> tiles [2 * intermediate * cols] as TiledGateUp wants
// them. intermediate a multiple of 32, cols of 128; alignment as above.
cudaError_t tile_gate_up(const uint8_t* gate,
                         const uint8_t* up,
                         int64_t intermediate,
                         int64_t cols,
                         uint8_t* tiles,
                         const Launch& launch);

}  // namespace r1d::kernels
