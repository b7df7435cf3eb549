// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "r1d/engine/executor.h"
#include "r1d/scheduler/scheduler.h"

#include "tests/scheduler/fakes.h"

namespace r1d::scheduler {

// Runs the fake model over a shadow of the KV cache: for each slot of each block, what was written
// there last. Each step it checks that the whole context of every sequence is what its history
// says, wherever the blocks came from, and that what the scheduler asks for is a legal step.
class ShadowExecutor final : public engine::Executor {
 public:
  ShadowExecutor(const SchedulerOptions& options, const FakeModel& model, int32_t steps_ahead = 0);

  // An error names the first contradiction.
  [[nodiscard]] absl::StatusOr<engine::StepOutput> execute(
      std::span<const engine::SequenceStep> batch) override;
  [[nodiscard]] int32_t steps_ahead() const override { return steps_ahead_; }
  [[nodiscard]] absl::Status start(std::span<const engine::SequenceStep> batch) override;
  [[nodiscard]] absl::StatusOr<engine::StepOutput> finish() override;
  [[nodiscard]] uint64_t progress() const override { return num_steps_; }

  // Caches under different salts must not meet. Ids are given in the order of add(), from 1.
  void set_salt(SequenceId sequence, uint64_t salt) { salts_[sequence] = salt; }

  // As after a failed step: nothing in the cache is what it was.
  void wipe() {
    std::fill(slots_.begin(), slots_.end(), Slot{});
    started_.clear();
  }

  [[nodiscard]] uint64_t num_steps() const { return num_steps_; }
  [[nodiscard]] int64_t num_restarts() const { return num_restarts_; }

 private:
  struct Slot {
    uint64_t history = 0;  // of all tokens up to and with this one
    TokenId token = -1;
    int32_t position = -1;
  };

  void check_batch(std::span<const engine::SequenceStep> batch);
  void check_step(const engine::SequenceStep& step);
  void check_progress(const engine::SequenceStep& step);
  uint64_t run(const engine::SequenceStep& step);
  Slot& slot(const engine::SequenceStep& step, int32_t position);
  void expect(bool condition, const engine::SequenceStep& step, const char* claim);

  [[nodiscard]] TokenId token_at(const engine::SequenceStep& step, int32_t position) const;

  const SchedulerOptions options_;
  const FakeModel model_;
  const int32_t steps_ahead_;
  std::deque<engine::StepOutput> started_;  // done, as on a device, but not told yet
  std::vector<TokenId> sampled_;            // by the step before, a row each
  std::vector<Slot> slots_;                 // [num_blocks, block_size]
  std::vector<uint64_t> last_use_;          // by block: the step that named it last,
  std::vector<int32_t> num_users_;          // and by how many tables
  std::unordered_map<SequenceId, uint64_t> salts_;
  std::unordered_map<SequenceId, int32_t> computed_;
  uint64_t num_steps_ = 0;
  int64_t num_restarts_ = 0;
  std::string contradiction_;
};

}  // namespace r1d::scheduler
