// SPDX-License-Identifier: Apache-2.0
// Problem   mla_decode over a cache of e4m3 codes with a scale per token and 128 values.
// Layout    A block of tokens as ops::LatentFormat has it: 4 groups of codes [B, 128], rope
//           [B, 64] bf16, scales [B, 4] f32. In all 41 B / 8 rows of 128 bytes, so that one tensor
//           map cuts codes and rope out of the cache.
// Bound     656 bytes a cached token: 64 x 4096 tokens 40 us at 4.3 TB/s. An SM then has some 2400
//           clocks for a page of 64 tokens.
// Launch    As mla_decode: the ring holds 22 slices of 8 KB at 16 columns, 4.4 pages.
// Numerics  Scores are products of e4m3 codes: a query is two sets of them whose sum has about
//           bf16's precision. The f32 sums over each 128 values are multiplied by their key's and
//           the query's scale. For the sums the codes become f16, exactly, and are weighed by the
//           probabilities times the scales, in f16. So that those products use f16's range, a key's
//           reference for the running maximum is its score times its largest scale, brought to
//           2^14.
// Source    DeepSeek-V2 report, section 2.1. The codes never become 16-bit values in shared memory:
//           the scores' products take them as they are, and for the sums a warp reads them as
//           ldmatrix delivers bytes, widens them in registers (two codes an instruction) and hands
//           them to wgmma as its register operand. The transposed load pairs two values of a key,
//           which one byte permutation turns into two keys of a value.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/common/tensor_map.h"
#include "kernels/mla_decode/decode.cuh"

namespace r1d::kernels::mla {
namespace {

constexpr ops::LatentFormat kFormat{.dtype = DType::kF8E4M3, .latent = kLatent, .rope = kRope};
constexpr int kBytesPerToken = static_cast<int>(kFormat.bytes_per_token());
constexpr int kBytesBeforeScales = static_cast<int>(kFormat.scales_offset(1, 0));  // a token's
constexpr int kScales = static_cast<int>(kFormat.groups());                        // of a token
constexpr int kParts = 1 + kScales;  // slices of a page: rope, then codes
constexpr int kRowBytes = 128;
constexpr int kThreads = kMathThreads + kGroupThreads;  // the loaders give registers away
static_assert(kBytesPerToken * 16 % kRowBytes == 0, "the smallest block is whole rows");
static_assert(kScales == 4, "a token's scales are one 16-byte load");

// Up to 32 columns the groups take turns on an item's pages and meet at its end. 64 columns are two
// halves: a group takes one, on every page.
template <int kColumns>
struct SharedFp8 {
  static constexpr int kOwn = kColumns < 32 ? kColumns : 32;  // columns of a math group
  static constexpr bool kTurns = kColumns <= 32;
  // In all no more than the 168 a thread that the block begins with. With 56 the loader spills,
  // which costs a tenth where it is the bound.
  static constexpr int kMathRegisters = kOwn == 16 ? 216 : 224;
  static constexpr int kLoaderRegisters = kOwn == 16 ? 72 : 56;
  static constexpr int kSlots = kColumns == 16 ? 22 : kColumns == 32 ? 18 : 13;
  static constexpr int kScalePages = 8;  // more than kSlots slices can belong to
  uint8_t slots[kSlots][kSliceBytes];    // 1024-byte aligned, 128-byte swizzle
  // K-major, 128-byte swizzle: rope, then 8 slices of latent as loaded. These become 4 of twice as
  // many rows: for each kOwn columns their codes, then those of what the codes leave.
  uint8_t queries[kSlices][kColumns * 128];
  // Of each group and each 128 values: [column][64 keys] f16, 128-byte swizzle.
  uint8_t probabilities[2][kScales][kOwn * 128];
  float4 scales[kScalePages][kPage];
  float query_scale[kColumns];
  float warp_values[2][kGroupWarps][kOwn];  // maxima, then sums, of a group's warps
  float group_max[2][kOwn];                 // where the groups meet
  float group_sum[2][kOwn];
  uint64_t full[kSlots];
  uint64_t empty[kSlots];
  uint64_t queries_full;
  uint64_t queries_empty;
};

#ifdef R1D_SM90

// Two e4m3 codes to f16, exactly.
__device__ __forceinline__ uint32_t widen(uint16_t codes) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
  return halves;
}
__device__ __forceinline__ uint32_t widen_low(uint32_t codes) {
  return widen(static_cast<uint16_t>(codes));
}
__device__ __forceinline__ uint32_t widen_high(uint32_t codes) {
  return widen(static_cast<uint16_t>(codes >> 16));
}
__device__ __forceinline__ float2 unpack_f16(uint32_t pair) {
  return __half22float2(reinterpret_cast<const __half2&>(pair));
}
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
// Four values as e4m3 codes.
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2({a, b}, __NV_SATFINITE, __NV_E4M3);
  return low | static_cast<uint32_t>(__nv_cvt_float2_to_fp8x2({c, d}, __NV_SATFINITE, __NV_E4M3))
                   << 16;
}

