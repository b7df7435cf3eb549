// SPDX-License-Identifier: Apache-2.0
// Problem   out = bf16(add + sum over ranks of in), alone or with residual and RMSNorm behind it
//           (norm.h), over memory that the GPUs of one host write into each other.
// Layout    all_reduce_plan.h: one-shot words of 4 values and two epochs; two-shot vectors of 8
//           values with a flag a CTA.
// Bound     latency up to some 100 KB: one store over NVLink (about 1 us), launch, one trip to L2.
//           Then the link, 450 GB/s each way: one-shot sends 2 (world - 1) bytes a byte, two-shot
//           2 (world - 1) / world. R1, 14,336 bytes a token: one-shot 64 ns a token at two ranks,
//           446 at eight; two-shot 32 and 56.
// Launch    one-shot: 128 threads, a word each. Fused: as kernels/norm at up to 132 tokens, two
//           words a thread; the weight is loaded before the dependency wait. Two-shot: up to 128
//           CTAs of 512 threads. A CTA waits for the CTAs of the same number on other ranks alone,
//           and has sent before it waits, so that a grid need not be resident as a whole.
// Numerics  f32 sums from 0 in rank order, one rounding; all forms give the same bits.
// Source    flags beside the data: NCCL's LL protocol; the rest is plain.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/all_reduce/all_reduce.h"
#include "kernels/all_reduce/peer.cuh"
#include "kernels/norm/normed_row.cuh"
#include "kernels/norm/row.cuh"

