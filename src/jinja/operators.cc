// SPDX-License-Identifier: Apache-2.0
#include "jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "r1d/base/status.h"

#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

constexpr std::string_view kOperatorNames[] = {"+", "-", "*", "/", "//", "%", "**"};
constexpr std::string_view kComparisonNames[] = {"==", "!=", "<", "<=", ">", ">=", "in", "not in"};

absl::Status no_operator(std::string_view name, const Value& left, const Value& right) {
  if (left.is_undefined()) return undefined_error(left);
  if (right.is_undefined()) return undefined_error(right);
  return invalid_argument(
      "'{}' does not go with '{}' and '{}'", name, type_name(left), type_name(right));
}

std::optional<double> as_double(const Value& value) {
  int64_t integer = 0;
  if (const double* number = value.as<double>()) return *number;
  if (as_integer(value, &integer) != nullptr) return static_cast<double>(integer);
  return std::nullopt;
}

// Python rounds quotients down.
int64_t floor_quotient(int64_t a, int64_t b) {
  return a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0);
}

absl::StatusOr<int64_t> power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      return invalid_argument("an integer does not fit 64 bits");
    }
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) {
      return invalid_argument("an integer does not fit 64 bits");
    }
  }
  return result;
}

absl::StatusOr<Value> divided(BinaryOperator op, int64_t a, int64_t b) {
  if (b == 0) return invalid_argument("division by zero");
  if (op == BinaryOperator::kDivide) return Value{static_cast<double>(a) / static_cast<double>(b)};
  if (b == -1) {  // the one quotient that can overflow
    if (op == BinaryOperator::kModulo) return Value{int64_t{0}};
    return negated(Value{a});
  }
  const int64_t quotient = floor_quotient(a, b);
  return Value{op == BinaryOperator::kFloorDivide ? quotient : a - quotient * b};
}

absl::StatusOr<Value> integer_binary(BinaryOperator op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case BinaryOperator::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case BinaryOperator::kSubtract:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case BinaryOperator::kMultiply:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case BinaryOperator::kPower: {
      if (b < 0) return Value{std::pow(static_cast<double>(a), static_cast<double>(b))};
      R1D_ASSIGN_OR_RETURN(result, power(a, b));
      break;
    }
    default:
      return divided(op, a, b);
  }
  if (overflow) return invalid_argument("an integer does not fit 64 bits");
  return Value{result};
}

absl::StatusOr<Value> float_binary(BinaryOperator op, double a, double b) {
  switch (op) {
    case BinaryOperator::kAdd:
      return Value{a + b};
    case BinaryOperator::kSubtract:
      return Value{a - b};
    case BinaryOperator::kMultiply:
      return Value{a * b};
    case BinaryOperator::kPower:
      return Value{std::pow(a, b)};
    default:
      break;
  }
  if (b == 0) return invalid_argument("division by zero");
  if (op == BinaryOperator::kDivide) return Value{a / b};
  if (op == BinaryOperator::kFloorDivide) return Value{std::floor(a / b)};
  const double remainder = std::fmod(a, b);
  return Value{remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder};
}

absl::StatusOr<Value> concatenated(Meter& meter, const Text& a, const Text& b) {
  // Charged before the copy is made.
  R1D_RETURN_IF_ERROR(meter.scan(a.size() + b.size()));
  Text text = a;
  text.append(b);
  return make_text(meter, std::move(text));
}

absl::StatusOr<Value> concatenated(Meter& meter, const List& a, const List& b) {
  R1D_RETURN_IF_ERROR(meter.scan((a.items.size() + b.items.size()) * sizeof(Value)));
  std::vector<Value> items = a.items;
  items.insert(items.end(), b.items.begin(), b.items.end());
  return make_list(meter, std::move(items), a.is_tuple);
}

// `text * count`. The whole product is charged before any of it is made.
absl::StatusOr<Value> repeated(Meter& meter, const Text& text, int64_t count) {
  Text result;
  for (int64_t i = 0; i < count && !text.empty(); ++i) {
    R1D_RETURN_IF_ERROR(meter.make(text.footprint()));
    result.append(text);
  }
  return make_text(meter, std::move(result));
}

absl::StatusOr<bool> contains(Meter& meter, const Value& container, const Value& member) {
  if (const Dict* dict = container.dict()) {
    if (member.text() != nullptr) R1D_RETURN_IF_ERROR(meter.scan(member.text()->size()));
    return member.text() != nullptr && dict->find(member.text()->bytes()) != nullptr;
  }
  if (const Text* text = container.text()) {
    if (member.text() == nullptr) return no_operator("in", member, container);
    R1D_RETURN_IF_ERROR(meter.scan(text->size() + member.text()->size()));
    return find_bytes(text->bytes(), member.text()->bytes(), 0) != std::string_view::npos;
  }
  if (const List* list = container.list()) {
    for (const Value& candidate : list->items) {
      R1D_ASSIGN_OR_RETURN(const bool same, equal(meter, candidate, member));
      if (same) return true;
    }
    return false;
  }
  if (container.is_undefined()) return false;
  return no_operator("in", member, container);
}

