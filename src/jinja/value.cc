// SPDX-License-Identifier: Apache-2.0
#include "jinja/value.h"

#include <algorithm>

#include "r1d/base/status.h"

#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

struct TypeName {
  std::string_view operator()(const Undefined&) const { return "undefined"; }
  std::string_view operator()(const None&) const { return "None"; }
  std::string_view operator()(bool) const { return "bool"; }
  std::string_view operator()(int64_t) const { return "int"; }
  std::string_view operator()(double) const { return "float"; }
  std::string_view operator()(const TextPtr&) const { return "str"; }
  std::string_view operator()(const ListPtr& list) const {
    return list->is_tuple ? "tuple" : "list";
  }
  std::string_view operator()(const DictPtr&) const { return "dict"; }
  std::string_view operator()(const Namespace*) const { return "namespace"; }
  std::string_view operator()(const std::shared_ptr<const LoopState>&) const { return "loop"; }
  std::string_view operator()(const Builtin*) const { return "function"; }
  std::string_view operator()(const MacroDefinition*) const { return "macro"; }
};

struct Truthy {
  bool operator()(const Undefined&) const { return false; }
  bool operator()(const None&) const { return false; }
  bool operator()(bool value) const { return value; }
  bool operator()(int64_t value) const { return value != 0; }
  bool operator()(double value) const { return value != 0; }
  bool operator()(const TextPtr& text) const { return !text->empty(); }
  bool operator()(const ListPtr& list) const { return !list->items.empty(); }
  bool operator()(const DictPtr& dict) const { return !dict->entries.empty(); }
  template <typename Other>
  bool operator()(const Other&) const {
    return true;
  }
};

int depth_of(const Value& value) {
  if (const List* list = value.list()) return list->depth;
  if (const Dict* dict = value.dict()) return dict->depth;
  return 0;
}

bool is_number(const Value& value) {
  return value.is<bool>() || value.is<int64_t>() || value.is<double>();
}

double double_of(const Value& value) {
  if (const double* number = value.as<double>()) return *number;
  int64_t integer = 0;
  return as_integer(value, &integer) != nullptr ? static_cast<double>(integer) : 0;
}

bool equal_numbers(const Value& a, const Value& b) {
  int64_t x = 0;
  int64_t y = 0;
  if (as_integer(a, &x) != nullptr && as_integer(b, &y) != nullptr) return x == y;
  return double_of(a) == double_of(b);
}

absl::StatusOr<bool> equal_lists(Meter& meter, const List& a, const List& b) {
  if (a.is_tuple != b.is_tuple || a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    R1D_ASSIGN_OR_RETURN(const bool same, equal(meter, a.items[i], b.items[i]));
    if (!same) return false;
  }
  return true;
}

absl::StatusOr<bool> equal_dicts(Meter& meter, const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.find(key->bytes());
    if (other == nullptr) return false;
    R1D_ASSIGN_OR_RETURN(const bool same, equal(meter, value, *other));
    if (!same) return false;
  }
  return true;
}

absl::StatusOr<ListPtr> characters(Meter& meter, const Text& text) {
  auto list = std::make_shared<List>();
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    take_code_point(text.bytes(), &at);
    R1D_ASSIGN_OR_RETURN(Value character, make_text(meter, text.slice(begin, at)));
    list->items.push_back(std::move(character));
  }
  return list;
}

}  // namespace

const Text* Value::text() const {
  const auto* pointer = as<TextPtr>();
  return pointer == nullptr ? nullptr : pointer->get();
}

const List* Value::list() const {
  const auto* pointer = as<ListPtr>();
  return pointer == nullptr ? nullptr : pointer->get();
}

const Dict* Value::dict() const {
  const auto* pointer = as<DictPtr>();
  return pointer == nullptr ? nullptr : pointer->get();
}

const Value* Dict::find(std::string_view key) const {
  const auto place = places.find(key);
  return place == places.end() ? nullptr : &entries[place->second].second;
}

Value undefined(std::string why) {
  return {Undefined{std::make_shared<const std::string>(std::move(why))}};
}

