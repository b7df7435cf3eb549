// SPDX-License-Identifier: Apache-2.0
// Problem   logits[T, E] = x W^T for the many tokens of a prefill chunk.
// Layout    W [E, D] and x [T, D] bf16, K-major; logits [T, E] f32.
// Bound     R1 (E = 256, D = 7168), T = 8192: 30 GFLOP, 38 us at 790 TFLOPS; x is read once from
//           memory, 117 MB, 27 us at 4.3 TB/s; tiles take 459 MB from L2, 43 us at 10.8 TB/s.
// Launch    a CTA per 128 tokens and 128 experts, 128 CTAs at T = 8192, the two of a tile of tokens
//           neighbours. Two warpgroups multiply, one thread loads: seven stages of 64 columns, 16
//           KB of x and 16 KB of W. The first stages of W are on their way before the dependency
//           wait.
// Numerics  products exact, f32 sums of 16 columns at a time, ascending: a token's bits depend on
//           its own row alone.
// Source    DeepSeek-V3 report, section 2.1.2.
#include "kernels/common/ring.cuh"
#include "kernels/common/tensor_map.h"
#include "kernels/common/wgmma.cuh"
#include "kernels/router/router.h"

namespace r1d::kernels {
namespace router {
namespace {

constexpr int kTokens = 128;  // of a CTA's tile
constexpr int kRows = 128;    // of W; rows beyond the last read as zeros
constexpr int kCols = 64;     // of a stage: 128 bytes, the swizzle's width
constexpr int kStages = 7;
constexpr int kXBytes = kTokens * kCols * 2;
constexpr int kWBytes = kRows * kCols * 2;
constexpr int kConsumerWarps = 8;
constexpr int kThreads = 32 * (kConsumerWarps + 1);

struct Shared {
  uint8_t x[kStages][kXBytes];
  uint8_t w[kStages][kWBytes];
  uint64_t full[kStages];
  uint64_t empty[kStages];
};
constexpr size_t kSharedBytes = sizeof(Shared) + 1024;  // the base is aligned to 1024 by hand
static_assert(kSharedBytes <= 232448);

struct Problem {
  float* logits;
  int64_t stride;
  int num_tokens;
  int num_experts;
  int steps;  // of kCols columns
};

#ifdef R1D_SM90

// One thread.
__device__ __forceinline__ void produce(Shared& shared,
                                        const CUtensorMap& x_map,
                                        const CUtensorMap& w_map,
                                        int steps) {
  const int expert = static_cast<int>(blockIdx.x) * kRows;
  const int token = static_cast<int>(blockIdx.y) * kTokens;
  const auto load_w = [&](int step, int stage) {
    mbarrier_arrive_expect(&shared.full[stage], kXBytes + kWBytes);
    tensor_load_2d(shared.w[stage], &w_map, step * kCols, expert, &shared.full[stage]);
  };
  const auto load_x = [&](int step, int stage) {
    tensor_load_2d(shared.x[stage], &x_map, step * kCols, token, &shared.full[stage]);
  };
  const int ahead = min(steps, kStages);
  for (int step = 0; step < ahead; ++step) load_w(step, step);
  grid_dependency_wait();
  grid_launch_dependents();
  for (int step = 0; step < ahead; ++step) load_x(step, step);
  Ring ring;
  for (int step = ahead; step < steps; ++step) {
    mbarrier_wait(&shared.empty[ring.stage], ring.phase);
    load_w(step, ring.stage);
    load_x(step, ring.stage);
    ring.advance(kStages);
  }
}

// A warpgroup: 64 tokens.
__device__ __forceinline__ void consume(Shared& shared, const Problem& problem, int group) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint64_t x = wgmma_descriptor_k128(smem_address(shared.x) + group * 64 * kCols * 2);
  const uint64_t w = wgmma_descriptor_k128(smem_address(shared.w));
  float d[kRows / 2];
  Ring ring;
  int before = 0;  // the stage of the step before
  for (int step = 0; step < problem.steps; ++step) {
    mbarrier_wait(&shared.full[ring.stage], ring.phase);
    wgmma_fence_registers(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kCols / 16; ++k) {
      Wgmma<kRows>::bf16<0, 0>(d,
                               x + (ring.stage * kXBytes + k * 32) / 16,
                               w + (ring.stage * kWBytes + k * 32) / 16,
                               step > 0 || k > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (step > 0 && lane == 0) mbarrier_arrive(&shared.empty[before]);
    before = ring.stage;
    ring.advance(kStages);
  }
  wgmma_wait<0>();
  wgmma_fence_registers(d);
  const int first = static_cast<int>(blockIdx.y) * kTokens + group * 64 + 16 * warp;
  const int expert = static_cast<int>(blockIdx.x) * kRows;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int token = first + 8 * h + lane / 4;
    if (token >= problem.num_tokens) continue;
    float* to = problem.logits + token * problem.stride + expert + 2 * (lane % 4);
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      if (expert + 8 * j >= problem.num_experts) break;
      *reinterpret_cast<float2*>(to + 8 * j) = make_float2(d[4 * j + 2 * h], d[4 * j + 2 * h + 1]);
    }
  }
}

#endif  // R1D_SM90

__global__ void __launch_bounds__(kThreads, 1)
    logits_of_many(const __grid_constant__ CUtensorMap x_map,
                   const __grid_constant__ CUtensorMap w_map,
                   const Problem problem) {
#ifdef R1D_SM90
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = smem_address(raw) % 1024;
  Shared& shared = *reinterpret_cast<Shared*>(raw + (misaligned != 0 ? 1024 - misaligned : 0));
  if (threadIdx.x == 0) {
    tensor_prefetch_map(&x_map);
    tensor_prefetch_map(&w_map);
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&shared.full[stage], 1);
      mbarrier_init(&shared.empty[stage], kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const int group = __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == kConsumerWarps / 4) {
    if (threadIdx.x % 32 == 0) produce(shared, x_map, w_map, problem.steps);
  } else {
    grid_dependency_wait();
    consume(shared, problem, group);
  }
#endif  // R1D_SM90
}

}  // namespace
}  // namespace router

