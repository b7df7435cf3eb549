// SPDX-License-Identifier: Apache-2.0
// Filters on strings and single values. As in Jinja2, other kinds are turned to strings first.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "r1d/base/status.h"

#include "jinja/builtins.h"
#include "jinja/call_values.h"
#include "jinja/operators.h"
#include "jinja/printing.h"
#include "jinja/text_operations.h"

namespace r1d::jinja {
namespace {

absl::StatusOr<Value> trim(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const TextPtr text, to_text(context.meter, self));
  return strip(context.meter, *text, arguments[0], {});
}

absl::StatusOr<Value> change_case(CallContext& context, const Value& self, Case wanted) {
  R1D_ASSIGN_OR_RETURN(const TextPtr text, to_text(context.meter, self));
  return with_case(context.meter, *text, wanted);
}

absl::StatusOr<Value> upper(CallContext& context, const Value& self, CallArguments) {
  return change_case(context, self, Case::kUpper);
}
absl::StatusOr<Value> lower(CallContext& context, const Value& self, CallArguments) {
  return change_case(context, self, Case::kLower);
}
absl::StatusOr<Value> capitalize(CallContext& context, const Value& self, CallArguments) {
  return change_case(context, self, Case::kCapitalized);
}

bool begins_word(char c) {
  return std::string_view("- ({[<\t\n\v\f\r").find(c) != std::string_view::npos;
}

absl::StatusOr<Value> title(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(const Value lowered, change_case(context, self, Case::kLower));
  const Text& text = *lowered.text();
  Text result;
  bool at_start = true;
  for (Segment& segment : text.segments()) {
    for (char& c : segment.text) {
      const char original = c;
      if (at_start && c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
      at_start = begins_word(original);
    }
    result.append(segment.text, segment.trusted);
  }
  return make_text(context.meter, std::move(result));
}

absl::StatusOr<Value> replace_filter(CallContext& context,
                                     const Value& self,
                                     CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const TextPtr text, to_text(context.meter, self));
  R1D_ASSIGN_OR_RETURN(const TextPtr from, to_text(context.meter, arguments[0]));
  R1D_ASSIGN_OR_RETURN(const TextPtr to, to_text(context.meter, arguments[1]));
  R1D_ASSIGN_OR_RETURN(const int64_t count, integer_or(arguments[2], -1, "replace: count"));
  return replace(context.meter, *text, *from, *to, count);
}

absl::StatusOr<Value> indent(CallContext& context, const Value& self, CallArguments arguments) {
  constexpr int64_t kMaxWidth = 256;
  R1D_ASSIGN_OR_RETURN(const TextPtr text, to_text(context.meter, self));
  Text margin;
  if (const Text* given = arguments[0].text()) {
    margin = *given;
  } else {
    R1D_ASSIGN_OR_RETURN(const int64_t width, integer_or(arguments[0], 4, "indent: width"));
    if (width > kMaxWidth) return invalid_argument("indent: width is over {}", kMaxWidth);
    margin = Text(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '), true);
  }
  const bool first = truthy(arguments[1]);
  const bool blank = truthy(arguments[2]);
  // Jinja2 puts a line end behind the text, so that a last empty line counts.
  Text closed = *text;
  closed.append("\n", true);
  R1D_ASSIGN_OR_RETURN(const std::vector<Text> lines, lines_of(context.meter, closed));
  Text result;
  for (size_t i = 0; i < lines.size(); ++i) {
    R1D_RETURN_IF_ERROR(context.meter.make(lines[i].footprint() + margin.footprint()));
    if (i > 0) result.append("\n", true);
    if (i == 0 ? first : blank || !lines[i].empty()) result.append(margin);
    result.append(lines[i]);
  }
  return make_text(context.meter, std::move(result));
}

// "%s", "%d" and "%%" of printf's directives.
absl::StatusOr<Value> format(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const TextPtr pattern, to_text(context.meter, self));
  const std::string& bytes = pattern->bytes();
  Text result;
  size_t used = 0;
  for (size_t at = 0; at < bytes.size();) {
    const size_t percent = std::min(bytes.find('%', at), bytes.size());
    result.append(pattern->slice(at, percent));
    if (percent == bytes.size()) break;
    const char kind = percent + 1 < bytes.size() ? bytes[percent + 1] : '\0';
    at = percent + 2;
    if (kind == '%') {
      result.append(pattern->slice(percent, percent + 1));
      continue;
    }
    if (kind != 's' && kind != 'd') return invalid_argument("format: only %s and %d are known");
    if (used == arguments.size() || arguments[used].is_undefined()) {
      return invalid_argument("format: not enough arguments");
    }
    int64_t integer = 0;
    if (kind == 'd' && as_integer(arguments[used], &integer) == nullptr) {
      return invalid_argument("format: %d of a '{}'", type_name(arguments[used]));
    }
    const Value shown = kind == 'd' ? Value{integer} : arguments[used];
    R1D_ASSIGN_OR_RETURN(const TextPtr piece, to_text(context.meter, shown));
    R1D_RETURN_IF_ERROR(context.meter.make(piece->footprint()));
    result.append(*piece);
    ++used;
  }
  return make_text(context.meter, std::move(result));
}

absl::StatusOr<Value> string(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(TextPtr text, to_text(context.meter, self));
  return Value{std::move(text)};
}

absl::StatusOr<Value> safe(CallContext&, const Value& self, CallArguments) {
  return self;  // transformers does not escape
}

absl::StatusOr<Value> default_filter(CallContext&, const Value& self, CallArguments arguments) {
  const bool falls_back = self.is_undefined() || (truthy(arguments[1]) && !truthy(self));
  if (!falls_back) return self;
  if (arguments[0].is_undefined()) return Value{std::make_shared<const Text>()};
  return arguments[0];
}

// A number as Python's float() reads it, without its rarer spellings.
std::optional<double> parse_float(const Text& text) {
  const ByteRange kept = stripped(text.bytes(), nullptr, {});
  const std::string digits = text.bytes().substr(kept.begin, kept.end - kept.begin);
  if (digits.empty() || digits.find_first_not_of("+-.0123456789eE") != std::string::npos) {
    return std::nullopt;
  }
  char* end = nullptr;
  const double value = std::strtod(digits.c_str(), &end);
  if (*end != '\0') return std::nullopt;
  return value;
}

absl::StatusOr<Value> float_filter(CallContext&, const Value& self, CallArguments arguments) {
  int64_t integer = 0;
  if (self.is<double>()) return self;
  if (as_integer(self, &integer) != nullptr) return Value{static_cast<double>(integer)};
  if (self.is_undefined()) return undefined_error(self);
  if (const Text* text = self.text()) {
    if (const auto value = parse_float(*text)) return Value{*value};
  }
  return arguments[0].is_undefined() ? Value{0.0} : arguments[0];
}

absl::StatusOr<Value> int_filter(CallContext&, const Value& self, CallArguments arguments) {
  int64_t integer = 0;
  if (as_integer(self, &integer) != nullptr) return Value{integer};
  if (self.is_undefined()) return undefined_error(self);
  std::optional<double> value;
  if (const double* number = self.as<double>()) value = *number;
  if (const Text* text = self.text()) {
    const ByteRange kept = stripped(text->bytes(), nullptr, {});
    const char* begin = text->bytes().data() + kept.begin;
    const char* end = text->bytes().data() + kept.end;
    if (begin != end && *begin == '+') ++begin;
    const auto parsed = std::from_chars(begin, end, integer);
    if (parsed.ec == std::errc() && parsed.ptr == end) return Value{integer};
    value = parse_float(*text);
  }
  // 2^63 and beyond do not fit; the comparison is false for NaN.
  if (value && std::fabs(*value) < 9.2e18) return Value{static_cast<int64_t>(*value)};
  return arguments[0].is_undefined() ? Value{int64_t{0}} : arguments[0];
}

absl::StatusOr<Value> abs(CallContext&, const Value& self, CallArguments) {
  int64_t integer = 0;
  if (const double* number = self.as<double>()) return Value{std::fabs(*number)};
  if (as_integer(self, &integer) == nullptr) {
    return invalid_argument("abs of a '{}'", type_name(self));
  }
  return integer < 0 ? negated(Value{integer}) : Value{integer};
}

absl::StatusOr<JsonStyle> json_style(CallArguments arguments) {
  constexpr int64_t kMaxIndent = 64;
  JsonStyle style;
  style.ensure_ascii = truthy(arguments[0]);
  style.sort_keys = truthy(arguments[3]);
  if (const Text* margin = arguments[1].text()) {
    style.indent = margin->bytes();
  } else if (!arguments[1].is_undefined() && !arguments[1].is<None>()) {
    R1D_ASSIGN_OR_RETURN(const int64_t width, integer_or(arguments[1], 0, "tojson: indent"));
    if (width > kMaxIndent) return invalid_argument("tojson: indent is over {}", kMaxIndent);
    style.indent = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  if (style.indent) style.item_separator = ",";
  if (arguments[2].is_undefined() || arguments[2].is<None>()) return style;
  const List* separators = arguments[2].list();
  if (separators == nullptr || separators->items.size() != 2) {
    return invalid_argument("tojson: separators are not two strings");
  }
  R1D_ASSIGN_OR_RETURN(const Text* item, text_of(separators->items[0], "tojson: a separator"));
  R1D_ASSIGN_OR_RETURN(const Text* key, text_of(separators->items[1], "tojson: a separator"));
  style.item_separator = item->bytes();
  style.key_separator = key->bytes();
  return style;
}

absl::StatusOr<Value> tojson(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const JsonStyle style, json_style(arguments));
  R1D_ASSIGN_OR_RETURN(Text text, to_json(context.meter, self, style));
  return make_text(context.meter, std::move(text));
}

}  // namespace

std::span<const Builtin> text_filters() {
  static const std::vector<Builtin> filters = {
      {"abs", abs, {}},
      {"capitalize", capitalize, {}},
      {"d", default_filter, {"default_value", "boolean"}},
      {"default", default_filter, {"default_value", "boolean"}},
      {"float", float_filter, {"default"}},
      // As many arguments as a chat template may want.
      {"format", format, {"1", "2", "3", "4", "5", "6", "7", "8"}},
      {"indent", indent, {"width", "first", "blank"}},
      {"int", int_filter, {"default"}},
      {"lower", lower, {}},
      {"replace", replace_filter, {"old", "new", "count"}, 2},
      {"safe", safe, {}},
      {"string", string, {}},
      {"title", title, {}},
      {"tojson", tojson, {"ensure_ascii", "indent", "separators", "sort_keys"}},
      {"trim", trim, {"chars"}},
      {"upper", upper, {}},
  };
  return filters;
}

}  // namespace r1d::jinja
