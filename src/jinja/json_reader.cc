// SPDX-License-Identifier: Apache-2.0
#include "jinja/json_reader.h"

#include <limits>
#include <utility>
#include <vector>

#include "r1d/base/status.h"

#include "jinja/unicode.h"

namespace r1d::jinja {

absl::StatusOr<Value> JsonReader::read(const std::string& name, const Json& json) {
  if (!is_valid_utf8(name)) return invalid_argument("a variable's name is not UTF-8");
  path_.clear();
  return read_child(name, json);
}

// NOTE: "/" and "~" in names are not escaped as JSON pointers have it: the paths that are looked
// for have neither.
absl::StatusOr<Value> JsonReader::read_child(std::string_view name, const Json& json) {
  const size_t parent = path_.size();
  path_ += '/';
  path_ += name;
  // The depth of values is checked when they are made; this bounds the recursion on the way down.
  absl::Status entered = meter_.enter();
  auto value = entered.ok() ? read_value(json) : absl::StatusOr<Value>(std::move(entered));
  meter_.leave();
  path_.resize(parent);
  return value;
}

absl::StatusOr<Value> JsonReader::read_value(const Json& json) {
  R1D_RETURN_IF_ERROR(meter_.step());
  R1D_RETURN_IF_ERROR(meter_.scan(path_.size()));
  switch (json.type()) {
    case Json::value_t::null:
      return Value{None{}};
    case Json::value_t::boolean:
      return Value{json.get<bool>()};
    case Json::value_t::number_float:
      return Value{json.get<double>()};
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return read_integer(json);
    case Json::value_t::string:
      return read_text(json.get_ref<const std::string&>());
    case Json::value_t::array:
      return read_list(json);
    case Json::value_t::object:
      return read_dict(json);
    default:
      return invalid_argument("{}: a JSON value of kind {}", path_, json.type_name());
  }
}

absl::StatusOr<Value> JsonReader::read_integer(const Json& json) {
  constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (json.is_number_unsigned() && json.get<uint64_t>() > kMax) {
    return invalid_argument("{}: {} does not fit 64 bits", path_, json.get<uint64_t>());
  }
  return Value{json.get<int64_t>()};
}

absl::StatusOr<Value> JsonReader::read_text(const std::string& bytes) {
  Text text(bytes, trusted_);
  if (marked_ != nullptr && !marked_->empty()) {
    if (const auto found = marked_->find(path_); found != marked_->end()) {
      text = Text();
      for (const Segment& segment : found->second) text.append(segment.text, segment.trusted);
    }
  }
  if (!is_valid_utf8(text.bytes())) return invalid_argument("{}: text that is not UTF-8", path_);
  return make_text(meter_, std::move(text));
}

absl::StatusOr<Value> JsonReader::read_list(const Json& json) {
  std::vector<Value> items;
  items.reserve(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    R1D_ASSIGN_OR_RETURN(Value value, read_child(std::to_string(i), json[i]));
    items.push_back(std::move(value));
  }
  return make_list(meter_, std::move(items), false);
}

absl::StatusOr<Value> JsonReader::read_dict(const Json& json) {
  std::vector<std::pair<TextPtr, Value>> entries;
  entries.reserve(json.size());
  for (const auto& [name, item] : json.items()) {
    if (!is_valid_utf8(name)) return invalid_argument("{}: a name that is not UTF-8", path_);
    R1D_RETURN_IF_ERROR(meter_.make(sizeof(Text) + name.size()));
    R1D_ASSIGN_OR_RETURN(Value value, read_child(name, item));
    entries.emplace_back(std::make_shared<const Text>(name, trusted_), std::move(value));
  }
  return make_dict(meter_, std::move(entries));
}

}  // namespace r1d::jinja
