// SPDX-License-Identifier: Apache-2.0
// Problem   o[t, h] = softmax(q_latent[t, h] K^T) K[:, :512] over the pages of t's sequence, K its
//           cached rows; one to four query tokens a sequence, all heads of the rank at once.
// Layout    q_latent [T, H, 576] bf16, scaled to base-2 scores; cache [blocks, block_size, 576]
//           bf16; results in the workspace (plan.cuh).
// Bound     1152 bytes a cached token; 2 H (576 + 512) flops a cached and query token. 16 heads,
//           one query: 30 flops a byte, far below the machine's 200: memory. 64 x 4096 tokens:
//           71 us at 4.3 TB/s.
// Launch    One block an SM: two math warpgroups, a warp that loads the cache, one that loads
//           queries. Shared memory is a ring of slots of a third of a page each (64 tokens x 192
//           values, 24 KB), six at 16 columns: two pages, one worked on and one under way; 175 KB,
//           which leaves 55 KB to kernels beside this one. The loader starts ahead of the kernels
//           before it: the plan, the block ids and rows of earlier steps are complete, since the
//           kernel behind mla_plan is launched without programmatic dependence and so waits for all
//           before it, the step before included. Pages with rows of this step's tokens wait
//           (grid_dependency_wait).
// Numerics  f32 sums, bf16 probabilities, powers of two against a base that is the maximum of the
//           first page until a score exceeds it by 2^64. A column that sees no key gives zeros.
// Source    DeepSeek-V2 report, section 2.1; online softmax as in FlashAttention. The operands are
//           swapped: a page is 64 keys, so the scores are S^T = K q^T with keys on the tensor
//           cores' 64-row side and heads on the narrow one, and the sums O^T = K^T P^T read the
//           same slices the other way round. No row is padding at 16 heads.
#include "kernels/common/tensor_map.h"
#include "kernels/mla_decode/decode.cuh"

