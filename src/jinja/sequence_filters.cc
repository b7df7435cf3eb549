// SPDX-License-Identifier: Apache-2.0
// Filters on lists, dicts and whatever can be looped over.
#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <utility>

#include "r1d/base/status.h"

#include "jinja/builtins.h"
#include "jinja/call_values.h"
#include "jinja/operators.h"
#include "jinja/printing.h"
#include "jinja/text_operations.h"
#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

absl::StatusOr<Value> length(CallContext& context, const Value& self, CallArguments) {
  if (const Text* text = self.text()) {
    R1D_RETURN_IF_ERROR(context.meter.scan(text->size()));
    return Value{static_cast<int64_t>(count_code_points(text->bytes()))};
  }
  if (const List* list = self.list()) return Value{static_cast<int64_t>(list->items.size())};
  if (const Dict* dict = self.dict()) return Value{static_cast<int64_t>(dict->entries.size())};
  if (self.is_undefined()) return Value{int64_t{0}};
  return invalid_argument("a '{}' has no length", type_name(self));
}

absl::StatusOr<Value> first(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(const ListPtr list, iterate(context.meter, self));
  return list->items.empty() ? undefined("first: the sequence is empty") : list->items.front();
}

absl::StatusOr<Value> last(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(const ListPtr list, iterate(context.meter, self));
  return list->items.empty() ? undefined("last: the sequence is empty") : list->items.back();
}

absl::StatusOr<Value> list_filter(CallContext& context, const Value& self, CallArguments) {
  R1D_ASSIGN_OR_RETURN(const ListPtr list, iterate(context.meter, self));
  if (!list->is_tuple) return Value{list};
  return make_list(context.meter, list->items, false);
}

absl::StatusOr<Value> reverse(CallContext& context, const Value& self, CallArguments) {
  if (self.text() != nullptr)
    return slice(context.meter, self, {.begin = {}, .end = {}, .step = -1});
  R1D_ASSIGN_OR_RETURN(const ListPtr list, iterate(context.meter, self));
  R1D_RETURN_IF_ERROR(context.meter.scan(list->items.size() * sizeof(Value)));
  return make_list(context.meter, {list->items.rbegin(), list->items.rend()}, false);
}

absl::StatusOr<Value> items_of(CallContext& context, const Value& self, CallArguments arguments) {
  if (self.is_undefined()) return make_list(context.meter, {}, false);
  return find_method("items")->function(context, self, arguments);
}

// "function.name", "0" or an integer: the part of a value that map and selectattr look at.
absl::StatusOr<Value> part(CallContext& context, Value value, const Value& path) {
  if (path.text() == nullptr) return item(context.meter, value, path);
  std::string_view rest = path.text()->bytes();
  while (true) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string_view name = rest.substr(0, dot);
    int64_t index = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), index);
    const bool is_index = parsed.ec == std::errc() && parsed.ptr == name.data() + name.size();
    const Value key =
        is_index ? Value{index} : Value{std::make_shared<const Text>(std::string(name), true)};
    R1D_ASSIGN_OR_RETURN(value, item(context.meter, value, key));
    if (dot == rest.size()) return value;
    rest.remove_prefix(dot + 1);
  }
}

absl::StatusOr<Value> join_filter(CallContext& context,
                                  const Value& self,
                                  CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const ListPtr list, iterate(context.meter, self));
  R1D_ASSIGN_OR_RETURN(const TextPtr separator, to_text(context.meter, arguments[0]));
  if (arguments[1].is_undefined()) return join(context.meter, *separator, list->items);
  std::vector<Value> parts;
  for (const Value& element : list->items) {
    R1D_ASSIGN_OR_RETURN(Value value, part(context, element, arguments[1]));
    parts.push_back(std::move(value));
  }
  return join(context.meter, *separator, parts);
}

absl::StatusOr<Value> mapped(CallContext& context,
                             const Value& element,
                             const Builtin* filter,
                             CallArguments arguments) {
  if (filter == nullptr) {
    R1D_ASSIGN_OR_RETURN(Value value, part(context, element, arguments[1]));
    return value.is_undefined() && !arguments[2].is_undefined() ? arguments[2] : value;
  }
  const std::vector<Value> none(filter->parameters.size());
  return filter->function(context, element, none);
}

