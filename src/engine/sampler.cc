// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "r1d/base/random.h"
#include "r1d/base/status.h"
#include "r1d/engine/sampling.h"
#include "r1d/ops/cpu_ops.h"

namespace r1d::engine {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// log of the sum of exp over the row, in double: V is up to 129280. For clients that ask.
double exact_log_sum_exp(std::span<const float> logits, float highest) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - highest);
  return highest + std::log(sum);
}

// Higher logit first, lower id among equals.
struct ByLogit {
  std::span<const float> logits;
  bool operator()(TokenId a, TokenId b) const {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  }
};

std::vector<TokenLogprob> top_logprobs(std::span<const float> logits,
                                       int32_t count,
                                       double log_total) {
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto middle = ids.begin() + std::min<int64_t>(count, static_cast<int64_t>(ids.size()));
  std::partial_sort(ids.begin(), middle, ids.end(), ByLogit{logits});
  std::vector<TokenLogprob> top;
  for (auto id = ids.begin(); id != middle; ++id) {
    top.push_back({*id, static_cast<float>(logits[static_cast<size_t>(*id)] - log_total)});
  }
  return top;
}

// repetition_penalty counts prompt and output (Keskar et al., arXiv 1909.05858, section 4.1);
// frequency and presence count output alone, as OpenAI defines them.
void apply_penalties(std::span<float> logits,
                     std::span<const TokenId> history,
                     int32_t num_prompt_tokens,
                     const SamplingParams& params) {
  const bool repetition = params.repetition_penalty != 1;
  if (!repetition && params.frequency_penalty == 0 && params.presence_penalty == 0) return;
  std::unordered_map<TokenId, int32_t> output_count;  // 0: in the prompt only
  for (size_t i = 0; i < history.size(); ++i) {
    const bool output = i >= static_cast<size_t>(num_prompt_tokens);
    if (output || repetition) output_count[history[i]] += output ? 1 : 0;
  }
  for (const auto& [token, count] : output_count) {
    if (token < 0 || static_cast<size_t>(token) >= logits.size()) continue;
    double logit = logits[static_cast<size_t>(token)];
    if (repetition)
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    logit -= params.frequency_penalty * count;
    if (count > 0) logit -= params.presence_penalty;
    logits[static_cast<size_t>(token)] = static_cast<float>(logit);
  }
}

void apply_bias_and_masks(std::span<float> logits,
                          int32_t num_output,
                          const SamplingParams& params) {
  for (const auto& [token, bias] : params.logit_bias) {
    if (static_cast<size_t>(token) < logits.size()) logits[static_cast<size_t>(token)] += bias;
  }
  if (num_output >= params.min_tokens) return;
  for (const TokenId stop : params.stop_token_ids) {
    if (static_cast<size_t>(stop) < logits.size()) logits[static_cast<size_t>(stop)] = kMasked;
  }
}

bool has_edits(int32_t num_output, const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.frequency_penalty != 0 ||
         params.presence_penalty != 0 || !params.logit_bias.empty() ||
         num_output < params.min_tokens;
}