// ---- load --------------------------------------------------------------------------------------

// One warp: the cache rows of all the block's items, slice by slice.
template <int kColumns, bool kDeterministic>
__device__ void load_cache(SharedFp8<kColumns>& shared,
                           const CUtensorMap& cache_map,
                           const uint8_t* cache,
                           const Arguments& args,
                           Walk<kDeterministic> walk) {
  using Place = RingPlace<SharedFp8<kColumns>::kSlots>;
  const int lane = threadIdx.x % 32;
  const int size = args.block_size;
  const int blocks_a_page = kPage / size;
  const int block_bytes = size * kBytesPerToken;
  const uint64_t policy = l2_evict_first();
  Place place(0, 1);  // parity 1: an empty slot needs no wait
  // The first page's block is known from the plan: one load fewer before the first copy.
  const int known_block = walk.sequence.first_block;
  const int known_sequence = size == kPage ? walk.sequence.index : -1;
  const int known_page = walk.first_page();
  bool waited = false;
  int pages = 0;
  while (walk.next()) {
    // Pages before it were written by earlier steps.
    const int fresh_page = (walk.sequence.context_len - walk.sequence.query_len) / kPage;
    const int32_t* ids = args.block_ids + walk.sequence.block_begin;
    const int last = (walk.sequence.context_len + size - 1) / size;
    int held = 0;  // lane's id of a batch of 32
    int batch = -1;
    for (int page = walk.begin; page < walk.end; ++page, ++pages) {
      const int first = page * blocks_a_page;
      const int count = min(blocks_a_page, last - first);
      if (page >= fresh_page && !waited) {
        grid_dependency_wait();
        waited = true;
      }
      int blocks[4];
      if (walk.sequence.index == known_sequence && page == known_page) {
        blocks[0] = known_block;
      } else {
        if (first / 32 != batch) {
          batch = first / 32;
          held = batch * 32 + lane < last ? ids[batch * 32 + lane] : 0;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) blocks[i] = __shfl_sync(~0U, held, (first + i) % 32);
      }
      // One thread issues it all: what a slice costs here times their number is a bound of its own.
      if (lane == 0) {
        float4* scales = shared.scales[pages % SharedFp8<kColumns>::kScalePages];
        const uint32_t bytes = count * size * kRowBytes;
        const uint32_t scale_bytes = count * size * static_cast<uint32_t>(sizeof(float4));
        auto at = place;
        int row = kScales * size;  // of a block's rows of 128 bytes: rope behind the groups
#pragma unroll 1
        for (int k = 0; k < kParts; ++k) {
          uint8_t* to = shared.slots[at.slot];
          uint64_t* full = &shared.full[at.slot];
          mbarrier_wait(&shared.empty[at.slot], at.parity);
          mbarrier_arrive_expect(full, k == 0 ? bytes + scale_bytes : bytes);
          const auto load = [&](int i) {
            tensor_load_2d_hint(to + i * size * kRowBytes,
                                &cache_map,
                                0,
                                blocks[i] * (block_bytes / kRowBytes) + row,
                                full,
                                policy);
            if (k > 0) return;
            bulk_load_hint(
                scales + i * size,
                cache + static_cast<int64_t>(blocks[i]) * block_bytes + size * kBytesBeforeScales,
                size * static_cast<uint32_t>(sizeof(float4)),
                full,
                policy);
          };
          load(0);
          if (blocks_a_page > 1) {
#pragma unroll
            for (int i = 1; i < 4; ++i) {
              if (i >= count) break;
              load(i);
            }
          }
          row = k == 0 ? 0 : row + size;
          at = at + 1;
        }
      }
      place = place + kParts;
      __syncwarp();
    }
  }
}

// ---- compute -----------------------------------------------------------------------------------

