// SPDX-License-Identifier: Apache-2.0
// Problem   per head and query row: o = softmax(scale q k^T) v over the row's visible keys
//           (causal); q and k 192 wide (k: 128 of its own | 64 shared by the heads), v 128 wide.
// Layout    q [T, H, 192], kv [S, H, 256] (128 nope | 128 v), k_pe [S, 64], out [T, H, 128]: bf16;
//           or out as e4m3 codes, a head's 128 values being one group.
// Bound     flop = 2 (192 + 128) per head and visible pair. One sequence of 8192, 16 heads: 344
// GFLOP,
//           435 us at 790 TFLOPS; its q, kv and out are 0.15 GB, 35 us. Bound by the tensor cores,
//           in long runs by power: 700 W hold 1.4 to 1.6 GHz of 1.98.
// Launch    one CTA an SM, persistent, tiles longest first from a counter. 384 threads: a producer
//           warpgroup of which one thread works, two consumer warpgroups of 64 rows. 208 KB shared
//           memory: q 48, two stages of k (48) and v (32). q moves on to registers, which leaves
//           the products one operand to fetch; 240 registers a consumer thread: q 48, s 64, o 64,
//           p 32.
// Numerics  scores, maximum, sum and output f32; p rounded to bf16 for the product; base 2; hidden
//           pairs are -inf. Blocks of 128 keys in rising order: a row's bits depend on its own keys
//           alone, since a block that is hidden from it changes nothing. Codes are those of the
//           bf16 output.
// Source    DeepSeek-V2 report, section 2.1 (MLA); online softmax, FlashAttention; two warpgroups
//           in turn, one's products over the other's softmax, FlashAttention-3.
#include <algorithm>

#include "kernels/common/ring.cuh"
#include "kernels/common/tensor_map.h"
#include "kernels/common/wgmma.cuh"
#include "kernels/mla_prefill/mla_prefill.h"
#include "kernels/quantize/quantize.cuh"

namespace r1d::kernels {
namespace {

constexpr int kRows = 128;  // query rows of a tile, two consumer warpgroups of 64
constexpr int kKeys = 128;  // key rows of a block
constexpr int kStages = 2;
constexpr int kBoxCols = 64;  // 128 bytes: the swizzle's width
constexpr int kQueryBoxes = kMlaQueryDim / kBoxCols;
constexpr int kValueBoxes = kMlaValueDim / kBoxCols;
constexpr int kBoxBytes = 128 * kBoxCols * 2;
constexpr int kQuerySteps = kMlaQueryDim / 16;
constexpr int kThreads = 384;
constexpr int kConsumerWarps = 8;
// Named barriers, two each, one a consumer warpgroup.
constexpr int kTurnBarrier = 1;
constexpr int kClearedBarrier = 3;

// What the producer tells the consumers with a tile's queries.
struct Work {
  MlaPrefillTile tile;
  int32_t head;  // negative: no more work
};

struct Shared {
  uint8_t q[kQueryBoxes][kBoxBytes];
  uint8_t k[kStages][kQueryBoxes][kBoxBytes];
  uint8_t v[kStages][kValueBoxes][kBoxBytes];
  uint64_t q_full, q_empty;
  uint64_t k_full[kStages], k_empty[kStages];
  uint64_t v_full[kStages], v_empty[kStages];
  Work work;  // filled and emptied with q
};
constexpr size_t kSharedBytes = sizeof(Shared) + 1024;  // the base is aligned to 1024 by hand
static_assert(kSharedBytes <= 232448);

struct Arguments {
  __nv_bfloat16* out;
  QuantizedRows codes;
  const MlaPrefillTile* tiles;
  uint32_t* counter;
  int32_t num_tiles;
  int32_t num_heads;
  int32_t heads_together;  // handed out before the next heads, so that their keys stay in L2
  float scale_log2;
  MlaPrefillState state;
};

// Blocks of keys that a tile takes; one, all hidden, where it sees no key.
__host__ __device__ inline int key_blocks(const MlaPrefillTile& tile) {
  const int last_row_sees = tile.first_visible + tile.num_rows - 1;
  const int keys = last_row_sees < tile.num_keys ? last_row_sees : tile.num_keys;
  return keys > kKeys ? (keys + kKeys - 1) / kKeys : 1;
}

#ifdef R1D_SM90

__device__ __forceinline__ void named_barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
// Two bf16 of one register, the lower half first.
__device__ __forceinline__ float2 unpack_bf16(uint32_t bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000));
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFF, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFF, x, 2);
}
// Lane i of a quad gives v[j] to lane j: v[j] of lane i becomes v[i] of lane j.
__device__ __forceinline__ void quad_transpose(uint32_t (&v)[4], int lane) {
  const bool odd = lane & 1;
  const bool high = lane & 2;
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const uint32_t got = __shfl_xor_sync(0xFFFFFFFF, odd ? v[j] : v[j + 1], 1);
    (odd ? v[j] : v[j + 1]) = got;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint32_t got = __shfl_xor_sync(0xFFFFFFFF, high ? v[j] : v[j + 2], 2);
    (high ? v[j] : v[j + 2]) = got;
  }
}

