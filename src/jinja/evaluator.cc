// SPDX-License-Identifier: Apache-2.0
#include "jinja/evaluator.h"

#include <string>
#include <utility>

#include "r1d/base/status.h"

#include "jinja/printing.h"

namespace r1d::jinja {

absl::Status Evaluator::located(absl::Status status, int line) {
  if (is_located_) return status;
  is_located_ = true;
  return absl::Status(status.code(), fmt::format("line {}: {}", line, message_of(status)));
}

absl::Status Evaluator::run(const Body& body) {
  return run_body(body).status();
}

absl::StatusOr<Evaluator::Flow> Evaluator::run_body(const Body& body) {
  for (const Statement& statement : body) {
    R1D_ASSIGN_OR_RETURN(const Flow flow, run_statement(statement));
    if (flow != Flow::kOn) return flow;
  }
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::run_statement(const Statement& statement) {
  absl::Status status = meter_.enter();
  if (status.ok()) status = meter_.step();
  auto flow = status.ok()
                  ? std::visit([this](const auto& node) { return run(node); }, statement.node)
                  : absl::StatusOr<Flow>(std::move(status));
  meter_.leave();
  if (!flow.ok()) return located(flow.status(), statement.line);
  return flow;
}

// Text in a captured block becomes output only if it is printed.
absl::Status Evaluator::write(const Text& text) {
  R1D_RETURN_IF_ERROR(is_capturing_ ? meter_.make(text.footprint()) : meter_.output(text.size()));
  R1D_RETURN_IF_ERROR(meter_.scan(text.size()));
  output_.append(text);
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const DataStatement& statement) {
  R1D_RETURN_IF_ERROR(write(*statement.text));
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const PrintStatement& statement) {
  R1D_ASSIGN_OR_RETURN(const Value value, evaluate(statement.value));
  R1D_ASSIGN_OR_RETURN(const TextPtr text, to_text(meter_, value));
  R1D_RETURN_IF_ERROR(write(*text));
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const IfStatement& statement) {
  for (const auto& [condition, body] : statement.branches) {
    R1D_ASSIGN_OR_RETURN(const Value holds, evaluate(condition));
    if (truthy(holds)) return run_body(body);
  }
  return run_body(statement.otherwise);
}

absl::StatusOr<bool> Evaluator::loop_takes(const ForStatement& statement, const Value& item) {
  scopes_.open();
  absl::Status assigned = assign(statement.target, item);
  Result holds = assigned.ok() ? evaluate(statement.condition) : Result(std::move(assigned));
  scopes_.close();
  R1D_RETURN_IF_ERROR(holds.status());
  return truthy(*holds);
}

absl::StatusOr<ListPtr> Evaluator::loop_items(const ForStatement& statement) {
  R1D_ASSIGN_OR_RETURN(const Value source, evaluate(statement.items));
  R1D_ASSIGN_OR_RETURN(const ListPtr all, iterate(meter_, source));
  if (statement.condition == nullptr) return all;
  std::vector<Value> kept;
  for (const Value& item : all->items) {
    R1D_RETURN_IF_ERROR(meter_.step());
    R1D_ASSIGN_OR_RETURN(const bool takes, loop_takes(statement, item));
    if (takes) kept.push_back(item);
  }
  R1D_ASSIGN_OR_RETURN(const Value list, make_list(meter_, std::move(kept), false));
  return *list.as<ListPtr>();
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const ForStatement& statement) {
  R1D_ASSIGN_OR_RETURN(const ListPtr items, loop_items(statement));
  if (items->items.empty()) {
    scopes_.open();
    auto flow = run_body(statement.otherwise);
    scopes_.close();
    return flow;
  }
  absl::Status status;
  for (size_t i = 0; i < items->items.size() && status.ok(); ++i) {
    const auto flow = run_round(statement, LoopState{items, i});
    status = flow.status();
    if (status.ok() && *flow == Flow::kBreak) break;
  }
  R1D_RETURN_IF_ERROR(status);
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::run_round(const ForStatement& statement,
                                                     const LoopState& loop) {
  R1D_RETURN_IF_ERROR(meter_.step());
  scopes_.open();
  scopes_.set("loop", Value{std::make_shared<const LoopState>(loop)});
  absl::Status assigned = assign(statement.target, loop.items->items[loop.index]);
  auto flow = assigned.ok() ? run_body(statement.body) : absl::StatusOr<Flow>(std::move(assigned));
  scopes_.close();
  return flow;
}

absl::Status Evaluator::assign(const Target& target, const Value& value) {
  if (target.unpacks) return unpack(target, value);
  if (target.attribute.empty()) {
    scopes_.set(target.names[0], value);
    return absl::OkStatus();
  }
  const Value* object = scopes_.find(target.names[0]);
  const auto* space = object == nullptr ? nullptr : object->as<Namespace*>();
  if (space == nullptr) return invalid_argument("'{}' is no namespace", target.names[0]);
  R1D_RETURN_IF_ERROR(meter_.make(sizeof(Value)));
  (*space)->attributes.insert_or_assign(target.attribute, value);
  return absl::OkStatus();
}

absl::Status Evaluator::unpack(const Target& target, const Value& value) {
  R1D_ASSIGN_OR_RETURN(const ListPtr items, iterate(meter_, value));
  if (items->items.size() != target.names.size()) {
    return invalid_argument(
        "{} values do not go into {} names", items->items.size(), target.names.size());
  }
  for (size_t i = 0; i < target.names.size(); ++i) scopes_.set(target.names[i], items->items[i]);
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const SetStatement& statement) {
  R1D_ASSIGN_OR_RETURN(const Value value, evaluate(statement.value));
  R1D_RETURN_IF_ERROR(assign(statement.target, value));
  return Flow::kOn;
}

absl::StatusOr<TextPtr> Evaluator::capture(const Body& body) {
  Text outer = std::exchange(output_, {});
  const bool was_capturing = std::exchange(is_capturing_, true);
  scopes_.open();
  const absl::Status status = run(body);
  scopes_.close();
  is_capturing_ = was_capturing;
  Text captured = std::exchange(output_, std::move(outer));
  R1D_RETURN_IF_ERROR(status);
  return std::make_shared<const Text>(std::move(captured));
}

absl::StatusOr<Value> Evaluator::apply_to_block(const Expression& filters, const Body& body) {
  R1D_ASSIGN_OR_RETURN(TextPtr text, capture(body));
  block_text_ = std::move(text);
  return std::visit([this](const auto& node) { return evaluate(node); }, filters.node);
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const SetBlockStatement& statement) {
  R1D_ASSIGN_OR_RETURN(const Value value, apply_to_block(*statement.value, statement.body));
  R1D_RETURN_IF_ERROR(assign(statement.target, value));
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const FilterStatement& statement) {
  R1D_ASSIGN_OR_RETURN(const Value value, apply_to_block(*statement.value, statement.body));
  R1D_ASSIGN_OR_RETURN(const TextPtr text, to_text(meter_, value));
  R1D_RETURN_IF_ERROR(write(*text));
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const MacroStatement& statement) {
  scopes_.set(statement.macro->name, Value{statement.macro.get()});
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::run(const ScopeStatement& statement) {
  // All values are computed before the first name is set.
  std::vector<Value> values;
  for (const auto& variable : statement.variables) {
    R1D_ASSIGN_OR_RETURN(Value value, evaluate(variable.second));
    values.push_back(std::move(value));
  }
  scopes_.open();
  for (size_t i = 0; i < values.size(); ++i) {
    scopes_.set(statement.variables[i].first, std::move(values[i]));
  }
  auto flow = run_body(statement.body);
  scopes_.close();
  return flow;
}

}  // namespace r1d::jinja
