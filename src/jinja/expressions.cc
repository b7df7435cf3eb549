// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "r1d/base/status.h"

#include "jinja/evaluator.h"
#include "jinja/operators.h"
#include "jinja/printing.h"

namespace r1d::jinja {

absl::StatusOr<Value> Evaluator::evaluate(const ExpressionPtr& expression) {
  absl::Status status = meter_.enter();
  if (status.ok()) status = meter_.step();
  Result result = status.ok() ? std::visit([this](const auto& node) { return evaluate(node); },
                                           expression->node)
                              : Result(std::move(status));
  meter_.leave();
  if (!result.ok()) return located(result.status(), expression->line);
  return result;
}

absl::StatusOr<Value> Evaluator::evaluate(const Literal& node) {
  return node.value;
}

absl::StatusOr<Value> Evaluator::evaluate(const Name& node) {
  R1D_RETURN_IF_ERROR(meter_.step(static_cast<int64_t>(scopes_.num_seen() / 4)));
  if (const Value* value = scopes_.find(node.name)) return *value;
  if (const Builtin* function = find_function(node.name)) return Value{function};
  return undefined(fmt::format("'{}' is undefined", node.name));
}

absl::StatusOr<Value> Evaluator::evaluate(const BlockText&) {
  return Value{block_text_};
}

absl::StatusOr<Value> Evaluator::evaluate(const ListLiteral& node) {
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const ExpressionPtr& item : node.items) {
    R1D_ASSIGN_OR_RETURN(Value value, evaluate(item));
    items.push_back(std::move(value));
  }
  return make_list(meter_, std::move(items), node.is_tuple);
}

absl::StatusOr<Value> Evaluator::evaluate(const DictLiteral& node) {
  std::vector<std::pair<TextPtr, Value>> entries;
  for (const auto& [key, item] : node.entries) {
    R1D_ASSIGN_OR_RETURN(const Value name, evaluate(key));
    const auto* text = name.as<TextPtr>();
    if (text == nullptr) {
      return unimplemented("a dict's key is a '{}'; only strings are supported", type_name(name));
    }
    R1D_ASSIGN_OR_RETURN(Value value, evaluate(item));
    entries.emplace_back(*text, std::move(value));
  }
  return make_dict(meter_, std::move(entries));
}

absl::StatusOr<Value> Evaluator::evaluate(const AttributeAccess& node) {
  R1D_ASSIGN_OR_RETURN(const Value object, evaluate(node.object));
  return attribute(object, node.name);
}

absl::StatusOr<Value> Evaluator::evaluate(const ItemAccess& node) {
  R1D_ASSIGN_OR_RETURN(const Value object, evaluate(node.object));
  R1D_ASSIGN_OR_RETURN(const Value index, evaluate(node.index));
  return item(meter_, object, index);
}

absl::StatusOr<Value> Evaluator::evaluate(const SliceAccess& node) {
  R1D_ASSIGN_OR_RETURN(const Value object, evaluate(node.object));
  SliceBounds bounds;
  const std::pair<const ExpressionPtr*, std::optional<int64_t>*> given[] = {
      {&node.begin, &bounds.begin}, {&node.end, &bounds.end}, {&node.step, &bounds.step}};
  for (const auto& [expression, bound] : given) {
    if (*expression == nullptr) continue;
    R1D_ASSIGN_OR_RETURN(const Value value, evaluate(*expression));
    if (value.is<None>()) continue;
    int64_t integer = 0;
    if (as_integer(value, &integer) == nullptr) {
      return invalid_argument("a slice's bound is a '{}'", type_name(value));
    }
    *bound = integer;
  }
  return slice(meter_, object, bounds);
}

absl::StatusOr<Value> Evaluator::evaluate(const BuiltinCall& node) {
  Value self;
  if (node.self != nullptr) {
    R1D_ASSIGN_OR_RETURN(self, evaluate(node.self));
  }
  std::vector<Value> arguments(node.arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (node.arguments[i] == nullptr) continue;
    R1D_ASSIGN_OR_RETURN(arguments[i], evaluate(node.arguments[i]));
  }
  return node.builtin->function(context_, self, arguments);
}

