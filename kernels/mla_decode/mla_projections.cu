// SPDX-License-Identifier: Apache-2.0
// Problem   q_latent[t, h] = W_UK[h]^T q_nope[t, h] beside the rotated rope part, before
//           mla_decode; attention[t, h] = W_UV[h] o_latent[t, h] behind it, where o_latent is
//           merged from its splits: sum_k 2^(lse_k - m) o_k / sum_k 2^(lse_k - m).
// Layout    Both weights as A fragments of mma.m16n8k16 in the order in which lanes load them; rows
//           and columns are permuted so that a lane's share of a token is 16 contiguous bytes, see
//           fragment_source.
// Bound     131 KB of weights a head each: 16 heads 2.1 MB, 0.5 us; the rest is latency.
// Launch    absorb: 8 blocks of 128 threads a head and token group, without shared memory, so that
//           they fit beside mla_decode's; expand: clusters of 8 blocks of 256 threads a head and
//           token tile. Both load their weights before they wait for the kernel ahead.
// Numerics  bf16 products, f32 sums; merge in f32 in the order of the splits.
// Source    DeepSeek-V2 report, section 2.1; LSE merge as in Flash-Decoding.
#include <cuda_fp8.h>

#include "kernels/common/ptx.cuh"
#include "kernels/mla_decode/plan.cuh"

