// SPDX-License-Identifier: Apache-2.0
#include "jinja/parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "r1d/base/status.h"

#include "jinja/expression_parser.h"
#include "jinja/token_stream.h"
#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

using Kind = Token::Kind;
using Words = std::initializer_list<std::string_view>;

bool is_reserved(std::string_view name) {
  constexpr std::string_view kReserved[] = {"loop", "true", "false", "none"};
  return std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved);
}

class Parser {
 public:
  Parser(std::vector<Token> tokens, const Limits& limits)
      : tokens_(std::move(tokens)), expressions_(tokens_, limits.depth) {}

  absl::StatusOr<ParsedTemplate> run() {
    ParsedTemplate parsed;
    R1D_ASSIGN_OR_RETURN(parsed.body, parse_body({}));
    for (const auto& [name, line] : expressions_.macros_called()) {
      if (assigned_.contains(name)) continue;
      return TokenStream::fail_at(line, "unknown function '{}'", name);
    }
    parsed.names_read = expressions_.names_read();
    return parsed;
  }

 private:
  using Result = absl::StatusOr<Statement>;

  // Statements up to a tag that begins with one of `ends`, whose "{%" is taken and whose name is
  // not. With no ends, up to the end of the template.
  absl::StatusOr<Body> parse_body(Words ends) {
    absl::Status entered = expressions_.enter();
    auto body = entered.ok() ? parse_statements(ends) : absl::StatusOr<Body>(std::move(entered));
    expressions_.leave();
    return body;
  }

  absl::StatusOr<Body> parse_statements(Words ends) {
    Body body;
    while (!tokens_.at(Kind::kEnd)) {
      const int line = tokens_.line();
      const Token token = tokens_.take();
      if (token.kind == Kind::kData) {
        auto text = std::make_shared<const Text>(token.text, true);
        body.push_back({DataStatement{std::move(text)}, line});
      } else if (token.kind == Kind::kVariableBegin) {
        R1D_ASSIGN_OR_RETURN(ExpressionPtr value, expressions_.parse_tuple());
        R1D_RETURN_IF_ERROR(tokens_.expect(Kind::kVariableEnd, "'}}'"));
        body.push_back({PrintStatement{std::move(value)}, line});
      } else {
        if (at_one_of(ends)) return body;
        R1D_ASSIGN_OR_RETURN(Statement statement, parse_tag());
        statement.line = line;
        body.push_back(std::move(statement));
      }
    }
    if (ends.size() == 0) return body;
    return tokens_.fail("expected '{}', found the end of the template", *(ends.end() - 1));
  }

  [[nodiscard]] bool at_one_of(Words names) const {
    return std::any_of(
        names.begin(), names.end(), [&](std::string_view name) { return tokens_.at_name(name); });
  }

  absl::Status end_of_tag() { return tokens_.expect(Kind::kBlockEnd, "the end of the tag"); }

  // A body up to {% end %}, all of which is taken.
  absl::StatusOr<Body> parse_body_to(std::string_view end) {
    R1D_RETURN_IF_ERROR(end_of_tag());
    R1D_ASSIGN_OR_RETURN(Body body, parse_body({end}));
    tokens_.take();
    R1D_RETURN_IF_ERROR(end_of_tag());
    return body;
  }

  Result parse_tag() {
    R1D_ASSIGN_OR_RETURN(const std::string name, tokens_.expect_name("a tag's name"));
    if (name == "if") return parse_if();
    if (name == "for") return parse_for();
    if (name == "set") return parse_set();
    if (name == "macro") return parse_macro();
    if (name == "with") return parse_with();
    if (name == "filter") return parse_filter();
    if (name == "generation") return parse_generation();
    if (name == "break" || name == "continue") return parse_jump(name);
    return tokens_.fail("the tag '{}' is not known here", name);
  }