// NOTE: Jinja2 gives a generator, r1d a list; they differ only where a template prints or measures
// it.
absl::StatusOr<Value> map(CallContext& context, const Value& self, CallArguments arguments) {
  const Builtin* filter = nullptr;
  if (arguments[1].is_undefined()) {
    R1D_ASSIGN_OR_RETURN(const Text* name, text_of(arguments[0], "map: the filter"));
    filter = find_filter(name->bytes());
    if (filter == nullptr) return invalid_argument("map: unknown filter '{}'", name->bytes());
    if (filter->num_required > 0) {
      return invalid_argument("map: '{}' with arguments is not supported", name->bytes());
    }
  }
  R1D_ASSIGN_OR_RETURN(const ListPtr list, iterate(context.meter, self));
  std::vector<Value> results;
  for (const Value& element : list->items) {
    R1D_RETURN_IF_ERROR(context.meter.step());
    R1D_ASSIGN_OR_RETURN(Value value, mapped(context, element, filter, arguments));
    results.push_back(std::move(value));
  }
  return make_list(context.meter, std::move(results), false);
}

struct Selection {
  const Value& attribute;  // undefined: the element itself
  const Value& test;       // undefined: its truth
  const Value& argument;
  bool wanted;
};

absl::StatusOr<bool> holds(CallContext& context,
                           const Value& element,
                           const Builtin* test,
                           const Selection& selection) {
  Value value = element;
  if (!selection.attribute.is_undefined()) {
    R1D_ASSIGN_OR_RETURN(value, part(context, element, selection.attribute));
  }
  if (test == nullptr) return truthy(value);
  const CallArguments arguments(&selection.argument, test->parameters.size());
  R1D_ASSIGN_OR_RETURN(const Value result, test->function(context, value, arguments));
  return truthy(result);
}

absl::StatusOr<Value> filtered(CallContext& context,
                               const Value& self,
                               const Selection& selection) {
  const Builtin* test = nullptr;
  if (!selection.test.is_undefined()) {
    R1D_ASSIGN_OR_RETURN(const Text* name, text_of(selection.test, "the test"));
    test = find_test(name->bytes());
    if (test == nullptr) return invalid_argument("unknown test '{}'", name->bytes());
  }
  R1D_ASSIGN_OR_RETURN(const ListPtr list, iterate(context.meter, self));
  std::vector<Value> kept;
  for (const Value& element : list->items) {
    R1D_RETURN_IF_ERROR(context.meter.step());
    R1D_ASSIGN_OR_RETURN(const bool holding, holds(context, element, test, selection));
    if (holding == selection.wanted) kept.push_back(element);
  }
  return make_list(context.meter, std::move(kept), false);
}

const Value kSelf;

absl::StatusOr<Value> select(CallContext& context, const Value& self, CallArguments arguments) {
  return filtered(context, self, {kSelf, arguments[0], arguments[1], true});
}
absl::StatusOr<Value> reject(CallContext& context, const Value& self, CallArguments arguments) {
  return filtered(context, self, {kSelf, arguments[0], arguments[1], false});
}
absl::StatusOr<Value> selectattr(CallContext& context, const Value& self, CallArguments arguments) {
  return filtered(context, self, {arguments[0], arguments[1], arguments[2], true});
}
absl::StatusOr<Value> rejectattr(CallContext& context, const Value& self, CallArguments arguments) {
  return filtered(context, self, {arguments[0], arguments[1], arguments[2], false});
}

}  // namespace

std::span<const Builtin> sequence_filters() {
  static const std::vector<Builtin> filters = {
      {"count", length, {}},
      {"first", first, {}},
      {"items", items_of, {}},
      {"join", join_filter, {"d", "attribute"}},
      {"last", last, {}},
      {"length", length, {}},
      {"list", list_filter, {}},
      {"map", map, {"filter", "attribute", "default"}},
      {"reject", reject, {"test", "argument"}},
      {"rejectattr", rejectattr, {"attribute", "test", "argument"}, 1},
      {"reverse", reverse, {}},
      {"select", select, {"test", "argument"}},
      {"selectattr", selectattr, {"attribute", "test", "argument"}, 1},
  };
  return filters;
}

}  // namespace r1d::jinja
