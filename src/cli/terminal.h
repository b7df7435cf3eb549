// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace r1d::cli {

class Interrupts;

// Lines from a person or a pipe, and text to them. At a terminal: line editing with history, and
// the thought dimmed. Threads: confined to the caller's; `on_interrupt` runs on a thread of its
// own.
class Terminal {
 public:
  // Ctrl-C calls `on_interrupt` for as long as this object lives. There may be one at a time, and
  // no other thread may have been started before it.
  explicit Terminal(std::function<void()> on_interrupt);
  ~Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  // The next line, without its end; none at the end of the input.
  [[nodiscard]] std::optional<std::string> read_line(const char* prompt);

  void write_thought(std::string_view text);
  void write(std::string_view text);
  // A remark of ours, on standard error.
  void remark(const std::string& text);

 private:
  const bool reads_terminal_;
  const bool writes_terminal_;
  bool dimmed_ = false;
  std::unique_ptr<Interrupts> interrupts_;
};

}  // namespace r1d::cli