// ---- load --------------------------------------------------------------------------------------

// One thread. Loads in the order in which the consumers wait: q k0 k1 v0 k2 v1 .. vn, next tile.
__device__ __forceinline__ void produce(Shared& shared,
                                        const Arguments& arguments,
                                        const CUtensorMap& q_map,
                                        const CUtensorMap& kv_map,
                                        const CUtensorMap& k_pe_map) {
  const uint32_t total = static_cast<uint32_t>(arguments.num_tiles) * arguments.num_heads;
  const uint32_t group_items =
      static_cast<uint32_t>(arguments.num_tiles) * arguments.heads_together;
  Ring k_ring;
  Ring v_ring;
  uint32_t q_parity = 0;
  uint32_t item = blockIdx.x;
  while (item < total) {
    const uint32_t group = item / group_items;
    const uint32_t within = item % group_items;
    const MlaPrefillTile tile = arguments.tiles[within / arguments.heads_together];
    const int head =
        static_cast<int>(group * arguments.heads_together + within % arguments.heads_together);
    const int column = head * (kMlaNopeDim + kMlaValueDim);

    const auto load_k = [&](int block) {
      const int row = tile.key_begin + block * kKeys;
      uint64_t* full = &shared.k_full[k_ring.stage];
      mbarrier_wait(&shared.k_empty[k_ring.stage], k_ring.phase ^ 1);
      mbarrier_arrive_expect(full, kQueryBoxes * kBoxBytes);
      uint8_t(*k)[kBoxBytes] = shared.k[k_ring.stage];
      tensor_load_2d(k[0], &kv_map, column, row, full);
      tensor_load_2d(k[1], &kv_map, column + kBoxCols, row, full);
      tensor_load_2d(k[2], &k_pe_map, 0, row, full);
      k_ring.advance(kStages);
    };
    const auto load_v = [&](int block) {
      const int row = tile.key_begin + block * kKeys;
      uint64_t* full = &shared.v_full[v_ring.stage];
      mbarrier_wait(&shared.v_empty[v_ring.stage], v_ring.phase ^ 1);
      mbarrier_arrive_expect(full, kValueBoxes * kBoxBytes);
      uint8_t(*v)[kBoxBytes] = shared.v[v_ring.stage];
      tensor_load_2d(v[0], &kv_map, column + kMlaNopeDim, row, full);
      tensor_load_2d(v[1], &kv_map, column + kMlaNopeDim + kBoxCols, row, full);
      v_ring.advance(kStages);
    };

    mbarrier_wait(&shared.q_empty, q_parity ^ 1);
    shared.work = {tile, head};
    mbarrier_arrive_expect(&shared.q_full, kQueryBoxes * kBoxBytes);
#pragma unroll 1
    for (int box = 0; box < kQueryBoxes; ++box) {
      tensor_load_2d(shared.q[box],
                     &q_map,
                     head * kMlaQueryDim + box * kBoxCols,
                     tile.query_begin,
                     &shared.q_full);
    }
    q_parity ^= 1;
    const int blocks = key_blocks(tile);
    load_k(0);
#pragma unroll 1
    for (int block = 1; block < blocks; ++block) {
      load_k(block);
      load_v(block - 1);
    }
    load_v(blocks - 1);

    // Every CTA asks once per tile it worked on, so `total` requests are made in all and the last
    // one clears the counter.
    const uint32_t ticket = atomicAdd(arguments.counter, 1);
    if (ticket == total - 1) *arguments.counter = 0;
    item = gridDim.x + ticket;
  }
  grid_launch_dependents();
  mbarrier_wait(&shared.q_empty, q_parity ^ 1);
  shared.work.head = -1;
  mbarrier_arrive(&shared.q_full);
}

