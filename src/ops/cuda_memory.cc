// SPDX-License-Identifier: Apache-2.0
// The memory of a GPU's operators, worked out on any machine. Each function follows the layout() of
// the file it names; names and order are theirs.
#include "ops/cuda_memory.h"

#include <algorithm>

namespace r1d::ops {
namespace {

constexpr int32_t kMaxDecodeQuery = 4;    // DeviceStep
constexpr int32_t kMaxGraphTokens = 256;  // DeviceStep
constexpr int64_t kExpertTokens = 8192;   // FeedForward
constexpr int64_t kBf16 = 2;
constexpr int64_t kF32 = 4;
constexpr int64_t kI32 = 4;

int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Adds up pieces as ops/cuda/arena.h cuts them.
class Pieces {
 public:
  void take(int64_t count, int64_t width) { bytes_ += round_up(count * width, 1024); }
  void take_quantized(int64_t rows, int64_t cols) {
    take(rows * cols, 1);
    take((cols + 127) / 128 * round_up(rows, 4), kF32);
  }
  [[nodiscard]] int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// What the others share.
struct Sizes {
  Sizes(const ModelDims& d, const CudaOptions& o, const GpuTarget& g)
      : dims(d),
        options(o),
        gpu(g),
        sm90(g.compute_capability == 90),
        r1_heads(sm90 && serves_r1_heads(d, o.block_size)),
        tokens(std::max(o.max_tokens, kMaxGraphTokens)),
        rows(std::max(o.max_sequences, kMaxGraphTokens)),
        key_capacity(std::max<int64_t>(o.max_tokens, std::min<int64_t>(8192, o.max_model_len))),
        longest_keys(
            std::max<int64_t>(
                std::min<int64_t>(o.max_sequences, o.max_tokens / (kMaxDecodeQuery + 1)), 1) *
            o.max_model_len) {}

  static bool serves_r1_heads(const ModelDims& d, int32_t block_size) {
    return d.kv_lora_rank == 512 && d.qk_rope_head_dim == 64 && d.qk_nope_head_dim == 128 &&
           d.v_head_dim == 128 && d.num_heads >= 8 && d.num_heads <= 128 && d.num_heads % 8 == 0 &&
           (block_size == 16 || block_size == 32 || block_size == 64);
  }

