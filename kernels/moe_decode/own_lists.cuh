// SPDX-License-Identifier: Apache-2.0
// The lists of router.h where the router makes none: every thread block makes them for itself out
// of the tokens' choices.
#pragma once

#include "kernels/moe_decode/problem.cuh"

namespace r1d::kernels::moe {

constexpr int kOwnListTokens = 32;
static_assert(makes_lists(kOwnListTokens + 1) && token_block_size(kOwnListTokens) == 32);

// Shared memory, 16-byte aligned: of each expert its tokens as bits and the place of its first
// entry, then the number of blocks, then the entries; none where there are lists.
__host__ __device__ inline int own_list_bytes(const Problem& p) {
  return makes_lists(p.num_tokens) ? 0 : (2 * p.routed.num_local + 1 + p.num_tokens * p.top_k) * 4;
}

#ifdef R1D_SM90

// Of a thread block of kThreads, the first kHolders of which look at the entries.
template <int kThreads, int kHolders>
class OwnLists {
 public:
  __device__ __forceinline__ OwnLists(const Problem& p, void* memory)
      : num_local_(p.routed.num_local),
        tokens_(static_cast<uint32_t*>(memory)),
        begins_(tokens_ + num_local_),
        num_blocks_(begins_ + num_local_),
        entries_(reinterpret_cast<int32_t*>(num_blocks_ + 1)) {}

  [[nodiscard]] __device__ __forceinline__ const int32_t* entries() const { return entries_; }

  // All threads. Waits for the router, fills `blocks`, which all see then, and returns their
  // number.
  __device__ __forceinline__ int make_blocks(const Problem& p, int4* blocks) {
    const int lane = threadIdx.x % 32;
    for (int e = threadIdx.x; e < num_local_; e += kThreads) tokens_[e] = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) token_[i] = p.by_top_k(threadIdx.x + i * kHolders);
    __syncthreads();
    grid_dependency_wait();

    int live = p.num_tokens;
    if (p.options.live_tokens != nullptr) live = min(live, __ldcg(p.options.live_tokens));
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int entry = threadIdx.x + i * kHolders;
      const bool mine = threadIdx.x < kHolders && entry < p.num_tokens * p.top_k;
      expert_[i] = mine ? __ldcg(p.experts + entry) - p.options.first_expert : -1;
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (token_[i] >= live || expert_[i] >= num_local_) expert_[i] = -1;
      if (expert_[i] >= 0) atomicOr(&tokens_[expert_[i]], 1U << token_[i]);
    }
    __syncthreads();

    // A warp for 32 experts.
    for (int first = threadIdx.x / 32 * 32; first < num_local_; first += kThreads) {
      const uint32_t mask = first + lane < num_local_ ? tokens_[first + lane] : 0;
      uint32_t before = 0;
      for (int e = 4 * lane; e < first; e += 128) {
        const uint4 masks = *reinterpret_cast<const uint4*>(tokens_ + e);
        before += packed(masks.x) + packed(masks.y) + packed(masks.z) + packed(masks.w);
      }
      uint32_t upto = packed(mask);
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint32_t other = __shfl_up_sync(~0U, upto, offset);
        if (lane >= offset) upto += other;
      }
      upto += __reduce_add_sync(~0U, before);
      before = upto - packed(mask);
      if (mask != 0) {
        const auto begin = static_cast<int>(before >> 21);
        const auto group = static_cast<int>(before >> 10 & 2047);
        blocks[before & 1023] = make_int4(first + lane, begin, __popc(mask), group);
        begins_[first + lane] = begin;
      }
      if (lane == 31 && first + 32 >= num_local_) *num_blocks_ = upto & 1023;
    }
    __syncthreads();
    return static_cast<int>(*num_blocks_);
  }

  // The holders, after make_blocks(). Others see the entries behind a barrier.
  __device__ __forceinline__ void make_entries() {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (expert_[i] < 0) continue;
      const uint32_t earlier = tokens_[expert_[i]] & ((1U << token_[i]) - 1);
      entries_[begins_[expert_[i]] + __popc(earlier)] = threadIdx.x + i * kHolders;
    }
  }

  // The holders, when they see the entries: the lists to memory, complete there behind the fence.
  __device__ __forceinline__ void publish(const Problem& p,
                                          const int4* blocks,
                                          int num_blocks) const {
    for (int i = threadIdx.x; i < num_blocks; i += kHolders) {
      *reinterpret_cast<int4*>(p.lists.blocks + i) = blocks[i];
    }
    const int4 last = num_blocks > 0 ? blocks[num_blocks - 1] : make_int4(0, 0, 0, 0);
    for (int i = threadIdx.x; i < last.y + last.z; i += kHolders) p.lists.entries[i] = entries_[i];
    if (threadIdx.x == 0) *p.lists.num_blocks = num_blocks;
    __threadfence();
  }

 private:
  static constexpr int kEach = (kOwnListTokens * kMaxTopK + kHolders - 1) / kHolders;  // entries

  // An expert's blocks, groups of 8 and entries, to be summed in 10, 11 and 11 bits.
  static __device__ __forceinline__ uint32_t packed(uint32_t mask) {
    const uint32_t count = __popc(mask);
    return (count > 0 ? 1U : 0U) | (count + 7) / 8 << 10 | count << 21;
  }

  int num_local_;
  uint32_t* tokens_;
  uint32_t* begins_;
  uint32_t* num_blocks_;
  int32_t* entries_;
  int token_[kEach];
  int expert_[kEach];  // -1: none of ours
};

#endif  // R1D_SM90

}  // namespace r1d::kernels::moe