namespace r1d::kernels {
namespace mla {
namespace {

// A page is three slots of three slices each, in the order of a row: eight slices of latent, then
// rope. A slot is [8 groups of rows][slice][8 rows of 128 bytes]: one copy brings it, in the order
// of memory, and groups at an even distance are an operand of wgmma.
constexpr int kSlotSlices = 3;
constexpr int kPageSlots = kSlices / kSlotSlices;
constexpr int kSlotBytes = kSlotSlices * kSliceBytes;
constexpr int kAtomBytes = 8 * 128;
constexpr int kRowGroupBytes = kSlotSlices * kAtomBytes;
constexpr int kRopeSlice = kSlices - 1;
constexpr int kQueryGroupBytes = kSlices * kAtomBytes;
// What the descriptor word of values, an M-major operand, has more: its leading offset is the
// distance of groups, not 16 bytes.
constexpr uint32_t kTransposed = (kRowGroupBytes / 16 - 1) << 16;

// Shared memory of a block for `kColumns` (query token, head) columns.
template <int kColumns>
struct Shared {
  static constexpr int kSlots = kColumns == 16 ? 6 : kColumns == 32 ? 7 : 5;
  uint8_t slots[kSlots][kSlotBytes];                   // 1024-byte aligned, 128-byte swizzle
  uint8_t queries[kColumns / 8][kSlices][kAtomBytes];  // the same for rows of columns
  uint8_t probabilities[2][kColumns * 128];            // [column][64 keys] bf16, 128-byte swizzle
  // What a group has of the scores of the other's columns.
  float4 scores[2][kColumns / 16][kGroupThreads];
  // Maxima, then sums, of a group's warps over the columns it scores.
  float warp_values[2][kGroupWarps][kColumns / 2];
  float factors[kColumns];  // of the sums so far
  float weights[kColumns];  // of a finished item's sums
  uint64_t full[kSlots];
  uint64_t empty[kSlots];
  uint64_t queries_full;
  uint64_t queries_empty;
};

#ifdef R1D_SM90

// ---- load --------------------------------------------------------------------------------------

// One warp: the cache rows of all the block's items, slot by slot.
template <int kColumns, bool kDeterministic>
__device__ void load_cache(Shared<kColumns>& shared,
                           const CUtensorMap& cache_map,
                           const Arguments& args,
                           Walk<kDeterministic> walk) {
  const int lane = threadIdx.x % 32;
  const int blocks_a_page = kPage / args.block_size;
  const uint64_t policy = l2_evict_first();
  RingPlace<Shared<kColumns>::kSlots> place(0, 1);  // parity 1: an empty slot needs no wait
  // The first page's block is known from the plan: one load fewer before the first copy.
  const int known_block = walk.sequence.first_block;
  const int known_sequence = args.block_size == kPage ? walk.sequence.index : -1;
  const int known_page = walk.first_page();
  bool waited = false;
  while (walk.next()) {
    // Pages before it were written by earlier steps.
    const int fresh_page = (walk.sequence.context_len - walk.sequence.query_len) / kPage;
    const int32_t* ids = args.block_ids + walk.sequence.block_begin;
    const int last = (walk.sequence.context_len + args.block_size - 1) / args.block_size;
    int held = 0;  // lane's id of a batch of 32
    int batch = -1;
    for (int page = walk.begin; page < walk.end; ++page) {
      const int first = page * blocks_a_page;
      const int count = min(blocks_a_page, last - first);
      if (page >= fresh_page && !waited) {
        grid_dependency_wait();
        waited = true;
      }
      int rows[4];
      if (walk.sequence.index == known_sequence && page == known_page) {
        rows[0] = known_block * kPage;
      } else {
        if (first / 32 != batch) {
          batch = first / 32;
          held = batch * 32 + lane < last ? ids[batch * 32 + lane] : 0;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          rows[i] = __shfl_sync(~0U, held, (first + i) % 32) * args.block_size;
        }
      }
      // One thread issues it all: what a copy costs here times their number is a bound of its own.
      if (lane == 0) {
        const uint32_t bytes = count * args.block_size * 128 * kSlotSlices;
        auto at = place;
#pragma unroll
        for (int k = 0; k < kPageSlots; ++k) {
          uint8_t* to = shared.slots[at.slot];
          uint64_t* full = &shared.full[at.slot];
          mbarrier_wait(&shared.empty[at.slot], at.parity);
          mbarrier_arrive_expect(full, bytes);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (i >= count) break;
            tensor_load_4d_hint(to + i * (args.block_size / 8) * kRowGroupBytes,
                                &cache_map,
                                0,
                                0,
                                k * kSlotSlices,
                                rows[i] / 8,
                                full,
                                policy);
          }
          at = at + 1;
        }
      }
      place = place + kPageSlots;
      __syncwarp();
    }
  }
}

// One thread: the queries of each item.
template <int kColumns, bool kDeterministic>
__device__ void load_queries_at_once(Shared<kColumns>& shared,
                                     const CUtensorMap& query_map,
                                     const Arguments& args,
                                     Walk<kDeterministic> walk,
                                     int group) {
  uint32_t parity = 1;
  bool waited = false;
  while (walk.next()) {
    const int row = walk.sequence.query_begin * args.heads + group * kColumns;
    if (!waited) grid_dependency_wait();
    waited = true;
    mbarrier_wait(&shared.queries_empty, parity);
    parity ^= 1;
    mbarrier_arrive_expect(&shared.queries_full, sizeof(shared.queries));
    tensor_load_4d(shared.queries, &query_map, 0, 0, 0, row / 8, &shared.queries_full);
  }
}

// ---- compute -----------------------------------------------------------------------------------

// A math warpgroup. Both work on every page, each with half of the values: a group's part of the
// scores of all columns, of which it hands half to the other group and completes the rest with the
// other's; then, with the probabilities of both, the sums of its values.
template <int kColumns, bool kDeterministic>
class MathGroup {
  static constexpr int kOwn = kColumns / 2;  // columns whose probabilities it computes
  static constexpr int kTiles = 4;           // 64 values each, that it scores and sums
  static constexpr int kSlots = Shared<kColumns>::kSlots;
  // A column's base is the maximum of its first page until a score exceeds it by this (in powers of
  // two), so that hardly a page waits for its maximum and sums are hardly ever rescaled. f32 and
  // bf16 have the range.
  static constexpr float kHeadroom = 64;
  static constexpr float kNoBase = -1e30F;  // of a column that has seen no key: below any score
  using Product = Wgmma<kColumns>;

