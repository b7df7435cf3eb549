// SPDX-License-Identifier: Apache-2.0
// Problem   The division of a step's cached pages (plan.cuh) from the sequences' lengths.
// Layout    plan.cuh, PlanView.
// Bound     Latency: one block, two passes over num_sequences lengths.
// Launch    1 block of 1024 threads; once a step, not once a layer.
// Numerics  Integers.
// Source    Flat (request, page) ranges as in FlashMLA's scheduler; own derivation.
#include "kernels/common/ptx.cuh"
#include "kernels/mla_decode/plan.cuh"

namespace r1d::kernels {
namespace mla {
namespace {

constexpr int kPlanThreads = 1024;

// Sum of `value` over the threads before this one; *total: over all.
__device__ int scan_exclusive(int value, int* total) {
  __shared__ int warp_sums[kPlanThreads / 32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0U, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    int all = warp_sums[lane];
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0U, all, step);
      if (lane >= step) all += other;
    }
    warp_sums[lane] = all;
  }
  __syncthreads();
  *total = warp_sums[kPlanThreads / 32 - 1];
  return sum - value + (warp > 0 ? warp_sums[warp - 1] : 0);
}

__global__ void __launch_bounds__(kPlanThreads) plan_kernel(
    StepSequences sequences, int num_tokens, int parts, bool deterministic, PlanView plan) {
#ifdef R1D_SM90
  grid_dependency_wait();
  constexpr int kEach = kMaxSequences / kPlanThreads;
  __shared__ int starts[kMaxSequences];
  int pages[kEach];
  int cost = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int s = static_cast<int>(threadIdx.x) * kEach + i;
    pages[i] = s < sequences.num_sequences ? pages_of(sequences.context_len[s]) : 0;
    cost += pages[i];
    if (pages[i] == 0) continue;
    if (deterministic) {
      const int size = split_pages(pages[i]);
      cost += (size - pages[i] % size) % size;  // splits begin at multiples of their size
    } else {
      cost += kGapPages;
    }
  }
  for (int t = threadIdx.x; t < num_tokens; t += kPlanThreads) plan.tokens[t] = TokenSplits{};
  int total = 0;
  int start = scan_exclusive(cost, &total);  // a barrier: the defaults are written
  int per = max((total + parts - 1) / parts, 1);
  if (deterministic) per = (per + kSplitPages - 1) / kSplitPages * kSplitPages;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int s = static_cast<int>(threadIdx.x) * kEach + i;
    if (s >= sequences.num_sequences) break;
    starts[s] = start;
    const int begin = sequences.query_begin[s];
    const int count = sequences.query_len[s];
    plan.sequences[s] = {.start = start,
                         .context_len = sequences.context_len[s],
                         .query_begin = begin,
                         .query_len = count,
                         .block_begin = sequences.block_begin[s],
                         .index = s,
                         .pages_per_part = per};
    if (pages[i] == 0) continue;
    TokenSplits splits{};
    if (deterministic) {
      const int size = split_pages(pages[i]);
      splits.first = kMaxSplits * s;
      splits.next = splits.first + 1;
      splits.step = 1;
      splits.count = (pages[i] + size - 1) / size;
      start += splits.count * size;
    } else {
      const int first_part = start / per;
      const int last_part = (start + pages[i] - 1) / per;
      splits.first = 2 * first_part + 1;
      splits.next = 2 * first_part + 2;
      splits.step = 2;
      splits.count = last_part - first_part + 1;
      start += pages[i] + kGapPages;
    }
    for (int q = 0; q < count; ++q) {
      splits.query = q;
      plan.tokens[begin + q] = splits;
    }
  }
  __syncthreads();
  for (int p = threadIdx.x; p < parts; p += kPlanThreads) {
    PlannedSequence first{.index = sequences.num_sequences};
    const int from = p * per;
    if (from < total) {
      int low = 0;  // the last sequence that begins at or before the part
      int high = sequences.num_sequences - 1;
      while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (starts[middle] <= from) {
          low = middle;
        } else {
          high = middle - 1;
        }
      }
      first = plan.sequences[low];
      const int page = from - first.start;
      if (page < pages_of(first.context_len)) {
        first.first_block = sequences.block_ids[first.block_begin + page];
      }
    }
    plan.parts[p] = first;
  }
#endif
}

}  // namespace
}  // namespace mla

size_t mla_plan_bytes(const MlaShape& shape) {
  return mla::plan_view(nullptr, shape).bytes;
}

cudaError_t mla_plan(const StepSequences& sequences,
                     const MlaShape& shape,
                     void* plan,
                     const Launch& launch) {
  if (shape.num_tokens == 0 || shape.num_sequences == 0) return cudaSuccess;
  if (shape.num_sequences > mla::kMaxSequences || shape.max_query_len > mla::kMaxQuery ||
      sequences.num_sequences != shape.num_sequences) {
    return cudaErrorInvalidValue;
  }
  return enqueue(mla::plan_kernel,
                 Grid{.blocks = dim3(1), .threads = dim3(mla::kPlanThreads)},
                 launch,
                 sequences,
                 shape.num_tokens,
                 mla::tiling(shape).parts,
                 shape.deterministic,
                 mla::plan_view(plan, shape));
}

}  // namespace r1d::kernels
