// SPDX-License-Identifier: Apache-2.0
#include "cli/interrupts.h"

#include <pthread.h>
#include <utility>

namespace r1d::cli {

Interrupts::Interrupts(std::function<void()> on_interrupt) {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGUSR1);  // ends the thread
  pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  thread_ = std::thread([this, act = std::move(on_interrupt)] {
    for (int signal = 0; sigwait(&signals_, &signal) == 0 && signal == SIGINT;) act();
  });
}

Interrupts::~Interrupts() {
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

}  // namespace r1d::cli