 public:
  __device__ MathGroup(Shared<kColumns>& shared, const Arguments& args, int group)
      : shared_(shared),
        args_(args),
        group_(group),
        half_(__shfl_sync(~0U, static_cast<int>(threadIdx.x) / kGroupThreads, 0)),
        warp_(__shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32 % kGroupWarps, 0)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        slots_(descriptor_word(shared.slots)),
        queries_(descriptor_word(shared.queries)) {}

  __device__ void run(Walk<kDeterministic> walk) {
    uint32_t queries_parity = 0;
    while (walk.next()) {
      begin_item();
      mbarrier_wait(&shared_.queries_full, queries_parity);
      queries_parity ^= 1;
      for (int page = walk.begin; page < walk.end; ++page) {
        scores();
        const int valid = walk.sequence.context_len - page * kPage;
        if (valid - kPage < walk.sequence.query_len - 1) mask(walk.sequence, page);
        if (valid < kPage) clear_rows(valid);
        softmax(page == walk.begin);
        sums(walk, page + 1 == walk.end);
        place_ = place_ + kPageSlots;
      }
      finish_item(walk);
      fence_async_shared();
      if (lane_ == 0) mbarrier_arrive(&shared_.queries_empty);
    }
  }

 private:
  __device__ __forceinline__ void wait(int slot) {
    const auto at = place_ + slot;
    mbarrier_wait(&shared_.full[at.slot], at.parity);
  }
  __device__ __forceinline__ void release(int slot) {
    if (lane_ == 0) mbarrier_arrive(&shared_.empty[(place_ + slot).slot]);
  }
  // Of this thread's score own_[4 j + 2 h + c].
  __device__ __forceinline__ int own_column(int j, int c) const {
    return half_ * kOwn + 8 * j + 2 * (lane_ % 4) + c;
  }
  // The slice of a page that holds a tile's values, and its keys' descriptor word.
  __device__ __forceinline__ int tile_slice(int tile) const { return half_ * kTiles + tile; }
  __device__ __forceinline__ uint32_t slice_word(int slice) const {
    return slots_ + (place_ + slice / kSlotSlices).slot * (kSlotBytes / 16) +
           slice % kSlotSlices * (kAtomBytes / 16);
  }

  __device__ void begin_item() {
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) {
      base_[i] = kNoBase;
      sum_[i] = 0;
    }
#pragma unroll
    for (auto& tile : o_) {
#pragma unroll
      for (float& value : tile) value = 0;
    }
  }