// ---- compute -----------------------------------------------------------------------------------

// This warp's 16 rows of q, as the products take them from registers.
__device__ __forceinline__ void load_queries(uint32_t (&q)[kQuerySteps][4],
                                             const uint8_t (&from)[kQueryBoxes][kBoxBytes],
                                             int warp_row,
                                             int lane) {
  const int row = warp_row + lane % 16;
#pragma unroll
  for (int step = 0; step < kQuerySteps; ++step) {
    const int chunk = 2 * (step % 4) + lane / 16;
    ldmatrix_x4(q[step], smem_address(from[step / 4]) + row * 128 + (chunk ^ (row % 8)) * 16);
  }
}

// s = q k^T for this warpgroup's 64 rows and a block of keys; under way when it returns. k is the
// descriptor of its first box.
__device__ __forceinline__ void start_scores(float (&s)[64],
                                             const uint32_t (&q)[kQuerySteps][4],
                                             uint64_t k) {
#pragma unroll
  for (int step = 0; step < kQuerySteps; ++step) {
    Wgmma<128>::bf16_rs<0>(
        s, q[step], k + ((step / 4) * kBoxBytes + (step % 4) * 32) / 16, step > 0);
  }
  wgmma_commit();
}

// o (+)= p v for a block; v is [keys, 128] row-major, so its value columns are the contiguous side.
__device__ __forceinline__ void start_output(float (&o)[64],
                                             const uint32_t (&p)[8][4],
                                             uint64_t v,
                                             bool accumulate) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    Wgmma<128>::bf16_rs<1>(o, p[step], v + step * 2048 / 16, accumulate || step > 0);
  }
  wgmma_commit();
}

__device__ __forceinline__ void to_bf16(uint32_t (&p)[8][4], const float (&s)[64]) {
#pragma unroll
  for (int step = 0; step < 8; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p[step][i] = pack_bf16(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
  }
}

// A thread's two rows (8 apart) of the running softmax. The sum is the thread's own part until the
// end.
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};

  // s becomes the block's weights 2^(scale (s - max)); returns what the output so far must be
  // multiplied with.
  __device__ __forceinline__ void step(float (&s)[64], float scale_log2, float (&rescale)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float block_max = max[h];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        block_max = fmaxf(block_max, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
      }
      block_max = quad_max(block_max);
      // Any base near the maximum does: it moves only when weights could pass 2^8, so that the
      // output is rarely rescaled.
      if ((block_max - max[h]) * scale_log2 <= 8.0F) block_max = max[h];
      // A row that has seen no key yet: every weight below becomes 2^-inf = 0.
      const float base = block_max == -INFINITY ? 0.0F : block_max * scale_log2;
      rescale[h] = exp2_approx(max[h] * scale_log2 - base);
      max[h] = block_max;
      float block_sum = 0;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = s[4 * j + 2 * h + c];
          x = exp2_approx(fmaf(x, scale_log2, -base));
          block_sum += x;
        }
      }
      sum[h] = sum[h] * rescale[h] + block_sum;
    }
  }
};

// Hides what lies behind each row's last visible key; `visible` counts the block's columns.
__device__ __forceinline__ void mask(float (&s)[64], const int (&visible)[2], int lane) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 8 * j + 2 * (lane % 4) + i % 2;
      if (column >= visible[i / 2]) s[4 * j + i] = -INFINITY;
    }
  }
}

