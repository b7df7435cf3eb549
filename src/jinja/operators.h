// SPDX-License-Identifier: Apache-2.0
// Python's operators on values, and access to parts of them.
#pragma once

#include <optional>
#include <string_view>

#include <absl/status/statusor.h>

#include "jinja/value.h"

namespace r1d::jinja {

enum class BinaryOperator { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kPower };
enum class Comparison {
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn
};

// kInvalidArgument: kinds that do not go together, division by zero, integers beyond 64 bits.
[[nodiscard]] absl::StatusOr<Value> binary(Meter& meter,
                                           BinaryOperator op,
                                           const Value& left,
                                           const Value& right);
[[nodiscard]] absl::StatusOr<Value> negated(const Value& value);
[[nodiscard]] absl::StatusOr<bool> compare(Meter& meter,
                                           Comparison op,
                                           const Value& left,
                                           const Value& right);

// `object.name` and `object[index]`. What is not there is undefined; parts of an undefined value
// are an error.
[[nodiscard]] absl::StatusOr<Value> attribute(const Value& object, std::string_view name);
[[nodiscard]] absl::StatusOr<Value> item(Meter& meter, const Value& object, const Value& index);

// `object[begin:end:step]`; bounds left out or None count as such.
struct SliceBounds {
  std::optional<int64_t> begin;
  std::optional<int64_t> end;
  std::optional<int64_t> step;
};
[[nodiscard]] absl::StatusOr<Value> slice(Meter& meter,
                                          const Value& object,
                                          const SliceBounds& bounds);

}  // namespace r1d::jinja