bool route_logits_serves(int64_t hidden, int32_t num_experts) {
  return num_experts > 0 && num_experts % 8 == 0 && hidden > 0 && hidden % 8 == 0 &&
         hidden <= (1 << 20);
}

cudaError_t route_logits(const __nv_bfloat16* weight,
                         const __nv_bfloat16* x,
                         int64_t x_stride,
                         int32_t num_tokens,
                         int64_t hidden,
                         int32_t num_experts,
                         float* logits,
                         int64_t logits_stride,
                         const Launch& launch) {
  using namespace router;
  if (num_tokens == 0) return cudaSuccess;
  if (num_tokens < 0 || !route_logits_serves(hidden, num_experts) || x_stride < hidden ||
      x_stride % 8 != 0 || logits_stride < num_experts || logits_stride % 2 != 0) {
    return cudaErrorInvalidValue;
  }
  CUtensorMap x_map;
  cudaError_t error = encode_2d({.data = x,
                                 .rows = num_tokens,
                                 .cols = hidden,
                                 .stride_bytes = x_stride * 2,
                                 .box_rows = kTokens,
                                 .box_cols = kCols},
                                &x_map);
  if (error != cudaSuccess) return error;
  CUtensorMap w_map;
  error = encode_2d(
      {.data = weight, .rows = num_experts, .cols = hidden, .box_rows = kRows, .box_cols = kCols},
      &w_map);
  if (error != cudaSuccess) return error;
  const auto tiles = [](int count, int size) {
    return static_cast<unsigned>((count + size - 1) / size);
  };
  return enqueue(logits_of_many,
                 {.blocks = dim3(tiles(num_experts, kRows), tiles(num_tokens, kTokens)),
                  .threads = dim3(kThreads),
                  .shared_bytes = kSharedBytes},
                 launch,
                 x_map,
                 w_map,
                 Problem{.logits = logits,
                         .stride = logits_stride,
                         .num_tokens = num_tokens,
                         .num_experts = num_experts,
                         .steps = static_cast<int>((hidden + kCols - 1) / kCols)});
}

}  // namespace r1d::kernels
