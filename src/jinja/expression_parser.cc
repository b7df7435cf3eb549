// SPDX-License-Identifier: Apache-2.0
#include "jinja/expression_parser.h"

#include <optional>

#include "r1d/base/status.h"

namespace r1d::jinja {
namespace {

using Kind = Token::Kind;

// Words that cannot be variables.
bool is_keyword(std::string_view name) {
  constexpr std::string_view kKeywords[] = {"and", "else", "if", "in", "is", "not", "or"};
  return std::find(std::begin(kKeywords), std::end(kKeywords), name) != std::end(kKeywords);
}

std::optional<Comparison> comparison_operator(const TokenStream& tokens) {
  constexpr std::pair<std::string_view, Comparison> kOperators[] = {
      {"==", Comparison::kEqual},
      {"!=", Comparison::kNotEqual},
      {"<", Comparison::kLess},
      {"<=", Comparison::kLessEqual},
      {">", Comparison::kGreater},
      {">=", Comparison::kGreaterEqual},
  };
  if (tokens.at_name("in")) return Comparison::kIn;
  const Token& next = tokens.peek(1);
  if (tokens.at_name("not") && next.kind == Kind::kName && next.text == "in") {
    return Comparison::kNotIn;
  }
  for (const auto& [text, op] : kOperators) {
    if (tokens.at_operator(text)) return op;
  }
  return std::nullopt;
}

}  // namespace

absl::Status ExpressionParser::enter() {
  if (++depth_ <= max_depth_) return absl::OkStatus();
  return tokens_.fail("nested deeper than {} levels", max_depth_);
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse() {
  absl::Status entered = enter();
  Result result = entered.ok() ? parse_conditional() : Result(std::move(entered));
  leave();
  return result;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_conditional() {
  R1D_ASSIGN_OR_RETURN(ExpressionPtr chosen, parse_or());
  while (tokens_.at_name("if")) {
    const int line = tokens_.take().line;
    R1D_ASSIGN_OR_RETURN(ExpressionPtr test, parse_or());
    ExpressionPtr otherwise;
    if (tokens_.skip_name("else")) {
      R1D_ASSIGN_OR_RETURN(otherwise, parse());
    }
    R1D_ASSIGN_OR_RETURN(
        chosen, make(line, Conditional{std::move(test), std::move(chosen), std::move(otherwise)}));
  }
  return chosen;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_tuple() {
  const int line = tokens_.line();
  R1D_ASSIGN_OR_RETURN(ExpressionPtr first, parse());
  if (!tokens_.at_operator(",")) return first;
  ListLiteral tuple{{}, true};
  tuple.items.push_back(std::move(first));
  while (tokens_.skip_operator(",")) {
    if (tokens_.at(Kind::kBlockEnd) || tokens_.at(Kind::kVariableEnd) || tokens_.at_operator(")")) {
      break;
    }
    R1D_ASSIGN_OR_RETURN(ExpressionPtr item, parse());
    tuple.items.push_back(std::move(item));
  }
  return make(line, std::move(tuple));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_or() {
  R1D_ASSIGN_OR_RETURN(ExpressionPtr left, parse_and());
  while (tokens_.at_name("or")) {
    const int line = tokens_.take().line;
    R1D_ASSIGN_OR_RETURN(ExpressionPtr right, parse_and());
    R1D_ASSIGN_OR_RETURN(left,
                         make(line, LogicalExpression{false, std::move(left), std::move(right)}));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_and() {
  R1D_ASSIGN_OR_RETURN(ExpressionPtr left, parse_not());
  while (tokens_.at_name("and")) {
    const int line = tokens_.take().line;
    R1D_ASSIGN_OR_RETURN(ExpressionPtr right, parse_not());
    R1D_ASSIGN_OR_RETURN(left,
                         make(line, LogicalExpression{true, std::move(left), std::move(right)}));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_not() {
  std::vector<int> lines;  // one per `not`
  while (tokens_.at_name("not")) lines.push_back(tokens_.take().line);
  R1D_ASSIGN_OR_RETURN(ExpressionPtr operand, parse_comparison());
  for (; !lines.empty(); lines.pop_back()) {
    R1D_ASSIGN_OR_RETURN(operand, make(lines.back(), NotExpression{std::move(operand)}));
  }
  return operand;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_comparison() {
  const int line = tokens_.line();
  R1D_ASSIGN_OR_RETURN(ExpressionPtr first, parse_sum());
  ComparisonChain chain;
  while (const auto op = comparison_operator(tokens_)) {
    tokens_.take();
    if (*op == Comparison::kNotIn) tokens_.take();
    R1D_ASSIGN_OR_RETURN(ExpressionPtr operand, parse_sum());
    chain.rest.emplace_back(*op, std::move(operand));
  }
  if (chain.rest.empty()) return first;
  chain.first = std::move(first);
  return make(line, std::move(chain));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_sum() {
  R1D_ASSIGN_OR_RETURN(ExpressionPtr left, parse_concatenation());
  while (tokens_.at_operator("+") || tokens_.at_operator("-")) {
    const Token sign = tokens_.take();
    const auto op = sign.text == "+" ? BinaryOperator::kAdd : BinaryOperator::kSubtract;
    R1D_ASSIGN_OR_RETURN(ExpressionPtr right, parse_concatenation());
    R1D_ASSIGN_OR_RETURN(left,
                         make(sign.line, BinaryExpression{op, std::move(left), std::move(right)}));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_concatenation() {
  const int line = tokens_.line();
  R1D_ASSIGN_OR_RETURN(ExpressionPtr first, parse_product());
  if (!tokens_.at_operator("~")) return first;
  Concatenation concatenation;
  concatenation.parts.push_back(std::move(first));
  while (tokens_.skip_operator("~")) {
    R1D_ASSIGN_OR_RETURN(ExpressionPtr part, parse_product());
    concatenation.parts.push_back(std::move(part));
  }
  return make(line, std::move(concatenation));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_product() {
  constexpr std::pair<std::string_view, BinaryOperator> kOperators[] = {
      {"*", BinaryOperator::kMultiply},
      {"/", BinaryOperator::kDivide},
      {"//", BinaryOperator::kFloorDivide},
      {"%", BinaryOperator::kModulo},
  };
  const auto next_operator = [&]() -> std::optional<BinaryOperator> {
    for (const auto& [text, op] : kOperators) {
      if (tokens_.at_operator(text)) return op;
    }
    return std::nullopt;
  };
  R1D_ASSIGN_OR_RETURN(ExpressionPtr left, parse_power());
  while (const auto op = next_operator()) {
    const int line = tokens_.take().line;
    R1D_ASSIGN_OR_RETURN(ExpressionPtr right, parse_power());
    R1D_ASSIGN_OR_RETURN(left,
                         make(line, BinaryExpression{*op, std::move(left), std::move(right)}));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_power() {
  R1D_ASSIGN_OR_RETURN(ExpressionPtr left, parse_unary(true));
  while (tokens_.at_operator("**")) {
    const int line = tokens_.take().line;
    R1D_ASSIGN_OR_RETURN(ExpressionPtr right, parse_unary(true));
    R1D_ASSIGN_OR_RETURN(
        left,
        make(line, BinaryExpression{BinaryOperator::kPower, std::move(left), std::move(right)}));
  }
  return left;
}

// As in Jinja2, a sign binds closer than filters: -x|abs is (-x)|abs.
absl::StatusOr<ExpressionPtr> ExpressionParser::parse_unary(bool with_filters) {
  ExpressionPtr operand;
  if (tokens_.at_operator("-") || tokens_.at_operator("+")) {
    const Token sign = tokens_.take();
    absl::Status entered = enter();
    Result inner = entered.ok() ? parse_unary(false) : Result(std::move(entered));
    leave();
    R1D_ASSIGN_OR_RETURN(operand, std::move(inner));
    if (sign.text == "-") {
      R1D_ASSIGN_OR_RETURN(operand, make(sign.line, NegativeExpression{std::move(operand)}));
    }
  } else {
    R1D_ASSIGN_OR_RETURN(operand, parse_primary());
  }
  R1D_ASSIGN_OR_RETURN(operand, parse_postfix(std::move(operand)));
  if (!with_filters) return operand;
  return parse_filters_and_tests(std::move(operand));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_postfix(ExpressionPtr object) {
  while (true) {
    if (tokens_.at_operator(".")) {
      R1D_ASSIGN_OR_RETURN(object, parse_attribute(std::move(object)));
    } else if (tokens_.at_operator("[")) {
      R1D_ASSIGN_OR_RETURN(object, parse_subscript(std::move(object)));
    } else if (tokens_.at_operator("(")) {
      return tokens_.fail("only functions, macros and methods can be called, by their names");
    } else {
      return object;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_filters_and_tests(ExpressionPtr object) {
  while (true) {
    if (tokens_.skip_operator("|")) {
      R1D_ASSIGN_OR_RETURN(object, parse_filter(std::move(object)));
    } else if (tokens_.skip_name("is")) {
      R1D_ASSIGN_OR_RETURN(object, parse_test(std::move(object)));
    } else {
      return object;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_primary() {
  const Token& token = tokens_.peek();
  switch (token.kind) {
    case Kind::kName:
      return parse_name();
    case Kind::kString:
      return parse_string();
    case Kind::kInteger:
    case Kind::kFloat:
      return parse_number(tokens_.take());
    default:
      break;
  }
  if (tokens_.at_operator("(")) return parse_parenthesis();
  if (tokens_.at_operator("[")) return parse_list();
  if (tokens_.at_operator("{")) return parse_dict();
  return tokens_.fail("expected a value, found {}", tokens_.description());
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_name() {
  const Token token = tokens_.take();
  const std::string& name = token.text;
  if (is_keyword(name)) return TokenStream::fail_at(token.line, "unexpected '{}'", name);
  if (name == "true" || name == "True") return make(token.line, Literal{Value{true}});
  if (name == "false" || name == "False") return make(token.line, Literal{Value{false}});
  if (name == "none" || name == "None") return make(token.line, Literal{Value{None{}}});
  if (tokens_.at_operator("(")) return parse_call(name, token.line);
  names_read_.insert(name);
  return make(token.line, Name{name});
}

// Strings beside each other are one.
absl::StatusOr<ExpressionPtr> ExpressionParser::parse_string() {
  const int line = tokens_.line();
  std::string text;
  while (tokens_.at(Kind::kString)) text += tokens_.take().text;
  return make(line, Literal{Value{std::make_shared<const Text>(std::move(text), true)}});
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_parenthesis() {
  const int line = tokens_.take().line;
  if (tokens_.skip_operator(")")) return make(line, ListLiteral{{}, true});
  R1D_ASSIGN_OR_RETURN(ExpressionPtr inner, parse_tuple());
  R1D_RETURN_IF_ERROR(tokens_.expect_operator(")"));
  return inner;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_list() {
  const int line = tokens_.take().line;
  ListLiteral list;
  while (!tokens_.at_operator("]")) {
    R1D_ASSIGN_OR_RETURN(ExpressionPtr item, parse());
    list.items.push_back(std::move(item));
    if (!tokens_.skip_operator(",")) break;
  }
  R1D_RETURN_IF_ERROR(tokens_.expect_operator("]"));
  return make(line, std::move(list));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_dict() {
  const int line = tokens_.take().line;
  DictLiteral dict;
  while (!tokens_.at_operator("}")) {
    R1D_ASSIGN_OR_RETURN(ExpressionPtr key, parse());
    R1D_RETURN_IF_ERROR(tokens_.expect_operator(":"));
    R1D_ASSIGN_OR_RETURN(ExpressionPtr value, parse());
    dict.entries.emplace_back(std::move(key), std::move(value));
    if (!tokens_.skip_operator(",")) break;
  }
  R1D_RETURN_IF_ERROR(tokens_.expect_operator("}"));
  return make(line, std::move(dict));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_attribute(ExpressionPtr object) {
  const int line = tokens_.take().line;
  if (tokens_.at(Kind::kInteger)) {
    R1D_ASSIGN_OR_RETURN(ExpressionPtr index, parse_number(tokens_.take()));
    return make(line, ItemAccess{std::move(object), std::move(index)});
  }
  R1D_ASSIGN_OR_RETURN(const std::string name, tokens_.expect_name("an attribute's name"));
  if (!tokens_.at_operator("(")) return make(line, AttributeAccess{std::move(object), name});
  const Builtin* method = find_method(name);
  if (method == nullptr) return TokenStream::fail_at(line, "unknown method '{}'", name);
  R1D_ASSIGN_OR_RETURN(Arguments arguments, parse_arguments());
  return bind(*method, std::move(object), std::move(arguments), line);
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_subscript(ExpressionPtr object) {
  const int line = tokens_.take().line;
  ExpressionPtr first;
  if (!tokens_.at_operator(":")) {
    R1D_ASSIGN_OR_RETURN(first, parse());
    if (tokens_.skip_operator("]")) {
      return make(line, ItemAccess{std::move(object), std::move(first)});
    }
  }
  SliceAccess slice{std::move(object), std::move(first), nullptr, nullptr};
  for (ExpressionPtr* bound : {&slice.end, &slice.step}) {
    if (!tokens_.skip_operator(":")) break;
    if (tokens_.at_operator(":") || tokens_.at_operator("]")) continue;
    R1D_ASSIGN_OR_RETURN(*bound, parse());
  }
  R1D_RETURN_IF_ERROR(tokens_.expect_operator("]"));
  return make(line, std::move(slice));
}

}  // namespace r1d::jinja
