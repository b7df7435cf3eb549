// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/json.h"

#include <exception>
#include <limits>
#include <utility>

#include "r1d/base/status.h"
#include "r1d/base/text.h"

namespace r1d {

bool JsonGuard::refuse(absl::Status status) {
  status_ = std::move(status);
  return false;
}

bool JsonGuard::count_value() {
  if (++num_values_ <= limits_.max_values) return true;
  return refuse(invalid_argument("JSON has more than {} values", limits_.max_values));
}

bool JsonGuard::on_scalar(std::optional<int64_t>) {
  return true;
}

bool JsonGuard::scalar(std::optional<int64_t> integer) {
  return count_value() && on_scalar(integer);
}

bool JsonGuard::boolean(bool) {
  return scalar(std::nullopt);
}
bool JsonGuard::number_float(number_float_t, const string_t&) {
  return scalar(std::nullopt);
}
bool JsonGuard::string(string_t&) {
  return scalar(std::nullopt);
}
bool JsonGuard::binary(binary_t&) {
  return scalar(std::nullopt);
}

bool JsonGuard::number_unsigned(number_unsigned_t value) {
  const bool fits = value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  return scalar(fits ? std::optional(static_cast<int64_t>(value)) : std::nullopt);
}

bool JsonGuard::open(bool is_object) {
  if (!count_value()) return false;
  if (frames_.size() >= limits_.max_depth) {
    return refuse(invalid_argument("JSON is nested deeper than {} levels", limits_.max_depth));
  }
  frames_.push_back({.is_object = is_object, .keys = {}, .key = nullptr});
  return true;
}

bool JsonGuard::start_object(size_t) {
  return open(true);
}
bool JsonGuard::start_array(size_t) {
  return open(false);
}

std::string JsonGuard::quoted(const std::string& text, size_t max_chars) const {
  return limits_.quote ? " \"" + printable(text, max_chars) + '"' : "";
}

bool JsonGuard::key(string_t& value) {
  if (value.size() > limits_.max_key_bytes) {
    return refuse(invalid_argument("JSON key{} is {} bytes long, at most {} are accepted",
                                   quoted(value, 40),
                                   value.size(),
                                   limits_.max_key_bytes));
  }
  Frame& frame = frames_.back();
  const auto [place, is_new] = frame.keys.insert(value);
  if (!is_new) return refuse(invalid_argument("JSON has key{} twice", quoted(value, 160)));
  frame.key = &*place;
  return true;
}

bool JsonGuard::end_object() {
  frames_.pop_back();
  return true;
}

bool JsonGuard::end_array() {
  frames_.pop_back();
  return true;
}

bool JsonGuard::parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) {
  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
  std::string_view text = error.what();
  if (const size_t end = text.find("] "); end != std::string_view::npos)
    text.remove_prefix(end + 2);
  if (!limits_.quote) text = text.substr(0, text.find("; last read: "));
  return refuse(invalid_argument("not JSON: {}", printable(text, 240)));
}

absl::Status walk_json(std::string_view text, JsonGuard& guard) {
  const int64_t max_bytes = guard.limits().max_bytes;
  if (text.size() > static_cast<size_t>(max_bytes)) {
    return invalid_argument(
        "JSON is {} bytes long, at most {} are accepted", text.size(), max_bytes);
  }
  try {
    if (Json::sax_parse(text.begin(), text.end(), &guard)) return absl::OkStatus();
  } catch (const std::exception& error) {
    return invalid_argument("not JSON: {}", printable(error.what()));
  }
  return guard.status();
}

absl::StatusOr<Json> parse_json(std::string_view text, const JsonLimits& limits) {
  JsonGuard guard(limits);
  R1D_RETURN_IF_ERROR(walk_json(text, guard));
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const std::exception& error) {
    return invalid_argument("not JSON: {}", printable(error.what()));
  }
}

std::string describe(const Json& value) {
  constexpr size_t kShort = 60;
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 8) return "an array of " + std::to_string(value.size());
  return printable(value.dump(-1, ' ', true, Json::error_handler_t::replace), kShort);
}

}  // namespace r1d