namespace r1d::kernels {
namespace mla {
namespace {

constexpr float kLog2e = 1.4426950408889634F;
constexpr int kSlicesPerHead = 8;  // blocks that share a head's weights
constexpr int kTokens = 8;         // of one mma

// ---- weights -----------------------------------------------------------------------------------

// W_UK of a head: tiles of 16 latent values x 16 of 128 nope values, W_UV: 16 of 128 outputs x 16
// of 512 latent values. Fragment (tile, k step, lane) is 16 bytes: registers a0 .. a3 of two values
// each. Value `e` (0..7) of lane l in step k:
//   k index  32 (k / 2) + 8 (l % 4) + 4 (k % 2) + 2 (e / 4) + e % 2: two steps take eight
//            contiguous values of the token from each lane;
//   m index  row r = l / 4 + 8 (e / 2 % 2) of the tile; for W_UK r stands for latent value 2 (r %
//   8) + r / 8,
//            so that a lane holds neighbouring values of a token.
struct FragmentSource {
  int m;
  int k;
};
__device__ FragmentSource fragment_source(int step, int lane, int e) {
  return {lane / 4 + 8 * (e / 2 % 2),
          32 * (step / 2) + 8 * (lane % 4) + 4 * (step % 2) + 2 * (e / 4) + e % 2};
}

__device__ float kv_b_value(const ops::Matrix& kv_b, int64_t row, int64_t col) {
  if (kv_b.dtype == DType::kBF16) {
    return __bfloat162float(static_cast<const __nv_bfloat16*>(kv_b.data)[row * kLatent + col]);
  }
  __nv_fp8_e4m3 code;
  code.__x = static_cast<const uint8_t*>(kv_b.data)[row * kLatent + col];
  constexpr int kBlock = ops::Matrix::kScaleBlock;
  return static_cast<float>(code) * kv_b.scale[row / kBlock * kv_b.scale_cols + col / kBlock];
}

// One thread a fragment; block (h, which): which 0 W_UK, 1 W_UV.
__global__ void __launch_bounds__(256)
    absorb_weights_kernel(ops::Matrix kv_b, uint4* uk, uint4* uv) {
#ifdef R1D_SM90
  grid_dependency_wait();
  grid_launch_dependents();
  constexpr int kFragments = kNope * kLatent / 8;
  const int head = blockIdx.x;
  const bool value = blockIdx.y == 1;
  const int steps = (value ? kLatent : kNope) / 16;
  uint4* to = (value ? uv : uk) + static_cast<int64_t>(head) * kFragments;
  for (int i = threadIdx.x; i < kFragments; i += 256) {
    const int lane = i % 32;
    const int step = i / 32 % steps;
    const int tile = i / 32 / steps;
    __nv_bfloat16 values[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const FragmentSource at = fragment_source(step, lane, e);
      const int64_t row = static_cast<int64_t>(head) * (kNope + kValue);
      const float w = value ? kv_b_value(kv_b, row + kNope + 16 * tile + at.m, at.k)
                            : kv_b_value(kv_b, row + at.k, 16 * tile + 2 * (at.m % 8) + at.m / 8);
      values[e] = __float2bfloat16(w);
    }
    to[i] = *reinterpret_cast<const uint4*>(values);
  }
#endif
}

#ifdef R1D_SM90

// A load that stays ahead of grid_dependency_wait().
__device__ __forceinline__ void load_weights(uint32_t (&r)[4], const uint4* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "l"(from));
}

// d += (two k steps of weights) (a lane's eight contiguous values of its token).
__device__ __forceinline__ void mma_pair(float (&d)[4],
                                         const uint32_t (&a0)[4],
                                         const uint32_t (&a1)[4],
                                         const uint4& token) {
  mma_bf16_16x8x16(d, a0, {token.x, token.y});
  mma_bf16_16x8x16(d, a1, {token.z, token.w});
}

#endif

// ---- absorb ------------------------------------------------------------------------------------

constexpr int kAbsorbThreads = 128;
constexpr int kAbsorbSteps = kNope / 16;

// Pairs 4 slice .. + 3 of the rope part of tokens [begin, end).
__device__ void rotate(const __nv_bfloat16* q,
                       const MlaRope& rope,
                       float scale,
                       int heads,
                       int head,
                       int slice,
                       int begin,
                       int end,
                       __nv_bfloat16* q_latent) {
  constexpr int kPairs = kRope / 2;
  const int pair = 4 * slice + static_cast<int>(threadIdx.x) % 4;
  const int low = rope.interleave ? 2 * pair : pair;
  const int high = rope.interleave ? 2 * pair + 1 : pair + kPairs;
  for (int t = begin + static_cast<int>(threadIdx.x) / 4; t < end; t += kAbsorbThreads / 4) {
    const int64_t row = static_cast<int64_t>(t) * heads + head;
    const __nv_bfloat16* from = q + row * (kNope + kRope) + kNope;
    __nv_bfloat16* to = q_latent + row * kRow + kLatent;
    const float a = __bfloat162float(from[low]);
    const float b = __bfloat162float(from[high]);
    const float cos = rope.table[static_cast<int64_t>(t) * kRope + pair];
    const float sin = rope.table[static_cast<int64_t>(t) * kRope + kPairs + pair];
    to[low] = __float2bfloat16((a * cos - b * sin) * scale);
    to[high] = __float2bfloat16((a * sin + b * cos) * scale);
  }
}

// Block (8 head + slice, token group): 64 latent values of a head, 16 a warp.
__global__ void __launch_bounds__(kAbsorbThreads) absorb_kernel(const __nv_bfloat16* q,
                                                                const uint4* uk,
                                                                MlaRope rope,
                                                                float scale,
                                                                int heads,
                                                                int num_tokens,
                                                                int group_tokens,
                                                                __nv_bfloat16* q_latent) {
#ifdef R1D_SM90
  const int head = static_cast<int>(blockIdx.x) / kSlicesPerHead;
  const int slice = static_cast<int>(blockIdx.x) % kSlicesPerHead;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tile = 4 * slice + static_cast<int>(threadIdx.x) / 32;
  uint32_t a[kAbsorbSteps][4];
  const uint4* fragments =
      uk + (static_cast<int64_t>(head) * (kLatent / 16) + tile) * kAbsorbSteps * 32;
#pragma unroll
  for (int step = 0; step < kAbsorbSteps; ++step)
    load_weights(a[step], fragments + step * 32 + lane);
  grid_launch_dependents();  // mla_decode may begin to load the cache
  grid_dependency_wait();

  const int begin = static_cast<int>(blockIdx.y) * group_tokens;
  const int end = min(begin + group_tokens, num_tokens);
#pragma unroll 2
  for (int t = begin; t < end; t += kTokens) {
    const int from = t + lane / 4;
    const uint4* row = reinterpret_cast<const uint4*>(
        q + (static_cast<int64_t>(min(from, end - 1)) * heads + head) * (kNope + kRope));
    uint4 token[kAbsorbSteps / 2];
#pragma unroll
    for (int pair = 0; pair < kAbsorbSteps / 2; ++pair) token[pair] = row[4 * pair + lane % 4];
    float d[4] = {};
#pragma unroll
    for (int pair = 0; pair < kAbsorbSteps / 2; ++pair) {
      mma_pair(d, a[2 * pair], a[2 * pair + 1], token[pair]);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int to = t + 2 * (lane % 4) + c;
      if (to >= end) continue;
      __nv_bfloat16* out = q_latent + (static_cast<int64_t>(to) * heads + head) * kRow + 16 * tile;
      reinterpret_cast<__nv_bfloat162*>(out)[lane / 4] =
          __floats2bfloat162_rn(d[c] * scale, d[2 + c] * scale);
    }
  }
  rotate(q, rope, scale, heads, head, slice, begin, end, q_latent);
#endif
}

// ---- expand ------------------------------------------------------------------------------------

constexpr int kExpandThreads = 256;
constexpr int kExpandWarps = kExpandThreads / 32;
constexpr int kExpandSteps = kLatent / 16 / kExpandWarps;  // of one warp: K is split over the warps
constexpr int kRowBytes = kLatent * 2 + 64;  // of a token in shared memory; +64: no bank conflicts
constexpr int kLanes = 16;  // that hold a token's 64 latent values of a block, four each
constexpr int kMergers = kExpandThreads / kLanes;

#ifdef R1D_SM90
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// A sum of splits: each weighs 2^(its log-sum-exp - most).
struct Merged {
  float4 sum = {0, 0, 0, 0};  // of four latent values
  float weight = 0;
  float most = -INFINITY;
};

template <int kTiles>
struct ExpandShared {
  union {
    // o_latent, bf16; the cluster's blocks fill 64 values of a token each.
    uint8_t tokens[kTiles * kTokens][kRowBytes];
    float sums[kExpandWarps][kTiles][16][kTokens];
  };
  Merged merged[kMergers][kLanes];
};

#ifdef R1D_SM90

__device__ __forceinline__ void cluster_store_u64(uint32_t remote, uint2 value) {
  asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(remote), "r"(value.x), "r"(value.y)
               : "memory");
}
__device__ __forceinline__ void merge(Merged& to, const float4& sum, float weight, float most) {
  const float above = fmaxf(to.most, most);
  if (above == -INFINITY) return;
  const float old_factor = exp2_fast(to.most - above);
  const float factor = exp2_fast(most - above);
  to.sum.x = to.sum.x * old_factor + sum.x * factor;
  to.sum.y = to.sum.y * old_factor + sum.y * factor;
  to.sum.z = to.sum.z * old_factor + sum.z * factor;
  to.sum.w = to.sum.w * old_factor + sum.w * factor;
  to.weight = to.weight * old_factor + weight * factor;
  to.most = above;
}

// Splits first, first + stride, .. of four latent values of a token and head. All loads of a batch
// go out together.
__device__ Merged merge_share(const WorkspaceView& in,
                              const TokenSplits& splits,
                              int column,   // within a slot
                              int columns,  // of a slot
                              int first,
                              int stride,
                              int value) {
  constexpr int kBatch = 8;
  const auto* partial = reinterpret_cast<const float4*>(in.partial + value);
  const int step = splits.step * columns;
  const int second = splits.next * columns + column;
  Merged merged;
  for (int k = first; k < splits.count; k += kBatch * stride) {
    // Splits past the last read it again and weigh nothing: no branch keeps the loads apart.
    float4 sums[kBatch];
    float lse[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int split = min(k + i * stride, splits.count - 1);
      const int row = split == 0 ? splits.first * columns + column : second + (split - 1) * step;
      lse[i] = __ldcg(in.lse + row);
      sums[i] = __ldcg(partial + static_cast<int64_t>(row) * (kLatent / 4));
    }
    float most = merged.most;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (k + i * stride >= splits.count) lse[i] = -INFINITY;
      most = fmaxf(most, lse[i]);
    }
    const float base = most == -INFINITY ? 0.0F : most;
    const float decay = exp2_fast(merged.most - base);
    merged.most = most;
    merged.weight *= decay;
    merged.sum = make_float4(
        merged.sum.x * decay, merged.sum.y * decay, merged.sum.z * decay, merged.sum.w * decay);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float weight = exp2_fast(lse[i] - base);
      merged.weight += weight;
      merged.sum.x += weight * sums[i].x;
      merged.sum.y += weight * sums[i].y;
      merged.sum.z += weight * sums[i].z;
      merged.sum.w += weight * sums[i].w;
    }
  }
  return merged;
}

