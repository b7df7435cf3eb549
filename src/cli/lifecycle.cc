// SPDX-License-Identifier: Apache-2.0
#include "cli/lifecycle.h"

#include <csignal>
#include <sys/resource.h>
#include <unistd.h>

namespace r1d::cli {
namespace {

// SIGUSR1 is not for users: the destructor wakes the watcher with it.
constexpr int kWatcherQuit = SIGUSR1;

sigset_t watched_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, kWatcherQuit}) sigaddset(&set, signal);
  return set;
}

}  // namespace

Lifecycle::Lifecycle() {
  const sigset_t set = watched_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a client that went away is a failed write, not the end
  watcher_ = std::thread([this] { watch_signals(); });
}

Lifecycle::~Lifecycle() {
  pthread_kill(watcher_.native_handle(), kWatcherQuit);
  watcher_.join();
}

std::optional<absl::Status> Lifecycle::wait() {
  base::MutexLock lock(mu_);
  while (!outcome_ && !reload_asked_) changed_.wait(mu_);
  reload_asked_ = false;
  return outcome_;
}

void Lifecycle::engine_lost(const absl::Status& why) {
  end_with(why);
}

void Lifecycle::end_with(const absl::Status& why) {
  {
    base::MutexLock lock(mu_);
    if (!outcome_) outcome_ = why;
  }
  changed_.notify_all();
}

void Lifecycle::ask_for_reload() {
  {
    base::MutexLock lock(mu_);
    reload_asked_ = true;
  }
  changed_.notify_all();
}

void Lifecycle::watch_signals() {
  const sigset_t set = watched_signals();
  while (true) {
    int signal = 0;
    if (sigwait(&set, &signal) != 0 || signal == kWatcherQuit) return;
    if (signal == SIGHUP) {
      ask_for_reload();
      continue;
    }
    if (stop_requested_.exchange(true)) _exit(128 + signal);
    stop_.request_stop();
    end_with(absl::OkStatus());
  }
}

void raise_file_limit() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  static_cast<void>(setrlimit(RLIMIT_NOFILE, &files));  // refused: it stays as it is
}

}  // namespace r1d::cli
