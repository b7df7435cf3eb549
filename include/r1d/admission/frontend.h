// SPDX-License-Identifier: Apache-2.0
// The one door behind all transports: validation, defaults, limits, ids. A transport turns its
// bytes into a GenerateRequest and sends events on; it judges nothing itself.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "r1d/admission/output_reader.h"
#include "r1d/admission/text_model.h"
#include "r1d/base/clock.h"
#include "r1d/base/types.h"
#include "r1d/chat/chat_template.h"
#include "r1d/scheduler/request.h"
#include "r1d/scheduler/step_loop.h"

namespace r1d::admission {

// A conversation as a client states it.
struct ChatInput {
  struct Tool {
    std::string name;
    std::string description;
    std::string parameters;  // a JSON object, as text
  };
  std::vector<chat::Message> messages;
  std::vector<Tool> tools;
  std::string template_variables;  // a JSON object, as text
  std::optional<int32_t> thinking_budget;
  bool keep_reasoning_in_content = false;
};

// A request as a client states it; unset fields take defaults (ranges:
// proto/r1d/v1/inference.proto).
struct GenerateRequest {
  std::optional<std::string> prompt_text;
  std::optional<std::vector<TokenId>> prompt_token_ids;
  std::optional<ChatInput> chat;     // one of the three
  std::optional<std::string> model;  // must be the served name when given
  std::optional<int32_t> max_tokens;
  int32_t min_tokens = 0;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int32_t> top_k;
  double min_p = 0;
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::optional<uint64_t> seed;
  std::optional<int32_t> logprobs;  // 0 .. 20
  int32_t n = 1;
  std::vector<TokenId> stop_token_ids;
  std::vector<std::string> stop;
  bool include_stop = false;
  bool ignore_eos = false;
  int32_t priority = 0;
  std::string cache_salt;
  std::string request_id;  // the client's own label, for logs
  std::string trace_id;    // for logs
  std::optional<TimePoint> deadline;
};

// What the served model and the operator allow.
struct Limits {
  int32_t max_model_len = 0;
  int32_t max_tokens_default = 0;  // 0: up to max_model_len
  int32_t max_n = 8;
  int32_t max_logprobs = 20;
  int32_t max_logit_bias = 1024;
  int32_t max_stop_token_ids = 64;
  int32_t max_label_bytes = 128;  // request_id, cache_salt
  int32_t max_priority = 100;     // -max .. max
  int32_t max_messages = 4096;
  int32_t max_tools = 128;
  int64_t vocab_size = 0;
  TokenId last_token_id = 0;
  std::vector<TokenId> eos_token_ids;
  double default_temperature = 1;
  double default_top_p = 1;
  int32_t default_top_k = 0;
  std::string model_name;
};

// What became of a request's text.
struct PreparedText {
  std::optional<TextModel::Prompt> prompt;  // of prompt_text or chat
  OutputOptions output;
  std::optional<engine::ThinkingLimit> thinking_limit;
  std::vector<TokenId>
      stop_tokens;  // besides the model's own: an answer that goes on as somebody else
};

// Turns text and conversations into tokens, and says how the output is to be read. `text`: null
// when the model has no tokenizer. kInvalidArgument with a field, kFailedPrecondition when the
// model lacks what a chat needs.
[[nodiscard]] absl::StatusOr<PreparedText> prepare_text(const GenerateRequest& request,
                                                        const Limits& limits,
                                                        const TextModel* text);

// Checks a request against the limits and fills in defaults; no id, arrival or sink yet, and the
// deadline is taken as it is (Frontend::submit has the clock). max_tokens is cut to what fits
// behind the prompt, min_tokens with it. kInvalidArgument (kNotFound for `model`) whose field_of()
// names the offending field. `random_seed` is used when the request has none.
[[nodiscard]] absl::StatusOr<scheduler::Request> validate(const GenerateRequest& request,
                                                          const Limits& limits,
                                                          uint64_t random_seed,
                                                          const PreparedText& prepared = {});

// Makes and reads the field name that an error carries as a payload ("" when none).
[[nodiscard]] absl::Status field_error(const std::string& field, const std::string& problem);
[[nodiscard]] std::string field_of(const absl::Status& status);

// How long a client should wait before it tries again; set on kResourceExhausted (queue full).
[[nodiscard]] absl::Status with_retry_after(absl::Status status, Duration delay);
[[nodiscard]] std::optional<Duration> retry_after_of(const absl::Status& status);

// A request that was taken: `id` names it in cancel(), `reader` reads its output.
struct Accepted {
  RequestId id = 0;
  int32_t num_prompt_tokens = 0;
  std::unique_ptr<OutputReader> reader;
};

// Lifecycle: made before the model is loaded (submit answers kUnavailable "loading"), attach() when
// the loop runs, set_stalled() while no step moves or the engine recovers (kUnavailable),
// begin_drain() on SIGTERM (kUnavailable "draining"), fail() when the engine is lost.
// Threads: thread-safe.
class Frontend {
 public:
  enum class State : uint8_t { kLoading, kServing, kStalled, kDraining, kFailed };

  explicit Frontend(const Clock& clock);
  ~Frontend();

  // `text`: null when the model has no tokenizer.
  void attach(const Limits& limits,
              std::shared_ptr<const TextModel> text,
              scheduler::StepLoop& loop);
  // Matters while serving alone.
  void set_stalled(bool stalled);
  void begin_drain();
  void fail(const absl::Status& why);
  // Forgets the loop; submit answers kUnavailable from now on, cancel does nothing.
  void detach();

  [[nodiscard]] State state() const;
  // Null while loading.
  [[nodiscard]] std::shared_ptr<const Limits> limits() const;
  // What the loop carries as of its last step; none before attach() and after detach().
  [[nodiscard]] std::optional<scheduler::SchedulerStats> load() const;

  // Null while loading, and when the model has no tokenizer.
  [[nodiscard]] std::shared_ptr<const TextModel> text() const;

  // Validates and submits; kDeadlineExceeded when the deadline has passed. On OK the sink sees one
  // on_finish per sequence.
  [[nodiscard]] absl::StatusOr<Accepted> submit(const GenerateRequest& request,
                                                std::shared_ptr<scheduler::OutputSink> sink);
  void cancel(RequestId id, const absl::Status& why);
  // The reader of a sequence has all it wants: it ends with kStop.
  void finish(RequestId id, int32_t index);

  // What a text or a conversation is in tokens; `plain` as in TextModel::encode. Errors as
  // submit's.
  [[nodiscard]] absl::StatusOr<TextModel::Prompt> tokenize(const GenerateRequest& request,
                                                           bool plain) const;
  [[nodiscard]] absl::StatusOr<std::string> detokenize(const std::vector<TokenId>& ids,
                                                       bool skip_special) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::admission
