// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/thread.h"

#include <cstdint>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace r1d::base {
namespace {

// sched_setattr(2), which glibc has no wrapper for; the first version of the structure.
struct SchedulingAttributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime_ns;  // SCHED_OTHER: the length of a turn
  uint64_t deadline_ns;
  uint64_t period_ns;
};

// The least that the kernel takes. A thread whose turns are shorter than the running one's goes
// before it as soon as it wakes, as long as it has had no more than its share.
constexpr uint64_t kTurnNs = 100'000;

}  // namespace

void become_quick_thread(const char* name) {
  pthread_setname_np(pthread_self(), name);
  const SchedulingAttributes attributes{.size = sizeof(SchedulingAttributes),
                                        .policy = SCHED_OTHER,
                                        .flags = 0,
                                        .nice = getpriority(PRIO_PROCESS, 0),
                                        .priority = 0,
                                        .runtime_ns = kTurnNs,
                                        .deadline_ns = 0,
                                        .period_ns = 0};
  static_cast<void>(syscall(SYS_sched_setattr, 0, &attributes, 0U));
}

}  // namespace r1d::base
