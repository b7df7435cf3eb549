// SPDX-License-Identifier: Apache-2.0
// Loads of f32, bf16 and FP8 weights as f32 vectors. Included once per instruction set (Highway's
// pattern for -inl headers), hence the toggle instead of #pragma once.
#if defined(R1D_OPS_CPU_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef R1D_OPS_CPU_LOAD_INL_H_
#undef R1D_OPS_CPU_LOAD_INL_H_
#else
#define R1D_OPS_CPU_LOAD_INL_H_
#endif

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