template <int kColumns, bool kDeterministic>
class MathGroup {
  using Memory = SharedFp8<kColumns>;
  static constexpr int kOwn = Memory::kOwn;
  static constexpr bool kTurns = Memory::kTurns;
  static constexpr int kSlots = Memory::kSlots;
  static constexpr int kTiles = kLatent / kPage;                // 64 values each
  static constexpr int kStored = kTurns ? kTiles / 2 : kTiles;  // tiles that it stores
  // Where registers allow it, a product takes both sets of the queries' codes, which reads the keys
  // once for both; two groups' scores are computed side by side; and the first values are widened
  // before the probabilities stand.
  static constexpr bool kRoom = kOwn == 16;
  static constexpr int kPartial = kRoom ? 2 : 1;
  static constexpr int kSets = kRoom ? 1 : 2;  // one after the other
  // Products under way at once: of 16 codes or keys each. Their register operands exist twice.
  static constexpr int kBatch = kRoom ? 4 : 2;
  static constexpr int kOfTile = 4 / kBatch;
  static constexpr int kBatches = kTiles * kOfTile;
  using Product = Wgmma<kOwn>;
  using Codes = Wgmma<kRoom ? 2 * kOwn : kOwn>;

 public:
  __device__ MathGroup(Memory& shared, const Arguments& args, int group)
      : shared_(shared),
        args_(args),
        group_(group),
        half_(__shfl_sync(~0U, static_cast<int>(threadIdx.x) / kGroupThreads, 0)),
        warp_(__shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32 % kGroupWarps, 0)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        slots_(descriptor_word(shared.slots)),
        queries_(descriptor_word(shared.queries[0] + (kTurns ? 0 : half_ * kOwn * kRowBytes))),
        probabilities_(descriptor_word(shared.probabilities[half_])) {}

  __device__ void run(Walk<kDeterministic> walk) {
    uint32_t queries_parity = 0;
    int position = 0;  // of the item's first slice in the ring
    int pages = 0;     // of the items before
    while (walk.next()) {
      mbarrier_wait(&shared_.queries_full, queries_parity);
      queries_parity ^= 1;
      split_queries();
      begin_item();
      for (int page = walk.begin + (kTurns ? half_ : 0); page < walk.end; page += kTurns ? 2 : 1) {
        const int number = page - walk.begin;
        place_ = RingPlace<kSlots>(position + number * kParts);
        const int valid = walk.sequence.context_len - page * kPage;
        scores(shared_.scales[(pages + number) % Memory::kScalePages], valid);
        if (valid - kPage < walk.sequence.query_len - 1) mask(walk.sequence, page);
        if (valid < kPage) clear_rows(valid);
        softmax();
        sums();
      }
      position = (position + (walk.end - walk.begin) * kParts) % (2 * kSlots);
      pages += walk.end - walk.begin;
      finish_item(walk);
      fence_async_shared();
      if (lane_ == 0) mbarrier_arrive(&shared_.queries_empty);
    }
  }

 private:
  __device__ __forceinline__ void release(int slice) {
    if (lane_ == 0) mbarrier_arrive(&shared_.empty[(place_ + slice).slot]);
  }
  // Column, within the group's, of this thread's values [4 j + 2 h + c].
  __device__ __forceinline__ int own_column(int j, int c) const {
    return 8 * j + 2 * (lane_ % 4) + c;
  }

  __device__ void begin_item() {
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) {
      max_[i] = -INFINITY;
      sum_[i] = 0;
    }
#pragma unroll
    for (auto& tile : o_) {
#pragma unroll
      for (float& value : tile) value = 0;
    }
  }

  // The latent slices of the queries become two sets of e4m3 codes, whose sum has about bf16's
  // precision: 3 bits and sign beside the leading one, and as many of the rest. A column has one
  // scale, a power of two.
  __device__ void split_queries() {
    constexpr int kThreadsOfRow = kMathThreads / kColumns;
    constexpr int kPieces = kLatent / 16 / kThreadsOfRow;  // of 16 values, a thread's
    const int row = static_cast<int>(threadIdx.x) / kThreadsOfRow;
    const int part = static_cast<int>(threadIdx.x) % kThreadsOfRow;
    uint32_t words[kPieces][8];  // bf16 pairs
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * kThreadsOfRow + part;
      const auto* chunks =
          reinterpret_cast<const uint4*>(shared_.queries[1 + piece / 4] + row * kRowBytes);
      const uint4 low = chunks[(2 * (piece % 4)) ^ (row % 8)];
      const uint4 high = chunks[(2 * (piece % 4) + 1) ^ (row % 8)];
      words[i][0] = low.x, words[i][1] = low.y, words[i][2] = low.z, words[i][3] = low.w;
      words[i][4] = high.x, words[i][5] = high.y, words[i][6] = high.z, words[i][7] = high.w;
#pragma unroll
      for (const uint32_t pair : words[i]) {
        largest = fmaxf(
            largest,
            fmaxf(fabsf(__uint_as_float(pair << 16)), fabsf(__uint_as_float(pair & 0xFFFF0000U))));
      }
    }