  const ModelDims& dims;
  const CudaOptions& options;
  const GpuTarget& gpu;
  const bool sm90;
  const bool r1_heads;
  const int64_t tokens;
  const int64_t rows;
  const int64_t key_capacity;
  const int64_t longest_keys;
};

// step.cc: derived tables in the arena, and the inputs' own buffer.
void add_step(const Sizes& s, Pieces& arena) {
  arena.take(s.tokens, kI32);
  arena.take(s.tokens, 8);
  arena.take(s.tokens * s.dims.qk_rope_head_dim, kF32);
}
int64_t input_bytes(const Sizes& s) {
  constexpr int64_t kAlignment = 16;
  constexpr int64_t kTileBytes = 20;      // MlaPrefillTile
  constexpr int64_t kSequenceBytes = 28;  // PrefillSequence
  const CudaOptions& o = s.options;
  const int64_t blocks =
      o.max_sequences * int64_t{(o.max_model_len + o.block_size - 1) / o.block_size};
  int64_t bytes = kI32 * (s.tokens + 5 * s.rows + blocks);
  if (s.r1_heads) {
    const int64_t windows = (s.longest_keys + s.key_capacity - 1) / s.key_capacity;
    const int64_t tiles = o.max_tokens / 128 + o.max_sequences + 1;
    bytes += windows * (tiles * kTileBytes + o.max_sequences * kSequenceBytes + 2 * kAlignment);
  }
  return bytes + 16 * kAlignment;
}

// kernels/mla_decode/plan.cuh.
struct Tiling {
  int64_t columns = 0;
  int64_t groups = 0;
  int64_t parts = 0;
};
Tiling decode_tiling(const Sizes& s) {
  const int64_t all = int64_t{s.dims.num_heads} * kMaxDecodeQuery;
  Tiling t;
  t.columns = all <= 16 ? 16 : all <= 32 ? 32 : 64;
  t.groups = (all + t.columns - 1) / t.columns;
  t.parts = std::max<int64_t>(s.gpu.num_multiprocessors / t.groups, 1);
  return t;
}
void add_decode_plan(const Sizes& s, int64_t tokens, Pieces& arena) {
  constexpr int64_t kRecord = 32;  // TokenSplits, PlannedSequence
  constexpr int64_t kMaxSplits = 32;
  const Tiling t = decode_tiling(s);
  arena.take(kRecord * (tokens + s.rows + t.parts), 1);
  const int64_t slots = s.options.deterministic ? kMaxSplits * s.rows : 2 * t.parts;
  const int64_t sums = slots * t.groups * t.columns;
  const int64_t latent = tokens * s.dims.num_heads * 512 * kBf16;
  arena.take(round_up(latent + sums * 512 * kF32 + sums * kF32, 256), 1);
}

// attention.cc.
void add_generic_attention(const Sizes& s, Pieces& arena) {
  constexpr int64_t kMostBytes = int64_t{512} << 20;
  constexpr int64_t kChunk = 256;  // keys; kernels/generic/attention.cu
  const ModelDims& d = s.dims;
  arena.take(s.tokens * d.num_heads * (d.kv_lora_rank + d.qk_rope_head_dim), kF32);
  arena.take(s.tokens * d.num_heads * d.kv_lora_rank, kF32);
  const int64_t chunks = (int64_t{s.options.max_model_len} + kChunk - 1) / kChunk;
  const auto bytes = [&](int64_t tokens) {
    return tokens * d.num_heads * chunks * (d.kv_lora_rank + 2) * kF32;
  };
  int64_t tokens = kMaxGraphTokens;
  while (tokens > 0 && bytes(tokens) > kMostBytes) tokens /= 2;
  arena.take(bytes(tokens) / kF32 + 1, kF32);
}
void add_attention(const Sizes& s, Pieces& arena) {
  const ModelDims& d = s.dims;
  const int64_t heads = d.num_heads;
  const int64_t row = d.kv_lora_rank + d.qk_rope_head_dim;
  arena.take(s.tokens * (d.q_lora_rank + row), kBf16);
  arena.take(s.tokens * d.q_lora_rank, kBf16);
  if (d.q_lora_rank % 128 == 0) arena.take_quantized(s.tokens, d.q_lora_rank);
  arena.take(s.tokens * heads * (d.qk_nope_head_dim + d.qk_rope_head_dim), kBf16);
  arena.take(s.tokens * heads * d.v_head_dim, kBf16);
  if (!s.r1_heads) {
    add_generic_attention(s, arena);
    return;
  }
  const int64_t decode_tokens = std::min(s.tokens, s.rows * kMaxDecodeQuery);
  arena.take(decode_tokens * heads * row, kBf16);
  add_decode_plan(s, decode_tokens, arena);
  arena.take(s.key_capacity * d.kv_lora_rank, kBf16);
  arena.take_quantized(s.key_capacity, d.kv_lora_rank);
  arena.take(s.key_capacity * d.qk_rope_head_dim, kBf16);
  arena.take(s.key_capacity * heads * (d.qk_nope_head_dim + d.v_head_dim), kBf16);
  if (s.longest_keys > s.key_capacity) {
    arena.take(s.tokens * heads * d.v_head_dim, kF32);
    arena.take(s.tokens * heads, kF32);
  }
  arena.take(1, kI32);
}

// kernels/moe_decode/moe_decode.cu: plan_workspace.
int64_t moe_decode_bytes(const Sizes& s, int64_t tokens) {
  constexpr int64_t kGateUpBlocks = 132;
  const int64_t hidden = round_up(s.dims.hidden_size, 128);
  const int64_t intermediate = round_up(s.dims.max_intermediate, 128);
  const int64_t choices = tokens * s.dims.router.top_k;
  const int64_t chunks = (hidden / 128 + 7) / 8;
  const int64_t groups = std::min(choices, s.dims.router.num_experts + choices / 8);
  const int64_t shared_groups = (tokens + 7) / 8;
  const int64_t chunk_bytes = tokens <= 8 ? 2 * 4 * 8 * 32 * 2 * kF32 : 32 * 128 * 2 * kF32;
  const auto h_bytes = [&](int64_t of) {
    return round_up(of * 8 * intermediate, 1024) +
           round_up(of * 8 * (intermediate / 128) * kF32, 1024);
  };
  return round_up(kGateUpBlocks * kI32, 1024) +
         round_up(kGateUpBlocks * chunks * chunk_bytes, 1024) + h_bytes(groups) +
         h_bytes(shared_groups);
}

// moe_decode.cc and moe_prefill.cc.
void add_tiled_experts(const Sizes& s, int64_t chunk, Pieces& arena) {
  constexpr int64_t kRouterColumns = 224;  // kernels/router/router.cu: kChunk
  constexpr int64_t kRouterSlots = 32;     // kernels/router/choice.cuh: kMaxTopK
  constexpr int64_t kBlockBytes = 16;      // ExpertBlock
  constexpr int64_t kTileRows = 64;        // kMoeTileRows
  constexpr int64_t kWideRows = 128;       // kMoeWideRows
  constexpr int64_t kProgress = 257;       // kMoeProgress
  const int64_t experts = s.dims.router.num_experts;
  const int64_t top_k = s.dims.router.top_k;
  const int64_t tokens = std::min<int64_t>(s.tokens, kMaxGraphTokens);
  const int64_t columns = (s.dims.hidden_size + kRouterColumns - 1) / kRouterColumns;
  arena.take(tokens * (kRouterSlots + columns * round_up(experts, 4)) * kF32, 1);
  arena.take(moe_decode_bytes(s, tokens), 1);
  arena.take(1, kI32);
  arena.take(kBlockBytes * (experts + tokens * top_k), 1);
  arena.take(tokens * top_k, kI32);

  const int64_t pairs = chunk * top_k;
  arena.take(pairs, kI32);
  arena.take(pairs, kI32);
  arena.take(4 * std::min(pairs, pairs / kTileRows + experts), kI32);
  arena.take(4 * std::min(pairs, pairs / kWideRows + experts), kI32);
  arena.take(3, kI32);
  arena.take(kProgress, kI32);
  arena.take_quantized(pairs, round_up(s.dims.max_intermediate, 128));
}

// feed_forward.cc.
void add_feed_forward(const Sizes& s, Pieces& arena) {
  const ModelDims& d = s.dims;
  const int64_t width = d.max_intermediate;
  arena.take(s.tokens * width, kBf16);
  arena.take(s.tokens * width, kBf16);
  arena.take_quantized(s.tokens, round_up(width, 128));
  if (d.router.num_experts == 0) return;
  const int64_t chunk = std::min<int64_t>(s.tokens, kExpertTokens);
  const int64_t slots = chunk * d.router.top_k;
  arena.take(s.tokens * d.router.num_experts, kF32);
  arena.take(s.tokens * d.router.top_k, kI32);
  arena.take(s.tokens * d.router.top_k, kF32);
  arena.take(chunk * d.hidden_size, kBf16);
  arena.take(slots * std::max<int64_t>(d.hidden_size, 256), kBf16);
  if (s.sm90) add_tiled_experts(s, chunk, arena);
  arena.take(d.router.num_experts + 1, kI32);
  arena.take(slots, kI32);
  arena.take(slots * width, kBf16);
  arena.take(slots * width, kBf16);
}

// sampler.cc; kernels/sampler/sampler.cu: plan_sampler.
void add_sampler(const Sizes& s, Pieces& arena) {
  constexpr int64_t kGreedyRow = 16;
  const int64_t copies =
      s.gpu.compute_capability >= 90 ? 0 : s.rows * round_up(s.dims.vocab_size, 4);
  arena.take(kGreedyRow * s.rows + copies * kF32, 1);
}
int64_t sampler_bytes(const Sizes& s) {
  constexpr int64_t kRow = 104;                     // SamplerRow
  constexpr int64_t kResult = 20;                   // SampledRow
  constexpr int64_t kListBytes = int64_t{1} << 20;  // lists of penalised tokens, to begin with
  constexpr int64_t kTop = 32;                      // log-probabilities a row, to begin with
  return s.rows * kRow + kListBytes + round_up(s.rows * kResult, 16) +
         2 * round_up(s.rows * kTop * kI32, 16);
}

// cuda_ops.cc: layout().
int64_t arena_bytes(const Sizes& s) {
  const ModelDims& d = s.dims;
  Pieces arena;
  add_step(s, arena);
  add_attention(s, arena);
  add_feed_forward(s, arena);
  const int64_t widest = std::max<int64_t>(
      {d.hidden_size, d.num_heads * d.v_head_dim, d.max_intermediate, d.q_lora_rank});
  add_sampler(s, arena);
  arena.take_quantized(s.tokens, round_up(widest, 128));
  if (d.hidden_size % 128 == 0) arena.take_quantized(s.tokens, d.hidden_size);
  arena.take(s.rows * d.vocab_size, kF32);
  arena.take(s.rows * d.hidden_size, kBf16);
  arena.take(static_cast<int64_t>(d.rope_inv_freq.size()), kF32);
  return arena.bytes();
}

// prepared.cc: what one attention block takes besides the weights as loaded.
int64_t attention_copy_bytes(const Sizes& s, bool fp8) {
  if (!s.sm90) return 0;
  const ModelDims& d = s.dims;
  int64_t bytes = s.r1_heads ? int64_t{d.num_heads} * (128 + 128) * 512 * kBf16 : 0;  // absorbed
  const int64_t kv_rows = d.kv_lora_rank + d.qk_rope_head_dim;
  const bool fused = fp8 && d.q_lora_rank > 0 && d.q_lora_rank % 128 == 0 && kv_rows % 64 == 0 &&
                     d.hidden_size % 128 == 0 && d.hidden_size <= 32768;
  if (fused) bytes += (d.q_lora_rank / 128 + (kv_rows + 127) / 128) * (d.hidden_size / 128) * kF32;
  return bytes;
}

}  // namespace

int64_t cuda_workspace_formula(const ModelDims& dims,
                               const CudaOptions& options,
                               const GpuTarget& gpu) {
  constexpr int64_t kBlasBytes = int64_t{32} << 20;  // src/device/cuda/blas_lt.cc
  const Sizes sizes(dims, options, gpu);
  return arena_bytes(sizes) + input_bytes(sizes) + sampler_bytes(sizes) + kBlasBytes;
}

MemoryUse plan_cuda_memory(const ModelDims& dims,
                           const CudaOptions& options,
                           const GpuTarget& gpu,
                           const CudaLayers& layers) {
  const Sizes sizes(dims, options, gpu);
  MemoryUse use;
  use[MemoryKind::kWorkspaces] = cuda_workspace_bytes(dims, options, gpu);
  use[MemoryKind::kWeights] = layers.attention * attention_copy_bytes(sizes, layers.fp8);
  if (!sizes.sm90 || !layers.fp8) {
    constexpr int64_t kMatrixBytes = sizeof(Matrix);  // PreparedMoe::matrices
    use[MemoryKind::kWeights] += layers.moe * 3 * layers.local_experts * kMatrixBytes;
  }
  return use;
}

int64_t cuda_graph_bytes(const CudaOptions& options, const CudaLayers& layers) {
  if (!options.graphs) return 0;
  constexpr int64_t kNodesALayer = 14;  // kernels of a decode step, at most
  // Measured on an H200, driver 580: 2.5 MB a graph of 793 to 857 nodes (docs/planning.md).
  constexpr int64_t kNodeBytes = 3 << 10;
  const auto* last =
      std::lower_bound(kGraphBuckets.begin(), kGraphBuckets.end(), options.max_sequences);
  const int64_t graphs = std::min<int64_t>(last - kGraphBuckets.begin() + 1, kGraphBuckets.size());
  return graphs * layers.attention * kNodesALayer * kNodeBytes;
}

}  // namespace r1d::ops
