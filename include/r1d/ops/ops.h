// SPDX-License-Identifier: Apache-2.0
// The operators a model is written over, at the grain that fusion wants: one attention block, one
// feed-forward block, all-reduce + residual + norm. One Ops object serves one rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"
#include "r1d/ops/latent_format.h"
#include "r1d/ops/memory.h"
#include "r1d/ops/tensor.h"

namespace r1d::ops {

// Memory on the rank's device. Move-only; frees on destruction; must not outlive its Ops.
class Buffer {
 public:
  virtual ~Buffer() = default;
  [[nodiscard]] virtual std::byte* data() = 0;
  [[nodiscard]] virtual size_t size() const = 0;
};

// The latent cache of one layer: num_blocks blocks of block_size tokens, stored as LatentFormat
// says; a token is c (kv_lora_rank values, after its norm) | k_pe (qk_rope_head_dim values, after
// rope), `width` values together.
struct LatentPages {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t num_blocks = 0;
  int32_t block_size = 0;
  int64_t width = 0;
};

// One sequence's share of a step: query tokens [query_begin, query_begin + query_len) of the step
// are its positions [context_len - query_len, context_len).
struct SequenceSpan {
  int32_t query_begin = 0;
  int32_t query_len = 0;
  int32_t context_len = 0;               // cached positions after this step, query tokens included
  std::span<const BlockId> block_table;  // host memory; at least ceil(context_len / block_size) ids
};

// How one row's next token is chosen on a device; the fields say what engine::SamplingParams' of
// the same names do. Lists are ranges of SampleRequest's arrays.
struct SampleRow {
  double temperature = 1;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  uint64_t seed = 0;
  uint64_t draw = 0;  // number of output tokens so far
  int32_t top_k = 0;
  int32_t forced = -1;  // not -1: this token comes out
  int32_t num_logprobs = -1;
  int32_t first_count = 0;  // tokens of the history, where a penalty wants them
  int32_t num_counts = 0;
  int32_t first_bias = 0;
  int32_t num_biases = 0;
  int32_t first_masked = 0;  // tokens that must not come out
  int32_t num_masked = 0;
};
struct TokenCount {
  TokenId token = 0;
  int32_t count = 0;  // in the output; 0: in the prompt alone
};
struct TokenBias {
  TokenId token = 0;
  float bias = 0;
};

struct SampleResult {
  enum class Fault : uint8_t { kNone, kNotFinite, kAllMasked };
  TokenId token = -1;
  Fault fault = Fault::kNone;
  TokenId bad_token = -1;  // kNotFinite: the first whose logit is not finite, and that logit
  float bad_logit = 0;
  float logprob = 0;
};

// What a step samples, one row of logits after the other. Host memory of the caller, read by
// begin_step() .. end_step(), results written by end_step().
struct SampleRequest {
  int32_t vocab = 0;       // ids [0, vocab) may come out
  int32_t top_stride = 0;  // most num_logprobs of any row
  bool greedy = false;     // every row is greedy and wants nothing else
  std::vector<SampleRow> rows;
  std::vector<TokenCount> counts;
  std::vector<TokenBias> biases;
  std::vector<TokenId> masked;
  std::vector<SampleResult> results;  // [rows]
  std::vector<TokenId> top_tokens;    // [rows, top_stride]
  std::vector<float> top_logprobs;    // [rows, top_stride]
};

// In place of a token id: the token that the step before sampled in this row of its SampleRequest.
[[nodiscard]] constexpr TokenId follow_row(int32_t row) {
  return -1 - row;
}

// A step's inputs, in host memory that lives until the next begin_step() or end_step().
struct StepInputs {
  std::span<const TokenId> token_ids;  // [T]; below 0: see follow_row(), where steps_ahead() > 0
  std::span<const int32_t> positions;  // [T], from 0
  std::span<const SequenceSpan> sequences;
  std::span<const int32_t> logit_rows;  // [B] rows of the step whose logits are wanted, ascending
  SampleRequest* sample = nullptr;      // for an Ops that samples; null: logits alone
};

// What reads a norm's rows, which may then be written in the form that it takes alone.
enum class NormReader : uint8_t { kAttention, kMlp, kMoe, kLogits };

// DeepSeek-V2 report, section 2.1 (arXiv 2405.04434); H = heads on this rank.
struct AttentionWeights {
  const float* input_norm = nullptr;  // unused by attention(); kept with the layer
  // q_a [q_lora, D], q_a_norm [q_lora], q_b [H * (dn + dr), q_lora]; or, without a low-rank query,
  // q_b alone as [H * (dn + dr), D] and q_a.data == nullptr.
  Matrix q_a;
  const float* q_a_norm = nullptr;
  Matrix q_b;
  Matrix kv_a;                       // [R + dr, D]; rows: latent, then the shared rope key
  const float* kv_a_norm = nullptr;  // [R]
  Matrix kv_b;                       // [H * (dn + dv), R]; per head: k_nope rows, then v rows
  Matrix o;                          // [D, H * dv]
  int32_t prepared = -1;             // set by Ops::prepare()
};

// down(silu(gate x) * (up x)); I = the rank's slice of the intermediate size.
struct MlpWeights {
  Matrix gate;  // [I, D]
  Matrix up;    // [I, D]
  Matrix down;  // [D, I]
  int32_t prepared = -1;
};

// DeepSeek-V3 report, section 2.1.2 (arXiv 2412.19437).
struct MoeWeights {
  Matrix router;                        // [E, D], bf16 or f32, all experts on every rank
  const float* router_bias = nullptr;   // [E] chooses, never weighs
  std::span<const MlpWeights> experts;  // the rank's experts: first_expert, first_expert + 1, ...
  int32_t first_expert = 0;
  MlpWeights shared;  // gate.data == nullptr: no shared expert
  int32_t prepared = -1;
};

struct RouterOptions {
  int32_t num_experts = 0;
  int32_t top_k = 0;
  int32_t num_groups = 1;
  int32_t kept_groups = 1;
  bool normalize = true;
  float scaling_factor = 1;
};

// Sizes and constants of the model that an Ops object is made for.
struct ModelDims {
  int64_t hidden_size = 0;  // D
  int32_t num_heads = 0;    // H, on this rank
  int64_t q_lora_rank = 0;
  int64_t kv_lora_rank = 0;  // R
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t max_intermediate = 0;  // largest I of any MLP on this rank
  int64_t vocab_size = 0;        // V, whole
  float rms_norm_eps = 1e-6F;
  float softmax_scale = 1;
  std::vector<float> rope_inv_freq;  // [dr / 2], YaRN applied
  float rope_cos_sin_scale = 1;
  bool rope_interleave = true;
  RouterOptions router;
};

// Rows and columns of a tensor whose element (r, c) follows from (key, r, c) alone; what dummy
// weights are made of. checkpoint::SeededTensor says how.
struct SeededValues {
  uint64_t key = 0;
  float center = 0;
  float amplitude = 0;
  DType dtype = DType::kF32;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t col_begin = 0;
  int64_t col_end = 0;
};

// All calls of a step come from the rank's own thread, in the same order on every rank. Calls
// enqueue; only end_step() promises that results are there. A failed call poisons the step, on all
// ranks; after abort() and rejoin() the next begin_step() starts afresh. Tensors are activations on
// the rank's device, `out` never aliases an input. Between begin_step() and end_step() an
// implementation may keep the tokens in an order of its own (sequences with few query tokens
// first): rows of activations follow it, logit rows come out as asked for.
class Ops {
 public:
  virtual ~Ops() = default;

