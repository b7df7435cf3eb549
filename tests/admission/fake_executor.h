// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <span>

#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/engine/executor.h"

namespace r1d::testing {

// An engine that counts: the next token is the last one plus 1 plus seed % 3, going round in
// [kFirst, kFirst + kRound), so that a test knows every token. A closed gate holds steps inside
// execute().
class FakeExecutor final : public engine::Executor {
 public:
  static constexpr TokenId kFirst = 3;
  static constexpr TokenId kRound = 90;

  static TokenId next_token(TokenId last, uint64_t seed) {
    return kFirst + (last - kFirst + 1 + static_cast<TokenId>(seed % 3)) % kRound;
  }

  static float logprob_of(TokenId token) { return -static_cast<float>(token) / 8; }

  void close_gate() {
    const base::MutexLock lock(mu_);
    open_ = false;
  }
  void open_gate() {
    const base::MutexLock lock(mu_);
    open_ = true;
    changed_.notify_all();
  }
  // Lets the step held at the closed gate through, and no other.
  void pass_one_step() {
    const base::MutexLock lock(mu_);
    pass_ = true;
    changed_.notify_all();
  }
  // Blocks until a step is held at the closed gate.
  void wait_until_held() {
    const base::MutexLock lock(mu_);
    while (!held_) changed_.wait(mu_);
  }
  // Sequences that would get this token fail by themselves.
  void fail_at(TokenId token) {
    const base::MutexLock lock(mu_);
    faulty_.insert(token);
  }
  // The next step breaks the engine.
  void break_engine(const absl::Status& why) {
    const base::MutexLock lock(mu_);
    broken_ = why;
  }

  absl::StatusOr<engine::StepOutput> execute(std::span<const engine::SequenceStep> batch) override {
    const base::MutexLock lock(mu_);
    while (!open_ && !pass_) {
      held_ = true;
      changed_.notify_all();
      changed_.wait(mu_);
    }
    held_ = false;
    pass_ = false;
    ++num_steps_;
    if (!broken_.ok()) return broken_;
    engine::StepOutput output;
    for (const engine::SequenceStep& step : batch) output.tokens.push_back(sample(step));
    return output;
  }
  [[nodiscard]] uint64_t progress() const override {
    const base::MutexLock lock(mu_);
    return num_steps_;
  }

 private:
  engine::SampledToken sample(const engine::SequenceStep& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    engine::SampledToken sampled;
    if (step.sampling == nullptr) return sampled;
    sampled.token = next_token(step.tokens.back(), step.sampling->seed);
    if (faulty_.contains(sampled.token)) sampled.status = internal_error("the logits are NaN");
    if (step.sampling->num_logprobs >= 0) sampled.logprob = logprob_of(sampled.token);
    for (int32_t i = 0; i < step.sampling->num_logprobs; ++i) {
      const TokenId token = kFirst + i;
      sampled.top.push_back({token, logprob_of(token)});
    }
    return sampled;
  }

  mutable base::Mutex mu_;
  base::CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = true;
  bool pass_ ABSL_GUARDED_BY(mu_) = false;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t num_steps_ ABSL_GUARDED_BY(mu_) = 0;
  std::set<TokenId> faulty_ ABSL_GUARDED_BY(mu_);
  absl::Status broken_ ABSL_GUARDED_BY(mu_);
};

}  // namespace r1d::testing
