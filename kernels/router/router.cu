// SPDX-License-Identifier: Apache-2.0
// Problem   logits[T,E] = x . W^T, then per token the choice of router.h, then the lists of experts
//           in use.
// Layout    W [E,D] bf16 or f32, x [T,D] bf16, both K-major; partial logits [chunks][T][E] f32 in
//           the workspace.
// Bound     2 E D bytes of bf16 weights (R1: 3.7 MB, 0.9 us at 4.3 TB/s), so latency: two launches
//           and two trips to L2.
// Launch    GEMM: a block per (64 experts, 224 columns, 64 tokens), 128 blocks for R1, so that all
//           SMs read; weights are requested before the dependency wait. Choice: a block per token
//           sums the chunks in order; one warp chooses; the last block to finish builds the lists.
// Numerics  bf16 products exact, f32 sums in a fixed order: columns inside a chunk, then chunks.
// Source    DeepSeek-V3 report, section 2.1.2; rules of src/ops/cpu/router.cc.
#include "kernels/common/ptx.cuh"
#include "kernels/router/router.h"

namespace r1d::kernels {
namespace {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 32;
constexpr int kMaxGroups = 32;
constexpr int kTileExperts = 64;
constexpr int kTileTokens = 64;
constexpr int kChunk = 224;         // columns; 7168 / 224 = 32 chunks x 4 expert tiles = 128 blocks
constexpr int kPitch = kChunk + 8;  // 464 bytes: 8 rows start in different banks
constexpr int kGemmThreads = 128;   // a warp per 16 experts
constexpr int kChoiceThreads = 256;
constexpr int kListWarps = kChoiceThreads / 32;
constexpr int kTokensPerBlock = 8;  // of route_from_logits: a warp each

constexpr int64_t num_chunks(int64_t hidden) {
  return (hidden + kChunk - 1) / kChunk;
}

#ifdef R1D_SM90

constexpr float kNotANumber = -1e30F;

__device__ __forceinline__ float infinity() {
  return __int_as_float(0x7F800000);
}

// ---- GEMM --------------------------------------------------------------------------------------

// Loads [rows, kChunk] bf16 from column k0, zeros outside rows x hidden.
__device__ __forceinline__ void load_chunk(__nv_bfloat16* to,
                                           const __nv_bfloat16* from,
                                           int rows,
                                           int padded_rows,
                                           int64_t hidden,
                                           int64_t k0) {
  constexpr int kVectors = kChunk / 8;
  for (int i = threadIdx.x; i < padded_rows * kVectors; i += kGemmThreads) {
    const int row = i / kVectors;
    const int64_t column = k0 + 8 * (i % kVectors);
    const bool valid = row < rows && column < hidden;
    cp_async_16(smem_address(to + row * kPitch + 8 * (i % kVectors)),
                valid ? from + row * hidden + column : from,
                valid);
  }
}

#endif  // R1D_SM90

template <int kTokenTiles>  // of 8
__global__ void __launch_bounds__(kGemmThreads) router_gemm_bf16(const __nv_bfloat16* weight,
                                                                 const __nv_bfloat16* x,
                                                                 float* partial,
                                                                 int num_tokens,
                                                                 int hidden,
                                                                 int num_experts) {
#ifdef R1D_SM90
  extern __shared__ __align__(16) __nv_bfloat16 w_tile[];
  __nv_bfloat16* x_tile = w_tile + kTileExperts * kPitch;
  const int chunk = blockIdx.x;
  const int e0 = blockIdx.y * kTileExperts;
  const int t0 = blockIdx.z * kTileTokens;
  const int tokens = min(num_tokens - t0, kTileTokens);
  const int tiles = (tokens + 7) / 8;
  load_chunk(w_tile,
             weight + static_cast<int64_t>(e0) * hidden,
             min(num_experts - e0, kTileExperts),
             kTileExperts,
             hidden,
             static_cast<int64_t>(chunk) * kChunk);
  cp_async_commit();
  grid_launch_dependents();
  grid_dependency_wait();
  load_chunk(x_tile,
             x + static_cast<int64_t>(t0) * hidden,
             tokens,
             tiles * 8,
             hidden,
             static_cast<int64_t>(chunk) * kChunk);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  float d[kTokenTiles][4] = {};
  const uint32_t a_row = smem_address(w_tile + (warp * 16 + lane % 16) * kPitch + lane / 16 * 8);
  const uint32_t b_row = smem_address(x_tile + lane % 8 * kPitch + lane / 8 * 8);
#pragma unroll
  for (int k = 0; k < kChunk; k += 32) {
    uint32_t a[2][4];
    ldmatrix_x4(a[0], a_row + 2 * k);
    ldmatrix_x4(a[1], a_row + 2 * k + 32);
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      if (j >= tiles) break;
      uint32_t b[4];
      ldmatrix_x4(b, b_row + 2 * (j * 8 * kPitch + k));
      mma_bf16_16x8x16(d[j], a[0], {b[0], b[1]});
      mma_bf16_16x8x16(d[j], a[1], {b[2], b[3]});
    }
  }
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = j * 8 + lane % 4 * 2 + i % 2;
      const int e = e0 + warp * 16 + lane / 4 + i / 2 * 8;
      if (t < tokens && e < num_experts) {
        partial[(static_cast<int64_t>(chunk) * num_tokens + t0 + t) * num_experts + e] = d[j][i];
      }
    }
  }