absl::Status Evaluator::bind_macro(
    const MacroDefinition& macro,
    std::vector<Value> positional,
    // NOLINTNEXTLINE(performance-unnecessary-value-param): moved from
    std::vector<std::pair<std::string_view, Value>> named) {
  if (positional.size() > macro.parameters.size()) {
    return invalid_argument(
        "macro '{}' takes at most {} arguments", macro.name, macro.parameters.size());
  }
  std::vector<bool> is_given(macro.parameters.size());
  const auto give = [&](size_t place, Value value) {
    scopes_.set(macro.parameters[place], std::move(value));
    is_given[place] = true;
  };
  for (size_t i = 0; i < positional.size(); ++i) give(i, std::move(positional[i]));
  for (auto& [name, value] : named) {
    const auto place = std::find(macro.parameters.begin(), macro.parameters.end(), name);
    if (place == macro.parameters.end()) {
      return invalid_argument("macro '{}' has no argument '{}'", macro.name, name);
    }
    give(static_cast<size_t>(place - macro.parameters.begin()), std::move(value));
  }
  for (size_t i = 0; i < is_given.size(); ++i) {
    if (is_given[i]) continue;
    Value value = undefined(fmt::format("parameter '{}' was not provided", macro.parameters[i]));
    if (macro.defaults[i] != nullptr) {
      R1D_ASSIGN_OR_RETURN(value, evaluate(macro.defaults[i]));
    }
    give(i, std::move(value));
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> Evaluator::evaluate(const MacroCall& node) {
  const Value* callee = scopes_.find(node.name);
  if (callee == nullptr) return invalid_argument("'{}' is undefined", node.name);
  const auto* macro = callee->as<const MacroDefinition*>();
  if (macro == nullptr) {
    return invalid_argument("'{}' is a '{}' and cannot be called", node.name, type_name(*callee));
  }
  const MacroDefinition& definition = **macro;
  std::vector<Value> positional;
  for (const ExpressionPtr& argument : node.positional) {
    R1D_ASSIGN_OR_RETURN(Value value, evaluate(argument));
    positional.push_back(std::move(value));
  }
  std::vector<std::pair<std::string_view, Value>> named;
  for (const auto& [name, argument] : node.named) {
    R1D_ASSIGN_OR_RETURN(Value value, evaluate(argument));
    named.emplace_back(name, std::move(value));
  }
  const size_t caller = scopes_.open_macro();
  absl::Status bound = bind_macro(definition, std::move(positional), std::move(named));
  absl::StatusOr<TextPtr> text =
      bound.ok() ? capture(definition.body) : absl::StatusOr<TextPtr>(std::move(bound));
  scopes_.close_macro(caller);
  R1D_RETURN_IF_ERROR(text.status());
  return Value{*std::move(text)};
}

absl::StatusOr<Value> Evaluator::evaluate(const MakeNamespace& node) {
  R1D_RETURN_IF_ERROR(meter_.make(sizeof(Namespace)));
  Namespace space;
  for (const auto& [name, expression] : node.attributes) {
    R1D_RETURN_IF_ERROR(meter_.make(sizeof(Value) + name.size()));
    R1D_ASSIGN_OR_RETURN(Value value, evaluate(expression));
    space.attributes.insert_or_assign(name, std::move(value));
  }
  namespaces_.push_back(std::move(space));
  return Value{&namespaces_.back()};
}

absl::StatusOr<Value> Evaluator::evaluate(const MakeDict& node) {
  std::vector<std::pair<TextPtr, Value>> entries;
  for (const auto& [name, expression] : node.entries) {
    R1D_ASSIGN_OR_RETURN(Value value, evaluate(expression));
    entries.emplace_back(std::make_shared<const Text>(name, true), std::move(value));
  }
  return make_dict(meter_, std::move(entries));
}

absl::StatusOr<Value> Evaluator::evaluate(const NotExpression& node) {
  R1D_ASSIGN_OR_RETURN(const Value operand, evaluate(node.operand));
  return Value{!truthy(operand)};
}

absl::StatusOr<Value> Evaluator::evaluate(const NegativeExpression& node) {
  R1D_ASSIGN_OR_RETURN(const Value operand, evaluate(node.operand));
  return negated(operand);
}

absl::StatusOr<Value> Evaluator::evaluate(const BinaryExpression& node) {
  R1D_ASSIGN_OR_RETURN(const Value left, evaluate(node.left));
  R1D_ASSIGN_OR_RETURN(const Value right, evaluate(node.right));
  return binary(meter_, node.op, left, right);
}

// The operand that decided, as in Python.
absl::StatusOr<Value> Evaluator::evaluate(const LogicalExpression& node) {
  R1D_ASSIGN_OR_RETURN(Value left, evaluate(node.left));
  if (truthy(left) != node.is_and) return left;
  return evaluate(node.right);
}

absl::StatusOr<Value> Evaluator::evaluate(const ComparisonChain& node) {
  R1D_ASSIGN_OR_RETURN(Value left, evaluate(node.first));
  for (const auto& [op, operand] : node.rest) {
    R1D_ASSIGN_OR_RETURN(Value right, evaluate(operand));
    R1D_ASSIGN_OR_RETURN(const bool holds, compare(meter_, op, left, right));
    if (!holds) return Value{false};
    left = std::move(right);
  }
  return Value{true};
}

absl::StatusOr<Value> Evaluator::evaluate(const Concatenation& node) {
  Text text;
  for (const ExpressionPtr& part : node.parts) {
    R1D_ASSIGN_OR_RETURN(const Value value, evaluate(part));
    R1D_ASSIGN_OR_RETURN(const TextPtr piece, to_text(meter_, value));
    R1D_RETURN_IF_ERROR(meter_.make(piece->footprint()));
    text.append(*piece);
  }
  return make_text(meter_, std::move(text));
}

absl::StatusOr<Value> Evaluator::evaluate(const Conditional& node) {
  R1D_ASSIGN_OR_RETURN(const Value test, evaluate(node.test));
  if (truthy(test)) return evaluate(node.chosen);
  if (node.otherwise == nullptr) return undefined("a conditional without 'else' chose nothing");
  return evaluate(node.otherwise);
}

}  // namespace r1d::jinja