#pragma unroll
    for (int lanes = 1; lanes < kThreadsOfRow; lanes *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, lanes));
    }
    const float scale = ops::LatentFormat::scale_of(largest);
    const float inverse = ops::LatentFormat::inverse_of(scale);
    if (part == 0) shared_.query_scale[row] = scale;
    named_barrier(kBarrierAll, kMathThreads);  // all have read
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * kThreadsOfRow + part;
      uint32_t codes[4];
      uint32_t rest[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t* pairs = words[i] + 2 * k;
        const float v[4] = {__uint_as_float(pairs[0] << 16) * inverse,
                            __uint_as_float(pairs[0] & 0xFFFF0000U) * inverse,
                            __uint_as_float(pairs[1] << 16) * inverse,
                            __uint_as_float(pairs[1] & 0xFFFF0000U) * inverse};
        codes[k] = pack_e4m3(v[0], v[1], v[2], v[3]);
        const float2 low = unpack_f16(widen_low(codes[k]));
        const float2 high = unpack_f16(widen_high(codes[k]));
        rest[k] = pack_e4m3(v[0] - low.x, v[1] - low.y, v[2] - high.x, v[3] - high.y);
      }
      const int chunk = (row + row / kOwn * kOwn) * 8 + ((piece % 8) ^ (row % 8));
      auto* to = reinterpret_cast<uint4*>(shared_.queries[1 + 2 * (piece / 8)]) + chunk;
      to[0] = make_uint4(codes[0], codes[1], codes[2], codes[3]);
      to[kOwn * 8] = make_uint4(rest[0], rest[1], rest[2], rest[3]);
    }
    fence_async_shared();
    named_barrier(kBarrierAll, kMathThreads);
  }

  // S^T [64 keys, own columns] = K q^T: rope in bf16, then four groups of codes by both sets of the
  // queries' codes.
  __device__ void scores(const float4* scales, int valid) {
    uint32_t all_queries = queries_;
    asm volatile("" : "+r"(all_queries));  // else 36 descriptors are kept in registers
    mbarrier_wait(&shared_.full[place_.slot], place_.parity);
    const uint32_t rope = slots_ + place_.slot * (kSliceBytes / 16);
    const uint32_t latent = all_queries + (kTurns ? 0 : half_ * kOwn * kRowBytes / 16);
    float partial[kPartial][kOwn / kSets];
#pragma unroll
    for (int first = 0; first < kScales; first += kPartial) {
      uint32_t keys[kPartial];
#pragma unroll
      for (int p = 0; p < kPartial; ++p) {
        const auto at = place_ + (1 + first + p);
        mbarrier_wait(&shared_.full[at.slot], at.parity);
        keys[p] = slots_ + at.slot * (kSliceBytes / 16);
        wgmma_fence_registers(partial[p]);
      }
      if (first == 0) wgmma_fence_registers(s_);
      wgmma_fence();
      // Side by side what does not wait for one another.
#pragma unroll
      for (int i = 0; i < 4 * kSets; ++i) {  // 32 codes each
        const int step = i / kSets * 32;
        const int set = i % kSets * kOwn * kRowBytes;
        if (first == 0 && i % kSets == 0) {
          Product::template bf16<0, 0>(
              s_, descriptor(rope, step), descriptor(all_queries, step), i > 0);
        }
#pragma unroll
        for (int p = 0; p < kPartial; ++p) {
          const int slice = (1 + 2 * (first + p)) * kColumns * kRowBytes;
          Codes::e4m3(
              partial[p], descriptor(keys[p], step), descriptor(latent, slice + set + step), i > 0);
        }
      }
      wgmma_commit();
      if (first == 0) {
        const int key = 16 * warp_ + lane_ / 4;
        set_scales(scales, key, valid, 0);
        set_scales(scales, key + 8, valid, 1);
      }
      wgmma_wait<0>();
      if (first == 0) wgmma_fence_registers(s_);
#pragma unroll
      for (int p = 0; p < kPartial; ++p) add_scores(partial[p], first + p);
    }
    release(0);
  }
  __device__ __forceinline__ void add_scores(float (&sum)[kOwn / kSets], int g) {
    wgmma_fence_registers(sum);
    const float* query_scale = shared_.query_scale + (kTurns ? 0 : half_ * kOwn);
#pragma unroll
    for (int i = 0; i < kOwn / 2; ++i) {
      const float scale = query_scale[own_column(i / 4, i % 2)] * scale_[i / 2 % 2][g];
      float codes = sum[i];
      if constexpr (kRoom) codes += sum[i + kOwn / 2];
      s_[i] = fmaf(codes, scale, s_[i]);
    }
  }
  // This thread's key h; one past the sequence has scales of 0, whatever its place holds.
  __device__ __forceinline__ void set_scales(const float4* scales, int key, int valid, int h) {
    constexpr float kTop = 14;  // log2 of the largest probability times scale
    const float4 of_key = key < valid ? scales[key] : make_float4(0, 0, 0, 0);
    scale_[h][0] = of_key.x;
    scale_[h][1] = of_key.y;
    scale_[h][2] = of_key.z;
    scale_[h][3] = of_key.w;
    lift_[h] =
        __log2f(fmaxf(fmaxf(scale_[h][0], scale_[h][1]), fmaxf(scale_[h][2], scale_[h][3]))) - kTop;
  }

  // Keys past a query token's own position, or past the sequence, count for nothing.
  __device__ void mask(const PlannedSequence& sequence, int page) {
    const int first = group_ * kColumns + (kTurns ? 0 : half_ * kOwn);
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int query = (first + own_column(j, c)) / args_.heads;
        const int seen =
            min(sequence.context_len - sequence.query_len + 1 + query, sequence.context_len);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int key = page * kPage + 16 * warp_ + 8 * h + lane_ / 4;
          if (key >= seen) s_[4 * j + 2 * h + c] = -INFINITY;
        }
      }
    }
  }

  // Rows past the sequence may hold anything, and 0 * NaN is not 0. Whoever still computes scores
  // from them masks those.
  __device__ void clear_rows(int valid) {
    const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
    for (int g = 0; g < kScales; ++g) {
      auto* slice = reinterpret_cast<uint4*>(shared_.slots[(place_ + (1 + g)).slot]);
      for (int i = valid * 8 + thread; i < kPage * 8; i += kGroupThreads) {
        slice[i] = make_uint4(0, 0, 0, 0);
      }
    }
  }

  // s_ -> probabilities against the new reference, times each scale, in shared memory; sums so far
  // are brought to the new reference.
  __device__ void softmax() {
    float* warp_values = shared_.warp_values[half_][warp_];
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float most =
            column_max(fmaxf(s_[4 * j + c] + lift_[0], s_[4 * j + 2 + c] + lift_[1]));
        if (lane_ < 4) warp_values[own_column(j, c)] = most;
      }
    }
    // Behind it nobody reads the last page's probabilities either, and rows are cleared.
    named_barrier(kBarrierGroup + half_, kGroupThreads);
    if constexpr (kRoom) load_first_values();
    float decay[kOwn / 4];
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int i = 2 * j + c;
        float most = max_[i];