template <typename T>
bool ordered(Comparison op, const T& a, const T& b) {
  switch (op) {
    case Comparison::kLess:
      return a < b;
    case Comparison::kLessEqual:
      return a <= b;
    case Comparison::kGreater:
      return a > b;
    default:
      return a >= b;
  }
}

absl::StatusOr<bool> compare_order(Meter& meter, Comparison op, const Value& a, const Value& b) {
  if (a.text() != nullptr && b.text() != nullptr) {
    R1D_RETURN_IF_ERROR(meter.scan(a.text()->size()));
    // The order of UTF-8's bytes is that of the code points.
    return ordered(op, a.text()->bytes(), b.text()->bytes());
  }
  int64_t x = 0;
  int64_t y = 0;
  if (as_integer(a, &x) != nullptr && as_integer(b, &y) != nullptr) return ordered(op, x, y);
  const std::optional<double> p = as_double(a);
  const std::optional<double> q = as_double(b);
  if (!p || !q) return no_operator(kComparisonNames[static_cast<size_t>(op)], a, b);
  return ordered(op, *p, *q);
}

// A name's method, met without a call. NOTE: in Jinja2 `d.items` is the method even where the dict
// has a key of that name; printing one is a mistake in the template, so it is said.
bool is_dict_method(std::string_view name) {
  return name == "items" || name == "keys" || name == "values" || name == "get";
}

Value loop_attribute(const LoopState& loop, std::string_view name) {
  const auto size = static_cast<int64_t>(loop.items->items.size());
  const auto index = static_cast<int64_t>(loop.index);
  const auto neighbour = [&](int64_t at) {
    if (at < 0 || at >= size) return undefined("there is no neighbouring item");
    return loop.items->items[static_cast<size_t>(at)];
  };
  if (name == "index") return {index + 1};
  if (name == "index0") return {index};
  if (name == "revindex") return {size - index};
  if (name == "revindex0") return {size - index - 1};
  if (name == "first") return {index == 0};
  if (name == "last") return {index + 1 == size};
  if (name == "length") return {size};
  // Counts the levels of `recursive` loops, which are not supported.
  if (name == "depth") return {int64_t{1}};
  if (name == "depth0") return {int64_t{0}};
  if (name == "previtem") return neighbour(index - 1);
  if (name == "nextitem") return neighbour(index + 1);
  return undefined(fmt::format("'loop' has no attribute '{}'", name));
}

Value no_part(const Value& object, std::string_view name) {
  return undefined(fmt::format("'{}' has no attribute '{}'", type_name(object), name));
}

// Python's negative indices count from the end.
std::optional<size_t> place_of(int64_t index, size_t size) {
  if (index < 0) index += static_cast<int64_t>(size);
  if (index < 0 || index >= static_cast<int64_t>(size)) return std::nullopt;
  return static_cast<size_t>(index);
}

absl::StatusOr<Value> item_at(Meter& meter, const Value& object, int64_t index) {
  if (const List* list = object.list()) {
    const auto place = place_of(index, list->items.size());
    return place ? list->items[*place] : undefined("an index is out of range");
  }
  const Text* text = object.text();
  if (text == nullptr) return no_part(object, std::to_string(index));
  R1D_RETURN_IF_ERROR(meter.scan(2 * text->size()));
  const auto place = place_of(index, count_code_points(text->bytes()));
  if (!place) return undefined("an index is out of range");
  const size_t begin = offset_of(text->bytes(), *place);
  size_t end = begin;
  take_code_point(text->bytes(), &end);
  return make_text(meter, text->slice(begin, end));
}

// The places that begin:end:step names in a sequence of `size`.
struct SlicePlan {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t step = 1;
};

SlicePlan plan_slice(const SliceBounds& bounds, size_t num_items) {
  const auto size = static_cast<int64_t>(num_items);
  const int64_t step = bounds.step.value_or(1);
  const int64_t lowest = step > 0 ? 0 : -1;
  const int64_t highest = step > 0 ? size : size - 1;
  const auto clamped = [&](std::optional<int64_t> bound, int64_t otherwise) {
    if (!bound) return otherwise;
    const int64_t place = *bound < 0 ? *bound + size : *bound;
    return std::min(std::max(place, lowest), highest);
  };
  return {clamped(bounds.begin, step > 0 ? lowest : highest),
          clamped(bounds.end, step > 0 ? highest : lowest),
          step};
}

absl::StatusOr<Value> slice_items(Meter& meter,
                                  const std::vector<Value>& items,
                                  const SlicePlan& plan,
                                  bool is_tuple) {
  R1D_RETURN_IF_ERROR(meter.scan(items.size() * sizeof(Value)));
  std::vector<Value> kept;
  int64_t at = plan.begin;
  while (plan.step > 0 ? at < plan.end : at > plan.end) {
    kept.push_back(items[static_cast<size_t>(at)]);
    if (__builtin_add_overflow(at, plan.step, &at)) break;
  }
  return make_list(meter, std::move(kept), is_tuple);
}