#endif  // R1D_SM90
}

// f32 weights: plain FMA, since no product of the tensor cores keeps all their bits. A thread owns
// one expert and every second token.
__global__ void __launch_bounds__(kGemmThreads) router_gemm_f32(const float* weight,
                                                                const __nv_bfloat16* x,
                                                                float* partial,
                                                                int num_tokens,
                                                                int hidden,
                                                                int num_experts) {
#ifdef R1D_SM90
  extern __shared__ __align__(16) float tiles_f32[];
  constexpr int kPitchF32 = kChunk + 1;
  float* w_tile = tiles_f32;
  float* x_tile = tiles_f32 + kTileExperts * kPitchF32;
  const int k0 = blockIdx.x * kChunk;
  const int e0 = blockIdx.y * kTileExperts;
  const int t0 = blockIdx.z * kTileTokens;
  const int tokens = min(num_tokens - t0, kTileTokens);
  for (int i = threadIdx.x; i < kTileExperts * kChunk; i += kGemmThreads) {
    const int e = e0 + i / kChunk;
    const int k = k0 + i % kChunk;
    w_tile[i / kChunk * kPitchF32 + i % kChunk] =
        e < num_experts && k < hidden ? weight[static_cast<int64_t>(e) * hidden + k] : 0.0F;
  }
  grid_launch_dependents();
  grid_dependency_wait();
  for (int i = threadIdx.x; i < tokens * kChunk; i += kGemmThreads) {
    const int k = k0 + i % kChunk;
    x_tile[i] =
        k < hidden ? __bfloat162float(x[static_cast<int64_t>(t0 + i / kChunk) * hidden + k]) : 0.0F;
  }
  __syncthreads();
  const int e = threadIdx.x % kTileExperts;
  if (e0 + e >= num_experts) return;
  for (int t = threadIdx.x / kTileExperts; t < tokens; t += kGemmThreads / kTileExperts) {
    float sum = 0;
#pragma unroll 8
    for (int k = 0; k < kChunk; ++k) {
      sum = fmaf(w_tile[e * kPitchF32 + k], x_tile[t * kChunk + k], sum);
    }
    partial[(static_cast<int64_t>(blockIdx.x) * num_tokens + t0 + t) * num_experts + e0 + e] = sum;
  }
#endif  // R1D_SM90
}

#ifdef R1D_SM90

// ---- choice ------------------------------------------------------------------------------------

__device__ __forceinline__ void score_expert(
    float logit, const float* bias, int e, float* score, float* choice) {
  const float s = 1.0F / (1.0F + expf(-logit));
  const float biased = s + (bias != nullptr ? bias[e] : 0.0F);
  score[e] = s;
  choice[e] = isnan(biased) ? kNotANumber : biased;
}

// Order of floats as order of integers; -0 equals +0, 0 is left for "not a candidate".
__device__ __forceinline__ uint32_t ordered(float value) {
  if (value == -infinity()) return 0;
  const uint32_t bits = __float_as_uint(value + 0.0F);
  return bits ^ (bits >> 31 != 0 ? 0xFFFFFFFFU : 0x80000000U);
}