namespace r1d::kernels {
namespace {

constexpr int kWordThreads = 128;
constexpr int kGatherThreads = 256;

__device__ __forceinline__ float value_at(const __nv_bfloat16* row, int64_t i, int64_t count) {
  return i < count ? __bfloat162float(row[i]) : 0.F;
}

// Values [4 word, ...) of a message as they are; zeros behind its end.
__device__ __forceinline__ uint2 load_values(const __nv_bfloat16* from,
                                             int64_t word,
                                             int64_t count,
                                             bool vectors) {
  const int64_t i = word * kWordValues;
  if (vectors && i + kWordValues <= count) {
    return __ldcg(reinterpret_cast<const uint2*>(from + i));
  }
  return {pack_bf16(value_at(from, i, count), value_at(from, i + 1, count)),
          pack_bf16(value_at(from, i + 2, count), value_at(from, i + 3, count))};
}
__device__ __forceinline__ void store_values(
    __nv_bfloat16* to, int64_t word, int64_t count, bool vectors, const float (&v)[kWordValues]) {
  const int64_t i = word * kWordValues;
  if (vectors && i + kWordValues <= count) {
    *reinterpret_cast<uint2*>(to + i) = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
    return;
  }
#pragma unroll
  for (int j = 0; j < kWordValues; ++j) {
    if (i + j < count) to[i + j] = __float2bfloat16_rn(v[j]);
  }
}

// `add` in front of the sum, as add_norm() does: one more f32 addition.
__device__ __forceinline__ void add_to_sum(uint2 add, float (&sum)[kWordValues]) {
  float base[kWordValues] = {};
  add_word(add, base);
#pragma unroll
  for (int j = 0; j < kWordValues; ++j) sum[j] = base[j] + sum[j];
}

// ---- one-shot ----------------------------------------------------------------------------------

template <int kMost>
__global__ void __launch_bounds__(kWordThreads)
    one_shot_bf16(PeerMemory peers, AllReduce a, bool vectors) {
  const int64_t word = static_cast<int64_t>(blockIdx.x) * kWordThreads + threadIdx.x;
  const bool live = word * kWordValues < a.count;
  const Routes<kMost> routes = make_routes<kMost>(peers, word, 0);
  inputs_wait();
  const uint32_t epoch = epoch_of(peers, a.index);
  uint2 mine[1] = {};
  uint2 add = {};
  if (live) {
    mine[0] = load_values(a.in, word, a.count, vectors);
    if (a.add != nullptr) add = load_values(a.add, word, a.count, vectors);
    send_words(peers, routes, epoch, mine);
  }
  dependents_launch();
  if (!live) return;
  float sum[kWordValues] = {};
  sum_words<kMost>(peers, routes, epoch, mine, sum);
  if (a.add != nullptr) add_to_sum(add, sum);
  store_values(a.out, word, a.count, vectors, sum);
}

// ---- two-shot ----------------------------------------------------------------------------------

// Vector `v` of a message as two words.
struct Vector {
  uint2 words[2];
};
__device__ __forceinline__ Vector load_vector(const __nv_bfloat16* from,
                                              int64_t v,
                                              int64_t count,
                                              bool vectors) {
  if (vectors && (v + 1) * kPeerVector <= count) {
    const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(from) + v);
    return {{{bits.x, bits.y}, {bits.z, bits.w}}};
  }
  return {{load_values(from, 2 * v, count, false), load_values(from, 2 * v + 1, count, false)}};
}
__device__ __forceinline__ void store_vector(
    __nv_bfloat16* to, int64_t v, int64_t count, bool vectors, const uint4& bits) {
  if (vectors && (v + 1) * kPeerVector <= count) {
    reinterpret_cast<uint4*>(to)[v] = bits;
    return;
  }
  float values[kPeerVector];
  unpack_bf16(bits, values);
#pragma unroll
  for (int j = 0; j < kPeerVector; ++j) {
    if (v * kPeerVector + j < count) to[v * kPeerVector + j] = __float2bfloat16_rn(values[j]);
  }
}

// All of the CTA's stores so far stand before its flags on the other ranks.
__device__ __forceinline__ void raise_flags(const PeerMemory& peers,
                                            PeerFlag kind,
                                            uint32_t epoch) {
  __syncthreads();
  const auto to = static_cast<int>(threadIdx.x);
  if (to >= peers.layout.world || to == peers.rank) return;
  const int64_t at = peers.layout.flag_at(kind, peers.rank, static_cast<int32_t>(blockIdx.x));
  raise_flag(peers.region[to] + at, epoch);
}
// Waits for this CTA's flags from all other ranks. The same for all threads: false after an abort.
__device__ __forceinline__ bool wait_flags(const PeerMemory& peers, PeerFlag kind, uint32_t epoch) {
  const auto from = static_cast<int>(threadIdx.x);
  bool came = true;
  if (from < peers.layout.world && from != peers.rank) {
    const int64_t at = peers.layout.flag_at(kind, from, static_cast<int32_t>(blockIdx.x));
    came = wait_flag(peers, peers.region[peers.rank] + at, epoch);
  }
  return __syncthreads_and(came ? 1 : 0) != 0;
}

__global__ void __launch_bounds__(TwoShotPlan::kThreads)
    two_shot_bf16(PeerMemory peers, AllReduce a, int64_t per_shard, bool vectors) {
  const int world = peers.layout.world;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * per_shard;  // in a shard's buffers
  const int64_t begin = slot * world;                                 // in the message
  const int64_t end = (a.count + kPeerVector - 1) / kPeerVector;
  const auto thread = static_cast<int64_t>(threadIdx.x);
  constexpr int64_t kStep = TwoShotPlan::kThreads;
  inputs_wait();
  const uint32_t epoch = epoch_of(peers, a.index);

  // Send each rank this rank's part of its shard.
  for (int k = 0; k + 1 < world; ++k) {
    const int owner = other_rank(peers, k);
    auto* to = reinterpret_cast<uint4*>(peers.region[owner] +
                                        peers.layout.vector_at(0, epoch, peers.rank, slot));
    for (int64_t i = thread; i < per_shard; i += kStep) {
      const int64_t v = begin + owner * per_shard + i;
      if (v >= end) break;
      const Vector part = load_vector(a.in, v, a.count, vectors);
      to[i] = {part.words[0].x, part.words[0].y, part.words[1].x, part.words[1].y};
    }
  }
  raise_flags(peers, PeerFlag::kPart, epoch);
  dependents_launch();
  if (!wait_flags(peers, PeerFlag::kPart, epoch)) return;

  // Sum the own shard, send the sum to all.
  const std::byte* own = peers.region[peers.rank];
  for (int64_t i = thread; i < per_shard; i += kStep) {
    const int64_t v = begin + peers.rank * per_shard + i;
    if (v >= end) break;
    float sum[2][kWordValues] = {};
    for (int sender = 0; sender < world; ++sender) {
      Vector part;
      if (sender == peers.rank) {
        part = load_vector(a.in, v, a.count, vectors);
      } else {
        const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(
            own + peers.layout.vector_at(0, epoch, sender, slot + i)));
        part = {{{bits.x, bits.y}, {bits.z, bits.w}}};
      }
      add_word(part.words[0], sum[0]);
      add_word(part.words[1], sum[1]);
    }
    if (a.add != nullptr) {
      const Vector add = load_vector(a.add, v, a.count, vectors);
      add_to_sum(add.words[0], sum[0]);
      add_to_sum(add.words[1], sum[1]);
    }
    const uint4 bits = {pack_bf16(sum[0][0], sum[0][1]),
                        pack_bf16(sum[0][2], sum[0][3]),
                        pack_bf16(sum[1][0], sum[1][1]),
                        pack_bf16(sum[1][2], sum[1][3])};
    store_vector(a.out, v, a.count, vectors, bits);
    const int64_t at = peers.layout.vector_at(1, epoch, peers.rank, slot + i);
    for (int k = 0; k + 1 < world; ++k) {
      *reinterpret_cast<uint4*>(peers.region[other_rank(peers, k)] + at) = bits;
    }
  }
  raise_flags(peers, PeerFlag::kShard, epoch);
  if (!wait_flags(peers, PeerFlag::kShard, epoch)) return;