#pragma unroll
        for (int w = 0; w < kGroupWarps; ++w) {
          most = fmaxf(most, shared_.warp_values[half_][w][own_column(j, c)]);
        }
        const float base = most == -INFINITY ? 0.0F : most;
        decay[i] = exp2_fast(max_[i] - base);
        float& low = s_[4 * j + c];
        float& high = s_[4 * j + 2 + c];
        low = exp2_fast(low - base);
        high = exp2_fast(high - base);
        sum_[i] = sum_[i] * decay[i] + (low + high);
        max_[i] = most;
      }
      // Keys 16 warp .. + 15 of eight columns: two chunks of eight keys in each column's row.
      const int row = lane_ % 8;
      const int chunk = 2 * warp_ + lane_ / 8 % 2;
      const uint32_t to = smem_address(shared_.probabilities[half_]) + (8 * j + row) * kRowBytes +
                          ((chunk ^ row) * 16);
#pragma unroll
      for (int g = 0; g < kScales; ++g) {
        stmatrix_x2_trans(to + g * kOwn * kRowBytes,
                          pack_f16(s_[4 * j] * scale_[0][g], s_[4 * j + 1] * scale_[0][g]),
                          pack_f16(s_[4 * j + 2] * scale_[1][g], s_[4 * j + 3] * scale_[1][g]));
      }
    }
    fence_async_shared();
    if constexpr (kRoom) widen_values(0);
    named_barrier(kBarrierGroup + half_, kGroupThreads);
    scale_sums(decay);
  }

  __device__ __forceinline__ void scale_sums(const float (&factors)[kOwn / 4]) {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) any |= factors[i] != 1.0F;
    if (!__any_sync(~0U, any)) return;
