// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <absl/status/status.h>

#include "r1d/base/types.h"

namespace r1d::engine {

// Ends a thought that has become too long: from its token number `max_tokens` on, `closing` comes
// out whatever the model says.
struct ThinkingLimit {
  int32_t max_tokens = 0;        // of the thought, from its opening tag on
  std::optional<TokenId> open;   // <think>, where the output itself may begin with it
  TokenId close = 0;             // </think>: the thought has ended by itself
  std::vector<TokenId> closing;  // ends with or contains `close`
  bool starts_open = false;      // the prompt ended inside the thought
};

// The token that `limit` puts next behind `output`, if any.
[[nodiscard]] std::optional<TokenId> forced_token(std::span<const TokenId> output,
                                                  const ThinkingLimit& limit);

// How a sequence's next token is chosen. Values were checked by admission; ranges stand there.
struct SamplingParams {
  double temperature = 1;  // 0: greedy, the exact argmax (lowest id among equals)
  double top_p = 1;
  int32_t top_k = 0;  // 0: off
  double min_p = 0;
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;
  uint64_t seed = 0;          // same seed and prompt, same tokens, whatever the batch
  int32_t num_logprobs = -1;  // -1: none; 0: the chosen token's; N: also the N most likely
  int32_t min_tokens = 0;     // stop tokens are not sampled before this many output tokens
  int32_t max_tokens = 0;     // output tokens at most
  std::vector<TokenId> stop_token_ids;  // eos included unless ignore_eos
  std::optional<ThinkingLimit> thinking_limit;
};

// Whether the next token's choice depends on which tokens came before, besides the logits.
[[nodiscard]] bool looks_back(const SamplingParams& params);

struct TokenLogprob {
  TokenId token = 0;
  float logprob =
      0;  // natural log, of the raw distribution: before temperature, penalties and cuts
};

struct SampledToken {
  absl::Status status;  // not OK: this sequence's own fault (NaN logits); others are unaffected
  TokenId token = -1;
  // As TokenLogprob's. Known when num_logprobs >= 0, and where the host samples, always; unasked it
  // is good to 1e-4, enough for statistics.
  std::optional<float> logprob = std::nullopt;
  std::vector<TokenLogprob> top;  // most likely first
  std::vector<float> logits;      // the raw row, when asked for
};

// What the sampler may look at: raw logits [V] (scratch: it writes into them), the history (prompt,
// then output) and how much of it is prompt. `last_token_id`: ids above are never sampled.
// Pure: no state, no clock. Draw number i of a sequence uses counter i = number of output tokens.
[[nodiscard]] SampledToken sample_token(std::span<float> logits,
                                        std::span<const TokenId> history,
                                        int32_t num_prompt_tokens,
                                        TokenId last_token_id,
                                        const SamplingParams& params);

}  // namespace r1d::engine