  // Take the other shards' sums.
  for (int k = 0; k + 1 < world; ++k) {
    const int owner = other_rank(peers, k);
    for (int64_t i = thread; i < per_shard; i += kStep) {
      const int64_t v = begin + owner * per_shard + i;
      if (v >= end) break;
      const uint4 bits = __ldcg(
          reinterpret_cast<const uint4*>(own + peers.layout.vector_at(1, epoch, owner, slot + i)));
      store_vector(a.out, v, a.count, vectors, bits);
    }
  }
}

// ---- fused -------------------------------------------------------------------------------------

constexpr int kFewThreads = 256;  // of the clusters at R1's width; they have registers to spare

// One token a cluster; CTA c of it takes vectors [c * segment, (c + 1) * segment), one a thread.
// A vector's two words stand apart, so that a warp's stores are dense.
template <int kMost, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1)
    all_reduce_add_norm_bf16(PeerMemory peers, AllReduceAddNorm a, int cluster, int segment) {
  __shared__ RowSums sums;
  const auto token = static_cast<int64_t>(blockIdx.x) / cluster;
  const int part_of_row = static_cast<int>(blockIdx.x) % cluster;
  const auto vectors = static_cast<int>(a.cols / kVector);
  const int groups = (vectors + kGroupLanes - 1) / kGroupLanes;
  const int vector = part_of_row * segment + static_cast<int>(threadIdx.x);
  const int end = min(vectors, (part_of_row + 1) * segment);
  const bool live = vector < end;
  const int64_t at = token * vectors + vector;
  const Routes<kMost> routes = make_routes<kMost>(peers, at, a.tokens * vectors);

  float weight[kVector] = {};
  if (live) load_f32(a.weight + vector * kVector, weight);
  open_row_sums(sums, cluster, groups);
  inputs_wait();

  // Load and send.
  const uint32_t epoch = epoch_of(peers, a.index);
  uint2 mine[2] = {};
  uint4 row = {};
  if (live) {
    const uint4 part = load_row(a.partial + at * kVector);
    row = load_row(a.residual + at * kVector);
    mine[0] = {part.x, part.y};
    mine[1] = {part.z, part.w};
    send_words(peers, routes, epoch, mine);
  }
  dependents_launch();

  // Add.
  if (live) {
    // As registers allow. Many tokens over many ranks are not for this form.
    constexpr int kBatch = kMost == 2 || kMaxThreads <= kFewThreads ? kMost : 1;
    float sum[kVector] = {};
    float v[kVector];
    sum_words<kBatch>(peers, routes, epoch, mine, sum);
    unpack_bf16(row, v);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] += sum[j];
    row = pack_bf16(v);
    *reinterpret_cast<uint4*>(a.residual + at * kVector) = row;
  }
  __syncwarp();

  // Reduce.
  await_cluster(cluster);
  float v[kVector];
  unpack_bf16(row, v);
  const float square = square_sum(v);
  const int group = vector / kGroupLanes;
  // Else its first vector is out of range, so all are.
  if (group * kGroupLanes < end) send_row_sum(sums, cluster, group, square);
  await_row_sums(sums, cluster);
  const float factor = row_rsqrt(sums.group, groups, a.cols, a.eps);

  // Store.