  // Called once by the thread that will drive this object, before anything else.
  [[nodiscard]] virtual absl::Status attach() { return absl::OkStatus(); }

  [[nodiscard]] virtual DType activation_dtype() const = 0;

  // kResourceExhausted says what the memory was for. 64-byte aligned, zeroed. Counted under `kind`
  // until the buffer goes.
  [[nodiscard]] virtual absl::StatusOr<std::unique_ptr<Buffer>> allocate(
      size_t bytes, MemoryKind kind, const std::string& what) = 0;
  // What this object holds now: buffers that were allocated, and what it took for itself. Callable
  // from any thread.
  [[nodiscard]] virtual MemoryUse memory_use() const = 0;
  // Of the rank's device, after attach(); nullopt: the rank has no device memory of its own.
  [[nodiscard]] virtual absl::StatusOr<std::optional<DeviceBytes>> device_bytes() const {
    return std::nullopt;
  }
  // Copies host bytes to device memory; done on return. For the CPU a memcpy (or nothing when
  // source and target are the same).
  [[nodiscard]] virtual absl::Status upload(std::byte* device, std::span<const std::byte> host) = 0;
  // Page-locked host memory that start_upload() copies from while the host goes on; 4096-byte
  // aligned. Without a device of its own: plain memory.
  [[nodiscard]] virtual absl::StatusOr<std::unique_ptr<Buffer>> allocate_staging(
      size_t bytes, const std::string& what);
  // Starts a copy out of that memory, which stays as it is until wait_upload() of the result has
  // returned. Copies are done in the order of their starts. By default done on return.
  [[nodiscard]] virtual absl::StatusOr<uint64_t> start_upload(std::byte* device,
                                                              std::span<const std::byte> staged);
  // Waits for the copy that start_upload() numbered so, and those before it.
  [[nodiscard]] virtual absl::Status wait_upload(uint64_t upload);
  // The way back, of what end_step() has finished; done on return.
  [[nodiscard]] virtual absl::Status download(std::span<std::byte> host,
                                              const std::byte* device) = 0;
  // True when Buffer::data() may be written by the host, so that weights are read in place.
  [[nodiscard]] virtual bool host_addressable() const = 0;
  // Fills device memory with seeded values instead of an upload; false: this Ops cannot, upload.
  [[nodiscard]] virtual absl::StatusOr<bool> fill(std::byte* device, const SeededValues& values) {
    static_cast<void>(device);
    static_cast<void>(values);
    return false;
  }

