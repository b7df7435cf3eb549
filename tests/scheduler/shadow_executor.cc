// SPDX-License-Identifier: Apache-2.0
#include "tests/scheduler/shadow_executor.h"

#include <set>
#include <utility>

namespace r1d::scheduler {

ShadowExecutor::ShadowExecutor(const SchedulerOptions& options,
                               const FakeModel& model,
                               int32_t steps_ahead)
    : options_(options),
      model_(model),
      steps_ahead_(steps_ahead),
      slots_(static_cast<size_t>(options.num_blocks) * static_cast<size_t>(options.block_size)),
      last_use_(static_cast<size_t>(options.num_blocks), 0),
      num_users_(static_cast<size_t>(options.num_blocks), 0) {}

absl::StatusOr<engine::StepOutput> ShadowExecutor::execute(
    std::span<const engine::SequenceStep> batch) {
  ++num_steps_;
  check_batch(batch);
  for (const engine::SequenceStep& step : batch) check_step(step);
  engine::StepOutput output;
  for (const engine::SequenceStep& step : batch) {
    if (!contradiction_.empty()) return internal_error("step {}: {}", num_steps_, contradiction_);
    const uint64_t history = run(step);
    engine::SampledToken result;
    if (step.sampling != nullptr) result = model_.next(history, step.sampling->seed);
    if (step.capture_logits) result.logits = {0.0F};
    output.tokens.push_back(std::move(result));
  }
  sampled_.clear();
  for (size_t i = 0; i < batch.size(); ++i) {
    if (batch[i].sampling != nullptr) sampled_.push_back(output.tokens[i].token);
  }
  return output;
}

absl::Status ShadowExecutor::start(std::span<const engine::SequenceStep> batch) {
  if (started_.size() > static_cast<size_t>(steps_ahead_)) return internal_error("too far ahead");
  absl::StatusOr<engine::StepOutput> output = execute(batch);
  if (!output.ok()) return output.status();
  started_.push_back(*std::move(output));
  return absl::OkStatus();
}

absl::StatusOr<engine::StepOutput> ShadowExecutor::finish() {
  if (started_.empty()) return internal_error("no step was started");
  engine::StepOutput output = std::move(started_.front());
  started_.pop_front();
  return output;
}

void ShadowExecutor::check_batch(std::span<const engine::SequenceStep> batch) {
  std::set<SequenceId> sequences;
  int64_t num_tokens = 0;
  for (const engine::SequenceStep& step : batch) {
    expect(sequences.insert(step.sequence).second, step, "a sequence is in a step once");
    num_tokens += step.count;
    for (const BlockId block : step.block_table) {
      const auto b = static_cast<size_t>(block);
      if (std::exchange(last_use_[b], num_steps_) != num_steps_) num_users_[b] = 0;
      ++num_users_[b];
    }
  }
  if (batch.empty()) contradiction_ = "the batch is empty";
  if (static_cast<int64_t>(batch.size()) > options_.max_batch_size) {
    contradiction_ = "more sequences than max_batch_size";
  }
  if (num_tokens > options_.max_num_batched_tokens) contradiction_ = "the token budget is exceeded";
}

void ShadowExecutor::check_step(const engine::SequenceStep& step) {
  const bool follows = step.follows >= 0;
  const int32_t num_tokens = static_cast<int32_t>(step.tokens.size()) + (follows ? 1 : 0);
  expect(!follows || (!started_.empty() && step.count == 1 &&
                      static_cast<size_t>(step.follows) < sampled_.size()),
         step,
         "a token that is followed was sampled by the step in flight");
  expect(!follows || (step.sampling != nullptr && !engine::looks_back(*step.sampling)),
         step,
         "what looks back knows its tokens");
  const int32_t end = step.start + step.count;
  const auto num_slots = static_cast<int64_t>(step.block_table.size()) * options_.block_size;
  expect(step.start >= 0 && step.count > 0 && end <= num_tokens, step, "tokens are in the history");
  expect(num_tokens <= options_.max_model_len, step, "the history is within max_model_len");
  expect(num_slots >= end, step, "the block table covers its tokens");
  expect(num_slots - end < options_.block_size, step, "no block is taken ahead of its tokens");
  expect((step.sampling != nullptr) == (end == num_tokens), step, "the last chunk samples");
  expect(!step.capture_logits || (step.sampling != nullptr && num_tokens == step.num_prompt_tokens),
         step,
         "logits are asked for at the first token alone");
  if (!contradiction_.empty()) return;
  for (int32_t block = step.start / options_.block_size; block * options_.block_size < end;
       ++block) {
    const auto id = static_cast<size_t>(step.block_table[static_cast<size_t>(block)]);
    expect(num_users_[id] == 1, step, "a shared block is not written");
  }
  check_progress(step);
}

// A sequence goes on where it stopped; or it was preempted, and starts again after a cached prefix.
void ShadowExecutor::check_progress(const engine::SequenceStep& step) {
  const auto [at, first] = computed_.try_emplace(step.sequence, 0);
  if (first || step.start != at->second) {
    expect(step.start % options_.block_size == 0, step, "a prefix hit is whole blocks");
    expect(first || step.start < at->second, step, "no token is skipped");
    num_restarts_ += first ? 0 : 1;
  }
  at->second = step.start + step.count;
}

// Verifies [0, start), writes [start, start + count); the hash of the history up to there.
uint64_t ShadowExecutor::run(const engine::SequenceStep& step) {
  const auto salt = salts_.find(step.sequence);
  uint64_t history = FakeModel::start(salt == salts_.end() ? 0 : salt->second);
  for (int32_t position = 0; position < step.start + step.count; ++position) {
    const TokenId token = token_at(step, position);
    history = FakeModel::extend(history, token);
    Slot& at = slot(step, position);
    if (position >= step.start) {
      at = {.history = history, .token = token, .position = position};
    } else {
      expect(at.position == position && at.token == token && at.history == history,
             step,
             "the cache holds what the history says");
    }
  }
  return history;
}

TokenId ShadowExecutor::token_at(const engine::SequenceStep& step, int32_t position) const {
  const auto at = static_cast<size_t>(position);
  return at < step.tokens.size() ? step.tokens[at] : sampled_[static_cast<size_t>(step.follows)];
}

ShadowExecutor::Slot& ShadowExecutor::slot(const engine::SequenceStep& step, int32_t position) {
  const auto block_size = static_cast<size_t>(options_.block_size);
  const auto at = static_cast<size_t>(position);
  const auto block = static_cast<size_t>(step.block_table[at / block_size]);
  return slots_[block * block_size + at % block_size];
}

void ShadowExecutor::expect(bool condition, const engine::SequenceStep& step, const char* claim) {
  if (condition || !contradiction_.empty()) return;
  contradiction_ = fmt::format("{} (sequence {}: {} tokens, start {}, count {}, {} blocks)",
                               claim,
                               step.sequence,
                               step.tokens.size(),
                               step.start,
                               step.count,
                               step.block_table.size());
}

}  // namespace r1d::scheduler
