// SPDX-License-Identifier: Apache-2.0
// Host data and references that the tests of the FP8 prefill products share.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/common/layout.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels::test {

inline float f8_value(uint8_t code) {
  static const std::vector<float> table = [] {
    std::vector<float> values(256);
    for (int i = 0; i < 256; ++i) values[i] = f8e4m3_to_f32(static_cast<uint8_t>(i));
    return values;
  }();
  return table[code];
}

// Random codes have a root mean square of about 125; scales are chosen so that products of K terms
// are near 1.
constexpr float kCodeRms = 125;

inline std::vector<float> random_scales(size_t count, uint64_t seed, float around) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(0.5F * around, 1.5F * around);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(random);
  return values;
}

// Activations [rows, cols] on host and device; scale columns beyond `rows` stay NaN.
class HostRows {
 public:
  HostRows(int64_t rows, int64_t cols, uint64_t seed)
      : rows_(rows),
        cols_(cols),
        stride_((rows + 3) / 4 * 4),
        codes_(random_f8(rows * cols, seed)),
        scales_(random_scales(cols / 128 * stride_, seed + 1, 1 / kCodeRms)),
        data_(codes_),
        scale_(cols / 128 * stride_) {
    for (int64_t b = 0; b < cols / 128; ++b) {
      for (int64_t r = rows; r < stride_; ++r) scales_[b * stride_ + r] = NAN;
    }
    scale_.upload(scales_);
  }
  float at(int64_t r, int64_t k) const {
    return f8_value(codes_[r * cols_ + k]) * scales_[k / 128 * stride_ + r];
  }
  QuantizedRows device() { return {data_.data(), scale_.data(), cols_, stride_}; }
  int64_t rows() const { return rows_; }

 private:
  int64_t rows_;
  int64_t cols_;
  int64_t stride_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
  DeviceArray<uint8_t> data_;
  DeviceArray<float> scale_;
};

// The 64 x 128 tiles of a row-major matrix [rows, cols].
inline std::vector<uint8_t> cut_tiles(const std::vector<uint8_t>& codes,
                                      int64_t rows,
                                      int64_t cols) {
  std::vector<uint8_t> tiles(codes.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < cols; ++k) {
      const int64_t tile = r / 64 * (cols / 128) + k / 128;
      const int64_t chunk = k % 128 / 16 ^ r % 8;
      tiles[tile * 8192 + r % 64 * 128 + chunk * 16 + k % 16] = codes[r * cols + k];
    }
  }
  return tiles;
}

// A weight of `count` experts, one behind the other.
class HostMatrix {
 public:
  HostMatrix(int64_t count, int64_t rows, int64_t cols, uint64_t seed)
      : rows_(rows),
        cols_(cols),
        codes_(random_f8(count * rows * cols, seed)),
        scales_(random_scales(
            count * scale_count(), seed + 1, 1 / kCodeRms / std::sqrt(static_cast<float>(cols)))),
        tiles_(cut_tiles(codes_, count * rows, cols)),
        scale_(scales_) {}
  float at(int64_t e, int64_t r, int64_t k) const {
    const float scale = scales_[e * scale_count() + r / 128 * (cols_ / 128) + k / 128];
    return f8_value(codes_[(e * rows_ + r) * cols_ + k]) * scale;
  }
  TiledMatrix device() { return {tiles_.data(), scale_.data(), rows_, cols_}; }
  int64_t scale_count() const { return (rows_ + 127) / 128 * (cols_ / 128); }
  int64_t tile_bytes() const { return rows_ * cols_; }

 private:
  int64_t rows_;
  int64_t cols_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
  DeviceArray<uint8_t> tiles_;
  DeviceArray<float> scale_;
};

