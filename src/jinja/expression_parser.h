// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>

#include "jinja/syntax.h"
#include "jinja/token_stream.h"
#include "jinja/tree_depth.h"

namespace r1d::jinja {

// Recursive descent by Jinja2's grammar of expressions. Depth is bounded twice: the recursion here,
// and the height of each tree, which is what evaluating and freeing it recurse over.
class ExpressionParser {
 public:
  ExpressionParser(TokenStream& tokens, int max_depth) : tokens_(tokens), max_depth_(max_depth) {}

  // `a if b else c` and what binds closer.
  [[nodiscard]] absl::StatusOr<ExpressionPtr> parse();
  // Without a conditional: what a loop runs over, where `if` begins the loop's filter.
  [[nodiscard]] absl::StatusOr<ExpressionPtr> parse_or();
  // `a, b` is a tuple.
  [[nodiscard]] absl::StatusOr<ExpressionPtr> parse_tuple();
  // `filter | filter ...` applied to a block's text, from the first filter's name on.
  [[nodiscard]] absl::StatusOr<ExpressionPtr> parse_block_filters();
  [[nodiscard]] absl::StatusOr<ExpressionPtr> block_text();

  // Bounds recursion in statements together with that in expressions.
  [[nodiscard]] absl::Status enter();
  void leave() { --depth_; }

  // Names read as variables, and names called that are no builtins, with the line of one such call.
  [[nodiscard]] const std::set<std::string, std::less<>>& names_read() const { return names_read_; }
  [[nodiscard]] const std::vector<std::pair<std::string, int>>& macros_called() const {
    return macros_called_;
  }

 private:
  using Result = absl::StatusOr<ExpressionPtr>;

  struct Arguments {
    std::vector<ExpressionPtr> positional;
    NamedExpressions named;
  };

  Result parse_conditional();
  Result parse_and();
  Result parse_not();
  Result parse_comparison();
  Result parse_sum();
  Result parse_concatenation();
  Result parse_product();
  Result parse_power();
  Result parse_unary(bool with_filters);
  Result parse_primary();
  Result parse_postfix(ExpressionPtr object);
  Result parse_filters_and_tests(ExpressionPtr object);
  Result parse_name();
  Result parse_number(const Token& token);
  Result parse_string();
  Result parse_parenthesis();
  Result parse_list();
  Result parse_dict();
  Result parse_subscript(ExpressionPtr object);
  Result parse_attribute(ExpressionPtr object);
  Result parse_call(const std::string& name, int line);
  Result parse_filter(ExpressionPtr object);
  Result parse_test(ExpressionPtr object);
  Result parse_test_arguments(const Builtin& test, ExpressionPtr object, int line);
  absl::StatusOr<Arguments> parse_arguments();

  // Puts arguments into the order of the builtin's parameters.
  Result bind(const Builtin& builtin, ExpressionPtr self, Arguments arguments, int line);
  absl::Status check_named_builtins(const Builtin& builtin, const BuiltinCall& call, int line);

  // Makes a node whose children have been parsed; refuses a tree that is too high.
  template <typename Node>
  Result make(int line, Node node);

  TokenStream& tokens_;
  int max_depth_;
  int depth_ = 0;
  std::set<std::string, std::less<>> names_read_;
  std::vector<std::pair<std::string, int>> macros_called_;
};

template <typename Node>
absl::StatusOr<ExpressionPtr> ExpressionParser::make(int line, Node node) {
  auto expression = std::make_unique<Expression>();
  expression->line = line;
  expression->depth = ChildDepth{}(node) + 1;
  expression->node = std::move(node);
  if (expression->depth <= max_depth_) return expression;
  return TokenStream::fail_at(line, "nested deeper than {} levels", max_depth_);
}

}  // namespace r1d::jinja
