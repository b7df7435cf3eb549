// SPDX-License-Identifier: Apache-2.0
// Warpgroup matrix products of sm_90a (PTX ISA 9.0, section 9.7.15). A warpgroup (4 warps, the
// first at a multiple of 4) computes D [64, N] f32 += A [64, K] B [N, K]^T with K = 32 for e4m3 and
// 16 for bf16.
//
// D: thread t of the warpgroup (warp w = t / 32, lane l = t % 32) holds d[4 j + 2 h + c] = D[16 w +
// 8 h + l / 4][8 j + 2 (l % 4) + c], h, c in {0, 1}, j < N / 8. A in registers (bf16): as
// mma.m16n8k16, rows 16 w .. Order of calls: wgmma_fence(); products; wgmma_commit();
// wgmma_wait<pending>(). Accumulators must not be touched in between.
#pragma once

#include "kernels/common/ptx.cuh"

#ifdef R1D_SM90

namespace r1d::kernels {

// A K-major operand in shared memory under the 128-byte swizzle: rows of 128 bytes (128 e4m3 or 64
// bf16), 8 rows to a 1024-byte atom, atoms of consecutive row groups contiguous, base 1024-byte
// aligned; the 16-byte chunk c of row r stands at r * 128 + ((c ^ (r % 8)) * 16). To step K by one
// instruction inside the 128 bytes, add 32 bytes to `address`.
__device__ __forceinline__ uint64_t wgmma_descriptor_k128(uint32_t address) {
  constexpr uint64_t kStrideBytes = 1024;  // between 8-row groups
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | (uint64_t{1} << 16) |
         ((kStrideBytes >> 4) << 32) | (uint64_t{1} << 62);
}
// Any other layout: byte offsets as the matrix-descriptor format defines them; `swizzle` 0 none, 1
// 128 B, 2 64 B, 3 32 B.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address,
                                                     uint32_t leading_bytes,
                                                     uint32_t stride_bytes,
                                                     uint32_t swizzle) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) |
         (static_cast<uint64_t>(leading_bytes >> 4) << 16) |
         (static_cast<uint64_t>(stride_bytes >> 4) << 32) | (static_cast<uint64_t>(swizzle) << 62);
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving reads of an accumulator above the wait.
template <int kCount>
__device__ __forceinline__ void wgmma_fence_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Wgmma<N>::e4m3(d, a, b, accumulate): A and B in shared memory, K = 32.
// Wgmma<N>::bf16<a_mn_major, b_mn_major>(d, a, b, accumulate): A and B in shared memory, K = 16.
// Wgmma<N>::bf16_rs<b_mn_major>(d, a_registers, b, accumulate): A in registers.
// Wgmma<N>::f16_rs<b_mn_major>(...): the same in f16, for N = 16 and 32.
// `accumulate` false: D = A B.
template <int N>
struct Wgmma;