// Zeroes rows first_row .. 127 of a block of v, by one warpgroup. Both do it: they write the same.
__device__ __forceinline__ void clear_rows(uint8_t (&v)[kValueBoxes][kBoxBytes], int first_row) {
  for (int box = 0; box < kValueBoxes; ++box) {
    for (int i = first_row * 128 + static_cast<int>(threadIdx.x) % 128 * 16; i < kBoxBytes;
         i += 128 * 16) {
      *reinterpret_cast<uint4*>(v[box] + i) = make_uint4(0, 0, 0, 0);
    }
  }
}

// ---- store -------------------------------------------------------------------------------------

// A quad's row as codes, the values rounded to bf16 first. o is the row's from h on.
__device__ __forceinline__ void store_codes(const QuantizedRows& codes,
                                            const float (&o)[64],
                                            int h,
                                            int64_t token,
                                            int head,
                                            bool stored,
                                            int lane) {
  float largest = 0;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    largest = fmaxf(largest, fmaxf(fabsf(o[4 * j + 2 * h]), fabsf(o[4 * j + 2 * h + 1])));
  }
  const GroupScale group = group_scale(__bfloat162float(__float2bfloat16_rn(quad_max(largest))));
  const auto pair = [&](int j) {
    const float2 x = unpack_bf16(pack_bf16(o[4 * j + 2 * h], o[4 * j + 2 * h + 1]));
    return code_pair(x.x * group.up, x.y * group.up, group);
  };
  // A quad's lanes hold 2 columns of every 8: exchanged, each lane writes 32 neighbours.
  uint4 words[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = 4 * i + 2 * half;
      v[i] = pair(j) | pair(j + 1) << 16;
    }
    quad_transpose(v, lane);
    words[half] = make_uint4(__byte_perm(v[0], v[1], 0x5410),
                             __byte_perm(v[2], v[3], 0x5410),
                             __byte_perm(v[0], v[1], 0x7632),
                             __byte_perm(v[2], v[3], 0x7632));
  }
  if (!stored) return;
  auto* to = reinterpret_cast<uint4*>(codes.data + token * codes.cols + head * kMlaValueDim +
                                      lane % 4 * 32);
  to[0] = words[0];
  to[1] = words[1];
  if (lane % 4 == 0) codes.scale[head * codes.scale_stride + token] = group.scale;
}

// Writes a thread's two rows: o normalised, or merged with the state of earlier windows.
__device__ __forceinline__ void store(const Arguments& arguments,
                                      const Work& work,
                                      const Softmax& softmax,
                                      float (&o)[64],
                                      int first_row,
                                      int lane) {
  const int64_t stride = static_cast<int64_t>(arguments.num_heads) * kMlaValueDim;
  const MlaPrefillState& state = arguments.state;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row + 8 * h;
    const bool stored = row < work.tile.num_rows;
    const int64_t token = work.tile.query_begin + row;
    const int64_t at = token * stride + work.head * kMlaValueDim;
    const float sum = quad_sum(softmax.sum[h]);
    const float inverse = sum > 0 ? 1.0F / sum : 0.0F;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      o[4 * j + 2 * h] *= inverse;
      o[4 * j + 2 * h + 1] *= inverse;
    }
    if (state.out != nullptr) {
      float* running = state.out + at + 2 * (lane % 4);
      float* running_lse = state.lse + token * arguments.num_heads + work.head;
      const float before_lse = stored && !state.first ? *running_lse : -INFINITY;
      const float own_lse =
          sum > 0 ? fmaf(softmax.max[h], arguments.scale_log2, log2f(sum)) : -INFINITY;
      const float top = fmaxf(before_lse, own_lse);
      float lse = own_lse;
      if (before_lse != -INFINITY) {
        const float own = exp2f(own_lse - top);
        const float before = exp2f(before_lse - top);
        lse = top + log2f(own + before);
        const float own_weight = own / (own + before);
        const float before_weight = before / (own + before);
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          const float2 x = *reinterpret_cast<const float2*>(running + 8 * j);
          o[4 * j + 2 * h] = o[4 * j + 2 * h] * own_weight + x.x * before_weight;
          o[4 * j + 2 * h + 1] = o[4 * j + 2 * h + 1] * own_weight + x.y * before_weight;
        }
      }
      __syncwarp();  // the quad has read the log-sum-exp that its first lane replaces
      if (stored && !state.last) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          *reinterpret_cast<float2*>(running + 8 * j) =
              make_float2(o[4 * j + 2 * h], o[4 * j + 2 * h + 1]);
        }
        if (lane % 4 == 0) *running_lse = lse;
      }
    }
    const bool is_final = state.out == nullptr || state.last;
    if (is_final && arguments.codes.data != nullptr) {
      store_codes(arguments.codes, o, h, token, work.head, stored, lane);
    } else if (is_final) {
      // A quad's lanes hold 2 columns of every 8: exchanged, each lane writes 8 neighbours, the
      // quad 64 bytes.
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 4 * (4 * part + i) + 2 * h;
          v[i] = pack_bf16(o[j], o[j + 1]);
        }
        quad_transpose(v, lane);
        if (stored) {
          *reinterpret_cast<uint4*>(arguments.out + at + 32 * part + 8 * (lane % 4)) =
              make_uint4(v[0], v[1], v[2], v[3]);
        }
      }
    }
  }
}

