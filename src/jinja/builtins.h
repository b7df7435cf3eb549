// SPDX-License-Identifier: Apache-2.0
// The filters, tests, methods and functions that templates may name. The parser looks them up and
// puts a call's arguments in the order of the parameters, so an unknown name never reaches a
// rendering.
#pragma once

#include <chrono>
#include <span>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "jinja/value.h"

namespace r1d::jinja {

struct CallContext {
  Meter& meter;
  std::chrono::system_clock::time_point now;
};

// One value per parameter; undefined where the call left it out.
using CallArguments = std::span<const Value>;
// `self` is what the filter, test or method applies to; undefined for functions.
using BuiltinFunction = absl::StatusOr<Value> (*)(CallContext& context,
                                                  const Value& self,
                                                  CallArguments arguments);

struct Builtin {
  std::string_view name;
  BuiltinFunction function;
  std::vector<std::string_view> parameters;
  size_t num_required = 0;
};

// Null when there is none.
[[nodiscard]] const Builtin* find_filter(std::string_view name);
[[nodiscard]] const Builtin* find_test(std::string_view name);
[[nodiscard]] const Builtin* find_method(std::string_view name);
[[nodiscard]] const Builtin* find_function(std::string_view name);

// The tables behind them, one file each.
[[nodiscard]] std::span<const Builtin> text_filters();
[[nodiscard]] std::span<const Builtin> sequence_filters();
[[nodiscard]] std::span<const Builtin> tests();
[[nodiscard]] std::span<const Builtin> methods();
[[nodiscard]] std::span<const Builtin> functions();

}  // namespace r1d::jinja
