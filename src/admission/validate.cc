// SPDX-License-Identifier: Apache-2.0
// The one judge of requests. Every number is compared with a range before it is used, lengths
// before contents; what leaves here is safe for the scheduler and the sampler.
#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "r1d/admission/frontend.h"
#include "r1d/base/status.h"

namespace r1d::admission {
namespace {

constexpr double kMaxInt32 = std::numeric_limits<int32_t>::max();

// Dividing logits by less overflows where the quotient no longer means anything: it is greedy.
constexpr double kGreedyBelow = 1e-5;

// A number and where it may lie. Doubles hold every int32_t exactly, so one table serves both.
struct Range {
  const char* field;
  double value;
  double min;
  double max;
  bool above_min = false;  // min itself is refused
  bool below_max = false;  // max itself is refused
};

// False for a NaN.
bool contains(const Range& range) {
  const bool over = range.above_min ? range.value > range.min : range.value >= range.min;
  const bool under = range.below_max ? range.value < range.max : range.value <= range.max;
  return over && under;
}

std::string describe(const Range& range) {
  return fmt::format("must be in {}{}, {}{}, is {}",
                     range.above_min ? '(' : '[',
                     range.min,
                     range.max,
                     range.below_max ? ')' : ']',
                     range.value);
}

template <typename Ranges>
absl::Status check_ranges(const Ranges& ranges) {
  for (const Range& range : ranges) {
    if (!contains(range)) return field_error(range.field, describe(range));
  }
  return absl::OkStatus();
}

absl::Status check_size(const char* field, size_t size, int32_t most) {
  if (size <= static_cast<size_t>(most)) return absl::OkStatus();
  return field_error(field, fmt::format("has {} entries; at most {} are allowed", size, most));
}

absl::Status check_label(const char* field, const std::string& label, int32_t most) {
  if (label.size() > static_cast<size_t>(most)) {
    return field_error(field,
                       fmt::format("is {} bytes long; at most {} are allowed", label.size(), most));
  }
  const bool printable =
      std::all_of(label.begin(), label.end(), [](char c) { return c >= ' ' && c <= '~'; });
  if (!printable) return field_error(field, "must be printable ASCII");
  return absl::OkStatus();
}

// The prompt in tokens, wherever it came from.
const std::vector<TokenId>& prompt_ids(const GenerateRequest& request,
                                       const PreparedText& prepared) {
  return prepared.prompt ? prepared.prompt->ids : *request.prompt_token_ids;
}

const char* prompt_field(const GenerateRequest& request) {
  if (request.chat.has_value()) return "messages";
  return request.prompt_text.has_value() ? "prompt.text" : "prompt.token_ids";
}

absl::Status check_prompt_size(size_t size, const char* field, const Limits& limits) {
  if (size == 0) return field_error(field, "is empty; at least one token is needed");
  if (size < static_cast<size_t>(limits.max_model_len)) return absl::OkStatus();
  return field_error(
      field,
      fmt::format("has {} tokens; at most {} fit (max_model_len {}, one of them for output)",
                  size,
                  limits.max_model_len - 1,
                  limits.max_model_len));
}

absl::Status check_prompt(const GenerateRequest& request,
                          const Limits& limits,
                          const PreparedText& prepared) {
  const int num_given =
      (request.prompt_text ? 1 : 0) + (request.prompt_token_ids ? 1 : 0) + (request.chat ? 1 : 0);
  if (num_given > 1) return field_error("prompt", "give text or token_ids, not both");
  if (num_given == 0) return field_error("prompt", "is missing; give text or token_ids");
  if (!request.prompt_token_ids && !prepared.prompt) {
    return field_error(prompt_field(request),
                       "this model has no tokenizer.json; send prompt.token_ids");
  }
  const auto& ids = prompt_ids(request, prepared);
  R1D_RETURN_IF_ERROR(check_prompt_size(ids.size(), prompt_field(request), limits));
  const auto bad = std::find_if(ids.begin(), ids.end(), [&limits](TokenId id) {
    return id < 0 || id > limits.last_token_id || id >= limits.vocab_size;
  });
  if (bad == ids.end()) return absl::OkStatus();
  return field_error(fmt::format("{}.ids[{}]", prompt_field(request), bad - ids.begin()),
                     fmt::format("must be a token id in [0, {}], is {}",
                                 std::min<int64_t>(limits.last_token_id, limits.vocab_size - 1),
                                 *bad));
}

absl::Status check_model(const GenerateRequest& request, const Limits& limits) {
  if (!request.model.has_value() || *request.model == limits.model_name) return absl::OkStatus();
  return not_found("model: not served here; this server has \"{}\"", limits.model_name);
}

absl::Status check_logit_bias(const GenerateRequest& request, const Limits& limits) {
  constexpr char kField[] = "sampling.logit_bias";
  R1D_RETURN_IF_ERROR(check_size(kField, request.logit_bias.size(), limits.max_logit_bias));
  std::vector<TokenId> ids;
  for (const auto& [id, bias] : request.logit_bias) {
    if (id < 0 || id >= limits.vocab_size) {
      return field_error(
          kField, fmt::format("has token id {}; ids are in [0, {}]", id, limits.vocab_size - 1));
    }
    const Range range{kField, bias, -100, 100};
    if (!contains(range)) {
      return field_error(kField, fmt::format("the value of token id {} {}", id, describe(range)));
    }
    ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice == ids.end()) return absl::OkStatus();
  return field_error(kField, fmt::format("has token id {} twice", *twice));
}

absl::Status check_stop_tokens(const GenerateRequest& request, const Limits& limits) {
  constexpr char kField[] = "sampling.stop_token_ids";
  const auto& ids = request.stop_token_ids;
  R1D_RETURN_IF_ERROR(check_size(kField, ids.size(), limits.max_stop_token_ids));
  const auto bad = std::find_if(
      ids.begin(), ids.end(), [&limits](TokenId id) { return id < 0 || id >= limits.vocab_size; });
  if (bad == ids.end()) return absl::OkStatus();
  return field_error(
      fmt::format("{}[{}]", kField, bad - ids.begin()),
      fmt::format("must be a token id in [0, {}], is {}", limits.vocab_size - 1, *bad));
}

absl::Status check_labels(const GenerateRequest& request, const Limits& limits) {
  R1D_RETURN_IF_ERROR(check_label("cache_salt", request.cache_salt, limits.max_label_bytes));
  return check_label("request_id", request.request_id, limits.max_label_bytes);
}

// Output tokens that still fit behind the prompt; at least 1 once the prompt was checked.
int32_t room_for_output(size_t num_prompt_tokens, const Limits& limits) {
  return limits.max_model_len - static_cast<int32_t>(num_prompt_tokens);
}

// What max_tokens was asked or is by default, before it is cut to what fits.
int32_t wanted_tokens(const GenerateRequest& request, int32_t room, const Limits& limits) {
  if (request.max_tokens.has_value()) return *request.max_tokens;
  return limits.max_tokens_default > 0 ? limits.max_tokens_default : room;
}

std::vector<TokenId> stop_tokens(const GenerateRequest& request,
                                 const PreparedText& prepared,
                                 const Limits& limits) {
  std::vector<TokenId> ids = request.stop_token_ids;
  if (!request.ignore_eos) {
    ids.insert(ids.end(), limits.eos_token_ids.begin(), limits.eos_token_ids.end());
    ids.insert(ids.end(), prepared.stop_tokens.begin(), prepared.stop_tokens.end());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

// The request's values with the defaults filled in; not judged yet.
engine::SamplingParams with_defaults(const GenerateRequest& request,
                                     int32_t room,
                                     const Limits& limits) {
  engine::SamplingParams params;
  params.temperature = request.temperature.value_or(limits.default_temperature);
  params.top_p = request.top_p.value_or(limits.default_top_p);
  params.top_k = request.top_k.value_or(limits.default_top_k);
  params.min_p = request.min_p;
  params.repetition_penalty = request.repetition_penalty;
  params.frequency_penalty = request.frequency_penalty;
  params.presence_penalty = request.presence_penalty;
  params.num_logprobs = request.logprobs.value_or(-1);
  params.min_tokens = request.min_tokens;
  params.max_tokens = wanted_tokens(request, room, limits);
  return params;
}

absl::Status check_numbers(const GenerateRequest& request,
                           const engine::SamplingParams& params,
                           const Limits& limits) {
  const auto vocab_size = static_cast<double>(limits.vocab_size);
  const Range ranges[] = {
      {"sampling.temperature", params.temperature, 0, 2},
      {"sampling.top_p", params.top_p, 0, 1, /*above_min=*/true},
      {"sampling.top_k", static_cast<double>(params.top_k), 0, vocab_size},
      {"sampling.min_p", params.min_p, 0, 1, /*above_min=*/false, /*below_max=*/true},
      {"sampling.repetition_penalty", params.repetition_penalty, 0.01, 2},
      {"sampling.frequency_penalty", params.frequency_penalty, -2, 2},
      {"sampling.presence_penalty", params.presence_penalty, -2, 2},
      {"sampling.logprobs",
       static_cast<double>(request.logprobs.value_or(0)),
       0,
       static_cast<double>(limits.max_logprobs)},
      {"sampling.max_tokens", static_cast<double>(params.max_tokens), 1, kMaxInt32},
      {"sampling.min_tokens",
       static_cast<double>(params.min_tokens),
       0,
       static_cast<double>(params.max_tokens)},
      {"sampling.n", static_cast<double>(request.n), 1, static_cast<double>(limits.max_n)},
      {"priority",
       static_cast<double>(request.priority),
       static_cast<double>(-limits.max_priority),
       static_cast<double>(limits.max_priority)},
  };
  return check_ranges(ranges);
}

}  // namespace

absl::StatusOr<scheduler::Request> validate(const GenerateRequest& request,
                                            const Limits& limits,
                                            uint64_t random_seed,
                                            const PreparedText& prepared) {
  R1D_RETURN_IF_ERROR(check_model(request, limits));
  R1D_RETURN_IF_ERROR(check_prompt(request, limits, prepared));
  const std::vector<TokenId>& prompt = prompt_ids(request, prepared);
  const int32_t room = room_for_output(prompt.size(), limits);
  engine::SamplingParams params = with_defaults(request, room, limits);
  R1D_RETURN_IF_ERROR(check_numbers(request, params, limits));
  R1D_RETURN_IF_ERROR(check_logit_bias(request, limits));
  R1D_RETURN_IF_ERROR(check_stop_tokens(request, limits));
  R1D_RETURN_IF_ERROR(check_labels(request, limits));

  if (params.temperature < kGreedyBelow) params.temperature = 0;
  params.max_tokens = std::min(params.max_tokens, room);
  params.min_tokens = std::min(params.min_tokens, params.max_tokens);
  params.logit_bias = request.logit_bias;
  params.stop_token_ids = stop_tokens(request, prepared, limits);
  params.seed = request.seed.value_or(random_seed);
  params.thinking_limit = prepared.thinking_limit;

  scheduler::Request checked;
  checked.prompt = prompt;
  checked.sampling = std::move(params);
  checked.n = request.n;
  checked.priority = request.priority;
  checked.deadline = request.deadline;
  checked.cache_salt = request.cache_salt;
  return checked;
}

}  // namespace r1d::admission
