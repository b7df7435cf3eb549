// SPDX-License-Identifier: Apache-2.0
// `value is test`. Each gives a bool.
#include <vector>

#include "r1d/base/status.h"

#include "jinja/builtins.h"
#include "jinja/call_values.h"
#include "jinja/operators.h"

namespace r1d::jinja {
namespace {

using Context = CallContext&;

absl::StatusOr<Value> is_defined(Context, const Value& self, CallArguments) {
  return Value{!self.is_undefined()};
}
absl::StatusOr<Value> is_undefined(Context, const Value& self, CallArguments) {
  return Value{self.is_undefined()};
}
absl::StatusOr<Value> is_none(Context, const Value& self, CallArguments) {
  return Value{self.is<None>()};
}
absl::StatusOr<Value> is_string(Context, const Value& self, CallArguments) {
  return Value{self.text() != nullptr};
}
absl::StatusOr<Value> is_boolean(Context, const Value& self, CallArguments) {
  return Value{self.is<bool>()};
}
absl::StatusOr<Value> is_true(Context, const Value& self, CallArguments) {
  return Value{self.is<bool>() && truthy(self)};
}
absl::StatusOr<Value> is_false(Context, const Value& self, CallArguments) {
  return Value{self.is<bool>() && !truthy(self)};
}
absl::StatusOr<Value> is_integer(Context, const Value& self, CallArguments) {
  return Value{self.is<int64_t>()};
}
absl::StatusOr<Value> is_float(Context, const Value& self, CallArguments) {
  return Value{self.is<double>()};
}
absl::StatusOr<Value> is_number(Context, const Value& self, CallArguments) {
  return Value{self.is<int64_t>() || self.is<double>() || self.is<bool>()};
}
absl::StatusOr<Value> is_mapping(Context, const Value& self, CallArguments) {
  return Value{self.dict() != nullptr};
}
// An undefined value can be looped over, and so it counts, as in Jinja2.
absl::StatusOr<Value> is_sequence(Context, const Value& self, CallArguments) {
  return Value{self.list() || self.dict() || self.text() || self.is_undefined()};
}
absl::StatusOr<Value> is_iterable(Context, const Value& self, CallArguments) {
  return Value{self.list() || self.dict() || self.text() || self.is_undefined()};
}
absl::StatusOr<Value> is_callable(Context, const Value& self, CallArguments) {
  return Value{self.is<const Builtin*>() || self.is<const MacroDefinition*>()};
}

template <Comparison op>
absl::StatusOr<Value> compares(CallContext& context, const Value& self, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const bool holds, compare(context.meter, op, self, arguments[0]));
  return Value{holds};
}

absl::StatusOr<Value> remainder_is(CallContext& context,
                                   const Value& self,
                                   const Value& divisor,
                                   int64_t wanted) {
  R1D_ASSIGN_OR_RETURN(const Value remainder,
                       binary(context.meter, BinaryOperator::kModulo, self, divisor));
  R1D_ASSIGN_OR_RETURN(const bool same, equal(context.meter, remainder, Value{wanted}));
  return Value{same};
}
absl::StatusOr<Value> is_even(CallContext& context, const Value& self, CallArguments) {
  return remainder_is(context, self, Value{int64_t{2}}, 0);
}
absl::StatusOr<Value> is_odd(CallContext& context, const Value& self, CallArguments) {
  return remainder_is(context, self, Value{int64_t{2}}, 1);
}
absl::StatusOr<Value> is_divisible(CallContext& context,
                                   const Value& self,
                                   CallArguments arguments) {
  return remainder_is(context, self, arguments[0], 0);
}

}  // namespace

std::span<const Builtin> tests() {
  static const std::vector<Builtin> tests = {
      {"!=", compares<Comparison::kNotEqual>, {"other"}, 1},
      {"<", compares<Comparison::kLess>, {"other"}, 1},
      {"<=", compares<Comparison::kLessEqual>, {"other"}, 1},
      {"==", compares<Comparison::kEqual>, {"other"}, 1},
      {">", compares<Comparison::kGreater>, {"other"}, 1},
      {">=", compares<Comparison::kGreaterEqual>, {"other"}, 1},
      {"boolean", is_boolean, {}},
      {"callable", is_callable, {}},
      {"defined", is_defined, {}},
      {"divisibleby", is_divisible, {"num"}, 1},
      {"eq", compares<Comparison::kEqual>, {"other"}, 1},
      {"equalto", compares<Comparison::kEqual>, {"other"}, 1},
      {"even", is_even, {}},
      {"false", is_false, {}},
      {"float", is_float, {}},
      {"ge", compares<Comparison::kGreaterEqual>, {"other"}, 1},
      {"greaterthan", compares<Comparison::kGreater>, {"other"}, 1},
      {"gt", compares<Comparison::kGreater>, {"other"}, 1},
      {"in", compares<Comparison::kIn>, {"seq"}, 1},
      {"integer", is_integer, {}},
      {"iterable", is_iterable, {}},
      {"le", compares<Comparison::kLessEqual>, {"other"}, 1},
      {"lessthan", compares<Comparison::kLess>, {"other"}, 1},
      {"lt", compares<Comparison::kLess>, {"other"}, 1},
      {"mapping", is_mapping, {}},
      {"ne", compares<Comparison::kNotEqual>, {"other"}, 1},
      {"none", is_none, {}},
      {"number", is_number, {}},
      {"odd", is_odd, {}},
      {"sequence", is_sequence, {}},
      {"string", is_string, {}},
      {"true", is_true, {}},
      {"undefined", is_undefined, {}},
  };
  return tests;
}

}  // namespace r1d::jinja