  // S^T [64 keys, all columns] = K q^T over the group's values and its half of rope; then the whole
  // scores of its own columns.
  __device__ void scores() {
    float s[kColumns / 2];
    uint32_t queries = queries_ + half_ * (kTiles * kAtomBytes / 16);
    asm volatile("" : "+r"(queries));  // else its descriptors are kept in registers
    wgmma_fence_registers(s);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile != 1) {  // whose slot is that of 0
        wait(tile_slice(tile) / kSlotSlices);
        wgmma_fence();
      }
      const uint32_t keys = slice_word(tile_slice(tile));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Product::template bf16<0, 0>(
            s,
            descriptor<kRowGroupBytes>(keys, step * 32),
            descriptor<kQueryGroupBytes>(queries, tile * kAtomBytes + step * 32),
            tile + step > 0);
      }
    }
    wait(kRopeSlice / kSlotSlices);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      Product::template bf16<0, 0>(
          s,
          descriptor<kRowGroupBytes>(slice_word(kRopeSlice) + half_ * 4, step * 32),
          descriptor<kQueryGroupBytes>(queries_ + half_ * 4, kRopeSlice * kAtomBytes + step * 32),
          1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_registers(s);
    release(half_ == 0 ? 2 : 0);  // the slot whose values are the other group's
    exchange(s);
  }

  // Each warp hands the one with the same keys in the other group the columns that are its.
  __device__ __forceinline__ void exchange(const float (&s)[kColumns / 2]) {
    const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
      float other[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        own_[4 * j + i] = half_ == 0 ? s[4 * j + i] : s[kOwn / 2 + 4 * j + i];
        other[i] = half_ == 0 ? s[kOwn / 2 + 4 * j + i] : s[4 * j + i];
      }
      shared_.scores[1 - half_][j][thread] = make_float4(other[0], other[1], other[2], other[3]);
    }
    named_barrier(kBarrierPair + warp_, 64);
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
      const float4 rest = shared_.scores[half_][j][thread];
      own_[4 * j] += rest.x;
      own_[4 * j + 1] += rest.y;
      own_[4 * j + 2] += rest.z;
      own_[4 * j + 3] += rest.w;
    }
  }

  // Keys past a query token's own position, or past the sequence, count for nothing.
  __device__ void mask(const PlannedSequence& sequence, int page) {
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int query = (group_ * kColumns + own_column(j, c)) / args_.heads;
        const int seen =
            min(sequence.context_len - sequence.query_len + 1 + query, sequence.context_len);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int key = page * kPage + 16 * warp_ + 8 * h + lane_ / 4;
          if (key >= seen) own_[4 * j + 2 * h + c] = -INFINITY;
        }
      }
    }
  }

  // Rows past the sequence may hold anything, and 0 * NaN is not 0. Warps that still compute scores
  // from them mask those.
  __device__ void clear_rows(int valid) {
    const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
    for (int k = 0; k < kTiles; ++k) {
      uint8_t* slice = shared_.slots[(place_ + tile_slice(k) / kSlotSlices).slot] +
                       tile_slice(k) % kSlotSlices * kAtomBytes;
      for (int i = valid * 8 + thread; i < kPage * 8; i += kGroupThreads) {
        *reinterpret_cast<uint4*>(slice + i / 64 * kRowGroupBytes + i % 64 * 16) =
            make_uint4(0, 0, 0, 0);
      }
    }
  }

  // own_ -> probabilities in shared memory.
  __device__ void softmax(bool first_page) {
    turn_ ^= 1;  // other warps may still multiply the last page's
    if (!first_page) {
      bool above = false;
#pragma unroll
      for (int j = 0; j < kOwn / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          above |= fmaxf(own_[4 * j + c], own_[4 * j + 2 + c]) > base_[2 * j + c] + kHeadroom;
        }
      }
      float sums[kOwn / 4];
      store_probabilities(sums);
      if (!named_barrier_any(kBarrierAll, kMathThreads, above)) {
#pragma unroll
        for (int i = 0; i < kOwn / 4; ++i) sum_[i] += sums[i];
        return;
      }
    }
    raise_bases();
  }

  // Against the bases; `sums` gets those of this thread's keys.
  __device__ __forceinline__ void store_probabilities(float (&sums)[kOwn / 4]) {
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
      float p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i] = exp2_fast(own_[4 * j + i] - base_[2 * j + i % 2]);
#pragma unroll
      for (int c = 0; c < 2; ++c) sums[2 * j + c] = p[c] + p[2 + c];
      // Keys 16 warp .. + 15 of eight columns: two chunks of eight keys in each column's row.
      const int row = lane_ % 8;
      const int column = half_ * kOwn + 8 * j + row;
      const int chunk = 2 * warp_ + lane_ / 8 % 2;
      stmatrix_x2_trans(probabilities() + column * 128 + ((chunk ^ row) * 16),
                        pack_bf16(p[0], p[1]),
                        pack_bf16(p[2], p[3]));
    }
    fence_async_shared();
  }

  // The same where a column's scores may exceed its base: first finds their maximum, and rescales.
  // A column's bits do not depend on the others.
  __device__ void raise_bases() {
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float most = column_max(fmaxf(own_[4 * j + c], own_[4 * j + 2 + c]));
        if (lane_ < 4) shared_.warp_values[half_][warp_][8 * j + 2 * lane_ + c] = most;
      }
    }
    named_barrier(kBarrierGroup + half_, kGroupThreads);
    float sums[kOwn / 4];
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int i = 2 * j + c;
        float most = kNoBase;
