// SPDX-License-Identifier: Apache-2.0
// Numbers, calls, filters and tests: the part of the grammar in which names of builtins are
// resolved.
#include <charconv>
#include <cstdlib>

#include "r1d/base/status.h"

#include "jinja/expression_parser.h"

namespace r1d::jinja {
namespace {

using Kind = Token::Kind;

// The literal string that an argument is; null for others.
const Text* literal_text(const ExpressionPtr& argument) {
  if (argument == nullptr) return nullptr;
  const auto* literal = std::get_if<Literal>(&argument->node);
  return literal == nullptr ? nullptr : literal->value.text();
}

}  // namespace

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_number(const Token& token) {
  if (token.kind == Kind::kFloat) {
    return make(token.line, Literal{Value{std::strtod(token.text.c_str(), nullptr)}});
  }
  int64_t integer = 0;
  const char* end = token.text.data() + token.text.size();
  const auto parsed = std::from_chars(token.text.data(), end, integer);
  if (parsed.ec != std::errc() || parsed.ptr != end) {
    return TokenStream::fail_at(token.line, "the integer {} does not fit 64 bits", token.text);
  }
  return make(token.line, Literal{Value{integer}});
}

absl::StatusOr<ExpressionParser::Arguments> ExpressionParser::parse_arguments() {
  R1D_RETURN_IF_ERROR(tokens_.expect_operator("("));
  Arguments arguments;
  while (!tokens_.at_operator(")")) {
    if (tokens_.at_operator("*") || tokens_.at_operator("**")) {
      return tokens_.fail("'{}' in a call is not supported", tokens_.peek().text);
    }
    const Token& next = tokens_.peek(1);
    if (tokens_.at(Kind::kName) && next.kind == Kind::kOperator && next.text == "=") {
      std::string name = tokens_.take().text;
      tokens_.take();
      R1D_ASSIGN_OR_RETURN(ExpressionPtr value, parse());
      arguments.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!arguments.named.empty()) return tokens_.fail("a positional argument behind a named one");
      R1D_ASSIGN_OR_RETURN(ExpressionPtr value, parse());
      arguments.positional.push_back(std::move(value));
    }
    if (!tokens_.skip_operator(",")) break;
  }
  R1D_RETURN_IF_ERROR(tokens_.expect_operator(")"));
  return arguments;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_call(const std::string& name, int line) {
  R1D_ASSIGN_OR_RETURN(Arguments arguments, parse_arguments());
  if (name == "namespace" || name == "dict") {
    if (!arguments.positional.empty()) {
      return TokenStream::fail_at(line, "{}() takes named arguments only", name);
    }
    if (name == "dict") return make(line, MakeDict{std::move(arguments.named)});
    return make(line, MakeNamespace{std::move(arguments.named)});
  }
  if (const Builtin* function = find_function(name)) {
    return bind(*function, nullptr, std::move(arguments), line);
  }
  macros_called_.emplace_back(name, line);
  return make(line, MacroCall{name, std::move(arguments.positional), std::move(arguments.named)});
}

absl::StatusOr<ExpressionPtr> ExpressionParser::bind(const Builtin& builtin,
                                                     ExpressionPtr self,
                                                     Arguments arguments,
                                                     int line) {
  const auto& parameters = builtin.parameters;
  if (arguments.positional.size() > parameters.size()) {
    return TokenStream::fail_at(
        line, "'{}' takes at most {} arguments", builtin.name, parameters.size());
  }
  BuiltinCall call{&builtin, std::move(self), std::move(arguments.positional)};
  call.arguments.resize(parameters.size());
  for (auto& [name, value] : arguments.named) {
    const auto place = std::find(parameters.begin(), parameters.end(), name);
    if (place == parameters.end()) {
      return TokenStream::fail_at(line, "'{}' has no argument '{}'", builtin.name, name);
    }
    ExpressionPtr& slot = call.arguments[static_cast<size_t>(place - parameters.begin())];
    if (slot != nullptr) {
      return TokenStream::fail_at(line, "'{}' has '{}' twice", builtin.name, name);
    }
    slot = std::move(value);
  }
  for (size_t i = 0; i < builtin.num_required; ++i) {
    if (call.arguments[i] == nullptr) {
      return TokenStream::fail_at(line, "'{}' lacks '{}'", builtin.name, parameters[i]);
    }
  }
  R1D_RETURN_IF_ERROR(check_named_builtins(builtin, call, line));
  return make(line, std::move(call));
}

// map('trim') and selectattr('role', 'equalto', ...) name a further builtin by a string.
absl::Status ExpressionParser::check_named_builtins(const Builtin& builtin,
                                                    const BuiltinCall& call,
                                                    int line) {
  for (size_t i = 0; i < builtin.parameters.size(); ++i) {
    const Text* name = literal_text(call.arguments[i]);
    if (name == nullptr) continue;
    if (builtin.parameters[i] == "filter" && find_filter(name->bytes()) == nullptr) {
      return TokenStream::fail_at(line, "unknown filter '{}'", name->bytes());
    }
    if (builtin.parameters[i] == "test" && find_test(name->bytes()) == nullptr) {
      return TokenStream::fail_at(line, "unknown test '{}'", name->bytes());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_filter(ExpressionPtr object) {
  const int line = tokens_.line();
  R1D_ASSIGN_OR_RETURN(const std::string name, tokens_.expect_name("a filter's name"));
  const Builtin* filter = find_filter(name);
  if (filter == nullptr) return TokenStream::fail_at(line, "unknown filter '{}'", name);
  Arguments arguments;
  if (tokens_.at_operator("(")) {
    R1D_ASSIGN_OR_RETURN(arguments, parse_arguments());
  }
  return bind(*filter, std::move(object), std::move(arguments), line);
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_test(ExpressionPtr object) {
  const int line = tokens_.line();
  const bool is_negated = tokens_.skip_name("not");
  R1D_ASSIGN_OR_RETURN(const std::string name, tokens_.expect_name("a test's name"));
  const Builtin* test = find_test(name);
  if (test == nullptr) return TokenStream::fail_at(line, "unknown test '{}'", name);
  R1D_ASSIGN_OR_RETURN(ExpressionPtr result, parse_test_arguments(*test, std::move(object), line));
  return is_negated ? make(line, NotExpression{std::move(result)}) : std::move(result);
}

// `is divisibleby(3)`, or `is divisibleby 3` with one value that carries no filter.
absl::StatusOr<ExpressionPtr> ExpressionParser::parse_test_arguments(const Builtin& test,
                                                                     ExpressionPtr object,
                                                                     int line) {
  Arguments arguments;
  if (tokens_.at_operator("(")) {
    R1D_ASSIGN_OR_RETURN(arguments, parse_arguments());
  } else if (!test.parameters.empty()) {
    absl::Status entered = enter();
    Result value = entered.ok() ? parse_primary() : Result(std::move(entered));
    leave();
    R1D_ASSIGN_OR_RETURN(ExpressionPtr argument, std::move(value));
    R1D_ASSIGN_OR_RETURN(argument, parse_postfix(std::move(argument)));
    arguments.positional.push_back(std::move(argument));
  }
  return bind(test, std::move(object), std::move(arguments), line);
}

absl::StatusOr<ExpressionPtr> ExpressionParser::block_text() {
  return make(tokens_.line(), BlockText{});
}

absl::StatusOr<ExpressionPtr> ExpressionParser::parse_block_filters() {
  R1D_ASSIGN_OR_RETURN(ExpressionPtr text, block_text());
  R1D_ASSIGN_OR_RETURN(text, parse_filter(std::move(text)));
  return parse_filters_and_tests(std::move(text));
}

}  // namespace r1d::jinja
