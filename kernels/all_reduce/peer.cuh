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

// The data of a word whose first reading was `word`. Zeros after an abort; then `alive` turns
// false, and nothing is waited for any more.
__device__ __forceinline__ uint2
wait_word(const PeerMemory& peers, const void* from, Word word, uint32_t epoch, bool& alive) {
  for (uint32_t tries = 1; !has_epoch(word, epoch); ++tries) {
    if (!alive || aborted(peers, tries)) {
      alive = false;
      return {0, 0};
    }
    word = load_word(from);
  }
  return {static_cast<uint32_t>(word.low), static_cast<uint32_t>(word.high)};
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

// Sends kWords words of this thread, words `first` .. of the message, to all other ranks.
template <int kWords>
__device__ __forceinline__ void send_words(const PeerMemory& peers,
                                           uint32_t epoch,
                                           int64_t first,
                                           const uint2 (&data)[kWords]) {
  const int64_t at = peers.layout.word_at(epoch, peers.rank, first);
  for (int k = 0; k + 1 < peers.layout.world; ++k) {
    std::byte* to = peers.region[other_rank(peers, k)] + at;
#pragma unroll
    for (int w = 0; w < kWords; ++w) send_word(to + w * 16, data[w], epoch);
  }
}

__device__ __forceinline__ void add_word(uint2 data, float* sum) {
  sum[0] += __uint_as_float(data.x << 16);
  sum[1] += __uint_as_float(data.x & 0xFFFF0000U);
  sum[2] += __uint_as_float(data.y << 16);
  sum[3] += __uint_as_float(data.y & 0xFFFF0000U);
}

// Adds all ranks' words in rank order to `sum`; `mine` are this rank's. The loads of kBatch ranks
// go out together: one trip to L2 for them all, not one each.
template <int kBatch, int kWords>
__device__ __forceinline__ void sum_words(const PeerMemory& peers,
                                          uint32_t epoch,
                                          int64_t first,
                                          const uint2 (&mine)[kWords],
                                          float (&sum)[kWords * kWordValues]) {
  const std::byte* region = peers.region[peers.rank];
  const int world = peers.layout.world;
  bool alive = true;
  for (int begin = 0; begin < world; begin += kBatch) {
    Word words[kBatch][kWords];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int sender = begin + j;
      if (sender >= world || sender == peers.rank) continue;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        words[j][w] = load_word(region + peers.layout.word_at(epoch, sender, first + w));
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int sender = begin + j;
      if (sender >= world) continue;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        uint2 data = mine[w];
        if (sender != peers.rank) {
          const std::byte* from = region + peers.layout.word_at(epoch, sender, first + w);
          data = wait_word(peers, from, words[j][w], epoch, alive);
        }
        add_word(data, sum + w * kWordValues);
      }
    }
  }
}

}  // namespace r1d::kernels
