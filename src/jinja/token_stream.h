// SPDX-License-Identifier: Apache-2.0
// Tokens in a row, with the questions a parser asks. Always ends in a kEnd token, which stays.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "r1d/base/status.h"

#include "jinja/lexer.h"

namespace r1d::jinja {

class TokenStream {
 public:
  using Kind = Token::Kind;

  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  [[nodiscard]] const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  [[nodiscard]] int line() const { return peek().line; }
  [[nodiscard]] bool at(Kind kind) const { return peek().kind == kind; }
  [[nodiscard]] bool at(Kind kind, std::string_view text) const {
    return at(kind) && peek().text == text;
  }
  [[nodiscard]] bool at_operator(std::string_view text) const { return at(Kind::kOperator, text); }
  [[nodiscard]] bool at_name(std::string_view text) const { return at(Kind::kName, text); }

  Token take() {
    Token token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool skip_operator(std::string_view text) { return skip(Kind::kOperator, text); }
  bool skip_name(std::string_view text) { return skip(Kind::kName, text); }

  absl::Status expect_operator(std::string_view text) {
    if (skip_operator(text)) return absl::OkStatus();
    return fail("expected '{}', found {}", text, description());
  }
  absl::Status expect(Kind kind, std::string_view what) {
    if (!at(kind)) return fail("expected {}, found {}", what, description());
    take();
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> expect_name(std::string_view what) {
    if (!at(Kind::kName)) return fail("expected {}, found {}", what, description());
    return take().text;
  }

  // The present token for an error text.
  [[nodiscard]] std::string description() const;

  template <typename... Args>
  absl::Status fail(fmt::format_string<Args...> format, Args&&... args) const {
    return fail_at(line(), format, std::forward<Args>(args)...);
  }
  template <typename... Args>
  static absl::Status fail_at(int line, fmt::format_string<Args...> format, Args&&... args) {
    return invalid_argument("line {}: {}", line, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  bool skip(Kind kind, std::string_view text) {
    if (!at(kind, text)) return false;
    take();
    return true;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
};

inline std::string TokenStream::description() const {
  switch (peek().kind) {
    case Kind::kBlockEnd:
      return "the end of the tag";
    case Kind::kVariableEnd:
      return "'}}'";
    case Kind::kEnd:
      return "the end of the template";
    case Kind::kString:
      return "a string";
    default:
      return "'" + peek().text.substr(0, 40) + "'";
  }
}

}  // namespace r1d::jinja