#pragma unroll
    for (auto& tile : o_) {
#pragma unroll
      for (int i = 0; i < kOwn / 2; ++i) tile[i] *= factors[i / 4 * 2 + i % 2];
    }
  }

  // O^T [values, own columns] += K^T P^T. Row 8 h + r of a warp's 16 stands for value 2 r + h.
  __device__ void sums() {
    uint32_t probabilities = probabilities_;
    asm volatile("" : "+r"(probabilities));
    if constexpr (!kRoom) {
      load_first_values();
      widen_values(0);
    }
#pragma unroll
    for (auto& tile : o_) wgmma_fence_registers(tile);
#pragma unroll
    for (int batch = 0; batch < kBatches; ++batch) {
      const int tile = batch / kOfTile;
      const int first = batch % kOfTile * kBatch;
      if (batch > 0) {
        wgmma_wait<1>();  // whoever reads the registers of two batches ago
        widen_values(batch);
      }
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kBatch; ++step) {
        const int offset = tile / 2 * kOwn * kRowBytes + (first + step) * 32;
        Product::template f16_rs<0>(
            o_[tile], values_[batch % 2][step], descriptor(probabilities, offset), 1);
      }
      wgmma_commit();
      // The products hold what was loaded, so the slice may be overwritten.
      if (tile % 2 == 1 && first + kBatch == 4) release(1 + tile / 2);
    }
    wgmma_wait<0>();
