// SPDX-License-Identifier: Apache-2.0
// Problem   positions, cache slots and rotary angles of a step's tokens.
// Layout    cos_sin [T, rope] f32: a token's cosines, then its sines.
// Bound     latency: some 300 bytes a token, once a step.
// Launch    8 tokens a block, 32 lanes a token. A block finds its tokens' sequences by letting each
//           thread test other sequences for overlap: one pass for up to 256 sequences, no order
//           among them assumed.
// Numerics  angle = f32(position) * f32 inv_freq rounded to f32, as the CPU op has it: at position
//           163840 the angle is far from exact, but equal on both sides, and that is what must
//           hold. It is reduced by multiples of pi / 2 in f64 (a constant of two terms: error below
//           1e-16 a turn), so cosine and sine are good to an ulp or two of f32.
// Source    RoPE: arXiv 2104.09864; YaRN lies in inv_freq and cos_sin_scale: arXiv 2309.00071.
#include "kernels/norm/row.cuh"
#include "kernels/rope/rope.h"

namespace r1d::kernels {
namespace {

constexpr int kLanes = 32;  // a token
constexpr int kTokens = 8;  // a block
constexpr int kThreads = kLanes * kTokens;

struct Angles {
  const float* inv_freq;
  float scale;
  int64_t rope;
  float* cos_sin;
};

// Sine and cosine of a float angle of any size that positions produce (|angle| < 2^31 * pi / 2).
__device__ __forceinline__ void sine_cosine(float angle, float* sine, float* cosine) {
  constexpr double kTwoOverPi = 0.63661977236758134308;
  constexpr double kHalfPiHigh = 1.57079632679489655800;
  constexpr double kHalfPiLow = 6.12323399573676603587e-17;
  const double turns = rint(static_cast<double>(angle) * kTwoOverPi);
  double rest = fma(-turns, kHalfPiHigh, static_cast<double>(angle));
  rest = fma(-turns, kHalfPiLow, rest);
  float s;
  float c;
  sincosf(static_cast<float>(rest), &s, &c);  // |rest| <= pi / 4: no further reduction
  const int quadrant = static_cast<int>(static_cast<int64_t>(turns) & 3);
  if (quadrant & 1) {
    const float swap = s;
    s = c;
    c = -swap;
  }
  *sine = quadrant & 2 ? -s : s;
  *cosine = quadrant & 2 ? -c : c;
}

__device__ __forceinline__ void write_angles(const Angles& a,
                                             int64_t token,
                                             int position,
                                             int lane) {
  const int64_t pairs = a.rope / 2;
  for (int64_t j = lane; j < pairs; j += kLanes) {
    float sine;
    float cosine;
    sine_cosine(__fmul_rn(static_cast<float>(position), a.inv_freq[j]), &sine, &cosine);
    a.cos_sin[token * a.rope + j] = cosine * a.scale;
    a.cos_sin[token * a.rope + pairs + j] = sine * a.scale;
  }
}

__global__ void __launch_bounds__(kThreads)
    angles_f32(const int32_t* positions, int64_t tokens, Angles a) {
  inputs_wait();
  dependents_launch();
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kTokens + threadIdx.x / kLanes;
  if (token < tokens)
    write_angles(a, token, positions[token], static_cast<int>(threadIdx.x) % kLanes);
}

struct Slots {
  StepSequences sequences;
  int32_t block_size;
  int64_t tokens;
  int32_t* positions;
  int64_t* slots;
};

__global__ void __launch_bounds__(kThreads) begin_step_kernel(Slots a, Angles angles) {
  __shared__ int32_t sequence_of[kTokens];
  const auto first = static_cast<int32_t>(blockIdx.x) * kTokens;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int row = static_cast<int>(threadIdx.x) / kLanes;
  if (lane == 0) sequence_of[row] = -1;
  inputs_wait();
  dependents_launch();
  __syncthreads();
  const StepSequences& q = a.sequences;
  for (int32_t s = threadIdx.x; s < q.num_sequences; s += kThreads) {
    const int32_t begin = max(q.query_begin[s] - first, 0);
    const int32_t end = min(q.query_begin[s] + q.query_len[s] - first, kTokens);
    for (int32_t i = begin; i < end; ++i) sequence_of[i] = s;
  }
  __syncthreads();

  const int64_t token = first + row;
  if (token >= a.tokens) return;
  const int32_t s = sequence_of[row];
  int32_t position = 0;
  int64_t slot = -1;
  if (s >= 0 && q.context_len[s] >= q.query_len[s]) {
    position = q.context_len[s] - q.query_len[s] + static_cast<int32_t>(token) - q.query_begin[s];
    const int64_t block = q.block_ids[q.block_begin[s] + position / a.block_size];
    slot = block * a.block_size + position % a.block_size;
  }
  if (lane == 0) {
    a.positions[token] = position;
    a.slots[token] = slot;
  }
  if (angles.rope > 0) write_angles(angles, token, position, lane);
}

Grid grid_of(int64_t tokens) {
  return {.blocks = static_cast<unsigned>((tokens + kTokens - 1) / kTokens), .threads = kThreads};
}

}  // namespace

cudaError_t rope_angles(const RopeAngles& a, const Launch& launch) {
  if (a.tokens < 0 || a.rope < 0 || a.rope % 2 != 0) return cudaErrorInvalidValue;
  if (a.tokens == 0 || a.rope == 0) return cudaSuccess;
  if (a.positions == nullptr || a.inv_freq == nullptr || a.cos_sin == nullptr)
    return cudaErrorInvalidValue;
  const Angles angles{a.inv_freq, a.cos_sin_scale, a.rope, a.cos_sin};
  return enqueue(angles_f32, grid_of(a.tokens), launch, a.positions, a.tokens, angles);
}

cudaError_t begin_step(const BeginStep& a, const Launch& launch) {
  const StepSequences& q = a.sequences;
  if (a.tokens < 0 || a.rope < 0 || a.rope % 2 != 0 || a.block_size <= 0 || q.num_sequences < 0) {
    return cudaErrorInvalidValue;
  }
  if (a.tokens == 0) return cudaSuccess;
  const bool sequences = q.query_begin != nullptr && q.query_len != nullptr &&
                         q.context_len != nullptr && q.block_begin != nullptr &&
                         q.block_ids != nullptr;
  if (a.positions == nullptr || a.slots == nullptr || (q.num_sequences > 0 && !sequences) ||
      (a.rope > 0 && (a.inv_freq == nullptr || a.cos_sin == nullptr))) {
    return cudaErrorInvalidValue;
  }
  const Slots slots{q, a.block_size, a.tokens, a.positions, a.slots};
  const Angles angles{a.inv_freq, a.cos_sin_scale, a.rope, a.cos_sin};
  return enqueue(begin_step_kernel, grid_of(a.tokens), launch, slots, angles);
}

}  // namespace r1d::kernels
