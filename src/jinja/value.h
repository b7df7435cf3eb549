// SPDX-License-Identifier: Apache-2.0
// What a template computes with: Python's values as far as templates see them. All are immutable
// but namespaces, so a value can be shared freely and no cycle of owners can arise.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "jinja/meter.h"
#include "jinja/text.h"

namespace r1d::jinja {

struct List;
struct Dict;
struct Namespace;
struct LoopState;
struct Builtin;
struct MacroDefinition;

using TextPtr = std::shared_ptr<const Text>;
using ListPtr = std::shared_ptr<const List>;
using DictPtr = std::shared_ptr<const Dict>;

// Prints as nothing; asking more of it fails with `why` ("'x' is undefined").
struct Undefined {
  std::shared_ptr<const std::string> why;
};
struct None {};

struct Value {
  // Namespaces belong to the rendering, builtins to the program, macros to the template.
  std::variant<Undefined,
               None,
               bool,
               int64_t,
               double,
               TextPtr,
               ListPtr,
               DictPtr,
               Namespace*,
               std::shared_ptr<const LoopState>,
               const Builtin*,
               const MacroDefinition*>
      data;

  template <typename T>
  [[nodiscard]] bool is() const {
    return std::holds_alternative<T>(data);
  }
  // Null when it is of another kind.
  template <typename T>
  [[nodiscard]] const T* as() const {
    return std::get_if<T>(&data);
  }
  [[nodiscard]] bool is_undefined() const { return is<Undefined>(); }
  // Null when it is no string.
  [[nodiscard]] const Text* text() const;
  [[nodiscard]] const List* list() const;
  [[nodiscard]] const Dict* dict() const;
};

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;
};

// Keys are strings and keep their order.
struct Dict {
  std::vector<std::pair<TextPtr, Value>> entries;
  std::unordered_map<std::string_view, size_t> places;  // into entries; the keys live there
  int depth = 1;

  // Null when there is none.
  [[nodiscard]] const Value* find(std::string_view key) const;
};

struct Namespace {
  std::map<std::string, Value, std::less<>> attributes;
};

// The variable `loop`.
struct LoopState {
  ListPtr items;
  size_t index = 0;
};

[[nodiscard]] Value undefined(std::string why);
// Its `why`, as an error.
[[nodiscard]] absl::Status undefined_error(const Value& value);

// Makers of composite values charge the meter and watch the depth.
[[nodiscard]] absl::StatusOr<Value> make_text(Meter& meter, Text text);
[[nodiscard]] absl::StatusOr<Value> make_list(Meter& meter,
                                              std::vector<Value> items,
                                              bool is_tuple);
// Of equal keys the last value counts, at the first one's place.
[[nodiscard]] absl::StatusOr<Value> make_dict(Meter& meter,
                                              std::vector<std::pair<TextPtr, Value>> entries);
// "str", "int", "dict", ...: Python's name for it.
[[nodiscard]] std::string_view type_name(const Value& value);
[[nodiscard]] bool truthy(const Value& value);
[[nodiscard]] absl::StatusOr<bool> equal(Meter& meter, const Value& a, const Value& b);

// The integer in an int or bool, which Python counts as one; null for others.
[[nodiscard]] const int64_t* as_integer(const Value& value, int64_t* storage);

// What a loop over it yields: items, keys, characters. Nothing for an undefined value.
[[nodiscard]] absl::StatusOr<ListPtr> iterate(Meter& meter, const Value& value);

}  // namespace r1d::jinja
