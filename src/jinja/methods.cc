// SPDX-License-Identifier: Apache-2.0
// Methods of strings and dicts, as Python has them.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "r1d/base/status.h"

#include "jinja/builtins.h"
#include "jinja/call_values.h"
#include "jinja/text_operations.h"
#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

absl::StatusOr<const Text*> string_self(const Value& self) {
  return text_of(self, "the object of a string method");
}

absl::StatusOr<const Dict*> dict_self(const Value& self) {
  if (const Dict* dict = self.dict()) return dict;
  if (self.is_undefined()) return undefined_error(self);
  return invalid_argument("the object of a dict method is a '{}'", type_name(self));
}

template <bool from_end>
absl::StatusOr<Value> split(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  R1D_ASSIGN_OR_RETURN(const int64_t max_splits, integer_or(arguments[1], -1, "split: maxsplit"));
  if (arguments[0].is_undefined() || arguments[0].is<None>()) {
    if (from_end && max_splits >= 0) {
      return invalid_argument("rsplit with maxsplit needs a separator");
    }
    return split_at_spaces(context.meter, *text, max_splits);
  }
  R1D_ASSIGN_OR_RETURN(const Text* separator, text_of(arguments[0], "split: the separator"));
  return from_end ? split_at_end(context.meter, *text, separator->bytes(), max_splits)
                  : split_at(context.meter, *text, separator->bytes(), max_splits);
}

absl::StatusOr<Value> splitlines(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  R1D_ASSIGN_OR_RETURN(std::vector<Text> lines, lines_of(context.meter, *text));
  std::vector<Value> items;
  for (Text& line : lines) {
    R1D_ASSIGN_OR_RETURN(Value item, make_text(context.meter, std::move(line)));
    items.push_back(std::move(item));
  }
  return make_list(context.meter, std::move(items), false);
}

template <bool left, bool right>
absl::StatusOr<Value> strip_method(CallContext& context,
                                   const Value& self,
                                   CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  return strip(context.meter, *text, arguments[0], {.left = left, .right = right});
}

template <Case wanted>
absl::StatusOr<Value> case_method(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  return with_case(context.meter, *text, wanted);
}

absl::StatusOr<Value> replace_method(CallContext& context,
                                     const Value& self,
                                     CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  R1D_ASSIGN_OR_RETURN(const Text* from, text_of(arguments[0], "replace: old"));
  R1D_ASSIGN_OR_RETURN(const Text* to, text_of(arguments[1], "replace: new"));
  R1D_ASSIGN_OR_RETURN(const int64_t count, integer_or(arguments[2], -1, "replace: count"));
  return replace(context.meter, *text, *from, *to, count);
}

bool has_affix(const Text& text, const Text& affix, bool at_end) {
  const std::string_view bytes = text.bytes();
  return at_end ? bytes.ends_with(affix.bytes()) : bytes.starts_with(affix.bytes());
}

// One affix or a tuple of them.
template <bool at_end>
absl::StatusOr<Value> with_affix(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  const List* choices = arguments[0].list();
  if (choices == nullptr) {
    R1D_ASSIGN_OR_RETURN(const Text* affix, text_of(arguments[0], "the affix"));
    R1D_RETURN_IF_ERROR(context.meter.scan(affix->size()));
    return Value{has_affix(*text, *affix, at_end)};
  }
  for (const Value& choice : choices->items) {
    R1D_ASSIGN_OR_RETURN(const Text* affix, text_of(choice, "an affix"));
    R1D_RETURN_IF_ERROR(context.meter.step());
    R1D_RETURN_IF_ERROR(context.meter.scan(affix->size()));
    if (has_affix(*text, *affix, at_end)) return Value{true};
  }
  return Value{false};
}

template <bool at_end>
absl::StatusOr<Value> without_affix(CallContext& context,
                                    const Value& self,
                                    CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  R1D_ASSIGN_OR_RETURN(const Text* affix, text_of(arguments[0], "the affix"));
  if (!has_affix(*text, *affix, at_end)) return self;
  const size_t kept = text->size() - affix->size();
  return make_text(context.meter,
                   at_end ? text->slice(0, kept) : text->slice(affix->size(), text->size()));
}