// One warp: bit g * lanes_per_group is set where group g stays.
__device__ __forceinline__ uint32_t kept_groups(const float* choice,
                                                const RouterRules& rules,
                                                int lanes) {
  const int lane = threadIdx.x % 32;
  const int size = rules.num_experts / rules.num_groups;
  const int group = lane / lanes;
  const int steps = (size + lanes - 1) / lanes;
  float first = -infinity();
  float second = -infinity();
  if (group < rules.num_groups) {
    int step = group % steps;  // groups start at different steps: different banks
    for (int i = 0; i < steps; ++i) {
      const int e = lane % lanes + step * lanes;
      if (e < size) {
        const float value = choice[group * size + e];
        second = fmaxf(second, fminf(first, value));
        first = fmaxf(first, value);
      }
      if (++step == steps) step = 0;
    }
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    const float other_first = __shfl_xor_sync(~0U, first, offset);
    const float other_second = __shfl_xor_sync(~0U, second, offset);
    second = fmaxf(fminf(first, other_first), fmaxf(second, other_second));
    first = fmaxf(first, other_first);
  }
  const float sum = size == 1 ? first : first + second;
  int better = 0;
  for (int g = 0; g < rules.num_groups; ++g) {
    const float other = __shfl_sync(~0U, sum, g * lanes);
    better += other > sum || (other == sum && g < group) ? 1 : 0;
  }
  const bool kept = isnan(sum) || (sum > -infinity() && better < rules.kept_groups);
  return __ballot_sync(~0U, kept && group < rules.num_groups);
}

// One warp chooses for one token; lane `slot` returns that slot's expert. score, choice: [E] in
// shared memory, visible to the warp.
template <int kPerLane>  // at least E / 32
__device__ __forceinline__ int32_t choose_experts(const float* score,
                                                  const float* choice,
                                                  const RouterRules& rules,
                                                  int64_t token,
                                                  const Routing& routing) {
  const int lane = threadIdx.x % 32;
  uint32_t key[kPerLane];  // of experts lane + 32 i
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    key[i] = e < rules.num_experts ? ordered(choice[e]) : 0;
  }
  if (rules.kept_groups < rules.num_groups) {
    const int lanes = 1 << (31 - __clz(32 / rules.num_groups));
    const uint32_t kept = kept_groups(choice, rules, lanes);
    const uint32_t size = rules.num_experts / rules.num_groups;
    // e / size as a product: off by less than 512 / 2^20, and fractions are multiples of 1 / size
    // >= 1 / 512.
    const uint32_t reciprocal = ((1U << 20) + size - 1) / size;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const uint32_t group = (static_cast<uint32_t>(lane + 32 * i) * reciprocal) >> 20;
      if ((kept >> (group * lanes) & 1) == 0) key[i] = 0;
    }
  }
  float sum = 0;
  int32_t my_expert = 0;
  float my_score = 0;
  uint32_t best = 0;
  uint32_t best_expert = 0;
  const auto find_best = [&] {
    best = key[0];
    best_expert = lane;
#pragma unroll
    for (int i = 1; i < kPerLane; ++i) {
      if (key[i] > best) {
        best = key[i];
        best_expert = lane + 32 * i;
      }
    }
  };
  find_best();
  for (int slot = 0; slot < rules.top_k; ++slot) {
    const uint32_t largest = __reduce_max_sync(~0U, best);
    uint32_t winner = __reduce_min_sync(~0U, best == largest ? best_expert : ~0U);
    if (largest == 0) winner = 0;  // no candidate is left
    const float s = score[winner];
    sum += s;
    if (lane == slot) {
      my_expert = static_cast<int32_t>(winner);
      my_score = s;
    }
    if (lane == winner % 32) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (winner / 32 == static_cast<uint32_t>(i)) key[i] = 0;
      }
      find_best();
    }
  }
  const float factor =
      rules.normalize ? rules.scaling_factor / (sum + 1e-20F) : rules.scaling_factor;
  if (lane < rules.top_k) {
    routing.experts[token * rules.top_k + lane] = my_expert;
    routing.weights[token * rules.top_k + lane] = my_score * factor;
  }
  return my_expert;
}

// ---- lists -------------------------------------------------------------------------------------

// What a block needs to build lists, beside `slots` [T * k] in dynamic shared memory.
struct ListShared {
  uint16_t before[kListWarps][kMaxExperts];  // entries of an expert in earlier warps' shares
  int32_t begin[kMaxExperts];
  uint64_t warp_sums[kListWarps];
};