  Result parse_if() {
    IfStatement statement;
    while (true) {
      R1D_ASSIGN_OR_RETURN(ExpressionPtr condition, expressions_.parse_tuple());
      R1D_RETURN_IF_ERROR(end_of_tag());
      R1D_ASSIGN_OR_RETURN(Body body, parse_body({"elif", "else", "endif"}));
      statement.branches.emplace_back(std::move(condition), std::move(body));
      if (!tokens_.skip_name("elif")) break;
    }
    R1D_ASSIGN_OR_RETURN(statement.otherwise, parse_else("endif"));
    return Statement{std::move(statement)};
  }

  // At "else" or `end`: the body of the first, if it is there, and all of the tag `end`.
  absl::StatusOr<Body> parse_else(std::string_view end) {
    if (tokens_.skip_name("else")) return parse_body_to(end);
    tokens_.take();
    R1D_RETURN_IF_ERROR(end_of_tag());
    return Body{};
  }

  absl::StatusOr<Target> parse_target() {
    Target target;
    const bool is_parenthesised = tokens_.skip_operator("(");
    while (true) {
      R1D_ASSIGN_OR_RETURN(std::string name, tokens_.expect_name("a name to assign to"));
      if (is_reserved(name)) {
        return tokens_.fail("'{}' cannot be assigned to", name);
      }
      assigned_.insert(name);
      target.names.push_back(std::move(name));
      if (!tokens_.skip_operator(",")) break;
      target.unpacks = true;
      if (!tokens_.at(Kind::kName)) break;
    }
    if (is_parenthesised) R1D_RETURN_IF_ERROR(tokens_.expect_operator(")"));
    return target;
  }

  Result parse_for() {
    ForStatement statement;
    R1D_ASSIGN_OR_RETURN(statement.target, parse_target());
    if (!tokens_.skip_name("in")) {
      return tokens_.fail("expected 'in', found {}", tokens_.description());
    }
    R1D_ASSIGN_OR_RETURN(statement.items, expressions_.parse_or());
    if (tokens_.skip_name("if")) {
      R1D_ASSIGN_OR_RETURN(statement.condition, expressions_.parse());
    }
    if (tokens_.at_name("recursive")) return tokens_.fail("'recursive' loops are not supported");
    R1D_RETURN_IF_ERROR(end_of_tag());
    ++num_loops_;
    auto body = parse_body({"else", "endfor"});
    --num_loops_;
    R1D_ASSIGN_OR_RETURN(statement.body, std::move(body));
    R1D_ASSIGN_OR_RETURN(statement.otherwise, parse_else("endfor"));
    return Statement{std::move(statement)};
  }

  Result parse_set() {
    R1D_ASSIGN_OR_RETURN(Target target, parse_target());
    if (target.names.size() == 1 && !target.unpacks && tokens_.skip_operator(".")) {
      R1D_ASSIGN_OR_RETURN(target.attribute, tokens_.expect_name("an attribute's name"));
    }
    if (tokens_.skip_operator("=")) {
      R1D_ASSIGN_OR_RETURN(ExpressionPtr value, expressions_.parse_tuple());
      R1D_RETURN_IF_ERROR(end_of_tag());
      return Statement{SetStatement{std::move(target), std::move(value)}};
    }
    SetBlockStatement statement{std::move(target), nullptr, {}};
    R1D_ASSIGN_OR_RETURN(statement.value,
                         tokens_.skip_operator("|") ? expressions_.parse_block_filters()
                                                    : expressions_.block_text());
    R1D_ASSIGN_OR_RETURN(statement.body, parse_captured("endset"));
    return Statement{std::move(statement)};
  }

  Result parse_filter() {
    FilterStatement statement;
    R1D_ASSIGN_OR_RETURN(statement.value, expressions_.parse_block_filters());
    R1D_ASSIGN_OR_RETURN(statement.body, parse_captured("endfilter"));
    return Statement{std::move(statement)};
  }

