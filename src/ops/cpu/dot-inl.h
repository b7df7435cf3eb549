// SPDX-License-Identifier: Apache-2.0
// Tiles of dot products. Every element is one chain of multiply-adds per lane over the columns in
// steps of a vector from column 0, whose lanes are then added in one order: the same bits from each
// function here. Included once per instruction set (Highway's pattern for -inl headers).
#if defined(R1D_OPS_CPU_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef R1D_OPS_CPU_DOT_INL_H_
#undef R1D_OPS_CPU_DOT_INL_H_
#else
#define R1D_OPS_CPU_DOT_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "r1d/ops/tensor.h"

#include "ops/cpu/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace r1d::ops::cpu::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

// Accumulators captured by reference stay in registers only when the lambda is inlined.
#undef R1D_INLINE_LAMBDA
#define R1D_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))

// A tile is 4 weight rows by kTokenTile tokens: 16 accumulators where there are 32 registers, 8
// where there are 16. Loads per multiply-add: (4 + 4) / 16 and (4 + 2) / 8.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
inline constexpr int kTokenTile = 4;
#else
inline constexpr int kTokenTile = 2;
#endif

// Four rows of stored weights and the rows of their scales (FP8 only).
template <class T>
struct RowQuad {
  const T* w[4];
  const float* scales[4];
  int64_t scale_col_offset = 0;
};

template <class T>
HWY_INLINE VF block_scale(DF d, const float* scales, int64_t block) {
  if constexpr (std::is_same_v<T, F8>) return hn::Set(d, scales[block] * kStoredScale<F8>);
  return hn::Zero(d);
}

// The scaled weight is rounded before it is multiplied, so that weights converted here and weights
// converted into a panel give the same bits.
template <class T>
HWY_INLINE VF scaled_weights(DF d, const T* p, int64_t count, VF block) {
  const VF w = load_up_to(d, p, count);
  if constexpr (std::is_same_v<T, F8>) return hn::Mul(w, block);
  return w;
}

template <class V>
HWY_INLINE void fma_rows(V w0, V w1, V w2, V w3, V x, V& a0, V& a1, V& a2, V& a3) {
  a0 = hn::MulAdd(w0, x, a0);
  a1 = hn::MulAdd(w1, x, a1);
  a2 = hn::MulAdd(w2, x, a2);
  a3 = hn::MulAdd(w3, x, a3);
}

// Adds the lanes of one token's four sums: sums[r] = all lanes of a[r].
HWY_INLINE void store_sums(DF d, VF a0, VF a1, VF a2, VF a3, float* sums) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  // Lanes i and i + 8, then i + 4, i + 2, i + 1, four sums to a register: 13 steps and not 32.
  constexpr int kEven = 0x88;
  constexpr int kOdd = 0xDD;
  constexpr int kLower = 0x44;
  constexpr int kUpper = 0xEE;
  const auto halves = [](VF a, VF b) R1D_INLINE_LAMBDA {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a.raw, b.raw, kLower),
                         _mm512_shuffle_f32x4(a.raw, b.raw, kUpper));
  };
  const __m512 low = halves(a0, a1);
  const __m512 high = halves(a2, a3);
  const __m512 quarters =
      _mm512_add_ps(_mm512_shuffle_f32x4(low, high, kEven), _mm512_shuffle_f32x4(low, high, kOdd));
  const __m512 pairs = _mm512_add_ps(quarters, _mm512_shuffle_ps(quarters, quarters, kUpper));
  const __m512 all = _mm512_add_ps(pairs, _mm512_shuffle_ps(pairs, pairs, kOdd));
  _mm512_mask_compressstoreu_ps(sums, 0x1111, all);
  static_cast<void>(d);
#else
  sums[0] = hn::GetLane(hn::SumOfLanes(d, a0));
  sums[1] = hn::GetLane(hn::SumOfLanes(d, a1));
  sums[2] = hn::GetLane(hn::SumOfLanes(d, a2));
  sums[3] = hn::GetLane(hn::SumOfLanes(d, a3));
#endif
}

