// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

#include <absl/status/status.h>

#include "r1d/base/mutex.h"

namespace r1d::ops {

// Where the host threads of the ranks meet. What a rank has written before a meeting, every rank
// may read behind it. Waiting ranks sleep.
// Threads: meet() and rejoin() by every rank's own thread, all the same calls in the same order;
// abort() and aborted() by any.
class Rendezvous {
 public:
  explicit Rendezvous(int32_t world_size);
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;

  // Returns when every rank has called it; kUnavailable after abort(). The last to come runs
  // `last`, if there is one, while the others wait; its error is everybody's.
  [[nodiscard]] absl::Status meet(const std::function<absl::Status()>& last = nullptr);

  // Present and later meetings return kUnavailable until rejoin(). `also` runs at the same moment:
  // no meeting, and no rejoin, comes between.
  void abort(const std::function<void()>& also = nullptr);
  [[nodiscard]] bool aborted() const;
  // Returns kUnavailable when abort() has come: a rank whose part in a collective is lost.
  [[nodiscard]] absl::Status wait_for_abort();

  // Ends an abort: returns when every rank has called it, none being in a meeting. `able`: whether
  // this rank can go on. When one cannot, all get its error and stay aborted; a rank that cannot
  // must say so here, the others wait for it.
  [[nodiscard]] absl::Status rejoin(const absl::Status& able);

 private:
  const int32_t world_size_;
  mutable base::Mutex mu_;
  base::CondVar changed_;
  int32_t meeting_ ABSL_GUARDED_BY(mu_) = 0;    // ranks in meet()
  int32_t rejoining_ ABSL_GUARDED_BY(mu_) = 0;  // ranks in rejoin()
  uint64_t meetings_ ABSL_GUARDED_BY(mu_) = 0;  // that came about
  uint64_t rejoins_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t num_aborts_ ABSL_GUARDED_BY(mu_) = 0;
  bool aborted_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status met_ ABSL_GUARDED_BY(mu_);       // what the last meeting returns
  absl::Status able_ ABSL_GUARDED_BY(mu_);      // the first error of those who rejoin
  absl::Status rejoined_ ABSL_GUARDED_BY(mu_);  // what the last rejoin returns
};

}  // namespace r1d::ops
