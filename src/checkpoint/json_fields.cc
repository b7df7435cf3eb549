// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/json_fields.h"

#include <limits>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

namespace r1d::checkpoint {

std::optional<int64_t> integer_in(const Json& value, int64_t min, int64_t max) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  const auto number = value.get<int64_t>();
  if (number < min || number > max) return std::nullopt;
  return number;
}

JsonFields::JsonFields(const Json& object, std::string path)
    : object_(object), path_(std::move(path)) {
  R1D_CHECK(object.is_object());
}

void JsonFields::fail(const absl::Status& status) {
  if (status_.ok()) status_ = status;
}

const Json* JsonFields::find(const char* name) const {
  const auto place = object_.find(name);
  return place == object_.end() || place->is_null() ? nullptr : &*place;
}

const Json* JsonFields::find_object(const char* name) {
  const Json* value = find(name);
  if (value == nullptr || value->is_object()) return value;
  fail_expected(name, "an object or null");
  return nullptr;
}

void JsonFields::fail_expected(const char* name, std::string_view what) {
  const Json* value = find(name);
  fail(value == nullptr
           ? invalid_argument("{}{}: missing, expected {}", path_, name, what)
           : invalid_argument("{}{}: expected {}, found {}", path_, name, what, describe(*value)));
}

const Json* JsonFields::value_of(const char* name, std::string_view what, Presence presence) {
  if (!status_.ok()) return nullptr;
  const Json* value = find(name);
  if (value == nullptr && presence == Presence::kRequired) fail_expected(name, what);
  return value;
}

int64_t JsonFields::read_integer(
    const char* name, int64_t fallback, int64_t min, int64_t max, Presence presence) {
  const std::string what = fmt::format("an integer from {} to {}", min, max);
  const Json* value = value_of(name, what, presence);
  if (value == nullptr) return fallback;
  if (const std::optional<int64_t> number = integer_in(*value, min, max)) return *number;
  fail_expected(name, what);
  return fallback;
}

void JsonFields::number(
    const char* name, double& target, double min, double max, Presence presence) {
  const std::string what = fmt::format("a number from {} to {}", min, max);
  const Json* value = value_of(name, what, presence);
  if (value == nullptr) return;
  if (!value->is_number()) return fail_expected(name, what);
  const auto number = value->get<double>();
  if (!(number >= min && number <= max)) return fail_expected(name, what);
  target = number;
}

void JsonFields::boolean(const char* name, bool& target, Presence presence) {
  const Json* value = value_of(name, "true or false", presence);
  if (value == nullptr) return;
  if (!value->is_boolean()) return fail_expected(name, "true or false");
  target = value->get<bool>();
}

void JsonFields::text(const char* name, std::string& target, Presence presence) {
  const Json* value = value_of(name, "a string", presence);
  if (value == nullptr) return;
  if (!value->is_string()) return fail_expected(name, "a string");
  target = value->get<std::string>();
}

void JsonFields::only(const char* name, const Json& supported) {
  const Json* value = value_of(name, "", Presence::kOptional);
  if (value == nullptr || *value == supported) return;
  fail(invalid_argument(
      "{}{}: {} is not supported, only {}", path_, name, describe(*value), describe(supported)));
}

}  // namespace r1d::checkpoint
