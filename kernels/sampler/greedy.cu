// SPDX-License-Identifier: Apache-2.0
// Problem   token[r] = argmax of logits[r, :V], the lowest id among equals, and the lowest id whose
//           logit is not finite.
// Layout    logits [rows, row_stride] f32, row-major.
// Bound     4 V bytes per row, read once.
// Launch    256 threads a block, equal shares of a row to its blocks, four blocks per SM over all
//           rows: one row keeps every SM busy. A row's last block writes its result and clears what
//           the blocks left: one launch.
// Numerics  exact.
// Source    two-stage reduction with a last arrival, as in CUDA's threadFenceReduction sample.
#include "kernels/sampler/row.cuh"

namespace r1d::kernels {
namespace {

using namespace sampling;  // NOLINT: the folder's own

__global__ void __launch_bounds__(kGreedyThreads) argmax_rows(
    SamplerInput input, SampledRow* sampled, int share_size, bool aligned, GreedyRow* rows) {
  __shared__ uint64_t scratch[2][kGreedyThreads / 32];
  wait_for_inputs();
  const int64_t number = blockIdx.y;
  const int begin = static_cast<int>(blockIdx.x) * share_size;
  const int size = max(0, min(share_size, input.vocab - begin));
  const float* const logits = input.logits + number * input.row_stride;
  const Seen seen =
      scan<kGreedyThreads, 4>(logits + begin, size, aligned, [](int /*i*/, auto /*values*/) {});
  let_dependents_start();
  const uint64_t mine = warp_reduce(seen.candidate(begin), Larger{});
  const uint32_t fault = __reduce_max_sync(0xFFFFFFFFU, seen.fault(begin));
  if (threadIdx.x % 32 == 0) {
    scratch[0][threadIdx.x / 32] = mine;
    scratch[1][threadIdx.x / 32] = fault;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  unsigned long long block_best = 0;
  uint64_t block_fault = 0;
  for (int i = 0; i < kGreedyThreads / 32; ++i) {
    block_best = Larger{}(block_best, scratch[0][i]);
    block_fault = Larger{}(block_fault, scratch[1][i]);
  }
  GreedyRow& row = rows[number];
  atomicMax(&row.best, block_best);
  if (block_fault != 0) atomicMax(&row.fault, static_cast<uint32_t>(block_fault));
  __threadfence();
  if (atomicAdd(&row.arrived, 1) != gridDim.x - 1) return;
  __threadfence();
  const uint64_t row_best = atomicExch(&row.best, 0);
  const uint32_t row_fault = atomicExch(&row.fault, 0);
  row.arrived = 0;
  SampledRow result;
  if (row_fault != 0) {
    result.status = kSamplerNotFinite;
    result.bad_token = fault_token(row_fault);
    result.bad_logit = logits[result.bad_token];
  } else {
    result.token = sampler_candidate_token(row_best);
  }
  sampled[number] = result;
}

}  // namespace

cudaError_t sample_greedy(const SamplerInput& input,
                          SampledRow* sampled,
                          const SamplerPlan& plan,
                          void* workspace,
                          const Launch& launch) {
  if (!serves(input, plan) || input.rows > 65535) return cudaErrorInvalidValue;
  if (input.rows == 0) return cudaSuccess;
  const Grid grid{
      .blocks = dim3(static_cast<unsigned>(plan.greedy_splits), static_cast<unsigned>(input.rows)),
      .threads = dim3(kGreedyThreads)};
  return enqueue(argmax_rows,
                 grid,
                 launch,
                 input,
                 sampled,
                 share_of(input.vocab, plan.greedy_splits),
                 is_aligned(input),
                 static_cast<GreedyRow*>(workspace));
}

}  // namespace r1d::kernels
