// SPDX-License-Identifier: Apache-2.0
// One rendering: walks the tree, holds the variables, writes the output.
#pragma once

#include <deque>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "jinja/builtins.h"
#include "jinja/scopes.h"
#include "jinja/syntax.h"

namespace r1d::jinja {

// Borrows the tree and the meter. Confined to the calling thread, used once.
class Evaluator {
 public:
  Evaluator(Meter& meter, std::chrono::system_clock::time_point now)
      : meter_(meter), context_{meter, now} {}

  // A variable of the template; `name` must outlive the evaluator.
  void define(std::string_view name, Value value) { scopes_.set(name, std::move(value)); }

  [[nodiscard]] absl::Status run(const Body& body);
  // What has been written.
  [[nodiscard]] Text take_output() && { return std::move(output_); }

 private:
  enum class Flow { kOn, kBreak, kContinue };
  using Result = absl::StatusOr<Value>;

  // Statements, in evaluator.cc.
  absl::StatusOr<Flow> run_body(const Body& body);
  absl::StatusOr<Flow> run_statement(const Statement& statement);
  absl::StatusOr<Flow> run(const DataStatement& statement);
  absl::StatusOr<Flow> run(const PrintStatement& statement);
  absl::StatusOr<Flow> run(const IfStatement& statement);
  absl::StatusOr<Flow> run(const ForStatement& statement);
  absl::StatusOr<Flow> run(const SetStatement& statement);
  absl::StatusOr<Flow> run(const SetBlockStatement& statement);
  absl::StatusOr<Flow> run(const FilterStatement& statement);
  absl::StatusOr<Flow> run(const MacroStatement& statement);
  absl::StatusOr<Flow> run(const ScopeStatement& statement);
  absl::StatusOr<Flow> run(const BreakStatement&) { return Flow::kBreak; }
  absl::StatusOr<Flow> run(const ContinueStatement&) { return Flow::kContinue; }
  absl::Status write(const Text& text);
  absl::Status assign(const Target& target, const Value& value);
  absl::Status unpack(const Target& target, const Value& value);
  // The items of a loop for which its `if` holds.
  absl::StatusOr<ListPtr> loop_items(const ForStatement& statement);
  absl::StatusOr<bool> loop_takes(const ForStatement& statement, const Value& item);
  absl::StatusOr<Flow> run_round(const ForStatement& statement, const LoopState& loop);
  // The text that a body writes.
  absl::StatusOr<TextPtr> capture(const Body& body);
  Result apply_to_block(const Expression& filters, const Body& body);

  // Expressions, in expressions.cc.
  Result evaluate(const ExpressionPtr& expression);
  Result evaluate(const Literal& node);
  Result evaluate(const Name& node);
  Result evaluate(const BlockText& node);
  Result evaluate(const ListLiteral& node);
  Result evaluate(const DictLiteral& node);
  Result evaluate(const AttributeAccess& node);
  Result evaluate(const ItemAccess& node);
  Result evaluate(const SliceAccess& node);
  Result evaluate(const BuiltinCall& node);
  Result evaluate(const MacroCall& node);
  Result evaluate(const MakeNamespace& node);
  Result evaluate(const MakeDict& node);
  Result evaluate(const NotExpression& node);
  Result evaluate(const NegativeExpression& node);
  Result evaluate(const BinaryExpression& node);
  Result evaluate(const LogicalExpression& node);
  Result evaluate(const ComparisonChain& node);
  Result evaluate(const Concatenation& node);
  Result evaluate(const Conditional& node);
  absl::Status bind_macro(const MacroDefinition& macro,
                          std::vector<Value> positional,
                          std::vector<std::pair<std::string_view, Value>> named);

  // Adds the line to the first error on its way up.
  absl::Status located(absl::Status status, int line);

  Meter& meter_;
  CallContext context_;
  Scopes scopes_;
  std::deque<Namespace> namespaces_;  // values point into it
  Text output_;
  TextPtr block_text_;
  bool is_capturing_ = false;
  bool is_located_ = false;
};

}  // namespace r1d::jinja
