// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "jinja/syntax.h"

namespace r1d::jinja {

// Height of the highest child of a node.
struct ChildDepth {
  static int of(const ExpressionPtr& child) { return child ? child->depth : 0; }
  static int of(const std::vector<ExpressionPtr>& children) {
    int depth = 0;
    for (const ExpressionPtr& child : children) depth = std::max(depth, of(child));
    return depth;
  }
  static int of(const NamedExpressions& children) {
    int depth = 0;
    for (const auto& entry : children) depth = std::max(depth, of(entry.second));
    return depth;
  }

  int operator()(const Literal&) const { return 0; }
  int operator()(const Name&) const { return 0; }
  int operator()(const BlockText&) const { return 0; }
  int operator()(const ListLiteral& node) const { return of(node.items); }
  int operator()(const DictLiteral& node) const {
    int depth = 0;
    for (const auto& [key, value] : node.entries) depth = std::max({depth, of(key), of(value)});
    return depth;
  }
  int operator()(const AttributeAccess& node) const { return of(node.object); }
  int operator()(const ItemAccess& node) const { return std::max(of(node.object), of(node.index)); }
  int operator()(const SliceAccess& node) const {
    return std::max({of(node.object), of(node.begin), of(node.end), of(node.step)});
  }
  int operator()(const BuiltinCall& node) const {
    return std::max(of(node.self), of(node.arguments));
  }
  int operator()(const MacroCall& node) const {
    return std::max(of(node.positional), of(node.named));
  }
  int operator()(const MakeNamespace& node) const { return of(node.attributes); }
  int operator()(const MakeDict& node) const { return of(node.entries); }
  int operator()(const NotExpression& node) const { return of(node.operand); }
  int operator()(const NegativeExpression& node) const { return of(node.operand); }
  int operator()(const BinaryExpression& node) const {
    return std::max(of(node.left), of(node.right));
  }
  int operator()(const LogicalExpression& node) const {
    return std::max(of(node.left), of(node.right));
  }
  int operator()(const ComparisonChain& node) const {
    int depth = of(node.first);
    for (const auto& entry : node.rest) depth = std::max(depth, of(entry.second));
    return depth;
  }
  int operator()(const Concatenation& node) const { return of(node.parts); }
  int operator()(const Conditional& node) const {
    return std::max({of(node.test), of(node.chosen), of(node.otherwise)});
  }
};

}  // namespace r1d::jinja