absl::StatusOr<Value> find(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  R1D_ASSIGN_OR_RETURN(const Text* wanted, text_of(arguments[0], "find: the text"));
  R1D_RETURN_IF_ERROR(context.meter.scan(2 * text->size() + wanted->size()));
  const size_t found = find_bytes(text->bytes(), wanted->bytes(), 0);
  if (found == std::string_view::npos) return Value{int64_t{-1}};
  const std::string_view before = std::string_view(text->bytes()).substr(0, found);
  return Value{static_cast<int64_t>(count_code_points(before))};
}

absl::StatusOr<Value> count(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* text, string_self(self));
  R1D_ASSIGN_OR_RETURN(const Text* wanted, text_of(arguments[0], "count: the text"));
  if (wanted->empty()) return invalid_argument("count: the text to look for is empty");
  R1D_RETURN_IF_ERROR(context.meter.scan(text->size()));
  int64_t hits = 0;
  size_t at = 0;
  while ((at = find_bytes(text->bytes(), wanted->bytes(), at)) != std::string_view::npos) {
    R1D_RETURN_IF_ERROR(context.meter.step());
    at += wanted->size();
    ++hits;
  }
  return Value{hits};
}

absl::StatusOr<Value> join_method(CallContext& context,
                                  const Value& self,
                                  CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* separator, string_self(self));
  R1D_ASSIGN_OR_RETURN(const ListPtr list, iterate(context.meter, arguments[0]));
  for (const Value& item : list->items) {
    R1D_RETURN_IF_ERROR(text_of(item, "join: an item").status());
  }
  return join(context.meter, *separator, list->items);
}

absl::StatusOr<Value> items(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(const Dict* dict, dict_self(self));
  std::vector<Value> pairs;
  for (const auto& [key, value] : dict->entries) {
    R1D_ASSIGN_OR_RETURN(Value pair, make_list(context.meter, {Value{key}, value}, true));
    pairs.push_back(std::move(pair));
  }
  return make_list(context.meter, std::move(pairs), false);
}

absl::StatusOr<Value> keys(CallContext& context, const Value& self, CallArguments) {
  R1D_RETURN_IF_ERROR(dict_self(self).status());
  R1D_ASSIGN_OR_RETURN(ListPtr names, iterate(context.meter, self));
  return Value{std::move(names)};
}

absl::StatusOr<Value> values(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(const Dict* dict, dict_self(self));
  std::vector<Value> found;
  for (const auto& entry : dict->entries) found.push_back(entry.second);
  return make_list(context.meter, std::move(found), false);
}

absl::StatusOr<Value> get(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Dict* dict, dict_self(self));
  const Text* key = arguments[0].text();
  if (key != nullptr) R1D_RETURN_IF_ERROR(context.meter.scan(key->size()));
  const Value* found = key == nullptr ? nullptr : dict->find(key->bytes());
  if (found != nullptr) return *found;
  return arguments[1].is_undefined() ? Value{None{}} : arguments[1];
}

}  // namespace

std::span<const Builtin> methods() {
  static const std::vector<Builtin> methods = {
      {"capitalize", case_method<Case::kCapitalized>, {}},
      {"count", count, {"sub"}, 1},
      {"endswith", with_affix<true>, {"suffix"}, 1},
      {"find", find, {"sub"}, 1},
      {"get", get, {"key", "default"}, 1},
      {"items", items, {}},
      {"join", join_method, {"iterable"}, 1},
      {"keys", keys, {}},
      {"lower", case_method<Case::kLower>, {}},
      {"lstrip", strip_method<true, false>, {"chars"}},
      {"removeprefix", without_affix<false>, {"prefix"}, 1},
      {"removesuffix", without_affix<true>, {"suffix"}, 1},
      {"replace", replace_method, {"old", "new", "count"}, 2},
      {"rsplit", split<true>, {"sep", "maxsplit"}},
      {"rstrip", strip_method<false, true>, {"chars"}},
      {"split", split<false>, {"sep", "maxsplit"}},
      {"splitlines", splitlines, {}},
      {"startswith", with_affix<false>, {"prefix"}, 1},
      {"strip", strip_method<true, true>, {"chars"}},
      {"upper", case_method<Case::kUpper>, {}},
      {"values", values, {}},
  };
  return methods;
}

}  // namespace r1d::jinja
