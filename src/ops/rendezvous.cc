// SPDX-License-Identifier: Apache-2.0
#include "ops/rendezvous.h"

#include "r1d/base/check.h"
#include "r1d/base/status.h"

namespace r1d::ops {
namespace {

absl::Status aborted_status() {
  return unavailable("the communicator was aborted: another rank failed or is late");
}

}  // namespace

Rendezvous::Rendezvous(int32_t world_size) : world_size_(world_size) {
  R1D_CHECK(world_size >= 1);
}

absl::Status Rendezvous::meet(const std::function<absl::Status()>& last) {
  base::MutexLock lock(mu_);
  if (aborted_) return aborted_status();
  if (++meeting_ == world_size_) {
    met_ = last ? last() : absl::OkStatus();
    meeting_ = 0;
    ++meetings_;
    changed_.notify_all();
    return met_;
  }
  const uint64_t meetings = meetings_;
  const uint64_t num_aborts = num_aborts_;
  while (meetings_ == meetings && num_aborts_ == num_aborts) changed_.wait(mu_);
  if (meetings_ != meetings) return met_;
  --meeting_;
  return aborted_status();
}

void Rendezvous::abort(const std::function<void()>& also) {
  base::MutexLock lock(mu_);
  aborted_ = true;
  ++num_aborts_;
  if (also) also();
  changed_.notify_all();
}

bool Rendezvous::aborted() const {
  base::MutexLock lock(mu_);
  return aborted_;
}

absl::Status Rendezvous::wait_for_abort() {
  base::MutexLock lock(mu_);
  while (!aborted_) changed_.wait(mu_);
  return aborted_status();
}

absl::Status Rendezvous::rejoin(const absl::Status& able) {
  base::MutexLock lock(mu_);
  if (able_.ok()) able_ = able;
  if (++rejoining_ == world_size_) {
    rejoined_ = able_;
    aborted_ = !rejoined_.ok();
    able_ = absl::OkStatus();
    rejoining_ = 0;
    ++rejoins_;
    changed_.notify_all();
    return rejoined_;
  }
  const uint64_t rejoins = rejoins_;
  while (rejoins_ == rejoins) changed_.wait(mu_);
  return rejoined_;
}

}  // namespace r1d::ops