#pragma unroll
        for (int w = 0; w < kGroupWarps; ++w) {
          most = fmaxf(most, shared_.warp_values[half_][w][8 * j + 2 * (lane_ % 4) + c]);
        }
        if (!(most > base_[i] + kHeadroom)) most = base_[i];
        const float decay = exp2_fast(base_[i] - most);
        base_[i] = most;
        sum_[i] *= decay;
        if (warp_ == 0 && lane_ < 4) shared_.factors[own_column(j, c)] = decay;
      }
    }
    store_probabilities(sums);
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) sum_[i] += sums[i];
    named_barrier(kBarrierAll, kMathThreads);
    scale_sums(shared_.factors);
  }
  __device__ __forceinline__ uint32_t probabilities() const {
    return smem_address(shared_.probabilities[turn_]);
  }

  // By a factor a column.
  __device__ __forceinline__ void scale_sums(const float* of_columns) {
    float factors[kColumns / 4];
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) {
      factors[i] = of_columns[8 * (i / 2) + 2 * (lane_ % 4) + i % 2];
    }
    bool any = false;
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) any |= factors[i] != 1.0F;
    if (!__any_sync(~0U, any)) return;
#pragma unroll
    for (auto& tile : o_) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) tile[i] *= factors[i / 4 * 2 + i % 2];
    }
  }

  // O^T [own values, columns] += K^T P^T. Of an item's last page: beside it, the columns' weights.
  __device__ void sums(const Walk<kDeterministic>& walk, bool last_page) {
#pragma unroll
    for (auto& tile : o_) wgmma_fence_registers(tile);
    wgmma_fence();
    const uint32_t p = descriptor_word(shared_.probabilities[turn_]);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint32_t values = slice_word(tile_slice(tile)) + kTransposed;
#pragma unroll
      for (int step = 0; step < 4; ++step) {  // 16 keys each
        Product::template bf16<1, 0>(o_[tile],
                                     descriptor<kRowGroupBytes>(values, step * 2 * kRowGroupBytes),
                                     descriptor(p, step * 32),
                                     1);
      }
    }
    wgmma_commit();
    constexpr bool kBeside = !moves_registers(kColumns);  // else it lacks the registers
    if (kBeside && last_page) weigh(walk);
    wgmma_wait<0>();