// A block of kChoiceThreads builds the lists; expert_at(i) is the expert of entry i. Each warp
// takes a contiguous share of the entries; an entry's place is its expert's begin, plus the
// expert's entries in earlier shares, plus those before it in its own.
template <typename ExpertAt>
__device__ __forceinline__ void build_lists(const ExpertAt& expert_at,
                                            int num_tokens,
                                            int top_k,
                                            const ListOptions& options,
                                            const ExpertLists& lists,
                                            ListShared& s,
                                            uint32_t* slots) {
  constexpr uint32_t kNone = ~0U;
  const int tid = threadIdx.x;
  const int warp = tid / 32;
  const int lane = tid % 32;
  const int live =
      options.live_tokens != nullptr ? min(max(*options.live_tokens, 0), num_tokens) : num_tokens;
  const int entries = live * top_k;
  const int share = (entries + kChoiceThreads - 1) / kChoiceThreads * 32;
  for (int e = lane; e < options.num_local; e += 32) s.before[warp][e] = 0;
  __syncwarp();
  for (int i = warp * share + lane; i - lane < min((warp + 1) * share, entries); i += 32) {
    int id = i < entries ? expert_at(i) - options.first_expert : -1;
    if (id < 0 || id >= options.num_local) id = -1;
    const uint32_t same = __match_any_sync(~0U, id);
    const int rank = __popc(same & ((1U << lane) - 1));
    const int earlier = id >= 0 ? s.before[warp][id] : 0;
    __syncwarp();
    if (id >= 0 && rank == 0) s.before[warp][id] = static_cast<uint16_t>(earlier + __popc(same));
    __syncwarp();
    if (i < entries) slots[i] = id < 0 ? kNone : static_cast<uint32_t>((earlier + rank) << 16 | id);
  }
  __syncthreads();

  constexpr int kPerThread = kMaxExperts / kChoiceThreads;
  const int per_thread = (options.num_local + kChoiceThreads - 1) / kChoiceThreads;
  const int block_size = token_block_size(num_tokens);
  int count[kPerThread] = {};
  uint64_t mine = 0;  // entries, blocks and groups of 8 in 20 bits each
#pragma unroll
  for (int p = 0; p < kPerThread; ++p) {
    const int e = tid * per_thread + p;
    if (p >= per_thread || e >= options.num_local) break;
#pragma unroll
    for (int w = 0; w < kListWarps; ++w) {
      const int here = s.before[w][e];
      s.before[w][e] = static_cast<uint16_t>(count[p]);
      count[p] += here;
    }
    mine += static_cast<uint64_t>(count[p]) |
            static_cast<uint64_t>((count[p] + block_size - 1) / block_size) << 20 |
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
  for (int w = 0; w < kListWarps; ++w) before += w < warp ? s.warp_sums[w] : 0;

  constexpr uint64_t kMask = (1U << 20) - 1;
  int begin = static_cast<int>(before & kMask);
  int block = static_cast<int>(before >> 20 & kMask);
  int group = static_cast<int>(before >> 40 & kMask);
#pragma unroll
  for (int p = 0; p < kPerThread; ++p) {
    if (count[p] == 0) continue;
    const int e = tid * per_thread + p;
    s.begin[e] = begin;
    for (int first = 0; first < count[p]; first += block_size) {
      const int n = min(count[p] - first, block_size);
      *reinterpret_cast<int4*>(lists.blocks + block) = make_int4(e, begin + first, n, group);
      ++block;
      group += (n + 7) / 8;
    }
    begin += count[p];
  }
  if (tid == kChoiceThreads - 1) *lists.num_blocks = block;
  __syncthreads();
  for (int i = tid; i < entries; i += kChoiceThreads) {
    if (slots[i] == kNone) continue;
    const uint32_t e = slots[i] & 0xFFFF;
    lists.entries[s.begin[e] + s.before[i / share][e] + (slots[i] >> 16)] = i;
  }
}

#endif  // R1D_SM90

// One block per token; the last to finish builds the lists.
__global__ void __launch_bounds__(kChoiceThreads, 1) router_choose(const float* partial,
                                                                   int chunks,
                                                                   const float* bias,
                                                                   RouterRules rules,
                                                                   ListOptions options,
                                                                   Routing routing,
                                                                   ExpertLists lists,
                                                                   uint32_t* arrivals) {
#ifdef R1D_SM90
  __shared__ float score[kMaxExperts];
  __shared__ float choice[kMaxExperts];
  __shared__ int32_t chosen[kMaxTopK];
  __shared__ bool last;
  __shared__ ListShared list_shared;
  extern __shared__ uint32_t slots[];
  const int num_tokens = gridDim.x;
  const int token = blockIdx.x;
  grid_launch_dependents();
  grid_dependency_wait();
  const int64_t stride = static_cast<int64_t>(num_tokens) * rules.num_experts;
  for (int e = threadIdx.x; e < rules.num_experts; e += kChoiceThreads) {
    const float* from = partial + static_cast<int64_t>(token) * rules.num_experts + e;
    float logit = 0;
#pragma unroll 32
    for (int c = 0; c < chunks; ++c) logit += __ldcg(from + c * stride);
    score_expert(logit, bias, e, score, choice);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int32_t mine =
        rules.num_experts <= 256
            ? choose_experts<8>(score, choice, rules, token, routing)
            : choose_experts<kMaxExperts / 32>(score, choice, rules, token, routing);
    chosen[threadIdx.x] = mine;
    if (num_tokens > 1) {
      __threadfence();
      __syncwarp();
      if (threadIdx.x == 0) {
        last = atomicAdd(arrivals, 1) == static_cast<uint32_t>(num_tokens - 1);
        if (last) *arrivals = 0;
        __threadfence();
      }
    }
  }
  __syncthreads();
  if (num_tokens == 1) {
    const auto expert_at = [&](int i) { return chosen[i]; };
    build_lists(expert_at, 1, rules.top_k, options, lists, list_shared, slots);
  } else if (last) {
    const auto expert_at = [&](int i) { return __ldcg(routing.experts + i); };
    build_lists(expert_at, num_tokens, rules.top_k, options, lists, list_shared, slots);
  }
#endif  // R1D_SM90
}

__global__ void __launch_bounds__(32 * kTokensPerBlock) router_choose_logits(const float* logits,
                                                                             int64_t logits_stride,
                                                                             const float* bias,
                                                                             int num_tokens,
                                                                             RouterRules rules,
                                                                             Routing routing) {
#ifdef R1D_SM90
  extern __shared__ float scores[];
  const int warp = threadIdx.x / 32;
  const int token = blockIdx.x * kTokensPerBlock + warp;
  grid_launch_dependents();
  grid_dependency_wait();
  if (token >= num_tokens) return;
  float* score = scores + warp * 2 * rules.num_experts;
  float* choice = score + rules.num_experts;
  for (int e = threadIdx.x % 32; e < rules.num_experts; e += 32) {
    score_expert(logits[token * logits_stride + e], bias, e, score, choice);
  }
  __syncwarp();
  if (rules.num_experts <= 256) {
    choose_experts<8>(score, choice, rules, token, routing);
  } else {
    choose_experts<kMaxExperts / 32>(score, choice, rules, token, routing);
  }
#endif  // R1D_SM90
}

__global__ void __launch_bounds__(kChoiceThreads) router_list(
    const int32_t* experts, int num_tokens, int top_k, ListOptions options, ExpertLists lists) {
#ifdef R1D_SM90
  __shared__ ListShared list_shared;
  extern __shared__ uint32_t slots[];
  grid_launch_dependents();
  grid_dependency_wait();
  const auto expert_at = [&](int i) { return __ldcg(experts + i); };
  build_lists(expert_at, num_tokens, top_k, options, lists, list_shared, slots);
#endif  // R1D_SM90
}

bool valid(const RouterRules& rules) {
  return rules.num_experts >= 1 && rules.num_experts <= kMaxExperts && rules.num_groups >= 1 &&
         rules.num_groups <= kMaxGroups && rules.num_experts % rules.num_groups == 0 &&
         rules.kept_groups >= 1 && rules.kept_groups <= rules.num_groups && rules.top_k >= 1 &&
         rules.top_k <= kMaxTopK &&
         rules.top_k <= rules.kept_groups * (rules.num_experts / rules.num_groups);
}

bool valid(const ListOptions& options) {
  return options.num_local >= 1 && options.num_local <= kMaxExperts && options.first_expert >= 0;
}

size_t slots_bytes(int32_t num_tokens, int32_t top_k) {
  return static_cast<size_t>(num_tokens) * top_k * sizeof(uint32_t);
}

constexpr size_t kArrivalsBytes = 16;

}  // namespace

