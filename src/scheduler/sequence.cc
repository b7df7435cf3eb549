// SPDX-License-Identifier: Apache-2.0
#include "scheduler/sequence.h"

#include <algorithm>
#include <utility>

namespace r1d::scheduler {

TimePoint rank_of(TimePoint arrival, int32_t priority, Duration aging) {
  // More than a century each way is as good as for ever, and the sum cannot overflow.
  constexpr Duration kForever = std::chrono::hours(24 * 365 * 100);
  if (aging <= Duration::zero()) return arrival;
  const auto most = kForever / aging;
  return arrival + aging * std::clamp<Duration::rep>(priority, -most, most);
}

void make_sequences(LiveRequest& live, SequenceId first_id, Duration priority_aging) {
  Request& request = live.request;
  const auto n = static_cast<size_t>(request.n);
  live.sequences.resize(n);
  live.num_live = request.n;
  for (size_t i = 0; i < n; ++i) {
    Sequence& sequence = live.sequences[i];
    sequence.id = first_id + i;
    sequence.request = &live;
    sequence.rank = rank_of(request.arrival, request.priority, priority_aging);
    sequence.sampling = request.sampling;
    sequence.sampling.seed += i;
    sequence.tokens = i + 1 < n ? request.prompt : std::move(request.prompt);
    sequence.table.salt = request.cache_salt;
    sequence.summary.index = static_cast<int32_t>(i);
    sequence.summary.num_prompt_tokens = sequence.num_tokens();
    sequence.summary.arrival = request.arrival;
    sequence.summary.first_scheduled = request.arrival;
  }
}

}  // namespace r1d::scheduler