#pragma unroll
  for (int j = 0; j < kVector; ++j) v[j] *= factor * weight[j];
  store_normed(v, a.out, token, vector, live);
}

// ---- columns to rank 0 -------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ void copy_columns(const GatherColumns& a) {
  constexpr int64_t kEach = sizeof(T) / sizeof(float);
  const int64_t cols = a.cols / kEach;
  const auto step = static_cast<int64_t>(gridDim.x) * kGatherThreads;
  const int64_t count = a.rows * cols;
  const auto* in = reinterpret_cast<const T*>(a.in);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x; i < count;
       i += step) {
    const int64_t row = i / cols;
    *reinterpret_cast<T*>(a.out + row * a.out_stride + a.first_col + (i - row * cols) * kEach) =
        in[i];
  }
}

__global__ void __launch_bounds__(kGatherThreads)
    gather_columns_f32(PeerMemory peers, GatherColumns a, int senders, bool vectors) {
  inputs_wait();
  dependents_launch();
  const uint32_t epoch = epoch_of(peers, a.index);
  if (peers.rank == 0) {
    // One CTA; thread after thread its flags, of all ranks and their CTAs.
    const int flags = (peers.layout.world - 1) * senders;
    bool alive = true;
    for (int i = static_cast<int>(threadIdx.x); alive && i < flags; i += kGatherThreads) {
      const int64_t at = peers.layout.flag_at(PeerFlag::kColumns, 1 + i / senders, i % senders);
      alive = wait_flag(peers, peers.region[0] + at, epoch);
    }
    return;
  }
  if (vectors) {
    copy_columns<float4>(a);
  } else {
    copy_columns<float>(a);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const int64_t at =
      peers.layout.flag_at(PeerFlag::kColumns, peers.rank, static_cast<int32_t>(blockIdx.x));
  raise_flag(peers.region[0] + at, epoch);
}

__global__ void advance(uint32_t* epoch, uint32_t count) {
  inputs_wait();
  dependents_launch();
  *epoch += count;
}

// ---- launchers ---------------------------------------------------------------------------------

template <typename... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

bool valid(const PeerMemory& peers) {
  if (peers.layout.world < 2 || peers.layout.world > kMaxPeers || peers.rank < 0 ||
      peers.rank >= peers.layout.world || peers.epoch == nullptr || peers.abort == nullptr ||
      peers.max_blocks < 1 || peers.max_blocks > kMaxPeerBlocks) {
    return false;
  }
  for (int rank = 0; rank < peers.layout.world; ++rank) {
    if (peers.region[rank] == nullptr) return false;
  }
  return true;
}
bool valid(const PeerMemory& peers, const AllReduce& a, int64_t most) {
  return valid(peers) && a.in != nullptr && a.out != nullptr && a.count > 0 && a.count <= most;
}

// Loops over ranks are unrolled for 2, 4 and 8.
using OneShotKernel = void (*)(PeerMemory, AllReduce, bool);
OneShotKernel one_shot(int world) {
  return world <= 2 ? &one_shot_bf16<2> : world <= 4 ? &one_shot_bf16<4> : &one_shot_bf16<8>;
}
using FusedKernel = void (*)(PeerMemory, AllReduceAddNorm, int, int);
template <int kMaxThreads>
FusedKernel fused(int world) {
  if (world <= 2) return &all_reduce_add_norm_bf16<2, kMaxThreads>;
  if (world <= 4) return &all_reduce_add_norm_bf16<4, kMaxThreads>;
  return &all_reduce_add_norm_bf16<8, kMaxThreads>;
}

}  // namespace

cudaError_t all_reduce_one_shot(const PeerMemory& peers, const AllReduce& a, const Launch& launch) {
  if (a.count == 0) return cudaSuccess;
  if (!valid(peers, a, peers.layout.one_shot_values())) return cudaErrorInvalidValue;
  const int64_t words = (a.count + kWordValues - 1) / kWordValues;
  const Grid grid{.blocks = static_cast<unsigned>((words + kWordThreads - 1) / kWordThreads),
                  .threads = kWordThreads};
  return enqueue(one_shot(peers.layout.world), grid, launch, peers, a, aligned(a.in, a.add, a.out));
}