#pragma unroll
    for (auto& tile : o_) wgmma_fence_registers(tile);
    if (!kBeside && last_page) weigh(walk);
    release(half_);
    release(half_ + 1);
  }

  // ---- reduce and store ------------------------------------------------------------------------

  // First row of the workspace's partial sums.
  __device__ __forceinline__ int64_t partial_row(const Walk<kDeterministic>& walk) const {
    return (static_cast<int64_t>(walk.slot) * args_.groups + group_) * kColumns;
  }

  // The columns' weights in shared memory, and their log2-sum-exps in the workspace.
  __device__ __forceinline__ void weigh(const Walk<kDeterministic>& walk) {
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) {
      const float sum = column_sum(sum_[i]);
      if (lane_ < 4) shared_.warp_values[half_][warp_][8 * (i / 2) + 2 * lane_ + i % 2] = sum;
    }
    named_barrier(kBarrierGroup + half_, kGroupThreads);
    if (warp_ == 0 && lane_ < 4) {
#pragma unroll
      for (int i = 0; i < kOwn / 4; ++i) {
        const int own = 8 * (i / 2) + 2 * lane_ + i % 2;
        float sum = 0;
        for (int w = 0; w < kGroupWarps; ++w) sum += shared_.warp_values[half_][w][own];
        shared_.weights[half_ * kOwn + own] = sum > 0 ? 1.0F / sum : 0.0F;
        if (walk.slot >= 0) {
          args_.out.lse[partial_row(walk) + half_ * kOwn + own] = base_[i] + log2f(sum);
        }
      }
    }
  }

  // Multiplies the sums by the weights and stores them.
  __device__ void finish_item(const Walk<kDeterministic>& walk) {
    named_barrier(kBarrierAll, kMathThreads);
    scale_sums(shared_.weights);
    const int64_t row = partial_row(walk);
    const int columns = min(walk.sequence.query_len * args_.heads - group_ * kColumns, kColumns);
    const int64_t whole =
        static_cast<int64_t>(walk.sequence.query_begin) * args_.heads + group_ * kColumns;
    auto* latent = static_cast<__nv_bfloat16*>(args_.out.latent);
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const int column = 8 * (i / 4) + 2 * (lane_ % 4) + i % 2;
      if (column >= columns) continue;
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
        const int value =
            (half_ * kTiles + k) * kSliceCols + 16 * warp_ + 8 * (i / 2 % 2) + lane_ / 4;
        if (walk.slot >= 0) {
          args_.out.partial[(row + column) * kLatent + value] = o_[k][i];
        } else {
          latent[(whole + column) * kLatent + value] = __float2bfloat16(o_[k][i]);
        }
      }
    }
  }

  Shared<kColumns>& shared_;
  const Arguments& args_;
  const int group_;
  const int half_;
  const int warp_;
  const int lane_;
  const uint32_t slots_;  // words of descriptors
  const uint32_t queries_;
  RingPlace<kSlots> place_{0};
  int turn_ = 0;         // which probabilities
  float own_[kOwn / 2];  // scores
  float base_[kOwn / 4];
  float sum_[kOwn / 4];  // of this thread's keys
  float o_[kTiles][kColumns / 2];
};

#endif  // R1D_SM90

template <int kColumns, bool kDeterministic>
__global__ void __launch_bounds__(bound_threads(kColumns), 1)
    decode_kernel(const __grid_constant__ CUtensorMap query_map,
                  const __grid_constant__ CUtensorMap cache_map,
                  const __grid_constant__ Arguments args) {
#ifdef R1D_SM90
  extern __shared__ uint8_t raw[];
  auto& shared =
      *reinterpret_cast<Shared<kColumns>*>(raw + (1024 - smem_address(raw) % 1024) % 1024);
  const int part = static_cast<int>(blockIdx.x) / args.groups;
  const int group = static_cast<int>(blockIdx.x) % args.groups;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  // The plan was complete before the kernels ahead of us began.
  const Walk<kDeterministic> walk(args.plan, args.num_sequences, part);
  if (threadIdx.x == kMathThreads) tensor_prefetch_map(&cache_map);
  if (threadIdx.x == kMathThreads + 32) tensor_prefetch_map(&query_map);
  init_barriers<threads_of(kColumns) / 32>(shared, 2 * kGroupWarps);
  __syncthreads();
  if (warp < kMathThreads / 32) {
    if constexpr (moves_registers(kColumns)) registers_raise<224>();
    grid_dependency_wait();
    grid_launch_dependents();
    MathGroup<kColumns, kDeterministic>(shared, args, group).run(walk);
    return;
  }
  if constexpr (moves_registers(kColumns)) registers_lower<56>();
  if (warp == kMathThreads / 32) {
    load_cache<kColumns, kDeterministic>(shared, cache_map, args, walk);
  } else if (threadIdx.x == kMathThreads + 32) {
    load_queries_at_once<kColumns>(shared, query_map, args, walk, group);
  }
#endif
}

template <int kColumns>
cudaError_t launch_decode(const CUtensorMap& query_map,
                          const CUtensorMap& cache_map,
                          const Arguments& args,
                          const MlaShape& shape,
                          const Launch& launch) {
  const Grid grid{.blocks = dim3(static_cast<unsigned>(tiling(shape).parts * args.groups)),
                  .threads = dim3(threads_of(kColumns)),
                  .shared_bytes = sizeof(Shared<kColumns>) + 1024};
  static_assert(sizeof(Shared<kColumns>) + 1024 <= 232448, "a block's shared memory");
  return enqueue(
      shape.deterministic ? decode_kernel<kColumns, true> : decode_kernel<kColumns, false>,
      grid,
      launch,
      query_map,
      cache_map,
      args);
}

}  // namespace
}  // namespace mla