template <>
struct Wgmma<8> {
  __device__ static __forceinline__ void e4m3(float (&d)[4],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3"
        "}, %4, %5, p, 1, 1;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[4],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3"
        "}, %4, %5, p, 1, 1, %7, %8;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[4],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3"
        "}, {%4, %5, %6, %7}, %8, p, 1, 1, %10;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<16> {
  __device__ static __forceinline__ void e4m3(float (&d)[8],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, %8, %9, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[8],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, %8, %9, p, 1, 1, %11, %12;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[8],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, {%8, %9, %10, %11}, %12, p, 1, 1, %14;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void f16_rs(float (&d)[8],
                                                const uint32_t (&a)[4],
                                                uint64_t b,
                                                int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, {%8, %9, %10, %11}, %12, p, 1, 1, %14;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<24> {
  __device__ static __forceinline__ void e4m3(float (&d)[12],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %14, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n24k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
        "}, %12, %13, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[12],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %14, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
        "}, %12, %13, p, 1, 1, %15, %16;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[12],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %17, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
        "}, {%12, %13, %14, %15}, %16, p, 1, 1, %18;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<32> {
  __device__ static __forceinline__ void e4m3(float (&d)[16],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[16],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1, %19, %20;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[16],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void f16_rs(float (&d)[16],
                                                const uint32_t (&a)[4],
                                                uint64_t b,
                                                int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<40> {
  __device__ static __forceinline__ void e4m3(float (&d)[20],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %22, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n40k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19"
        "}, %20, %21, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[20],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %22, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19"
        "}, %20, %21, p, 1, 1, %23, %24;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[20],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %25, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19"
        "}, {%20, %21, %22, %23}, %24, p, 1, 1, %26;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<48> {
  __device__ static __forceinline__ void e4m3(float (&d)[24],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %26, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n48k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23"
        "}, %24, %25, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[24],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %26, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23"
        "}, %24, %25, p, 1, 1, %27, %28;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[24],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %29, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23"
        "}, {%24, %25, %26, %27}, %28, p, 1, 1, %30;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<64> {
  __device__ static __forceinline__ void e4m3(float (&d)[32],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[32],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, %35, %36;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[32],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<80> {
  __device__ static __forceinline__ void e4m3(float (&d)[40],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %42, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n80k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39"
        "}, %40, %41, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[40],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %42, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39"
        "}, %40, %41, p, 1, 1, %43, %44;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[40],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %45, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39"
        "}, {%40, %41, %42, %43}, %44, p, 1, 1, %46;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<96> {
  __device__ static __forceinline__ void e4m3(float (&d)[48],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, %48, %49, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[48],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, %48, %49, p, 1, 1, %51, %52;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[48],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, {%48, %49, %50, %51}, %52, p, 1, 1, %54;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<112> {
  __device__ static __forceinline__ void e4m3(float (&d)[56],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %58, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n112k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55"
        "}, %56, %57, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[56],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %58, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n112k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55"
        "}, %56, %57, p, 1, 1, %59, %60;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[56],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %61, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n112k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55"
        "}, {%56, %57, %58, %59}, %60, p, 1, 1, %62;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<128> {
  __device__ static __forceinline__ void e4m3(float (&d)[64],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[64],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, %67, %68;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[64],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<160> {
  __device__ static __forceinline__ void e4m3(float (&d)[80],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %82, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
        "}, %80, %81, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[80],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %82, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
        "}, %80, %81, p, 1, 1, %83, %84;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[80],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %85, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
        "}, {%80, %81, %82, %83}, %84, p, 1, 1, %86;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<192> {
  __device__ static __forceinline__ void e4m3(float (&d)[96],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
        "%87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79]),
          "+f"(d[80]),
          "+f"(d[81]),
          "+f"(d[82]),
          "+f"(d[83]),
          "+f"(d[84]),
          "+f"(d[85]),
          "+f"(d[86]),
          "+f"(d[87]),
          "+f"(d[88]),
          "+f"(d[89]),
          "+f"(d[90]),
          "+f"(d[91]),
          "+f"(d[92]),
          "+f"(d[93]),
          "+f"(d[94]),
          "+f"(d[95])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[96],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
        "%87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, p, 1, 1, %99, %100;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79]),
          "+f"(d[80]),
          "+f"(d[81]),
          "+f"(d[82]),
          "+f"(d[83]),
          "+f"(d[84]),
          "+f"(d[85]),
          "+f"(d[86]),
          "+f"(d[87]),
          "+f"(d[88]),
          "+f"(d[89]),
          "+f"(d[90]),
          "+f"(d[91]),
          "+f"(d[92]),
          "+f"(d[93]),
          "+f"(d[94]),
          "+f"(d[95])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[96],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %101, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
        "%87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, {%96, %97, %98, %99}, %100, p, 1, 1, %102;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79]),
          "+f"(d[80]),
          "+f"(d[81]),
          "+f"(d[82]),
          "+f"(d[83]),
          "+f"(d[84]),
          "+f"(d[85]),
          "+f"(d[86]),
          "+f"(d[87]),
          "+f"(d[88]),
          "+f"(d[89]),
          "+f"(d[90]),
          "+f"(d[91]),
          "+f"(d[92]),
          "+f"(d[93]),
          "+f"(d[94]),
          "+f"(d[95])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

template <>
struct Wgmma<256> {
  __device__ static __forceinline__ void e4m3(float (&d)[128],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
        "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "
        "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
        "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p, 1, 1;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79]),
          "+f"(d[80]),
          "+f"(d[81]),
          "+f"(d[82]),
          "+f"(d[83]),
          "+f"(d[84]),
          "+f"(d[85]),
          "+f"(d[86]),
          "+f"(d[87]),
          "+f"(d[88]),
          "+f"(d[89]),
          "+f"(d[90]),
          "+f"(d[91]),
          "+f"(d[92]),
          "+f"(d[93]),
          "+f"(d[94]),
          "+f"(d[95]),
          "+f"(d[96]),
          "+f"(d[97]),
          "+f"(d[98]),
          "+f"(d[99]),
          "+f"(d[100]),
          "+f"(d[101]),
          "+f"(d[102]),
          "+f"(d[103]),
          "+f"(d[104]),
          "+f"(d[105]),
          "+f"(d[106]),
          "+f"(d[107]),
          "+f"(d[108]),
          "+f"(d[109]),
          "+f"(d[110]),
          "+f"(d[111]),
          "+f"(d[112]),
          "+f"(d[113]),
          "+f"(d[114]),
          "+f"(d[115]),
          "+f"(d[116]),
          "+f"(d[117]),
          "+f"(d[118]),
          "+f"(d[119]),
          "+f"(d[120]),
          "+f"(d[121]),
          "+f"(d[122]),
          "+f"(d[123]),
          "+f"(d[124]),
          "+f"(d[125]),
          "+f"(d[126]),
          "+f"(d[127])
        : "l"(a), "l"(b), "r"(accumulate));
  }
  template <int kAMn, int kBMn>
  __device__ static __forceinline__ void bf16(float (&d)[128],
                                              uint64_t a,
                                              uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
        "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "
        "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
        "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p, 1, 1, %131, %132;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79]),
          "+f"(d[80]),
          "+f"(d[81]),
          "+f"(d[82]),
          "+f"(d[83]),
          "+f"(d[84]),
          "+f"(d[85]),
          "+f"(d[86]),
          "+f"(d[87]),
          "+f"(d[88]),
          "+f"(d[89]),
          "+f"(d[90]),
          "+f"(d[91]),
          "+f"(d[92]),
          "+f"(d[93]),
          "+f"(d[94]),
          "+f"(d[95]),
          "+f"(d[96]),
          "+f"(d[97]),
          "+f"(d[98]),
          "+f"(d[99]),
          "+f"(d[100]),
          "+f"(d[101]),
          "+f"(d[102]),
          "+f"(d[103]),
          "+f"(d[104]),
          "+f"(d[105]),
          "+f"(d[106]),
          "+f"(d[107]),
          "+f"(d[108]),
          "+f"(d[109]),
          "+f"(d[110]),
          "+f"(d[111]),
          "+f"(d[112]),
          "+f"(d[113]),
          "+f"(d[114]),
          "+f"(d[115]),
          "+f"(d[116]),
          "+f"(d[117]),
          "+f"(d[118]),
          "+f"(d[119]),
          "+f"(d[120]),
          "+f"(d[121]),
          "+f"(d[122]),
          "+f"(d[123]),
          "+f"(d[124]),
          "+f"(d[125]),
          "+f"(d[126]),
          "+f"(d[127])
        : "l"(a), "l"(b), "r"(accumulate), "n"(kAMn), "n"(kBMn));
  }
  template <int kBMn>
  __device__ static __forceinline__ void bf16_rs(float (&d)[128],
                                                 const uint32_t (&a)[4],
                                                 uint64_t b,
                                                 int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
        "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "
        "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
        "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, {%128, %129, %130, %131}, %132, p, 1, 1, %134;\n}"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63]),
          "+f"(d[64]),
          "+f"(d[65]),
          "+f"(d[66]),
          "+f"(d[67]),
          "+f"(d[68]),
          "+f"(d[69]),
          "+f"(d[70]),
          "+f"(d[71]),
          "+f"(d[72]),
          "+f"(d[73]),
          "+f"(d[74]),
          "+f"(d[75]),
          "+f"(d[76]),
          "+f"(d[77]),
          "+f"(d[78]),
          "+f"(d[79]),
          "+f"(d[80]),
          "+f"(d[81]),
          "+f"(d[82]),
          "+f"(d[83]),
          "+f"(d[84]),
          "+f"(d[85]),
          "+f"(d[86]),
          "+f"(d[87]),
          "+f"(d[88]),
          "+f"(d[89]),
          "+f"(d[90]),
          "+f"(d[91]),
          "+f"(d[92]),
          "+f"(d[93]),
          "+f"(d[94]),
          "+f"(d[95]),
          "+f"(d[96]),
          "+f"(d[97]),
          "+f"(d[98]),
          "+f"(d[99]),
          "+f"(d[100]),
          "+f"(d[101]),
          "+f"(d[102]),
          "+f"(d[103]),
          "+f"(d[104]),
          "+f"(d[105]),
          "+f"(d[106]),
          "+f"(d[107]),
          "+f"(d[108]),
          "+f"(d[109]),
          "+f"(d[110]),
          "+f"(d[111]),
          "+f"(d[112]),
          "+f"(d[113]),
          "+f"(d[114]),
          "+f"(d[115]),
          "+f"(d[116]),
          "+f"(d[117]),
          "+f"(d[118]),
          "+f"(d[119]),
          "+f"(d[120]),
          "+f"(d[121]),
          "+f"(d[122]),
          "+f"(d[123]),
          "+f"(d[124]),
          "+f"(d[125]),
          "+f"(d[126]),
          "+f"(d[127])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMn));
  }
};

}  // namespace r1d::kernels

#endif  // R1D_SM90
