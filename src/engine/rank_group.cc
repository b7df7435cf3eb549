// SPDX-License-Identifier: Apache-2.0
#include "r1d/engine/rank_group.h"

#include <utility>

#include "r1d/base/exceptions.h"
#include "r1d/base/status.h"
#include "r1d/engine/executor.h"

namespace r1d::engine {
namespace {

absl::Status guarded(const RankGroup::Job& job, int32_t rank) {
  try {
    return job(rank);
  } catch (...) {
    const absl::Status caught = base::caught_status();
    return absl::Status(caught.code(), fmt::format("rank {}: {}", rank, message_of(caught)));
  }
}

}  // namespace

RankGroup::RankGroup(int32_t world_size, std::function<void()> on_failure)
    : on_failure_(std::move(on_failure)) {
  for (int32_t rank = 0; rank < world_size; ++rank)
    threads_.emplace_back([this, rank] { work(rank); });
}

RankGroup::~RankGroup() {
  {
    base::MutexLock lock(mu_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

absl::Status RankGroup::run(const Job& job) {
  base::MutexLock lock(mu_);
  job_ = &job;
  busy_ = static_cast<int32_t>(threads_.size());
  failure_ = absl::OkStatus();
  ++generation_;
  start_.notify_all();
  while (busy_ > 0) done_.wait(mu_);
  return failure_;
}

void RankGroup::work(int32_t rank) {
  uint64_t seen = 0;
  while (true) {
    const Job* job = nullptr;
    {
      base::MutexLock lock(mu_);
      while (!stop_ && generation_ == seen) start_.wait(mu_);
      if (stop_) return;
      seen = generation_;
      job = job_;
    }
    finish(guarded(*job, rank));
  }
}

void RankGroup::finish(const absl::Status& status) {
  bool first = false;
  {
    base::MutexLock lock(mu_);
    first = !status.ok() && failure_.ok();
    const bool worse = !status.ok() && recovery_cause(failure_) && !recovery_cause(status);
    if (first || worse) failure_ = status;
  }
  if (first) on_failure_();
  base::MutexLock lock(mu_);
  if (--busy_ == 0) done_.notify_one();
}

}  // namespace r1d::engine