__device__ __forceinline__ void consume(Shared& shared, const Arguments& arguments, int group) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = group * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16;
  const int first_row = warp_row + lane / 4;
  const uint64_t k = wgmma_descriptor_k128(smem_address(shared.k));
  const uint64_t v = wgmma_descriptor(smem_address(shared.v), kBoxBytes, 1024, 1);
  constexpr uint64_t kKeyStage = kQueryBoxes * kBoxBytes / 16;  // in a descriptor's 16-byte units
  constexpr uint64_t kValueStage = kValueBoxes * kBoxBytes / 16;
  const uint32_t own_turn = kTurnBarrier + group;
  const uint32_t other_turn = kTurnBarrier + 1 - group;
  Ring k_ring;
  Ring v_ring;
  uint32_t q_parity = 0;
  if (group == 1) named_barrier_arrive(other_turn, 256);  // group 0 begins

  while (true) {
    mbarrier_wait(&shared.q_full, q_parity);
    q_parity ^= 1;
    const Work work = shared.work;
    if (work.head < 0) return;
    const MlaPrefillTile& tile = work.tile;
    uint32_t q[kQuerySteps][4];
    load_queries(q, shared.q, warp_row, lane);
    const int blocks = __shfl_sync(0xFFFFFFFF, key_blocks(tile), 0);
    // Blocks below this one are visible to every row of the warpgroup.
    const int first_masked = max(min(tile.num_keys, tile.first_visible + group * 64), 0) / kKeys;
    int visible[2];  // keys that the thread's rows see
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      visible[h] = min(tile.num_keys, tile.first_visible + first_row + 8 * h);
    }

    float s[64];
    float o[64];
    uint32_t p[kKeys / 16][4];
    Softmax softmax;
    float rescale[2];
    const auto release_k = [&] {
      if (lane == 0) mbarrier_arrive(&shared.k_empty[k_ring.stage]);
      k_ring.advance(kStages);
    };
    const auto release_v = [&] {
      if (lane == 0) mbarrier_arrive(&shared.v_empty[v_ring.stage]);
      v_ring.advance(kStages);
    };
    const auto weigh = [&](int block) {
      if (block >= first_masked) {
        const int in_block[2] = {visible[0] - block * kKeys, visible[1] - block * kKeys};
        mask(s, in_block, lane);
      }
      softmax.step(s, arguments.scale_log2, rescale);
    };
    // The rows of v behind the sequence's last key are another's: their weight is 0, but 0 times
    // infinity is no number.
    const auto clear_foreign_rows = [&](int block) {
      const int keys = tile.num_keys - block * kKeys;
      if (keys < kKeys) {
        mbarrier_wait(&shared.v_full[v_ring.stage], v_ring.phase);
        clear_rows(shared.v[v_ring.stage], keys);
        fence_async_shared();
        named_barrier(kClearedBarrier + group, 128);
      }
    };

    mbarrier_wait(&shared.k_full[k_ring.stage], k_ring.phase);
    wgmma_fence_registers(s);
    wgmma_fence();
    start_scores(s, q, k + k_ring.stage * kKeyStage);
    wgmma_wait<0>();
    wgmma_fence_registers(s);
    release_k();
    // Only now: a product has used the registers, so the loads from q's shared memory are over.
    if (lane == 0) mbarrier_arrive(&shared.q_empty);
    weigh(0);
    to_bf16(p, s);
    clear_foreign_rows(0);

    if (blocks > 1) mbarrier_wait(&shared.k_full[k_ring.stage], k_ring.phase);
    for (int block = 1; block < blocks; ++block) {
      named_barrier(own_turn, 256);
      wgmma_fence_registers(s);
      wgmma_fence_registers(o);
      wgmma_fence();
      start_scores(s, q, k + k_ring.stage * kKeyStage);
      mbarrier_wait(&shared.v_full[v_ring.stage], v_ring.phase);
      start_output(o, p, v + v_ring.stage * kValueStage, block > 1);
      named_barrier_arrive(other_turn, 256);
      wgmma_wait<1>();
      wgmma_fence_registers(s);
      release_k();
      weigh(block);
      if (block + 1 < blocks) mbarrier_wait(&shared.k_full[k_ring.stage], k_ring.phase);
      wgmma_wait<0>();
      wgmma_fence_registers(o);
      release_v();
      to_bf16(p, s);
      if (__any_sync(0xFFFFFFFF, rescale[0] != 1 || rescale[1] != 1)) {
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] *= rescale[i / 2 % 2];
      }
      clear_foreign_rows(block);
    }
    mbarrier_wait(&shared.v_full[v_ring.stage], v_ring.phase);
    wgmma_fence_registers(o);
    wgmma_fence();
    start_output(o, p, v + v_ring.stage * kValueStage, blocks > 1);
    wgmma_wait<0>();
    wgmma_fence_registers(o);
    release_v();
    store(arguments, work, softmax, o, first_row, lane);
  }
}