TokenId argmax(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// The tokens that survive top_k, min_p and top_p, most likely first, with their weights.
class Candidates {
 public:
  // Weight of a token: exp((logit - highest) / temperature), so the likeliest has 1.
  Candidates(std::span<const float> logits, const SamplingParams& params)
      : logits_(logits),
        params_(params),
        highest_(*std::max_element(logits.begin(), logits.end())) {}

  TokenId draw(double unit) {
    if (params_.top_k == 0 && params_.top_p >= 1 && params_.min_p <= 0) return draw_from_all(unit);
    collect();
    cut_top_p();
    double remaining = unit * kept_weight_;
    for (const TokenId id : ids_) {
      remaining -= weight(id);
      if (remaining < 0) return id;
    }
    return ids_.back();  // rounding only
  }

 private:
  [[nodiscard]] double weight(TokenId id) const {
    return std::exp((static_cast<double>(logits_[static_cast<size_t>(id)]) - highest_) /
                    params_.temperature);
  }

  // No cut: walk in id order, no sort.
  [[nodiscard]] TokenId draw_from_all(double unit) const {
    double total = 0;
    const auto size = static_cast<TokenId>(logits_.size());
    for (TokenId id = 0; id < size; ++id) total += weight(id);
    double remaining = unit * total;
    TokenId last = 0;
    for (TokenId id = 0; id < size; ++id) {
      const double share = weight(id);
      if (share <= 0) continue;
      last = id;
      remaining -= share;
      if (remaining < 0) break;
    }
    return last;
  }

  // min_p and top_k; ids_ is left unsorted behind sorted_.
  void collect() {
    const double least = std::max(params_.min_p, 0.0);
    total_weight_ = 0;
    for (TokenId id = 0; id < static_cast<TokenId>(logits_.size()); ++id) {
      const double share = weight(id);
      if (share <= 0 || share < least) continue;
      ids_.push_back(id);
    }
    if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < ids_.size()) {
      std::nth_element(
          ids_.begin(), ids_.begin() + params_.top_k - 1, ids_.end(), ByLogit{logits_});
      ids_.resize(static_cast<size_t>(params_.top_k));
    }
    std::sort(ids_.begin(), ids_.end());  // sum in a fixed order, whatever nth_element did
    for (const TokenId id : ids_) total_weight_ += weight(id);
  }

  // Keeps the shortest sorted prefix whose weight reaches top_p of the total. Sorts in growing
  // pieces: the prefix is short in practice and V is large.
  void cut_top_p() {
    const double wanted = std::min(params_.top_p, 1.0) * total_weight_;
    kept_weight_ = 0;
    size_t sorted = 0;
    for (size_t i = 0; i < ids_.size(); ++i) {
      if (i == sorted) {
        sorted = std::min(ids_.size(), std::max<size_t>(256, 4 * sorted));
        std::partial_sort(ids_.begin() + static_cast<int64_t>(i),
                          ids_.begin() + static_cast<int64_t>(sorted),
                          ids_.end(),
                          ByLogit{logits_});
      }
      kept_weight_ += weight(ids_[i]);
      if (kept_weight_ >= wanted && params_.top_p < 1) {
        ids_.resize(i + 1);
        return;
      }
    }
  }

  const std::span<const float> logits_;
  const SamplingParams& params_;
  const double highest_;
  std::vector<TokenId> ids_;
  double total_weight_ = 0;  // after min_p and top_k
  double kept_weight_ = 0;   // after top_p
};

absl::Status not_finite(std::span<const float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!std::isfinite(logits[i])) {
      return internal_error(
          "the model's logit of token {} is {}; the sequence was ended", i, logits[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace

SampledToken sample_token(std::span<float> logits,
                          std::span<const TokenId> history,
                          int32_t num_prompt_tokens,
                          TokenId last_token_id,
                          const SamplingParams& params) {
  SampledToken sampled;
  // Padding rows behind the tokenizer's last id do not exist for anything below.
  logits = logits.first(std::min(logits.size(), static_cast<size_t>(last_token_id) + 1));
  sampled.status = not_finite(logits);
  if (!sampled.status.ok()) return sampled;

  const bool wants_logprobs = params.num_logprobs >= 0;
  const int32_t num_output = static_cast<int32_t>(history.size()) - num_prompt_tokens;
  double log_total = 0;
  if (wants_logprobs) {
    log_total = exact_log_sum_exp(logits, *std::max_element(logits.begin(), logits.end()));
    sampled.top = top_logprobs(logits, params.num_logprobs, log_total);
  } else {
    log_total = ops::log_sum_exp(logits);
  }
  std::vector<float> raw;  // where the row is about to change
  if (has_edits(num_output, params)) raw.assign(logits.begin(), logits.end());
  apply_penalties(logits, history, num_prompt_tokens, params);
  apply_bias_and_masks(logits, num_output, params);

  const auto forced = params.thinking_limit
                          ? forced_token(history.subspan(static_cast<size_t>(num_prompt_tokens)),
                                         *params.thinking_limit)
                          : std::nullopt;
  const TokenId best = forced.value_or(argmax(logits));
  if (!forced && logits[static_cast<size_t>(best)] == kMasked) {
    sampled.status = internal_error(
        "every token is masked: min_tokens and stop_token_ids leave nothing to sample");
    return sampled;
  }
  sampled.token = best;
  if (!forced && params.temperature > 0) {
    sampled.token = Candidates(logits, params)
                        .draw(base::random_unit(params.seed, static_cast<uint64_t>(num_output)));
  }
  const float logit = (raw.empty() ? logits : std::span(raw))[static_cast<size_t>(sampled.token)];
  sampled.logprob = static_cast<float>(std::min(logit - log_total, 0.0));  // the sum is rounded
  return sampled;
}

}  // namespace r1d::engine
