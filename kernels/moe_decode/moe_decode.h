// SPDX-License-Identifier: Apache-2.0
// Routed experts and shared expert of one rank for few tokens (decode):
//   out[t] = sum over slots s with a local expert e of weight[t, s] * mlp_e(x[t])
//            + mlp_shared(x[t])
//   mlp(x) = down(quantize(silu(gate x) * (up x))); quantize: e4m3 with a scale per 1x128
// Weights are read once, whatever the number of tokens of an expert.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"
#include "kernels/router/router.h"

namespace r1d::kernels {

// The rank's routed experts at constant strides: local expert e's parts are base + e * stride. I =
// intermediate, a multiple of 128; tiles and scales as in TiledGateUp ([2 I, D]) and TiledMatrix
// ([D, I]). Tiles and tile strides 128-byte aligned.
struct RoutedExperts {
  const uint8_t* gate_up_tiles = nullptr;
  int64_t gate_up_stride = 0;  // bytes
  const float* gate_scale = nullptr;
  const float* up_scale = nullptr;
  int64_t gate_up_scale_stride = 0;  // floats; the same for gate_scale and up_scale
  const uint8_t* down_tiles = nullptr;
  int64_t down_stride = 0;  // bytes
  const float* down_scale = nullptr;
  int64_t down_scale_stride = 0;  // floats
  int64_t intermediate = 0;
  int32_t num_local = 0;
};

// gate_up.tiles == nullptr: no shared expert. Its intermediate size (a multiple of 128) may differ
// from the routed one.
struct SharedExpert {
  TiledGateUp gate_up;  // [2 Is, D]
  TiledMatrix down;     // [D, Is]
};

inline constexpr int32_t kMoeDecodeTokens = 256;

// What the workspace must hold; sizes for the largest T serve every smaller one.
struct MoeDecodeSizes {
  int32_t num_tokens = 0;
  int32_t top_k = 0;
  int32_t num_local = 0;
  int64_t hidden = 0;               // D, a multiple of 128
  int64_t intermediate = 0;         // I
  int64_t shared_intermediate = 0;  // Is; 0: none
};

// Bytes; 1024-byte aligned. Zeroed once by the caller before the first use; every call leaves it
// ready for the next. Calls that share it must not overlap.
size_t moe_decode_workspace(const MoeDecodeSizes& sizes);

// Two launches (gate_up, down) for 1 .. kMoeDecodeTokens tokens. A token's result bits do not
// depend on the other tokens, and on their number only by whether it is 1, up to 8, or more.
//   x        QuantizedRows [T, D]
//   routing  the router's choice and weights for the same T and k
//   options  which experts are here; num_local as in `routed`
//   lists    where makes_lists(), as route_decode() or list_experts() made them of these; elsewhere
//            room for them, which this call fills
//   out      [T, D] bf16, 16-byte aligned; complete: a token without a local expert gets the shared
//            expert alone, or zeros
// Assumes that a token names an expert once. cudaErrorInvalidValue: sizes outside the above.
// The first launch reads x before its own dependency wait, the second `lists`: with
// launch.dependent, x must come from a kernel that the one before this call had waited for when it
// let this call start, and lists that are there already from that one, as in the order
// quantization, router, moe_decode.
cudaError_t moe_decode(const QuantizedRows& x,
                       int32_t num_tokens,
                       const Routing& routing,
                       int32_t top_k,
                       const ListOptions& options,
                       const ExpertLists& lists,
                       const RoutedExperts& routed,
                       const SharedExpert& shared,
                       __nv_bfloat16* out,
                       void* workspace,
                       const Launch& launch);

}  // namespace r1d::kernels