#endif  // R1D_SM90

__global__ void __launch_bounds__(kThreads, 1)
    mla_prefill_bf16(const __grid_constant__ CUtensorMap q_map,
                     const __grid_constant__ CUtensorMap kv_map,
                     const __grid_constant__ CUtensorMap k_pe_map,
                     const __grid_constant__ Arguments arguments) {
#ifdef R1D_SM90
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = smem_address(raw) % 1024;
  Shared& shared = *reinterpret_cast<Shared*>(raw + (misaligned != 0 ? 1024 - misaligned : 0));
  if (threadIdx.x == 0) {
    tensor_prefetch_map(&q_map);
    tensor_prefetch_map(&kv_map);
    tensor_prefetch_map(&k_pe_map);
    mbarrier_init(&shared.q_full, 1);
    mbarrier_init(&shared.q_empty, kConsumerWarps);
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&shared.k_full[stage], 1);
      mbarrier_init(&shared.v_full[stage], 1);
      mbarrier_init(&shared.k_empty[stage], kConsumerWarps);
      mbarrier_init(&shared.v_empty[stage], kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  grid_dependency_wait();

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  if (warpgroup == 0) {
    registers_lower<24>();
    if (threadIdx.x == 0) produce(shared, arguments, q_map, kv_map, k_pe_map);
  } else {
    registers_raise<240>();
    consume(shared, arguments, __shfl_sync(0xFFFFFFFF, warpgroup, 0) - 1);
  }
#endif
}

// A bf16 matrix [rows, cols], read in boxes of 128 rows x 64 columns.
cudaError_t encode_boxes(CUtensorMap* map, const void* data, int64_t rows, int64_t cols) {
  return encode_2d(
      {.data = data, .rows = rows, .cols = cols, .box_rows = 128, .box_cols = kBoxCols}, map);
}

// Most heads (a divisor of all) whose keys and values of the step stay within half of the L2.
int heads_together(int64_t num_heads, int64_t num_keys) {
  constexpr int64_t kBudgetBytes = int64_t{24} << 20;
  const int64_t head_bytes = std::max<int64_t>(num_keys * (kMlaNopeDim + kMlaValueDim) * 2, 1);
  int64_t best = 1;
  for (int64_t heads = 1; heads <= num_heads; ++heads) {
    if (num_heads % heads == 0 && heads * head_bytes <= kBudgetBytes) best = heads;
  }
  return static_cast<int>(best);
}

}  // namespace

