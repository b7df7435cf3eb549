// SPDX-License-Identifier: Apache-2.0
// Text for people to read: lines of "name   value", values in one column.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace r1d {

class TwoColumns {
 public:
  template <typename... Args>
  void line(std::string_view name, fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format("{:<18}", name);
    text_ += fmt::format(format, std::forward<Args>(args)...);
    text_ += '\n';
  }
  void heading(std::string_view text) { text_ += fmt::format("\n{}\n", text); }
  [[nodiscard]] std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

}  // namespace r1d
