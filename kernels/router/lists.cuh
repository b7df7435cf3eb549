// SPDX-License-Identifier: Apache-2.0
// The lists of experts in use, from the chosen experts of all tokens; their form is router.h's.
#pragma once

#include "kernels/router/choice.cuh"

namespace r1d::kernels::router {

constexpr int kListThreads = 256;
constexpr int kWords = kRouteDecodeTokens / 32;

// What a block needs to build lists, beside the experts of all entries.
struct ListShared {
  uint32_t tokens[kWords][kMaxExperts];  // bits: an expert's tokens
  uint16_t before[kWords][kMaxExperts];  // entries ahead of each word's
  uint64_t warp_sums[kListThreads / 32];
};

#ifdef R1D_SM90

// token_block_size() is a power of two: this one.
__device__ __forceinline__ int token_block_shift(int num_tokens) {
  static_assert(token_block_size(8) == 8 && token_block_size(9) == 32);
  return num_tokens <= 8 ? 3 : 5;
}

__device__ __forceinline__ int live_entries(const ListOptions& options, int num_tokens, int top_k) {
  const int live =
      options.live_tokens != nullptr ? min(max(*options.live_tokens, 0), num_tokens) : num_tokens;
  return live * top_k;
}

// One warp builds the lists of up to 32 entries; lane i has the expert of entry i.
__device__ __forceinline__ void build_short_lists(
    int expert, int num_tokens, int entries, const ListOptions& options, const ExpertLists& lists) {
  const int lane = threadIdx.x % 32;
  const int shift = token_block_shift(num_tokens);
  const int block_size = 1 << shift;
  const int id = expert - options.first_expert;
  const bool listed = lane < entries && id >= 0 && id < options.num_local;
  const uint32_t same = __match_any_sync(~0U, listed ? id : -1);
  const int rank = __popc(same & ((1U << lane) - 1));
  const int total = __popc(same);
  const int count = min(total - rank, block_size);  // of the block that begins with this entry
  const int within = rank & (block_size - 1);
  const bool leads = listed && within == 0;
  // Local id, then what a leading entry adds to the blocks and to the groups of 8.
  const uint32_t packed = !listed
                              ? ~0U
                              : static_cast<uint32_t>(id) << 8 |
                                    (leads ? 1U << 4 | static_cast<uint32_t>((count + 7) / 8) : 0U);
  int begin = rank - within;  // of the entry's block
  int block = rank >> shift;
  int group = block << (shift - 3);
#pragma unroll 4
  for (int i = 0; i < entries; ++i) {
    const uint32_t other = __shfl_sync(~0U, packed, i);
    const bool ahead = other >> 8 < static_cast<uint32_t>(id);
    begin += ahead ? 1 : 0;
    block += ahead ? static_cast<int>(other >> 4 & 1) : 0;
    group += ahead ? static_cast<int>(other & 15) : 0;
  }
  if (leads) {
    *reinterpret_cast<int4*>(lists.blocks + block) = make_int4(id, begin, count, group);
  }
  if (listed) lists.entries[begin + within] = lane;
  const int blocks = __popc(__ballot_sync(~0U, leads));
  if (lane == 0) *lists.num_blocks = blocks;
}

// A block of kListThreads builds the lists; `experts` of `entries` entries in shared memory,
// visible to the block. An entry's place is its expert's begin plus the number of the expert's
// earlier tokens. A token that names an expert twice (it had no other left) makes the experts'
// threads search all entries instead.
__device__ __forceinline__ void build_lists(const uint32_t* experts,
                                            int num_tokens,
                                            const Divisor& top_k,
                                            int entries,  // of live tokens
                                            const ListOptions& options,
                                            const ExpertLists& lists,
                                            ListShared& s) {
  constexpr int kPerThread = kMaxExperts / kListThreads;
  const int tid = threadIdx.x;
  const int warp = tid / 32;
  const int lane = tid % 32;
  const int words = (num_tokens + 31) / 32;
  const auto token_of = [&](int i) { return top_k.divide(i); };
  const auto local = [&](int i) { return static_cast<int>(experts[i]) - options.first_expert; };
  const auto listed = [&](int id) { return id >= 0 && id < options.num_local; };
  for (int e = tid; e < options.num_local; e += kListThreads) {
    for (int w = 0; w < words; ++w) s.tokens[w][e] = 0;
  }
  __syncthreads();
  bool twice = false;
#pragma unroll 4
  for (int i = tid; i < entries; i += kListThreads) {
    const int id = local(i);
    const int token = token_of(i);
    const uint32_t bit = 1U << (token % 32);
    if (listed(id)) twice |= (atomicOr(&s.tokens[token / 32][id], bit) & bit) != 0;
  }
  twice = __syncthreads_or(twice) != 0;

  const int per_thread = (options.num_local + kListThreads - 1) / kListThreads;
  const int shift = token_block_shift(num_tokens);
  const int block_size = 1 << shift;
  int count[kPerThread] = {};
  uint64_t mine = 0;  // entries, blocks and groups of 8 in 20 bits each
#pragma unroll
  for (int p = 0; p < kPerThread; ++p) {
    const int e = tid * per_thread + p;
    if (p >= per_thread || e >= options.num_local) break;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if (w < words) count[p] += __popc(s.tokens[w][e]);
    }
    if (twice) {
      count[p] = 0;
      for (int i = 0; i < entries; ++i) count[p] += local(i) == e ? 1 : 0;
    }
    mine += static_cast<uint64_t>(count[p]) |
            static_cast<uint64_t>((count[p] + block_size - 1) >> shift) << 20 |
            static_cast<uint64_t>((count[p] + 7) / 8) << 40;
  }
  uint64_t before = mine;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t other = __shfl_up_sync(~0U, before, offset);
    if (lane >= offset) before += other;
  }
  if (lane == 31) s.warp_sums[warp] = before;
  before -= mine;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kListThreads / 32; ++w) before += w < warp ? s.warp_sums[w] : 0;

  constexpr uint64_t kMask = (1U << 20) - 1;
  int begin = static_cast<int>(before & kMask);
  int block = static_cast<int>(before >> 20 & kMask);
  int group = static_cast<int>(before >> 40 & kMask);
#pragma unroll
  for (int p = 0; p < kPerThread; ++p) {
    if (count[p] == 0) continue;
    const int e = tid * per_thread + p;
    int at = begin;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if (w >= words) break;
      s.before[w][e] = static_cast<uint16_t>(at);
      at += __popc(s.tokens[w][e]);
    }
    for (int first = 0; first < count[p]; first += block_size) {
      const int n = min(count[p] - first, block_size);
      *reinterpret_cast<int4*>(lists.blocks + block) = make_int4(e, begin + first, n, group);
      ++block;
      group += (n + 7) / 8;
    }
    if (twice) {
      at = begin;
      for (int i = 0; i < entries; ++i) {
        if (local(i) == e) lists.entries[at++] = i;
      }
    }
    begin += count[p];
  }
  if (tid == kListThreads - 1) *lists.num_blocks = block;
  if (twice) return;
  __syncthreads();
#pragma unroll 4
  for (int i = tid; i < entries; i += kListThreads) {
    const int id = local(i);
    const int token = token_of(i);
    if (!listed(id)) continue;
    const uint32_t earlier = s.tokens[token / 32][id] & ((1U << (token % 32)) - 1);
    lists.entries[s.before[token / 32][id] + __popc(earlier)] = i;
  }
}

#endif  // R1D_SM90

}  // namespace r1d::kernels::router
