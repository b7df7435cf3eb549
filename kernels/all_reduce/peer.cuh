// SPDX-License-Identifier: Apache-2.0
// Words, flags and waits in memory that several GPUs write. All accesses that meet another GPU's
// are relaxed, release or acquire at system scope.
#pragma once

#include <cstdint>

#include "kernels/all_reduce/all_reduce.h"

namespace r1d::kernels {

// 16 bytes as two 64-bit halves, each of which is written and read whole: 32 bits of data below a
// 32-bit epoch. The halves may arrive apart, so both epochs are looked at.
struct Word {
  uint64_t low;
  uint64_t high;
};

__device__ __forceinline__ void send_word(void* to, uint2 data, uint32_t epoch) {
  const uint64_t flag = uint64_t{epoch} << 32;
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to),
               "l"(flag | data.x),
               "l"(flag | data.y)
               : "memory");
}
__device__ __forceinline__ Word load_word(const void* from) {
  Word word;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(word.low), "=l"(word.high)
               : "l"(from)
               : "memory");
  return word;
}
__device__ __forceinline__ bool has_epoch(const Word& word, uint32_t epoch) {
  return static_cast<uint32_t>(word.low >> 32) == epoch &&
         static_cast<uint32_t>(word.high >> 32) == epoch;
}

__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
// What this thread has written or seen written, in any memory, stands before the flag.
__device__ __forceinline__ void raise_flag(void* flag, uint32_t epoch) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(epoch) : "memory");
}
__device__ __forceinline__ uint32_t load_flag(const void* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// A waiting thread looks at the abort word once in so many tries: it stands across PCIe.
constexpr uint32_t kTriesPerLook = 512;

__device__ __forceinline__ bool aborted(const PeerMemory& peers, uint32_t tries) {
  return tries % kTriesPerLook == 0 && load_relaxed(peers.abort) != 0;
}

// False after an abort.
__device__ __forceinline__ bool wait_flag(const PeerMemory& peers,
                                          const void* flag,
                                          uint32_t epoch) {
  for (uint32_t tries = 1; load_flag(flag) != epoch; ++tries) {
    if (aborted(peers, tries)) return false;
  }
  return true;
}

// This collective's epoch. Behind the dependency wait: the step before ends with a kernel that
// advances it.
__device__ __forceinline__ uint32_t epoch_of(const PeerMemory& peers, uint32_t index) {
  return load_relaxed(peers.epoch) + index;
}

// The k-th other rank, beginning behind this one, so that not all send to the same first.
__device__ __forceinline__ int other_rank(const PeerMemory& peers, int k) {
  const int rank = peers.rank + 1 + k;
  return rank < peers.layout.world ? rank : rank - peers.layout.world;
}

// Where a thread's words go and come from, of up to kMost ranks: made ahead of the dependency wait,
// so that behind it nothing but the epoch stands between the data and the first store. Word w of a
// thread stands `stride` words behind word w - 1.
template <int kMost>
struct Routes {
  std::byte* to[kMost - 1];  // [k]: to other_rank(k), in buffers of even epochs
  const std::byte* from;     // rank 0's words in this rank's memory, in buffers of even epochs
  int64_t sender_bytes;      // from one rank's words to the next one's
  int64_t odd_bytes;         // from the buffers of even epochs to those of odd ones
  int64_t stride_bytes;
};
template <int kMost>
__device__ __forceinline__ Routes<kMost> make_routes(const PeerMemory& peers,
                                                     int64_t first,
                                                     int64_t stride) {
  Routes<kMost> routes;
#pragma unroll
  for (int k = 0; k + 1 < kMost; ++k) {
    if (k + 1 >= peers.layout.world) break;
    routes.to[k] = peers.region[other_rank(peers, k)] + peers.layout.word_at(0, peers.rank, first);
  }
  routes.from = peers.region[peers.rank] + peers.layout.word_at(0, 0, first);
  routes.sender_bytes = peers.layout.word_at(0, 1, 0);
  routes.odd_bytes = peers.layout.word_at(1, 0, 0);
  routes.stride_bytes = stride * 16;
  return routes;
}

// Sends kWords words of this thread to all other ranks.
template <int kMost, int kWords>
__device__ __forceinline__ void send_words(const PeerMemory& peers,
                                           const Routes<kMost>& routes,
                                           uint32_t epoch,
                                           const uint2 (&data)[kWords]) {
  const int64_t odd = (epoch & 1) != 0 ? routes.odd_bytes : 0;
#pragma unroll
  for (int k = 0; k + 1 < kMost; ++k) {
    if (k + 1 >= peers.layout.world) break;
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      send_word(routes.to[k] + odd + w * routes.stride_bytes, data[w], epoch);
  }
}

__device__ __forceinline__ void add_word(uint2 data, float* sum) {
  sum[0] += __uint_as_float(data.x << 16);
  sum[1] += __uint_as_float(data.x & 0xFFFF0000U);
  sum[2] += __uint_as_float(data.y << 16);
  sum[3] += __uint_as_float(data.y & 0xFFFF0000U);
}

// Adds the words of ranks begin .. begin + kBatch - 1 in rank order to `sum`; `mine` are this
// rank's. Each try loads all that are awaited: one trip to L2 for them all, not one each. After an
// abort, which clears `alive`, what is missing counts as zeros, and nothing is waited for any more.
template <int kBatch, int kMost, int kWords>
__device__ __forceinline__ void sum_batch(const PeerMemory& peers,
                                          const Routes<kMost>& routes,
                                          uint32_t epoch,
                                          int begin,
                                          const uint2 (&mine)[kWords],
                                          float (&sum)[kWords * kWordValues],
                                          bool& alive) {
  const std::byte* from = routes.from + ((epoch & 1) != 0 ? routes.odd_bytes : 0);
  const int end = min(begin + kBatch, static_cast<int>(peers.layout.world));
  Word words[kBatch][kWords];
  bool came = false;
  for (uint32_t tries = 1; !came; ++tries) {
    came = true;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const int sender = begin + j;
        if (sender >= end || sender == peers.rank) continue;
        words[j][w] = load_word(from + sender * routes.sender_bytes + w * routes.stride_bytes);
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const int sender = begin + j;
        if (sender >= end || sender == peers.rank) continue;
        came = came && has_epoch(words[j][w], epoch);
      }
    }
    if (came) break;
    if (aborted(peers, tries)) alive = false;
    if (!alive) break;
  }
#pragma unroll
  for (int j = 0; j < kBatch; ++j) {
    const int sender = begin + j;
    if (sender >= end) break;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      uint2 data = mine[w];
      if (sender != peers.rank) {
        const Word& word = words[j][w];
        data = {static_cast<uint32_t>(word.low), static_cast<uint32_t>(word.high)};
        if (!alive && !has_epoch(word, epoch)) data = {0, 0};
      }
      add_word(data, sum + w * kWordValues);
    }
  }
}

// Adds all ranks' words in rank order to `sum`, kBatch ranks at a time.
template <int kBatch, int kMost, int kWords>
__device__ __forceinline__ void sum_words(const PeerMemory& peers,
                                          const Routes<kMost>& routes,
                                          uint32_t epoch,
                                          const uint2 (&mine)[kWords],
                                          float (&sum)[kWords * kWordValues]) {
  bool alive = true;
  if constexpr (kBatch == kMost) {
    sum_batch<kMost>(peers, routes, epoch, 0, mine, sum, alive);
  } else {
    for (int begin = 0; begin < peers.layout.world; begin += kBatch)
      sum_batch<kBatch>(peers, routes, epoch, begin, mine, sum, alive);
  }
}

}  // namespace r1d::kernels