absl::StatusOr<Value> slice_text(Meter& meter, const Text& text, const SliceBounds& bounds) {
  R1D_RETURN_IF_ERROR(meter.scan(3 * text.size()));
  const SlicePlan plan = plan_slice(bounds, count_code_points(text.bytes()));
  if (plan.step == 1) {
    if (plan.begin >= plan.end) return make_text(meter, Text());
    const size_t begin = offset_of(text.bytes(), static_cast<size_t>(plan.begin));
    const size_t end = offset_of(text.bytes(), static_cast<size_t>(plan.end));
    return make_text(meter, text.slice(begin, end));
  }
  const Value whole{std::make_shared<const Text>(text)};
  R1D_ASSIGN_OR_RETURN(const ListPtr characters, iterate(meter, whole));
  R1D_ASSIGN_OR_RETURN(const Value kept, slice_items(meter, characters->items, plan, false));
  Text result;
  for (const Value& character : kept.list()->items) result.append(*character.text());
  return make_text(meter, std::move(result));
}

}  // namespace

absl::StatusOr<Value> binary(Meter& meter,
                             BinaryOperator op,
                             const Value& left,
                             const Value& right) {
  int64_t a = 0;
  int64_t b = 0;
  const bool left_integer = as_integer(left, &a) != nullptr;
  const bool right_integer = as_integer(right, &b) != nullptr;
  if (left_integer && right_integer) return integer_binary(op, a, b);
  const std::optional<double> p = as_double(left);
  const std::optional<double> q = as_double(right);
  if (p && q) return float_binary(op, *p, *q);
  if (op == BinaryOperator::kAdd) {
    if (left.text() && right.text()) return concatenated(meter, *left.text(), *right.text());
    if (left.list() && right.list() && left.list()->is_tuple == right.list()->is_tuple) {
      return concatenated(meter, *left.list(), *right.list());
    }
  }
  if (op == BinaryOperator::kMultiply) {
    if (left.text() && right_integer) return repeated(meter, *left.text(), b);
    if (left_integer && right.text()) return repeated(meter, *right.text(), a);
  }
  return no_operator(kOperatorNames[static_cast<size_t>(op)], left, right);
}

absl::StatusOr<Value> negated(const Value& value) {
  int64_t integer = 0;
  if (const double* number = value.as<double>()) return Value{-*number};
  if (as_integer(value, &integer) == nullptr) {
    return invalid_argument("'-' does not go with '{}'", type_name(value));
  }
  return integer_binary(BinaryOperator::kSubtract, 0, integer);
}

absl::StatusOr<bool> compare(Meter& meter, Comparison op, const Value& left, const Value& right) {
  switch (op) {
    case Comparison::kEqual:
      return equal(meter, left, right);
    case Comparison::kIn:
      return contains(meter, right, left);
    case Comparison::kNotEqual: {
      R1D_ASSIGN_OR_RETURN(const bool same, equal(meter, left, right));
      return !same;
    }
    case Comparison::kNotIn: {
      R1D_ASSIGN_OR_RETURN(const bool inside, contains(meter, right, left));
      return !inside;
    }
    default:
      return compare_order(meter, op, left, right);
  }
}

absl::StatusOr<Value> attribute(const Value& object, std::string_view name) {
  if (object.is_undefined()) return undefined_error(object);
  if (const Dict* dict = object.dict()) {
    if (is_dict_method(name)) {
      return invalid_argument("'{}' is a method of a dict: call it, or write ['{}']", name, name);
    }
    const Value* value = dict->find(name);
    return value != nullptr ? *value : no_part(object, name);
  }
  if (const auto* space = object.as<Namespace*>()) {
    const auto place = (*space)->attributes.find(name);
    return place != (*space)->attributes.end() ? place->second : no_part(object, name);
  }
  if (const auto* loop = object.as<std::shared_ptr<const LoopState>>()) {
    return loop_attribute(**loop, name);
  }
  return no_part(object, name);
}

absl::StatusOr<Value> item(Meter& meter, const Value& object, const Value& index) {
  if (object.is_undefined()) return undefined_error(object);
  if (const Text* name = index.text()) {
    R1D_RETURN_IF_ERROR(meter.scan(name->size()));
    const Dict* dict = object.dict();
    if (dict == nullptr) return attribute(object, name->bytes());
    const Value* value = dict->find(name->bytes());
    return value != nullptr ? *value : no_part(object, name->bytes());
  }
  int64_t place = 0;
  if (as_integer(index, &place) != nullptr) return item_at(meter, object, place);
  return undefined(fmt::format("'{}' is no index", type_name(index)));
}

absl::StatusOr<Value> slice(Meter& meter, const Value& object, const SliceBounds& bounds) {
  if (bounds.step == 0) return invalid_argument("a slice's step is zero");
  if (const Text* text = object.text()) return slice_text(meter, *text, bounds);
  if (const List* list = object.list()) {
    return slice_items(meter, list->items, plan_slice(bounds, list->items.size()), list->is_tuple);
  }
  if (object.is_undefined()) return undefined_error(object);
  return invalid_argument("'{}' cannot be sliced", type_name(object));
}

}  // namespace r1d::jinja