  // A body whose text is kept, in a scope of its own: no jump may leave it.
  absl::StatusOr<Body> parse_captured(std::string_view end) {
    const int num_loops = std::exchange(num_loops_, 0);
    ++num_scopes_;
    auto body = parse_body_to(end);
    --num_scopes_;
    num_loops_ = num_loops;
    return body;
  }

  Result parse_macro() {
    // A macro sees the template's own variables, not those of a block that happens to run.
    if (num_scopes_ > 0 || num_loops_ > 0) {
      return tokens_.fail("a macro inside another block with variables of its own");
    }
    auto macro = std::make_unique<MacroDefinition>();
    R1D_ASSIGN_OR_RETURN(macro->name, tokens_.expect_name("the macro's name"));
    if (find_function(macro->name) != nullptr || macro->name == "namespace" ||
        macro->name == "dict") {
      return tokens_.fail("'{}' is a function, a macro cannot have its name", macro->name);
    }
    assigned_.insert(macro->name);
    R1D_RETURN_IF_ERROR(parse_parameters(macro.get()));
    R1D_ASSIGN_OR_RETURN(macro->body, parse_captured("endmacro"));
    return Statement{MacroStatement{std::move(macro)}};
  }

  absl::Status parse_parameters(MacroDefinition* macro) {
    R1D_RETURN_IF_ERROR(tokens_.expect_operator("("));
    while (!tokens_.at_operator(")")) {
      R1D_ASSIGN_OR_RETURN(std::string name, tokens_.expect_name("a parameter's name"));
      assigned_.insert(name);
      macro->parameters.push_back(std::move(name));
      macro->defaults.emplace_back();
      if (tokens_.skip_operator("=")) {
        R1D_ASSIGN_OR_RETURN(macro->defaults.back(), expressions_.parse());
      }
      if (!tokens_.skip_operator(",")) break;
    }
    return tokens_.expect_operator(")");
  }

  Result parse_with() {
    ScopeStatement statement;
    while (tokens_.at(Kind::kName)) {
      std::string name = tokens_.take().text;
      R1D_RETURN_IF_ERROR(tokens_.expect_operator("="));
      R1D_ASSIGN_OR_RETURN(ExpressionPtr value, expressions_.parse());
      assigned_.insert(name);
      statement.variables.emplace_back(std::move(name), std::move(value));
      if (!tokens_.skip_operator(",")) break;
    }
    return parse_scope(std::move(statement), "endwith");
  }

  // transformers marks what the assistant said by it, for training; the text is as without.
  Result parse_generation() { return parse_scope({}, "endgeneration"); }

  Result parse_scope(ScopeStatement statement, std::string_view end) {
    ++num_scopes_;
    auto body = parse_body_to(end);
    --num_scopes_;
    R1D_ASSIGN_OR_RETURN(statement.body, std::move(body));
    return Statement{std::move(statement)};
  }

  Result parse_jump(std::string_view name) {
    if (num_loops_ == 0) return tokens_.fail("'{}' outside of a loop", name);
    R1D_RETURN_IF_ERROR(end_of_tag());
    if (name == "break") return Statement{BreakStatement{}};
    return Statement{ContinueStatement{}};
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int num_loops_ = 0;   // open ones that a jump can reach
  int num_scopes_ = 0;  // open blocks, loops aside, that have variables of their own
  std::set<std::string, std::less<>> assigned_;
};

}  // namespace

absl::StatusOr<ParsedTemplate> parse_template(std::string_view source, const Limits& limits) {
  if (source.size() > limits.source_bytes) {
    return invalid_argument(
        "the template has {} bytes, at most {} are accepted", source.size(), limits.source_bytes);
  }
  if (!is_valid_utf8(source)) return invalid_argument("the template is not UTF-8");
  R1D_ASSIGN_OR_RETURN(std::vector<Token> tokens, tokenize(source));
  return Parser(std::move(tokens), limits).run();
}

}  // namespace r1d::jinja
