// SPDX-License-Identifier: Apache-2.0
// What the scheduler's tests share: a clock moved by hand, a sink that remembers, a fake model
// whose tokens depend on the whole history.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "r1d/base/clock.h"
#include "r1d/base/random.h"
#include "r1d/base/status.h"
#include "r1d/scheduler/scheduler.h"

namespace r1d::scheduler {

// Starts an hour after the epoch, so that earlier times can be named. Thread-safe.
class ManualClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const override { return TimePoint(Duration(now_.load())); }
  void advance(Duration by) { now_ += by.count(); }

 private:
  std::atomic<Duration::rep> now_{Duration(std::chrono::hours(1)).count()};
};

// The next token is a function of the seed and all tokens before it, so that a token lost, repeated
// or crossed changes everything after it.
struct FakeModel {
  int32_t vocab_size = 1000;
  uint64_t fault_one_in = 0;  // 0: never

  [[nodiscard]] static uint64_t start(uint64_t salt) { return base::mix64(salt); }
  [[nodiscard]] static uint64_t extend(uint64_t history, TokenId token) {
    return base::mix64(history ^ (static_cast<uint64_t>(token) + 1));
  }
  [[nodiscard]] engine::SampledToken next(uint64_t history, uint64_t seed) const {
    const uint64_t bits = base::random_bits(seed, history);
    engine::SampledToken result;
    if (fault_one_in != 0 && (bits >> 32) % fault_one_in == 0) {
      result.status = internal_error("the logits are not finite");
    } else {
      result.token = static_cast<TokenId>(bits % static_cast<uint64_t>(vocab_size));
    }
    return result;
  }
};

// One sequence's stream.
struct Stream {
  std::vector<TokenId> tokens;
  std::vector<FinishEvent> finishes;
  std::optional<TimePoint> started;
  int32_t num_logits = 0;  // tokens that came with their logits
};

class RecordingSink : public OutputSink {
 public:
  explicit RecordingSink(int32_t n = 1) : streams_(static_cast<size_t>(n)) {}
  void on_start(int32_t index, TimePoint time) override { stream(index).started = time; }
  void on_token(TokenEvent event) override {
    stream(event.index).tokens.push_back(event.token.token);
    stream(event.index).num_logits += event.token.logits.empty() ? 0 : 1;
  }
  void on_finish(const FinishEvent& event) override {
    stream(event.index).finishes.push_back(event);
  }
  [[nodiscard]] Stream& stream(int32_t index = 0) {
    return streams_.at(static_cast<size_t>(index));
  }
  [[nodiscard]] bool finished(int32_t index = 0) { return !stream(index).finishes.empty(); }
  [[nodiscard]] const FinishEvent& finish(int32_t index = 0) {
    return stream(index).finishes.at(0);
  }

 private:
  std::vector<Stream> streams_;
};

[[nodiscard]] inline std::vector<TokenId> counting_prompt(int32_t length, TokenId first = 0) {
  std::vector<TokenId> prompt;
  for (int32_t i = 0; i < length; ++i) prompt.push_back(first + i);
  return prompt;
}

[[nodiscard]] inline Request make_request(RequestId id,
                                          std::vector<TokenId> prompt,
                                          int32_t max_tokens,
                                          std::shared_ptr<OutputSink> sink,
                                          TimePoint arrival) {
  Request request;
  request.id = id;
  request.prompt = std::move(prompt);
  request.sampling.max_tokens = max_tokens;
  request.sampling.seed = id;
  request.arrival = arrival;
  request.sink = std::move(sink);
  return request;
}

// What the model gives this history when it runs alone.
[[nodiscard]] inline std::vector<TokenId> tokens_alone(const FakeModel& model,
                                                       std::span<const TokenId> prompt,
                                                       uint64_t seed,
                                                       int32_t count,
                                                       uint64_t salt = 0) {
  uint64_t history = FakeModel::start(salt);
  for (const TokenId token : prompt) history = FakeModel::extend(history, token);
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < count; ++i) {
    tokens.push_back(model.next(history, seed).token);
    history = FakeModel::extend(history, tokens.back());
  }
  return tokens;
}

}  // namespace r1d::scheduler