size_t route_decode_workspace(int32_t num_tokens, int64_t hidden, int32_t num_experts) {
  return kArrivalsBytes +
         static_cast<size_t>(num_chunks(hidden)) * num_tokens * num_experts * sizeof(float);
}

cudaError_t route_decode(const void* weight,
                         RouterWeightType weight_type,
                         const float* bias,
                         const __nv_bfloat16* x,
                         int32_t num_tokens,
                         int64_t hidden,
                         const RouterRules& rules,
                         const ListOptions& options,
                         const Routing& routing,
                         const ExpertLists& lists,
                         void* workspace,
                         const Launch& launch) {
  if (num_tokens == 0) return cudaSuccess;
  if (num_tokens < 0 || num_tokens > kRouteDecodeTokens || hidden < 8 || hidden % 8 != 0 ||
      hidden > (1 << 20) || !valid(rules) || !valid(options)) {
    return cudaErrorInvalidValue;
  }
  auto* arrivals = static_cast<uint32_t*>(workspace);
  auto* partial = reinterpret_cast<float*>(static_cast<std::byte*>(workspace) + kArrivalsBytes);
  const int chunks = static_cast<int>(num_chunks(hidden));
  const int tile_tokens = std::min(num_tokens, kTileTokens);
  Grid grid;
  grid.blocks = dim3(chunks,
                     (rules.num_experts + kTileExperts - 1) / kTileExperts,
                     (num_tokens + kTileTokens - 1) / kTileTokens);
  grid.threads = dim3(kGemmThreads);
  cudaError_t error = cudaSuccess;
  if (weight_type == RouterWeightType::kBf16) {
    grid.shared_bytes = static_cast<size_t>(kTileExperts + (tile_tokens + 7) / 8 * 8) * kPitch *
                        sizeof(__nv_bfloat16);
    error = enqueue(num_tokens <= 8 ? router_gemm_bf16<1> : router_gemm_bf16<kTileTokens / 8>,
                    grid,
                    launch,
                    static_cast<const __nv_bfloat16*>(weight),
                    x,
                    partial,
                    num_tokens,
                    hidden,
                    rules.num_experts);
  } else {
    grid.shared_bytes = (static_cast<size_t>(kTileExperts) * (kChunk + 1) +
                         static_cast<size_t>(tile_tokens) * kChunk) *
                        sizeof(float);
    error = enqueue(router_gemm_f32,
                    grid,
                    launch,
                    static_cast<const float*>(weight),
                    x,
                    partial,
                    num_tokens,
                    hidden,
                    rules.num_experts);
  }
  if (error != cudaSuccess) return error;
  grid = Grid{};
  grid.blocks = dim3(num_tokens);
  grid.threads = dim3(kChoiceThreads);
  grid.shared_bytes = slots_bytes(num_tokens, rules.top_k);
  return enqueue(
      router_choose, grid, launch, partial, chunks, bias, rules, options, routing, lists, arrivals);
}

