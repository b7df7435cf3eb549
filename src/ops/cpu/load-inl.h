// SPDX-License-Identifier: Apache-2.0
// Loads of f32, bf16 and FP8 weights as f32 vectors. Included once per instruction set (Highway's
// pattern for -inl headers), hence the toggle instead of #pragma once.
#if defined(R1D_OPS_CPU_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef R1D_OPS_CPU_LOAD_INL_H_
#undef R1D_OPS_CPU_LOAD_INL_H_
#else
#define R1D_OPS_CPU_LOAD_INL_H_
#endif

#include <array>
#include <cstdint>
#include <cstring>

#include <hwy/highway.h>

#include "ops/cpu/f8_table.h"

HWY_BEFORE_NAMESPACE();
namespace r1d::ops::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Types of stored weights: float, Bf16, F8.
using Bf16 = hwy::bfloat16_t;
using F8 = uint8_t;

// FP8 values are loaded as w * 2^-8 and the scale is given as scale * 2^8: both exact.
template <class T>
inline constexpr float kStoredScale = 1.0F;
template <>
inline constexpr float kStoredScale<F8> = 256.0F;

template <class D>
HWY_INLINE hn::Vec<D> load_weights(D d, const float* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE hn::Vec<D> load_weights(D d, const Bf16* p) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<Bf16, D>(), p));
}

// Targets that convert f16 to f32 in hardware, NaN and subnormals included.
#undef R1D_OPS_F16_LOADS
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64
#define R1D_OPS_F16_LOADS 1
#else
#define R1D_OPS_F16_LOADS 0
#endif

// An e4m3 byte seeeemmm becomes the f16 bits s0eeeemm m0000000: the same number with the bias of
// f16, i.e. times 2^(7 - 15). The sign extension of the byte holds s in the two top bits after the
// shift; the lower copy is cleared. Only s1111111 carries into bit 14 when 0x80 is added; that bit
// then completes the exponent to all ones, a NaN.
template <class D>
HWY_INLINE hn::Vec<D> load_weights(D d, const F8* p) {
#if R1D_OPS_F16_LOADS
  const hn::Rebind<int8_t, D> d8;
  const hn::Rebind<int16_t, D> d16;
  const hn::Rebind<uint16_t, D> du16;
  const hn::Rebind<hwy::float16_t, D> df16;
  const auto wide = hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const int8_t*>(p)));
  const auto bits = hn::And(hn::ShiftLeft<7>(hn::BitCast(du16, wide)), hn::Set(du16, 0xBFFF));
  const auto nan = hn::And(hn::Add(bits, hn::Set(du16, 0x0080)), hn::Set(du16, 0x4000));
  return hn::PromoteTo(d, hn::BitCast(df16, hn::Or(bits, nan)));
#else
  HWY_ALIGN float values[hn::MaxLanes(d)];
  for (size_t i = 0; i < hn::Lanes(d); ++i) values[i] = kF8Values[p[i]];
  return hn::Load(d, values);
#endif
}

// Sixty-four FP8 weights at once where one instruction looks 64 bytes up in a table of 128: the
// bytes of bf16 values come from two tables and the sign from the code. Unpacking interleaves the
// two within lanes of 16 bytes, so the codes are ordered beforehand such that v0 holds elements
// 0 to 15 and so on: f32 takes bf16 as its upper half, even ones shifted up, odd ones masked.
#undef R1D_OPS_F8_GROUPS
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define R1D_OPS_F8_GROUPS 1
inline constexpr int64_t kF8Group = 64;
inline constexpr int64_t kF8Ahead = 1024;  // bytes of a row

alignas(64) inline constexpr std::array<uint8_t, 64> kF8Order = [] {
  std::array<uint8_t, 64> order{};
  for (size_t element = 0; element < 64; ++element) {
    const size_t vector = element / 16;
    const size_t lane = element / 4 % 4;
    const size_t place = element % 4 * 2 + vector % 2 + vector / 2 * 8;
    order[16 * lane + place] = static_cast<uint8_t>(element);
  }
  return order;
}();

template <class V>
HWY_INLINE void load_f8_group(const F8* p, V& v0, V& v1, V& v2, V& v3) {
  const __m512i codes =
      _mm512_permutexvar_epi8(_mm512_load_si512(kF8Order.data()), _mm512_loadu_si512(p));
  const __m512i low = _mm512_permutex2var_epi8(
      _mm512_load_si512(kF8Bytes.low.data()), codes, _mm512_load_si512(kF8Bytes.low.data() + 64));
  const __m512i size = _mm512_permutex2var_epi8(
      _mm512_load_si512(kF8Bytes.high.data()), codes, _mm512_load_si512(kF8Bytes.high.data() + 64));
  constexpr int kAOrBAndC = 0xF8;
  const __m512i high = _mm512_ternarylogic_epi32(size, codes, _mm512_set1_epi8(-0x80), kAOrBAndC);
  const __m512i upper = _mm512_set1_epi32(-0x10000);
  const __m512i first = _mm512_unpacklo_epi8(low, high);
  const __m512i second = _mm512_unpackhi_epi8(low, high);
  v0.raw = _mm512_castsi512_ps(_mm512_slli_epi32(first, 16));
  v1.raw = _mm512_castsi512_ps(_mm512_and_si512(first, upper));
  v2.raw = _mm512_castsi512_ps(_mm512_slli_epi32(second, 16));
  v3.raw = _mm512_castsi512_ps(_mm512_and_si512(second, upper));
}
#else
#define R1D_OPS_F8_GROUPS 0
#endif

// The first `count` elements, zeros after them; reads nothing beyond.
template <class D, class T>
HWY_INLINE hn::Vec<D> load_up_to(D d, const T* p, int64_t count) {
  if (count >= static_cast<int64_t>(hn::Lanes(d))) return load_weights(d, p);
  HWY_ALIGN T values[hn::MaxLanes(d)] = {};
  if (count > 0) std::memcpy(values, p, static_cast<size_t>(count) * sizeof(T));
  return load_weights(d, values);
}

// Writes the first `count` elements.
template <class D>
HWY_INLINE void store_up_to(D d, hn::Vec<D> v, float* p, int64_t count) {
  if (count >= static_cast<int64_t>(hn::Lanes(d))) return hn::StoreU(v, d, p);
  HWY_ALIGN float values[hn::MaxLanes(d)];
  hn::Store(v, d, values);
  if (count > 0) std::memcpy(p, values, static_cast<size_t>(count) * sizeof(float));
}

}  // namespace r1d::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // R1D_OPS_CPU_LOAD_INL_H_