#endif

// Cluster (head, token tile), rank r of 8: merges latent values 64 r .. + 63 for the cluster's
// blocks, then computes outputs 16 r .. + 15.
template <int kTiles>
__global__ void __launch_bounds__(kExpandThreads) expand_kernel(WorkspaceView in,
                                                                const TokenSplits* plan,
                                                                const uint4* uv,
                                                                int heads,
                                                                int num_tokens,
                                                                int group_columns,
                                                                int groups,
                                                                bool deterministic,
                                                                __nv_bfloat16* attention) {
#ifdef R1D_SM90
  __shared__ ExpandShared<kTiles> shared;
  const int head = static_cast<int>(blockIdx.x) / kSlicesPerHead;
  const int rank = static_cast<int>(blockIdx.x) % kSlicesPerHead;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  uint32_t a[kExpandSteps][4];
  const uint4* fragments =
      uv + ((static_cast<int64_t>(head) * kSlicesPerHead + rank) * (kLatent / 16) +
            warp * kExpandSteps) *
               32;
#pragma unroll
  for (int step = 0; step < kExpandSteps; ++step)
    load_weights(a[step], fragments + step * 32 + lane);
  cluster_arrive();  // the others' shared memory may be written once all have started
  const int begin = static_cast<int>(blockIdx.y) * kTiles * kTokens;
  const int count = min(kTiles * kTokens, num_tokens - begin);
  // 16 lanes a token; when tokens are few, several mergers share a token's splits.
  int mergers = 1;
  // Their sums associate otherwise, so not where bits must not depend on the batch.
  while (!deterministic && 2 * mergers * count <= kMergers) mergers *= 2;
  const int merger = static_cast<int>(threadIdx.x) / kLanes;
  const int share = merger % mergers;
  const int value = rank * 64 + lane % kLanes * 4;
  // The plan is older than the kernel ahead.
  TokenSplits splits{};
  if (merger / mergers < count) splits = plan[begin + merger / mergers];
  grid_dependency_wait();
  grid_launch_dependents();
  cluster_wait();

  const int rounds = (count * mergers + kMergers - 1) / kMergers;  // one where mergers > 1
  for (int round = 0; round < rounds; ++round) {
    const int token = (round * kMergers + merger) / mergers;
    if (round > 0) splits = token < count ? plan[begin + token] : TokenSplits{};
    Merged merged;
    if (splits.count > 1) {
      merged = merge_share(
          in, splits, splits.query * heads + head, groups * group_columns, share, mergers, value);
    }
    if (mergers > 1) {
      shared.merged[merger][lane % kLanes] = merged;
      __syncthreads();
    }
    if (share != 0 || token >= count) continue;
    for (int i = 1; i < mergers; ++i) {
      const Merged& other = shared.merged[merger + i][lane % kLanes];
      merge(merged, other.sum, other.weight, other.most);
    }
    uint2 packed = make_uint2(0, 0);
    if (splits.count > 1) {
      const float scale = 1.0F / merged.weight;
      const float4& sum = merged.sum;
      const __nv_bfloat162 low = __floats2bfloat162_rn(sum.x * scale, sum.y * scale);
      const __nv_bfloat162 high = __floats2bfloat162_rn(sum.z * scale, sum.w * scale);
      packed = make_uint2(reinterpret_cast<const uint32_t&>(low),
                          reinterpret_cast<const uint32_t&>(high));
    } else if (splits.count == 1) {
      const int64_t row = static_cast<int64_t>(begin + token) * heads + head;
      packed = __ldcg(reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(in.latent) +
                                                     row * kLatent + value));
    }
    const uint32_t to = smem_address(&shared.tokens[token][value * 2]);
#pragma unroll
    for (int r = 0; r < kSlicesPerHead; ++r) cluster_store_u64(cluster_address(to, r), packed);
  }
  cluster_arrive();
  cluster_wait();

  // Product: each warp has an eighth of K.
  float d[kTiles][4] = {};
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int pair = 0; pair < kExpandSteps / 2; ++pair) {
      const int k = 32 * (warp * kExpandSteps / 2 + pair) + 8 * (lane % 4);
      const uint4 token =
          *reinterpret_cast<const uint4*>(&shared.tokens[tile * kTokens + lane / 4][k * 2]);
      mma_pair(d[tile], a[2 * pair], a[2 * pair + 1], token);
    }
  }
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      shared.sums[warp][tile][lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = d[tile][i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * 16; i += kExpandThreads) {
    const int token = i / 16;
    const int output = i % 16;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kExpandWarps; ++w) {
      sum += shared.sums[w][token / kTokens][output][token % kTokens];
    }
    attention[(static_cast<int64_t>(begin + token) * heads + head) * kValue + 16 * rank + output] =
        __float2bfloat16(sum);
  }