cudaError_t all_reduce_two_shot(const PeerMemory& peers, const AllReduce& a, const Launch& launch) {
  if (a.count == 0) return cudaSuccess;
  if (!valid(peers, a, peers.layout.two_shot_values())) return cudaErrorInvalidValue;
  const TwoShotPlan plan = plan_two_shot(a.count, peers.layout.world, peers.max_blocks);
  const Grid grid{.blocks = static_cast<unsigned>(plan.blocks), .threads = TwoShotPlan::kThreads};
  return enqueue(
      two_shot_bf16, grid, launch, peers, a, plan.per_shard, aligned(a.in, a.add, a.out));
}

cudaError_t all_reduce_add_norm(const PeerMemory& peers,
                                const AllReduceAddNorm& arguments,
                                const Launch& launch) {
  AllReduceAddNorm a = arguments;
  if (a.tokens == 0) return cudaSuccess;
  const FusedPlan plan = plan_fused(a.tokens, a.cols, a.capability);
  const QuantizedRows& quantized = a.out.quantized;
  if (a.out.stride == 0) a.out.stride = a.cols;
  const bool wanted = a.out.bf16 != nullptr || quantized.data != nullptr;
  const bool fits = quantized.data == nullptr ||
                    (quantized.scale != nullptr && a.cols % 128 == 0 && quantized.cols == a.cols);
  if (!valid(peers) || plan.threads == 0 || a.partial == nullptr || a.residual == nullptr ||
      a.weight == nullptr || !wanted || !fits ||
      a.tokens * a.cols > peers.layout.one_shot_values() || a.out.stride % kVector != 0 ||
      !aligned(a.partial, a.residual, a.weight, a.out.bf16, quantized.data)) {
    return cudaErrorInvalidValue;
  }
  const Grid grid{.blocks = static_cast<unsigned>(a.tokens * plan.cluster),
                  .threads = static_cast<unsigned>(plan.threads),
                  .cluster = plan.cluster};
  const FusedKernel kernel = plan.threads <= kFewThreads ? fused<kFewThreads>(peers.layout.world)
                                                         : fused<1024>(peers.layout.world);
  return enqueue(kernel, grid, launch, peers, a, plan.cluster, plan.segment);
}

cudaError_t gather_columns(const PeerMemory& peers, const GatherColumns& a, const Launch& launch) {
  if (a.rows == 0 || a.cols == 0) return cudaSuccess;
  if (!valid(peers) || a.rows < 0 || a.cols < 0 || a.out == nullptr ||
      (peers.rank != 0 && a.in == nullptr)) {
    return cudaErrorInvalidValue;
  }
  const int32_t senders = gather_blocks(a.rows, a.cols);
  const bool vectors =
      a.cols % 4 == 0 && a.first_col % 4 == 0 && a.out_stride % 4 == 0 && aligned(a.in, a.out);
  const Grid grid{.blocks = static_cast<unsigned>(peers.rank == 0 ? 1 : senders),
                  .threads = kGatherThreads};
  return enqueue(gather_columns_f32, grid, launch, peers, a, senders, vectors);
}

cudaError_t load_all_reduce() {
  std::vector<const void*> kernels = {reinterpret_cast<const void*>(&two_shot_bf16),
                                      reinterpret_cast<const void*>(&gather_columns_f32),
                                      reinterpret_cast<const void*>(&advance)};
  for (const int world : {2, 4, 8}) {
    kernels.push_back(reinterpret_cast<const void*>(one_shot(world)));
    kernels.push_back(reinterpret_cast<const void*>(fused<kFewThreads>(world)));
    kernels.push_back(reinterpret_cast<const void*>(fused<1024>(world)));
  }
  for (const void* kernel : kernels) {
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t advance_epoch(uint32_t* epoch, uint32_t count, const Launch& launch) {
  if (epoch == nullptr) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  return enqueue(advance, {.blocks = 1, .threads = 1}, launch, epoch, count);
}

}  // namespace r1d::kernels
