// SPDX-License-Identifier: Apache-2.0
// A parsed template. Names of builtins are resolved and their arguments stand in parameter order.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "jinja/builtins.h"
#include "jinja/operators.h"
#include "jinja/value.h"

namespace r1d::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

using NamedExpressions = std::vector<std::pair<std::string, ExpressionPtr>>;

struct Literal {
  Value value;
};
struct Name {
  std::string name;
};
// The text of a {% set %} or {% filter %} block, which its filters apply to.
struct BlockText {};
struct ListLiteral {
  std::vector<ExpressionPtr> items;
  bool is_tuple = false;
};
struct DictLiteral {
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> entries;
};
struct AttributeAccess {
  ExpressionPtr object;
  std::string name;
};
struct ItemAccess {
  ExpressionPtr object;
  ExpressionPtr index;
};
struct SliceAccess {
  ExpressionPtr object;
  ExpressionPtr begin, end, step;  // null where left out
};
struct BuiltinCall {
  const Builtin* builtin = nullptr;
  ExpressionPtr self;                    // null for functions
  std::vector<ExpressionPtr> arguments;  // one per parameter, null where left out
};
struct MacroCall {
  std::string name;
  std::vector<ExpressionPtr> positional;
  NamedExpressions named;
};
// namespace(...) and dict(...).
struct MakeNamespace {
  NamedExpressions attributes;
};
struct MakeDict {
  NamedExpressions entries;
};
struct NotExpression {
  ExpressionPtr operand;
};
struct NegativeExpression {
  ExpressionPtr operand;
};
struct BinaryExpression {
  BinaryOperator op;
  ExpressionPtr left, right;
};
struct LogicalExpression {
  bool is_and = false;
  ExpressionPtr left, right;
};
struct ComparisonChain {
  ExpressionPtr first;
  std::vector<std::pair<Comparison, ExpressionPtr>> rest;
};
struct Concatenation {
  std::vector<ExpressionPtr> parts;
};
struct Conditional {
  ExpressionPtr test, chosen, otherwise;  // `otherwise` may be null
};

struct Expression {
  std::variant<Literal,
               Name,
               BlockText,
               ListLiteral,
               DictLiteral,
               AttributeAccess,
               ItemAccess,
               SliceAccess,
               BuiltinCall,
               MacroCall,
               MakeNamespace,
               MakeDict,
               NotExpression,
               NegativeExpression,
               BinaryExpression,
               LogicalExpression,
               ComparisonChain,
               Concatenation,
               Conditional>
      node;
  int line = 0;
  int depth = 1;  // of the tree below, this one included
};

struct Statement;
using Body = std::vector<Statement>;

// What `set` and `for` assign to: names (several: a tuple is unpacked), or one attribute of a
// namespace.
struct Target {
  std::vector<std::string> names;
  std::string attribute;  // then names[0] is the namespace
  bool unpacks = false;
};

struct DataStatement {
  TextPtr text;
};
struct PrintStatement {
  ExpressionPtr value;
};
struct IfStatement {
  std::vector<std::pair<ExpressionPtr, Body>> branches;
  Body otherwise;
};
struct ForStatement {
  Target target;
  ExpressionPtr items;
  ExpressionPtr condition;  // may be null
  Body body;
  Body otherwise;
};
struct SetStatement {
  Target target;
  ExpressionPtr value;
};
struct SetBlockStatement {
  Target target;
  ExpressionPtr value;  // BlockText, or filters on it
  Body body;
};
struct FilterStatement {
  ExpressionPtr value;  // filters on BlockText
  Body body;
};
struct MacroDefinition {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPtr> defaults;  // one per parameter, null where there is none
  Body body;
};
struct MacroStatement {
  std::unique_ptr<const MacroDefinition> macro;
};
// A scope of its own: {% with %} and {% generation %}.
struct ScopeStatement {
  NamedExpressions variables;
  Body body;
};
struct BreakStatement {};
struct ContinueStatement {};

struct Statement {
  std::variant<DataStatement,
               PrintStatement,
               IfStatement,
               ForStatement,
               SetStatement,
               SetBlockStatement,
               FilterStatement,
               MacroStatement,
               ScopeStatement,
               BreakStatement,
               ContinueStatement>
      node;
  int line = 0;
};

}  // namespace r1d::jinja