#endif
}

// Tokens of one block of absorb_kernel: more blocks read the weights again from L2.
int absorb_group_tokens(int num_tokens) {
  return num_tokens <= 64 ? 16 : 32;
}
// Tiles of eight tokens of one cluster of expand_kernel.
int expand_tiles(int num_tokens) {
  return num_tokens <= 32 ? 1 : 4;
}

template <int kTiles>
cudaError_t launch_expand(const void* workspace,
                          const MlaWeights& weights,
                          const MlaShape& shape,
                          const void* plan,
                          void* attention,
                          const Launch& launch) {
  const Tiling t = tiling(shape);
  const int tile = kTiles * kTokens;
  const cudaError_t error = leave_shared_memory(expand_kernel<kTiles>);
  if (error != cudaSuccess) return error;
  return enqueue(expand_kernel<kTiles>,
                 Grid{.blocks = dim3(static_cast<unsigned>(shape.heads * kSlicesPerHead),
                                     static_cast<unsigned>((shape.num_tokens + tile - 1) / tile)),
                      .threads = dim3(kExpandThreads),
                      .cluster = kSlicesPerHead},
                 launch,
                 workspace_view(workspace, shape),
                 plan_view(plan, shape).tokens,
                 static_cast<const uint4*>(weights.uv),
                 shape.heads,
                 shape.num_tokens,
                 t.columns,
                 t.groups,
                 shape.deterministic,
                 static_cast<__nv_bfloat16*>(attention));
}

}  // namespace
}  // namespace mla

