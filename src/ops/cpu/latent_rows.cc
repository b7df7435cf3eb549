// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/latent_rows.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "r1d/base/check.h"

namespace r1d::ops::cpu {
namespace {

// A position's place: its block's first byte, and its number within the block.
struct Place {
  std::byte* block;
  int64_t token;
};

LatentFormat format_of(const LatentPages& pages, int64_t latent) {
  return {.dtype = pages.dtype, .latent = latent, .rope = pages.width - latent};
}

Place place_of(const LatentPages& pages,
               const LatentFormat& format,
               const SequenceSpan& span,
               int64_t position) {
  const int64_t id = span.block_table[static_cast<size_t>(position / pages.block_size)];
  return {static_cast<std::byte*>(pages.data) + id * pages.block_size * format.bytes_per_token(),
          position % pages.block_size};
}

// A row of the formats that are rows.
std::byte* row_of(const LatentFormat& format, const Place& place) {
  return place.block + place.token * format.bytes_per_token();
}

float largest_of(const float* values, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

void quantize(const LatentPages& pages,
              const LatentFormat& format,
              const Place& place,
              const float* values) {
  auto* scales =
      reinterpret_cast<float*>(place.block + format.scales_offset(pages.block_size, place.token));
  for (int64_t g = 0; g < format.groups(); ++g) {
    const float* from = values + g * LatentFormat::kGroup;
    const int64_t width = format.group_width(g);
    scales[g] = LatentFormat::scale_of(largest_of(from, width));
    const float inverse = LatentFormat::inverse_of(scales[g]);
    std::byte* codes = place.block + format.codes_offset(pages.block_size, g, place.token);
    for (int64_t i = 0; i < width; ++i) codes[i] = std::byte{f32_to_f8e4m3(from[i] * inverse)};
  }
  auto* rope =
      reinterpret_cast<uint16_t*>(place.block + format.rope_offset(pages.block_size, place.token));
  for (int64_t i = 0; i < format.rope; ++i) rope[i] = f32_to_bf16(values[format.latent + i]);
}

void dequantize(const LatentPages& pages,
                const LatentFormat& format,
                const Place& place,
                float* latents,
                float* rope) {
  const auto* scales = reinterpret_cast<const float*>(
      place.block + format.scales_offset(pages.block_size, place.token));
  for (int64_t g = 0; g < format.groups(); ++g) {
    float* to = latents + g * LatentFormat::kGroup;
    const int64_t width = format.group_width(g);
    load_row(place.block + format.codes_offset(pages.block_size, g, place.token),
             DType::kF8E4M3,
             width,
             to);
    scale(to, scales[g], to, width);
  }
  load_row(place.block + format.rope_offset(pages.block_size, place.token),
           DType::kBF16,
           format.rope,
           rope);
}

}  // namespace

void check_blocks(const LatentPages& pages, const SequenceSpan& span) {
  const int64_t blocks = (span.context_len + pages.block_size - 1) / pages.block_size;
  R1D_CHECK(static_cast<int64_t>(span.block_table.size()) >= blocks);
  for (const BlockId id : span.block_table.first(static_cast<size_t>(blocks))) {
    R1D_CHECK(id >= 0 && id < pages.num_blocks);
  }
}

RowList latent_rows(const LatentPages& pages,
                    int64_t latent,
                    const SequenceSpan& span,
                    int64_t position,
                    int64_t count,
                    float* scratch,
                    const void** rows) {
  const LatentFormat format = format_of(pages, latent);
  if (pages.dtype != DType::kF8E4M3) {
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = row_of(format, place_of(pages, format, span, position + i));
    }
    return {.rows = rows, .count = count, .dtype = pages.dtype};
  }
  for (int64_t i = 0; i < count; ++i) {
    float* row = scratch + i * pages.width;
    dequantize(pages, format, place_of(pages, format, span, position + i), row, row + latent);
    rows[i] = row;
  }
  return {.rows = rows, .count = count, .dtype = DType::kF32};
}

void load_latent(const LatentPages& pages,
                 int64_t latent,
                 const SequenceSpan& span,
                 int64_t position,
                 float* latents,
                 float* rope) {
  const LatentFormat format = format_of(pages, latent);
  const Place place = place_of(pages, format, span, position);
  if (pages.dtype == DType::kF8E4M3) return dequantize(pages, format, place, latents, rope);
  const std::byte* row = row_of(format, place);
  load_row(row, pages.dtype, latent, latents);
  load_row(row + latent * dtype_bytes(pages.dtype), pages.dtype, format.rope, rope);
}

void store_latent(const LatentPages& pages,
                  int64_t latent,
                  const SequenceSpan& span,
                  int64_t position,
                  const float* values) {
  const LatentFormat format = format_of(pages, latent);
  const Place place = place_of(pages, format, span, position);
  if (pages.dtype == DType::kF8E4M3) return quantize(pages, format, place, values);
  std::byte* row = row_of(format, place);
  if (pages.dtype == DType::kF32) {
    std::memcpy(row, values, static_cast<size_t>(pages.width) * sizeof(float));
    return;
  }
  auto* out = reinterpret_cast<uint16_t*>(row);
  for (int64_t i = 0; i < pages.width; ++i) out[i] = f32_to_bf16(values[i]);
}

}  // namespace r1d::ops::cpu
