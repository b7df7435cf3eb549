// SPDX-License-Identifier: Apache-2.0
#include "cli/terminal.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <unistd.h>
#include <utility>

#include <editline/readline.h>

#include "cli/interrupts.h"

namespace r1d::cli {

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