// sums[t][r] = rows.w[r] . x[t]. One vector that straddles two scale blocks takes each lane's own
// scale.
template <int kTokens, class T>
HWY_NOINLINE void dot_quad(const RowQuad<T>& rows,
                           const float* const* x,
                           int64_t cols,
                           float (*sums)[4]) {
  constexpr bool kScaled = std::is_same_v<T, F8>;
  constexpr int64_t kBlock = Matrix::kScaleBlock;
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF zero = hn::Zero(d);
  VF a0 = zero, a1 = zero, a2 = zero, a3 = zero;  // token 0, weight rows 0 to 3
  VF b0 = zero, b1 = zero, b2 = zero, b3 = zero;  // token 1
  VF c0 = zero, c1 = zero, c2 = zero, c3 = zero;
  VF e0 = zero, e1 = zero, e2 = zero, e3 = zero;
  const auto step = [&](int64_t k, int64_t count, VF s0, VF s1, VF s2, VF s3) R1D_INLINE_LAMBDA {
    const VF w0 = scaled_weights(d, rows.w[0] + k, count, s0);
    const VF w1 = scaled_weights(d, rows.w[1] + k, count, s1);
    const VF w2 = scaled_weights(d, rows.w[2] + k, count, s2);
    const VF w3 = scaled_weights(d, rows.w[3] + k, count, s3);
    fma_rows(w0, w1, w2, w3, load_up_to(d, x[0] + k, count), a0, a1, a2, a3);
    if constexpr (kTokens > 1) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, x[1] + k, count), b0, b1, b2, b3);
    }
    if constexpr (kTokens > 2) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, x[2] + k, count), c0, c1, c2, c3);
    }
    if constexpr (kTokens > 3) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, x[3] + k, count), e0, e1, e2, e3);
    }
  };
  int64_t k = 0;
  for (int64_t block = rows.scale_col_offset / kBlock; k < cols; ++block) {
    const int64_t end =
        kScaled ? std::min(cols, (block + 1) * kBlock - rows.scale_col_offset) : cols;
    VF s0 = block_scale<T>(d, rows.scales[0], block);
    VF s1 = block_scale<T>(d, rows.scales[1], block);
    VF s2 = block_scale<T>(d, rows.scales[2], block);
    VF s3 = block_scale<T>(d, rows.scales[3], block);
#if R1D_OPS_F8_GROUPS
    if constexpr (kScaled) {
      const auto add = [&](VF w, int64_t col, VF& a, VF& b, VF& c, VF& e) R1D_INLINE_LAMBDA {
        a = hn::MulAdd(w, hn::LoadU(d, x[0] + col), a);
        if constexpr (kTokens > 1) b = hn::MulAdd(w, hn::LoadU(d, x[1] + col), b);
        if constexpr (kTokens > 2) c = hn::MulAdd(w, hn::LoadU(d, x[2] + col), c);
        if constexpr (kTokens > 3) e = hn::MulAdd(w, hn::LoadU(d, x[3] + col), e);
      };
      const auto group = [&](const F8* w, VF s, VF& a, VF& b, VF& c, VF& e) R1D_INLINE_LAMBDA {
        VF v0, v1, v2, v3;
        load_f8_group(w + k, v0, v1, v2, v3);
        add(hn::Mul(v0, s), k, a, b, c, e);
        add(hn::Mul(v1, s), k + 16, a, b, c, e);
        add(hn::Mul(v2, s), k + 32, a, b, c, e);
        add(hn::Mul(v3, s), k + 48, a, b, c, e);
      };
      for (; k + kF8Group <= end; k += kF8Group) {
        // Converting leaves fewer reads in flight than memory wants.
        for (const T* w : rows.w) hwy::Prefetch(w + k + kF8Ahead);
        group(rows.w[0], s0, a0, b0, c0, e0);
        group(rows.w[1], s1, a1, b1, c1, e1);
        group(rows.w[2], s2, a2, b2, c2, e2);
        group(rows.w[3], s3, a3, b3, c3, e3);
      }
    }
#endif
    for (; k + lanes <= end; k += lanes) step(k, lanes, s0, s1, s2, s3);
    if (k >= end) continue;
    if (kScaled && end < cols) {
      const auto own = hn::FirstN(d, static_cast<size_t>(end - k));
      s0 = hn::IfThenElse(own, s0, block_scale<T>(d, rows.scales[0], block + 1));
      s1 = hn::IfThenElse(own, s1, block_scale<T>(d, rows.scales[1], block + 1));
      s2 = hn::IfThenElse(own, s2, block_scale<T>(d, rows.scales[2], block + 1));
      s3 = hn::IfThenElse(own, s3, block_scale<T>(d, rows.scales[3], block + 1));
    }
    step(k, std::min(lanes, cols - k), s0, s1, s2, s3);
    k += lanes;
  }
  store_sums(d, a0, a1, a2, a3, sums[0]);
  if constexpr (kTokens > 1) store_sums(d, b0, b1, b2, b3, sums[1]);
  if constexpr (kTokens > 2) store_sums(d, c0, c1, c2, c3, sums[2]);
  if constexpr (kTokens > 3) store_sums(d, e0, e1, e2, e3, sums[3]);
}