absl::Status undefined_error(const Value& value) {
  const auto* gap = value.as<Undefined>();
  return invalid_argument("{}", gap && gap->why ? *gap->why : std::string("a value is undefined"));
}

absl::StatusOr<Value> make_text(Meter& meter, Text text) {
  R1D_RETURN_IF_ERROR(meter.make(sizeof(Text) + text.footprint()));
  return Value{std::make_shared<const Text>(std::move(text))};
}

absl::StatusOr<Value> make_list(Meter& meter, std::vector<Value> items, bool is_tuple) {
  R1D_RETURN_IF_ERROR(meter.make(sizeof(List) + items.size() * sizeof(Value)));
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, depth_of(item));
  R1D_RETURN_IF_ERROR(meter.nest(depth + 1));
  return Value{std::make_shared<const List>(List{std::move(items), is_tuple, depth + 1})};
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): its entries are moved from
absl::StatusOr<Value> make_dict(Meter& meter, std::vector<std::pair<TextPtr, Value>> entries) {
  // Per entry: the pair, and a node of the table with its bucket.
  constexpr size_t kEntryBytes = sizeof(std::pair<TextPtr, Value>) + 64;
  R1D_RETURN_IF_ERROR(meter.make(sizeof(Dict) + entries.size() * kEntryBytes));
  auto dict = std::make_shared<Dict>();
  int depth = 0;
  for (auto& [key, value] : entries) {
    R1D_RETURN_IF_ERROR(meter.scan(key->size()));
    depth = std::max(depth, depth_of(value));
    const auto [place, is_new] = dict->places.emplace(key->bytes(), dict->entries.size());
    if (is_new) {
      dict->entries.emplace_back(std::move(key), std::move(value));
    } else {
      dict->entries[place->second].second = std::move(value);
    }
  }
  dict->depth = depth + 1;
  R1D_RETURN_IF_ERROR(meter.nest(dict->depth));
  return Value{DictPtr(std::move(dict))};
}

std::string_view type_name(const Value& value) {
  return std::visit(TypeName{}, value.data);
}

bool truthy(const Value& value) {
  return std::visit(Truthy{}, value.data);
}

const int64_t* as_integer(const Value& value, int64_t* storage) {
  if (const bool* flag = value.as<bool>()) {
    *storage = *flag ? 1 : 0;
  } else if (const int64_t* integer = value.as<int64_t>()) {
    *storage = *integer;
  } else {
    return nullptr;
  }
  return storage;
}

absl::StatusOr<bool> equal(Meter& meter, const Value& a, const Value& b) {
  R1D_RETURN_IF_ERROR(meter.step());
  if (is_number(a) && is_number(b)) return equal_numbers(a, b);
  if (a.data.index() != b.data.index()) return false;
  if (a.is<Undefined>() || a.is<None>()) return true;
  if (const Text* text = a.text()) {
    R1D_RETURN_IF_ERROR(meter.scan(text->size()));
    return text->bytes() == b.text()->bytes();
  }
  if (a.list() != nullptr) return equal_lists(meter, *a.list(), *b.list());
  if (a.dict() != nullptr) return equal_dicts(meter, *a.dict(), *b.dict());
  if (const auto* space = a.as<Namespace*>()) return *space == *b.as<Namespace*>();
  return false;
}

absl::StatusOr<ListPtr> iterate(Meter& meter, const Value& value) {
  if (const auto* list = value.as<ListPtr>()) return *list;
  if (value.is_undefined()) return std::make_shared<const List>();
  if (const Text* text = value.text()) return characters(meter, *text);
  if (const Dict* dict = value.dict()) {
    std::vector<Value> keys;
    for (const auto& entry : dict->entries) keys.push_back({entry.first});
    R1D_ASSIGN_OR_RETURN(const Value list, make_list(meter, std::move(keys), false));
    return *list.as<ListPtr>();
  }
  return invalid_argument("'{}' cannot be looped over", type_name(value));
}

}  // namespace r1d::jinja