bool mla_decode_serves(const MlaDims& dims) {
  return dims.latent == mla::kLatent && dims.rope == mla::kRope && dims.nope == mla::kNope &&
         dims.value == mla::kValue && dims.heads >= 8 && dims.heads <= 128 && dims.heads % 8 == 0 &&
         (dims.block_size == 16 || dims.block_size == 32 || dims.block_size == 64);
}

size_t mla_workspace_bytes(const MlaShape& shape) {
  return mla::workspace_view(nullptr, shape).bytes;
}

cudaError_t mla_decode(const void* q_latent,
                       const LatentCache& cache,
                       int64_t num_blocks,
                       const StepSequences& sequences,
                       const MlaShape& shape,
                       const void* plan,
                       void* workspace,
                       const Launch& launch) {
  if (shape.num_tokens == 0 || shape.num_sequences == 0) return cudaSuccess;
  const MlaDims dims{.heads = shape.heads, .block_size = cache.block_size};
  if (!mla_decode_serves(dims) || cache.width != mla::kRow || cache.dtype == DType::kF32 ||
      shape.max_query_len < 1 || shape.max_query_len > mla::kMaxQuery) {
    return cudaErrorInvalidValue;
  }
  const mla::Tiling tiling = mla::tiling(shape);
  const mla::Arguments args{.plan = mla::plan_view(plan, shape),
                            .block_ids = sequences.block_ids,
                            .num_sequences = shape.num_sequences,
                            .groups = tiling.groups,
                            .heads = shape.heads,
                            .block_size = cache.block_size,
                            .out = mla::workspace_view(workspace, shape)};
  CUtensorMap query_map;
  const TensorMap2d queries{.data = q_latent,
                            .rows = int64_t{shape.num_tokens} * shape.heads,
                            .cols = mla::kRow,
                            .box_rows = tiling.columns,
                            .box_cols = mla::kSliceCols};
  if (cache.dtype == DType::kF8E4M3) {
    const cudaError_t error = encode_2d(queries, &query_map);
    if (error != cudaSuccess) return error;
    return mla::decode_fp8(query_map, cache, num_blocks, args, shape, launch);
  }
  cudaError_t error = encode_slices(queries, mla::kSlices, &query_map);
  if (error != cudaSuccess) return error;
  CUtensorMap cache_map;
  error = encode_slices({.data = cache.data,
                         .rows = num_blocks * cache.block_size,
                         .cols = mla::kRow,
                         .box_rows = cache.block_size,
                         .box_cols = mla::kSliceCols},
                        mla::kSlotSlices,
                        &cache_map);
  if (error != cudaSuccess) return error;
  switch (tiling.columns) {
    case 16:
      return mla::launch_decode<16>(query_map, cache_map, args, shape, launch);
    case 32:
      return mla::launch_decode<32>(query_map, cache_map, args, shape, launch);
    default:
      return mla::launch_decode<64>(query_map, cache_map, args, shape, launch);
  }
}

cudaError_t mla_attend(const void* q,
                       const MlaWeights& weights,
                       const LatentCache& cache,
                       int64_t num_blocks,
                       const MlaStep& step,
                       const MlaOutput& out,
                       const Launch& launch) {
  cudaError_t error = mla_absorb_queries(
      q, weights, step.rope, step.softmax_scale, step.shape, step.q_latent, launch);
  if (error != cudaSuccess) return error;
  error = mla_decode(step.q_latent,
                     cache,
                     num_blocks,
                     step.sequences,
                     step.shape,
                     step.plan,
                     step.workspace,
                     launch);
  if (error != cudaSuccess) return error;
  return mla_expand_values(step.workspace, weights, step.shape, step.plan, out, launch);
}

}  // namespace r1d::kernels