size_t mla_absorbed_bytes(int32_t heads) {
  return static_cast<size_t>(heads) * (mla::kNope + mla::kValue) * mla::kLatent * 2;
}

MlaWeights mla_weights(const void* absorbed, int32_t heads) {
  return {absorbed,
          static_cast<const uint8_t*>(absorbed) +
              static_cast<size_t>(heads) * mla::kNope * mla::kLatent * 2};
}

cudaError_t mla_absorb_weights(const ops::Matrix& kv_b,
                               int32_t heads,
                               void* to,
                               const Launch& launch) {
  if (kv_b.rows != int64_t{heads} * (mla::kNope + mla::kValue) || kv_b.cols != mla::kLatent ||
      kv_b.dtype == DType::kF32 || kv_b.scale_row_offset != 0 || kv_b.scale_col_offset != 0) {
    return cudaErrorInvalidValue;
  }
  const MlaWeights weights = mla_weights(to, heads);
  return enqueue(mla::absorb_weights_kernel,
                 Grid{.blocks = dim3(static_cast<unsigned>(heads), 2), .threads = dim3(256)},
                 launch,
                 kv_b,
                 static_cast<uint4*>(const_cast<void*>(weights.uk)),
                 static_cast<uint4*>(const_cast<void*>(weights.uv)));
}

cudaError_t mla_absorb_queries(const void* q,
                               const MlaWeights& weights,
                               const MlaRope& rope,
                               float softmax_scale,
                               const MlaShape& shape,
                               void* q_latent,
                               const Launch& launch) {
  if (shape.num_tokens == 0) return cudaSuccess;
  const cudaError_t error = mla::leave_shared_memory(mla::absorb_kernel);
  if (error != cudaSuccess) return error;
  const int group = mla::absorb_group_tokens(shape.num_tokens);
  return enqueue(mla::absorb_kernel,
                 Grid{.blocks = dim3(static_cast<unsigned>(shape.heads * mla::kSlicesPerHead),
                                     static_cast<unsigned>((shape.num_tokens + group - 1) / group)),
                      .threads = dim3(mla::kAbsorbThreads)},
                 launch,
                 static_cast<const __nv_bfloat16*>(q),
                 static_cast<const uint4*>(weights.uk),
                 rope,
                 softmax_scale * mla::kLog2e,
                 shape.heads,
                 shape.num_tokens,
                 group,
                 static_cast<__nv_bfloat16*>(q_latent));
}

cudaError_t mla_expand_values(const void* workspace,
                              const MlaWeights& weights,
                              const MlaShape& shape,
                              const void* plan,
                              void* attention,
                              const Launch& launch) {
  if (shape.num_tokens == 0) return cudaSuccess;
  return mla::expand_tiles(shape.num_tokens) == 1
             ? mla::launch_expand<1>(workspace, weights, shape, plan, attention, launch)
             : mla::launch_expand<4>(workspace, weights, shape, plan, attention, launch);
}

}  // namespace r1d::kernels