#pragma unroll
    for (auto& tile : o_) wgmma_fence_registers(tile);
  }
  __device__ __forceinline__ void load_first_values() {
    load_values(0, codes_[0]);
    load_values(1, codes_[1]);
  }
  // A batch's codes become f16, and those of the second batch after it are requested.
  __device__ __forceinline__ void widen_values(int batch) {
    auto& codes = codes_[batch % 2];
#pragma unroll
    for (int step = 0; step < kBatch; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Two keys' pairs of values to two values' pairs of keys.
        const uint32_t pairs = __byte_perm(codes[step / 2][step % 2 * 2 + i], 0, 0x3120);
        values_[batch % 2][step][2 * i] = widen_low(pairs);
        values_[batch % 2][step][2 * i + 1] = widen_high(pairs);
      }
    }
    if (batch + 2 < kBatches) load_values(batch + 2, codes);
  }
  // A batch's codes, transposed: 16 values of 16 kBatch keys, 32 keys a load.
  __device__ __forceinline__ void load_values(int batch, uint32_t (&codes)[kBatch / 2][4]) {
    const int tile = batch * kBatch / 4;
    const int chunk = tile % 2 * 4 + warp_;
    const uint8_t* row = shared_.slots[(place_ + (1 + tile / 2)).slot] +
                         (batch * kBatch % 4 * 16 + lane_) * kRowBytes;
#pragma unroll
    for (int i = 0; i < kBatch / 2; ++i) {
      ldmatrix_x4_trans(codes[i],
                        smem_address(row) + i * 32 * kRowBytes + ((chunk ^ (lane_ % 8)) * 16));
    }
  }

  // ---- reduce and store ------------------------------------------------------------------------

  // Divides the sums by their columns' weights and stores them; a split's log2-sum-exp too.
  __device__ void finish_item(const Walk<kDeterministic>& walk) {
    const int first = kTurns ? 0 : half_ * kOwn;
    const int64_t row =
        (static_cast<int64_t>(walk.slot) * args_.groups + group_) * kColumns + first;
    float* lse = walk.slot >= 0 ? args_.out.lse + row : nullptr;
    float weight[kOwn / 4];
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) {
      const float sum = column_sum(sum_[i]);
      if (lane_ < 4) shared_.warp_values[half_][warp_][own_column(i / 2, i % 2)] = sum;
    }
    named_barrier(kBarrierGroup + half_, kGroupThreads);
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) {
      weight[i] = 0;
#pragma unroll
      for (int w = 0; w < kGroupWarps; ++w) {
        weight[i] += shared_.warp_values[half_][w][own_column(i / 2, i % 2)];
      }
    }
    if constexpr (kTurns) {
      meet(weight, lse);
    } else {
      if (lse != nullptr && warp_ == 0 && lane_ < 4) {
#pragma unroll
        for (int i = 0; i < kOwn / 4; ++i) {
          lse[own_column(i / 2, i % 2)] = max_[i] + log2f(weight[i]);
        }
      }
#pragma unroll
      for (float& w : weight) w = w > 0 ? 1.0F / w : 0.0F;
      scale_sums(weight);
      named_barrier(kBarrierAll, kMathThreads);  // warp_values may be written again
    }
    store(walk, row, first);
  }

  __device__ __forceinline__ void store(const Walk<kDeterministic>& walk, int64_t row, int first) {
    const int before = group_ * kColumns + first;
    const int columns = min(walk.sequence.query_len * args_.heads - before, kOwn);
    const int64_t whole = static_cast<int64_t>(walk.sequence.query_begin) * args_.heads + before;
    auto* latent = static_cast<__nv_bfloat16*>(args_.out.latent);
    const int first_tile = kTurns ? half_ * kStored : 0;
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = own_column(j, c);
        if (column >= columns) continue;
#pragma unroll
        for (int k = 0; k < kStored; ++k) {
          const int value = (first_tile + k) * kPage + 16 * warp_ + lane_ / 4 * 2;
          const float low = o_[k][4 * j + c];
          const float high = o_[k][4 * j + 2 + c];
          if (walk.slot >= 0) {
            *reinterpret_cast<float2*>(args_.out.partial + (row + column) * kLatent + value) =
                make_float2(low, high);
          } else {
            *reinterpret_cast<uint32_t*>(latent + (whole + column) * kLatent + value) =
                pack_bf16(low, high);
          }
        }
      }
    }
  }

  // The groups' sums become one: tiles 0..3 in the first group, 4..7 in the second, there moved to
  // the front. The exchange goes through the queries' place: the item is done with them.
  __device__ void meet(const float (&weight)[kOwn / 4], float* lse) {
    if (warp_ == 0 && lane_ < 4) {
#pragma unroll
      for (int i = 0; i < kOwn / 4; ++i) {
        shared_.group_max[half_][own_column(i / 2, i % 2)] = max_[i];
        shared_.group_sum[half_][own_column(i / 2, i % 2)] = weight[i];
      }
    }
    named_barrier(kBarrierAll, kMathThreads);
    float factors[kOwn / 4];
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) {
      const int column = own_column(i / 2, i % 2);
      const float other_max = shared_.group_max[1 - half_][column];
      const float most = fmaxf(max_[i], other_max);
      const float base = most == -INFINITY ? 0.0F : most;
      const float own_factor = exp2_fast(max_[i] - base);
      const float other_factor = exp2_fast(other_max - base);
      const float sum =
          weight[i] * own_factor + shared_.group_sum[1 - half_][column] * other_factor;
      factors[i] = sum > 0 ? own_factor / sum : 0.0F;
      if (lse != nullptr && half_ == 0 && warp_ == 0 && lane_ < 4) lse[column] = most + log2f(sum);
    }
    scale_sums(factors);
    static_assert(sizeof(Memory::queries) >= kTiles / 2 * kOwn / 2 * kGroupThreads * 4);
    auto* staged = reinterpret_cast<float4*>(shared_.queries) + threadIdx.x % kGroupThreads;
    if (half_ == 1) give(staged, 0);
    named_barrier(kBarrierAll, kMathThreads);
    if (half_ == 0) take(staged, 0);
    named_barrier(kBarrierAll, kMathThreads);
    if (half_ == 0) give(staged, kTiles / 2);
    named_barrier(kBarrierAll, kMathThreads);
    if (half_ == 1) take(staged, kTiles / 2);
  }
  __device__ __forceinline__ void give(float4* staged, int first) const {
#pragma unroll
    for (int k = 0; k < kTiles / 2; ++k) {
#pragma unroll
      for (int i = 0; i < kOwn / 8; ++i) {
        const float* v = o_[first + k] + 4 * i;
        staged[(k * kOwn / 8 + i) * kGroupThreads] = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
  }
  // o_[k] = o_[first + k] + the other group's.
  __device__ __forceinline__ void take(const float4* staged, int first) {
#pragma unroll
    for (int k = 0; k < kTiles / 2; ++k) {
#pragma unroll
      for (int i = 0; i < kOwn / 8; ++i) {
        const float4 other = staged[(k * kOwn / 8 + i) * kGroupThreads];
        const float* own = o_[first + k] + 4 * i;
        float* to = o_[k] + 4 * i;
        to[0] = own[0] + other.x;
        to[1] = own[1] + other.y;
        to[2] = own[2] + other.z;
        to[3] = own[3] + other.w;
      }
    }
  }

  Memory& shared_;
  const Arguments& args_;
  const int group_;
  const int half_;
  const int warp_;
  const int lane_;
  const uint32_t slots_;  // words of descriptors
  const uint32_t queries_;
  const uint32_t probabilities_;
  RingPlace<kSlots> place_{0};
  float scale_[2][kScales];  // of this thread's two keys
  float lift_[2];            // their references' distance from their scores
  float s_[kOwn / 2];
  float max_[kOwn / 4];
  float sum_[kOwn / 4];               // of this thread's keys
  uint32_t codes_[2][kBatch / 2][4];  // of values, as loaded
  uint32_t values_[2][kBatch][4];     // widened: operands of products
  float o_[kTiles][kOwn / 2];
};

#endif  // R1D_SM90

template <int kColumns, bool kDeterministic>
__global__ void __launch_bounds__(kThreads, 1)
    decode_fp8_kernel(const __grid_constant__ CUtensorMap query_map,
                      const __grid_constant__ CUtensorMap cache_map,
                      const uint8_t* cache,
                      const __grid_constant__ Arguments args) {
#ifdef R1D_SM90
  extern __shared__ uint8_t raw[];
  using Memory = SharedFp8<kColumns>;
  auto& shared = *reinterpret_cast<Memory*>(raw + (1024 - smem_address(raw) % 1024) % 1024);
  const int part = static_cast<int>(blockIdx.x) / args.groups;
  const int group = static_cast<int>(blockIdx.x) % args.groups;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  // The plan was complete before the kernels ahead of us began.
  const Walk<kDeterministic> walk(args.plan, args.num_sequences, part);
  if (threadIdx.x == kMathThreads) tensor_prefetch_map(&cache_map);
  if (threadIdx.x == kMathThreads + 32) tensor_prefetch_map(&query_map);
  init_barriers<kThreads / 32>(shared, Memory::kTurns ? kGroupWarps : 2 * kGroupWarps);
  __syncthreads();
  if (warp < kMathThreads / 32) {
    registers_raise<Memory::kMathRegisters>();
    grid_dependency_wait();
    grid_launch_dependents();
    MathGroup<kColumns, kDeterministic>(shared, args, group).run(walk);
    return;
  }
  registers_lower<Memory::kLoaderRegisters>();
  if (warp == kMathThreads / 32) {
    load_cache<kColumns, kDeterministic>(shared, cache_map, cache, args, walk);
  } else if (threadIdx.x == kMathThreads + 32) {
    grid_dependency_wait();
    load_queries<kColumns>(shared, query_map, args, walk, group);
  }
#endif
}

template <int kColumns>
cudaError_t launch(const CUtensorMap& query_map,
                   const CUtensorMap& cache_map,
                   const uint8_t* cache,
                   const Arguments& args,
                   const MlaShape& shape,
                   const Launch& launch) {
  const Grid grid{.blocks = dim3(static_cast<unsigned>(tiling(shape).parts * args.groups)),
                  .threads = dim3(kThreads),
                  .shared_bytes = sizeof(SharedFp8<kColumns>) + 1024};
  static_assert(sizeof(SharedFp8<kColumns>) + 1024 <= 232448, "a block's shared memory");
  return enqueue(
      shape.deterministic ? decode_fp8_kernel<kColumns, true> : decode_fp8_kernel<kColumns, false>,
      grid,
      launch,
      query_map,
      cache_map,
      cache,
      args);
}

}  // namespace

cudaError_t decode_fp8(const CUtensorMap& query_map,
                       const LatentCache& cache,
                       int64_t num_blocks,
                       const Arguments& args,
                       const MlaShape& shape,
                       const Launch& launch) {
  CUtensorMap cache_map;
  const cudaError_t error =
      encode_2d({.data = cache.data,
                 .dtype = DType::kF8E4M3,
                 .rows = num_blocks * cache.block_size * kBytesPerToken / kRowBytes,
                 .cols = kRowBytes,
                 .box_rows = cache.block_size,
                 .box_cols = kRowBytes},
                &cache_map);
  if (error != cudaSuccess) return error;
  const auto* data = static_cast<const uint8_t*>(cache.data);
  switch (tiling(shape).columns) {
    case 16:
      return mla::launch<16>(query_map, cache_map, data, args, shape, launch);
    case 32:
      return mla::launch<32>(query_map, cache_map, data, args, shape, launch);
    default:
      return mla::launch<64>(query_map, cache_map, data, args, shape, launch);
  }
}

}  // namespace r1d::kernels::mla
