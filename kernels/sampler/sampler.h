// SPDX-License-Identifier: Apache-2.0
// Chooses every row's next token on the device: what engine::sample_token does, with the same seeds
// and the same tokens. The two can differ only where a draw or a top_p cut falls on a boundary
// within rounding (sampler.cu derives how rarely: less than once in 100000 draws).
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/common/launch.h"

namespace r1d::kernels {

// How one row's token is chosen; fields as in engine::SamplingParams, checked by admission. Lists
// are ranges of the flat arrays in SamplerInput.
struct SamplerRow {
  double temperature = 1;  // 0: greedy, the exact argmax (lowest id among equals)
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  uint64_t seed = 0;
  uint64_t draw = 0;          // the draw's counter: number of output tokens so far
  int32_t top_k = 0;          // 0: off
  int32_t forced = -1;        // not -1: this token comes out whatever the logits say
  int32_t num_logprobs = -1;  // -1: none; 0: the chosen token's; N: also the N most likely
  int32_t num_penalties = 0;  // 0 also when all three penalties are off
  int32_t first_penalty = 0;
  int32_t num_biases = 0;
  int32_t first_bias = 0;
  int32_t num_masked = 0;  // stop ids to mask; 0 from min_tokens output tokens on
  int32_t first_masked = 0;
  int32_t reserved = 0;
};

// A token of the sequence so far. A list names a token once; ids outside the vocabulary are passed
// over, in every list.
struct SamplerTokenCount {
  int32_t token = 0;
  int32_t count = 0;  // in the output; 0: in the prompt alone
};

struct SamplerTokenBias {
  int32_t token = 0;
  float bias = 0;
};

enum SamplerStatus : int32_t {
  kSamplerOk = 0,
  kSamplerNotFinite = 1,  // bad_token is the lowest id whose logit is not finite
  kSamplerAllMasked = 2,  // every token is masked; no token is chosen
};

struct SampledRow {
  int32_t token = -1;  // -1 unless ok
  int32_t status = kSamplerOk;
  int32_t bad_token = -1;  // not finite: which
  float bad_logit = 0;     // and its value
  float logprob = 0;       // of `token` in the raw distribution; 0 unless num_logprobs >= 0
};

// All pointers are device memory, read when the kernel runs.
struct SamplerInput {
  const float* logits = nullptr;  // [rows, row_stride], raw; never written
  int64_t row_stride = 0;         // rows are loaded fastest when it is a multiple of 4 and logits
                                  // is 16-byte aligned
  int32_t rows = 0;
  int32_t vocab =
      0;  // ids [0, vocab) exist: min(columns, last token id + 1); 1 .. kSamplerMaxVocab
  const SamplerRow* params = nullptr;  // [rows]
  const SamplerTokenCount* penalties = nullptr;
  const SamplerTokenBias* biases = nullptr;
  const int32_t* masked = nullptr;
};

struct SamplerOutput {
  SampledRow* sampled = nullptr;  // [rows]
  // The most likely tokens of the raw distribution, best first: min(num_logprobs, vocab,
  // top_stride) entries of a row are written, the others are left alone. Null when no row asks for
  // any.
  int32_t* top_tokens = nullptr;  // [rows, top_stride]
  float* top_logprobs = nullptr;  // [rows, top_stride]
  int32_t top_stride = 0;         // kSamplerMaxLogprobs at most
};

inline constexpr int32_t kSamplerMaxVocab = 1 << 18;
inline constexpr int32_t kSamplerMaxLogprobs = 1024;

// How a launch is cut, from numbers that the host knows. Results do not depend on it: sums are
// integers, so a row gives the same bits in any batch and on any GPU.
struct SamplerPlan {
  int32_t rows = 0;  // at most
  int32_t team = 1;  // blocks that share a row (a cluster); 1: no clusters, sm_80 and sm_89
  int32_t greedy_splits = 1;    // blocks that share a row in sample_greedy
  int64_t workspace_bytes = 0;  // both launchers use the same workspace, one launch at a time
};
// For up to `rows` rows on a GPU of this compute capability (90 for sm_90) and number of SMs.
// Clusters are used from 90 on and want code built for sm_90a.
[[nodiscard]] SamplerPlan plan_sampler(int32_t rows,
                                       int32_t vocab,
                                       int32_t compute_capability,
                                       int32_t num_sms);

// One launch for all rows, each with its own parameters. `workspace` (16-byte aligned) must hold
// zeros before its first use; every launch leaves its counters zero again.
[[nodiscard]] cudaError_t sample_tokens(const SamplerInput& input,
                                        const SamplerOutput& output,
                                        const SamplerPlan& plan,
                                        void* workspace,
                                        const Launch& launch);

// The fast path when every row is greedy and asks for nothing else: no penalties, biases, masks,
// forced tokens or logprobs. input.params and the lists are not read. Same result as sample_tokens.
[[nodiscard]] cudaError_t sample_greedy(const SamplerInput& input,
                                        SampledRow* sampled,
                                        const SamplerPlan& plan,
                                        void* workspace,
                                        const Launch& launch);

// ---- argmax over shards of a vocabulary ---------------------------------------------------------

// A candidate as one number, so that the larger is the better: higher logit first, lower id among
// equals (-0 and 0 are equal). Shards merge by taking the larger; 0 is no candidate.
[[nodiscard]] constexpr uint32_t sampler_order_key(uint32_t logit_bits) {
  if (logit_bits == 0x80000000U) logit_bits = 0;
  return (logit_bits & 0x80000000U) != 0 ? ~logit_bits : logit_bits | 0x80000000U;
}
[[nodiscard]] constexpr uint32_t sampler_key_bits(uint32_t key) {
  return (key & 0x80000000U) != 0 ? key & 0x7FFFFFFFU : ~key;
}
[[nodiscard]] constexpr uint64_t sampler_candidate(uint32_t logit_bits, int32_t token) {
  return static_cast<uint64_t>(sampler_order_key(logit_bits)) << 32 |
         static_cast<uint32_t>(~static_cast<uint32_t>(token));
}
[[nodiscard]] constexpr int32_t sampler_candidate_token(uint64_t candidate) {
  return static_cast<int32_t>(~static_cast<uint32_t>(candidate));
}

}  // namespace r1d::kernels