cudaError_t route_from_logits(const float* logits,
                              int64_t logits_stride,
                              const float* bias,
                              int32_t num_tokens,
                              const RouterRules& rules,
                              const Routing& routing,
                              const Launch& launch) {
  if (num_tokens == 0) return cudaSuccess;
  if (num_tokens < 0 || !valid(rules) || logits_stride < rules.num_experts)
    return cudaErrorInvalidValue;
  Grid grid;
  grid.blocks = dim3((num_tokens + kTokensPerBlock - 1) / kTokensPerBlock);
  grid.threads = dim3(32 * kTokensPerBlock);
  grid.shared_bytes = static_cast<size_t>(kTokensPerBlock) * 2 * rules.num_experts * sizeof(float);
  return enqueue(
      router_choose_logits, grid, launch, logits, logits_stride, bias, num_tokens, rules, routing);
}

cudaError_t list_experts(const int32_t* experts,
                         int32_t num_tokens,
                         int32_t top_k,
                         const ListOptions& options,
                         const ExpertLists& lists,
                         const Launch& launch) {
  if (num_tokens == 0) return cudaSuccess;
  if (num_tokens < 0 || num_tokens > kRouteDecodeTokens || top_k < 1 || top_k > kMaxTopK ||
      !valid(options)) {
    return cudaErrorInvalidValue;
  }
  Grid grid;
  grid.blocks = dim3(1);
  grid.threads = dim3(kChoiceThreads);
  grid.shared_bytes = slots_bytes(num_tokens, top_k);
  return enqueue(router_list, grid, launch, experts, num_tokens, top_k, options, lists);
}

}  // namespace r1d::kernels
