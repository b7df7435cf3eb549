// SPDX-License-Identifier: Apache-2.0
#include "cli/terminal.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <pthread.h>
#include <thread>
#include <unistd.h>
#include <utility>

#include <editline/readline.h>

namespace r1d::cli {

// SIGINT is blocked everywhere and fetched by a thread, which may then do what a handler may not.
class Terminal::Interrupts {
 public:
  explicit Interrupts(std::function<void()> on_interrupt) {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGUSR1);  // ends the thread
    pthread_sigmask(SIG_BLOCK, &signals_, &before_);
    thread_ = std::thread([this, act = std::move(on_interrupt)] {
      for (int signal = 0; sigwait(&signals_, &signal) == 0 && signal == SIGINT;) act();
    });
  }
  ~Interrupts() {
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

 private:
  sigset_t signals_{};
  sigset_t before_{};
  std::thread thread_;
};

Terminal::Terminal(std::function<void()> on_interrupt)
    : reads_terminal_(isatty(STDIN_FILENO) == 1),
      writes_terminal_(isatty(STDOUT_FILENO) == 1),
      interrupts_(std::make_unique<Interrupts>(std::move(on_interrupt))) {}

Terminal::~Terminal() = default;

std::optional<std::string> Terminal::read_line(const char* prompt) {
  if (!reads_terminal_) {
    std::string line;
    if (!std::getline(std::cin, line)) return std::nullopt;
    return line;
  }
  const std::unique_ptr<char, decltype(&std::free)> line(::readline(prompt), &std::free);
  if (line == nullptr) return std::nullopt;
  if (*line != '\0') ::add_history(line.get());
  return std::string(line.get());
}

void Terminal::write_thought(std::string_view text) {
  if (writes_terminal_ && !dimmed_) std::fputs("\x1b[2m", stdout);
  dimmed_ = true;
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void Terminal::write(std::string_view text) {
  if (dimmed_) std::fputs(writes_terminal_ ? "\x1b[0m\n" : "\n", stdout);
  dimmed_ = false;
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void Terminal::remark(const std::string& text) {
  std::fprintf(stderr, writes_terminal_ ? "\x1b[2m%s\x1b[0m\n" : "%s\n", text.c_str());
}

}  // namespace r1d::cli
