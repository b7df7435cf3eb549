// SPDX-License-Identifier: Apache-2.0
// What each kind of JSON file of a checkpoint may ask of the parser.
#pragma once

#include "r1d/base/json.h"

namespace r1d::checkpoint {

inline constexpr JsonLimits kConfigJson{1 << 20, 32, 256, 100'000};
// R1's has 91,991 entries in 8.5 MiB.
inline constexpr JsonLimits kIndexJson{64 << 20, 32, 1024, 2'000'000};
// 100 MiB is safetensors' own limit. A tensor of two dimensions is 8 values; 200,000 tensors fit.
inline constexpr JsonLimits kSafetensorsHeader{100 << 20, 8, 1024, 4'000'000};
// R1's has 128,000 vocabulary entries and 127,741 merges in 7.5 MiB.
inline constexpr JsonLimits kTokenizerJson{64 << 20, 32, 4096, 8'000'000};

}  // namespace r1d::checkpoint
