// SPDX-License-Identifier: Apache-2.0
// What a thread tells the kernel about itself. Linux only, like the daemon.
#pragma once

namespace r1d::base {

// For threads that answer somebody and use little: names the calling thread (`top -H`,
// /proc/PID/task/TID/comm; 15 characters at most), and asks the scheduler for short turns that come
// soon, so that it need not wait for the end of a compute thread's. Its share of the processor and
// its priority stay as they are. Where the kernel has no such thing (before 6.12), or a sandbox
// forbids it, the thread runs as any other.
void become_quick_thread(const char* name);

}  // namespace r1d::base