  // Called once a block when its weights are loaded, before the first step. An implementation may
  // rewrite the weights in place in a layout of its own (the Matrix then keeps shape and address
  // alone) and takes here what memory it needs for that; it marks the block with `prepared`.
  // WeightStore's header says which tensors it puts next to each other for this.
  [[nodiscard]] virtual absl::Status prepare(AttentionWeights& weights) {
    static_cast<void>(weights);
    return absl::OkStatus();
  }
  [[nodiscard]] virtual absl::Status prepare(MlpWeights& weights) {
    static_cast<void>(weights);
    return absl::OkStatus();
  }
  [[nodiscard]] virtual absl::Status prepare(MoeWeights& weights) {
    static_cast<void>(weights);
    return absl::OkStatus();
  }

  // Sizes of decode batches (one token a sequence) to run twice before serving, so that what this
  // implementation records or loads on first use is there. Empty: nothing is.
  [[nodiscard]] virtual std::vector<int32_t> batch_sizes_to_warm() const { return {}; }

  [[nodiscard]] virtual absl::Status begin_step(const StepInputs& inputs) = 0;

  // out[t] = table[token_ids[t] - first_row], zeros for ids outside the table, then summed over
  // ranks: out [T, D] holds whole rows. table [rows, D] is the rank's vocabulary slice.
  [[nodiscard]] virtual absl::Status embed(const Matrix& table, int64_t first_row, Tensor out) = 0;

  // out = rmsnorm(x) * weight; mean and rsqrt in f32. x, out [T, D]. `reader` alone reads it.
  [[nodiscard]] virtual absl::Status norm(Tensor x,
                                          const float* weight,
                                          Tensor out,
                                          NormReader reader) = 0;

  // residual += sum over ranks of partial; out = rmsnorm(residual) * weight. All [T, D]; `partial`
  // is scratch afterwards; `reader` alone reads `out`. A collective: every rank calls it.
  [[nodiscard]] virtual absl::Status reduce_add_norm(
      Tensor partial, Tensor residual, const float* weight, Tensor out, NormReader reader) = 0;

  // One MLA block over x [T, D] (normed): writes the step's latents to `pages`, attends, projects.
  // out [T, D] is this rank's partial sum.
  [[nodiscard]] virtual absl::Status attention(const AttentionWeights& weights,
                                               const LatentPages& pages,
                                               Tensor x,
                                               Tensor out) = 0;

  // Dense feed-forward; out [T, D] is this rank's partial sum.
  [[nodiscard]] virtual absl::Status mlp(const MlpWeights& weights, Tensor x, Tensor out) = 0;

  // Router, routed experts of this rank and the shared expert; out [T, D] is this rank's partial
  // sum.
  [[nodiscard]] virtual absl::Status moe(const MoeWeights& weights, Tensor x, Tensor out) = 0;

  // logits[b, :] = head . x[logit_rows[b]], gathered over ranks. head [V / world, D] is the rank's
  // rows from first_row. `logits` [B, V] f32 is host memory on rank 0 (null: nobody wants them,
  // they are only sampled) and null elsewhere; valid after end_step(). A collective.
  [[nodiscard]] virtual absl::Status logits(const Matrix& head,
                                            int64_t first_row,
                                            Tensor x,
                                            float* logits) = 0;

  // True when StepInputs::sample is heeded: tokens are chosen where the logits are.
  [[nodiscard]] virtual bool samples() const { return false; }

  // Waits until everything enqueued is done.
  [[nodiscard]] virtual absl::Status end_step() = 0;

  // end_step() in two halves, for steps that follow one another: launch_step() returns when the
  // step is on its way, wait_step() when the oldest one that was launched is done: its logits are
  // there then, and its SampleRequest (which lives until then) is filled. At most steps_ahead() + 1
  // are on their way, none of them when end_step() is called.
  [[nodiscard]] virtual int32_t steps_ahead() const { return 0; }
  [[nodiscard]] virtual absl::Status launch_step() { return end_step(); }
  [[nodiscard]] virtual absl::Status wait_step() { return absl::OkStatus(); }

  // Grows while a call computes; 0 where calls only enqueue. Callable from any thread.
  [[nodiscard]] virtual uint64_t progress() const { return 0; }

  // Lets a rank that waits in a collective return kUnavailable; later collectives fail at once.
  // Callable from any thread; holds until rejoin().
  virtual void abort() = 0;

  // Called on every rank's own thread after abort() once all ranks have left the step: makes the
  // communicator anew. Weights and caches stay as they are. A collective. An error means that the
  // fault does not allow it, and the engine is lost.
  [[nodiscard]] virtual absl::Status rejoin() = 0;
};

}  // namespace r1d::ops