cudaError_t mla_prefill(const MlaPrefill& problem, const Launch& launch) {
  if (problem.num_tiles == 0 || problem.num_heads == 0) return cudaSuccess;
  const int64_t items = problem.num_tiles * problem.num_heads;
  if (problem.num_tokens <= 0 || problem.num_keys <= 0 || problem.num_heads < 0 || items < 0 ||
      items > INT32_MAX / 2 || problem.num_sms <= 0 || !(problem.scale > 0)) {
    return cudaErrorInvalidValue;
  }
  if (problem.codes.data != nullptr && (problem.codes.cols != problem.num_heads * kMlaValueDim ||
                                        problem.codes.scale_stride < problem.num_tokens)) {
    return cudaErrorInvalidValue;
  }
  CUtensorMap q_map;
  CUtensorMap kv_map;
  CUtensorMap k_pe_map;
  cudaError_t error =
      encode_boxes(&q_map, problem.q, problem.num_tokens, problem.num_heads * kMlaQueryDim);
  if (error != cudaSuccess) return error;
  error = encode_boxes(
      &kv_map, problem.kv, problem.num_keys, problem.num_heads * (kMlaNopeDim + kMlaValueDim));
  if (error != cudaSuccess) return error;
  error = encode_boxes(&k_pe_map, problem.k_pe, problem.num_keys, kMlaRopeDim);
  if (error != cudaSuccess) return error;

  constexpr float kLog2E = 1.44269504088896340736F;
  const Arguments arguments = {
      .out = problem.out,
      .codes = problem.codes,
      .tiles = problem.tiles,
      .counter = problem.counter,
      .num_tiles = problem.num_tiles,
      .num_heads = static_cast<int32_t>(problem.num_heads),
      .heads_together = heads_together(problem.num_heads, problem.num_keys),
      .scale_log2 = problem.scale * kLog2E,
      .state = problem.state,
  };
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>(problem.num_sms, items));
  return enqueue(mla_prefill_bf16,
                 {.blocks = {blocks}, .threads = {kThreads}, .shared_bytes = kSharedBytes},
                 launch,
                 q_map,
                 kv_map,
                 k_pe_map,
                 arguments);
}

std::vector<MlaPrefillTile> plan_mla_prefill(const PrefillSequence* sequences, int num_sequences) {
  std::vector<MlaPrefillTile> tiles;
  for (int i = 0; i < num_sequences; ++i) {
    const PrefillSequence& sequence = sequences[i];
    const int first_position = sequence.context_len - sequence.query_len;
    for (int row = 0; row < sequence.query_len; row += kRows) {
      tiles.push_back({
          .query_begin = sequence.query_begin + row,
          .num_rows = std::min(kRows, sequence.query_len - row),
          .key_begin = sequence.key_begin,
          .num_keys = sequence.num_positions,
          .first_visible = first_position + row + 1 - sequence.position_begin,
      });
    }
  }
  std::stable_sort(
      tiles.begin(), tiles.end(), [](const MlaPrefillTile& a, const MlaPrefillTile& b) {
        return key_blocks(a) > key_blocks(b);
      });
  return tiles;
}

double mla_prefill_flops(const PrefillSequence* sequences, int num_sequences, int64_t num_heads) {
  double pairs = 0;
  for (int i = 0; i < num_sequences; ++i) {
    const PrefillSequence& sequence = sequences[i];
    for (int row = 0; row < sequence.query_len; ++row) {
      const int position = sequence.context_len - sequence.query_len + row;
      pairs += std::clamp(position + 1 - sequence.position_begin, 0, sequence.num_positions);
    }
  }
  return 2.0 * (kMlaQueryDim + kMlaValueDim) * pairs * static_cast<double>(num_heads);
}

}  // namespace r1d::kernels
