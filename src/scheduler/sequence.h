// SPDX-License-Identifier: Apache-2.0
// A live request and its sequences, as the scheduler keeps them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "r1d/base/clock.h"
#include "r1d/base/types.h"
#include "r1d/engine/sampling.h"
#include "r1d/scheduler/request.h"

#include "scheduler/kv_blocks.h"

namespace r1d::scheduler {

struct LiveRequest;

struct Sequence {
  // parked: sequences 1 .. n-1 until sequence 0 has computed the prompt that they then share.
  // parked -> waiting <-> running -> ended; any state -> ended.
  enum class State : uint8_t { kParked, kWaiting, kRunning, kEnded };

  SequenceId id = 0;
  LiveRequest* request = nullptr;
  State state = State::kParked;
  TimePoint rank;  // see rank_of(); ties go by id, which is the order of arrival
  engine::SamplingParams sampling;
  std::vector<TokenId> tokens;  // history: prompt, then output
  BlockTable table;
  // Leading tokens whose cache entries are in the table's blocks, or will be after the steps in
  // flight.
  int32_t num_computed = 0;
  int32_t num_scheduled = 0;  // tokens after those that the step being planned computes
  int32_t num_pending = 0;    // tokens after `tokens` that steps in flight sample
  int32_t sample_row = -1;    // of the newest of those, among the tokens its step samples
  bool started = false;       // has been in a step
  FinishEvent summary;        // fills up as the sequence lives

  [[nodiscard]] int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  [[nodiscard]] int32_t num_remaining() const { return num_tokens() + num_pending - num_computed; }
  // One token to compute: the newest, whose successor is sampled.
  [[nodiscard]] bool decodes() const { return num_remaining() == 1; }
  // Whether the planned step reaches the end of the history, so that a token comes out.
  [[nodiscard]] bool samples() const { return num_scheduled == num_remaining(); }
};

struct LiveRequest {
  Request request;                  // its prompt has moved into the sequences
  std::vector<Sequence> sequences;  // never grows: others keep pointers
  int32_t num_live = 0;
  bool started = false;  // one of its sequences has
};

// Where a sequence stands in every order of ours; lower runs earlier.
// Its effective priority at time t is  priority - (t - arrival) / aging.  Times aging, less the t
// that all have in common, that is  priority * aging + arrival:  a fixed point in time. So waiting
// raises all alike, the order of two sequences never changes, and nothing is ever sorted again; yet
// no one starves, since those who arrive later than (difference in priority) * aging stand behind.
[[nodiscard]] TimePoint rank_of(TimePoint arrival, int32_t priority, Duration aging);

struct RanksEarlier {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return a->rank != b->rank ? a->rank < b->rank : a->id < b->id;
  }
};

// Builds the sequences of a request, ids from `first_id` on. `live.request` is set before and
// stays.
void make_sequences(LiveRequest& live, SequenceId first_id, Duration priority_aging);

}  // namespace r1d::scheduler