// gate and up of `count` experts, interleaved.
class HostGateUp {
 public:
  HostGateUp(int64_t count, int64_t intermediate, int64_t cols, uint64_t seed)
      : intermediate_(intermediate),
        cols_(cols),
        codes_(random_f8(count * 2 * intermediate * cols, seed)),
        gate_scales_(random_scales(
            count * scale_count(), seed + 1, 1 / kCodeRms / std::sqrt(static_cast<float>(cols)))),
        up_scales_(random_scales(
            count * scale_count(), seed + 2, 1 / kCodeRms / std::sqrt(static_cast<float>(cols)))),
        tiles_(cut_tiles(codes_, count * 2 * intermediate, cols)),
        gate_scale_(gate_scales_),
        up_scale_(up_scales_) {}
  // silu(g) u of one row and element.
  template <typename X>
  double swiglu(int64_t e, int64_t i, X x) const {
    const double g = dot(e, i, 0, gate_scales_, x);
    const double u = dot(e, i, 8, up_scales_, x);
    return g / (1 + std::exp(-g)) * u;
  }
  TiledGateUp device() {
    return {tiles_.data(), gate_scale_.data(), up_scale_.data(), intermediate_, cols_};
  }
  int64_t scale_count() const { return (intermediate_ + 127) / 128 * (cols_ / 128); }
  int64_t tile_bytes() const { return 2 * intermediate_ * cols_; }

 private:
  template <typename X>
  double dot(int64_t e, int64_t i, int64_t half, const std::vector<float>& scales, X x) const {
    const int64_t row = e * 2 * intermediate_ + i / 8 * 16 + half + i % 8;
    double sum = 0;
    for (int64_t k = 0; k < cols_; ++k) {
      const double w = f8_value(codes_[row * cols_ + k]) *
                       scales[e * scale_count() + i / 128 * (cols_ / 128) + k / 128];
      sum += w * x(k);
    }
    return sum;
  }

  int64_t intermediate_;
  int64_t cols_;
  std::vector<uint8_t> codes_;
  std::vector<float> gate_scales_;
  std::vector<float> up_scales_;
  DeviceArray<uint8_t> tiles_;
  DeviceArray<float> gate_scale_;
  DeviceArray<float> up_scale_;
};

// QuantizedRows that a kernel writes.
class OutputRows {
 public:
  OutputRows(int64_t rows, int64_t cols)
      : rows_(rows),
        cols_(cols),
        stride_((rows + 3) / 4 * 4),
        data_(rows * cols),
        scale_(cols / 128 * stride_) {}
  QuantizedRows device() { return {data_.data(), scale_.data(), cols_, stride_}; }
  void fetch() {
    codes_ = data_.download();
    scales_ = scale_.download();
  }
  float scale(int64_t r, int64_t group) const { return scales_[group * stride_ + r]; }
  float at(int64_t r, int64_t k) const {
    return f8_value(codes_[r * cols_ + k]) * scale(r, k / 128);
  }
  // Nothing was written beyond the first `rows` rows.
  void expect_untouched_from(int64_t rows) const {
    for (int64_t i = rows * cols_; i < rows_ * cols_; ++i) ASSERT_EQ(codes_[i], 0xFF) << i;
    for (int64_t g = 0; g < cols_ / 128; ++g) {
      for (int64_t r = rows; r < stride_; ++r) ASSERT_TRUE(std::isnan(scale(r, g))) << r;
    }
  }
  // A group of 128 against its reference: the scale of its largest value, and each value within
  // half a step of e4m3 (2^-4 of the value, or half the smallest step of the group).
  void expect_group(int64_t r, int64_t group, const std::array<double, 128>& want) const {
    double largest = 0;
    for (const double value : want) largest = std::max(largest, std::fabs(value));
    ASSERT_NEAR(scale(r, group), largest / 448, 0.002 * largest / 448)
        << "row " << r << " group " << group;
    for (int64_t i = 0; i < 128; ++i) {
      const double bound = std::fabs(want[i]) / 15 + 0.004 * largest / 448 + 0.002 * largest;
      ASSERT_NEAR(at(r, group * 128 + i), want[i], bound)
          << "row " << r << " element " << group * 128 + i;
    }
  }

 private:
  int64_t rows_;
  int64_t cols_;
  int64_t stride_;
  DeviceArray<uint8_t> data_;
  DeviceArray<float> scale_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
};

}  // namespace r1d::kernels::test