template <class T>
HWY_INLINE void dot_tile(
    int64_t tokens, const RowQuad<T>& rows, const float* const* x, int64_t cols, float (*sums)[4]) {
  if (tokens == 1) return dot_quad<1>(rows, x, cols, sums);
  if constexpr (kTokenTile == 4) {
    if (tokens == 3) return dot_quad<3>(rows, x, cols, sums);
    if (tokens == 4) return dot_quad<4>(rows, x, cols, sums);
  }
  dot_quad<2>(rows, x, cols, sums);
}

// A block of columns of a tile, whose sums wait in `carry` between blocks, a vector each.
struct BlockTile {
  const float* w[4] = {};           // rows of a panel, zeros up to a multiple of the lanes
  const float* x[kTokenTile] = {};  // from the block's first column
  int64_t cols = 0;
  bool first = false;  // carry holds nothing yet
  bool last = false;   // lanes are added into sums[t][r], else stored in carry
  float* carry = nullptr;
};

template <int kTokens>
HWY_NOINLINE void dot_block(const BlockTile& tile, float (*sums)[4]) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto start = [&](int i) R1D_INLINE_LAMBDA {
    return tile.first || i / 4 >= kTokens ? hn::Zero(d) : hn::LoadU(d, tile.carry + i * lanes);
  };
  VF a0 = start(0), a1 = start(1), a2 = start(2), a3 = start(3);
  VF b0 = start(4), b1 = start(5), b2 = start(6), b3 = start(7);
  VF c0 = start(8), c1 = start(9), c2 = start(10), c3 = start(11);
  VF e0 = start(12), e1 = start(13), e2 = start(14), e3 = start(15);
  const auto step = [&](int64_t k, int64_t count) R1D_INLINE_LAMBDA {
    const VF w0 = hn::LoadU(d, tile.w[0] + k);
    const VF w1 = hn::LoadU(d, tile.w[1] + k);
    const VF w2 = hn::LoadU(d, tile.w[2] + k);
    const VF w3 = hn::LoadU(d, tile.w[3] + k);
    fma_rows(w0, w1, w2, w3, load_up_to(d, tile.x[0] + k, count), a0, a1, a2, a3);
    if constexpr (kTokens > 1) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, tile.x[1] + k, count), b0, b1, b2, b3);
    }
    if constexpr (kTokens > 2) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, tile.x[2] + k, count), c0, c1, c2, c3);
    }
    if constexpr (kTokens > 3) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, tile.x[3] + k, count), e0, e1, e2, e3);
    }
  };
  int64_t k = 0;
  for (; k + lanes <= tile.cols; k += lanes) step(k, lanes);
  if (k < tile.cols) step(k, tile.cols - k);
  const auto finish = [&](int t, VF s0, VF s1, VF s2, VF s3) R1D_INLINE_LAMBDA {
    if (tile.last) return store_sums(d, s0, s1, s2, s3, sums[t]);
    float* carry = tile.carry + t * 4 * lanes;
    hn::StoreU(s0, d, carry);
    hn::StoreU(s1, d, carry + lanes);
    hn::StoreU(s2, d, carry + 2 * lanes);
    hn::StoreU(s3, d, carry + 3 * lanes);
  };
  finish(0, a0, a1, a2, a3);
  if constexpr (kTokens > 1) finish(1, b0, b1, b2, b3);
  if constexpr (kTokens > 2) finish(2, c0, c1, c2, c3);
  if constexpr (kTokens > 3) finish(3, e0, e1, e2, e3);
}

HWY_INLINE void dot_block_tile(int64_t tokens, const BlockTile& tile, float (*sums)[4]) {
  if (tokens == 1) return dot_block<1>(tile, sums);
  if constexpr (kTokenTile == 4) {
    if (tokens == 3) return dot_block<3>(tile, sums);
    if (tokens == 4) return dot_block<4>(tile, sums);
  }
  dot_block<2>(tile, sums);
}

}  // namespace r1d::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // R1D_OPS_CPU_DOT_INL_H_
