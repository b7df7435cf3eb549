// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <csignal>
#include <functional>
#include <thread>

namespace r1d::cli {

// Ctrl-C calls a function, on a thread of its own, for as long as this object lives: SIGINT is
// blocked everywhere and fetched by that thread, which may then do what a handler may not.
// There may be one at a time, and no other thread may have been started before it.
class Interrupts {
 public:
  explicit Interrupts(std::function<void()> on_interrupt);
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

 private:
  sigset_t signals_{};
  sigset_t before_{};
  std::thread thread_;
};

}  // namespace r1d::cli
