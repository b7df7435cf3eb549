// SPDX-License-Identifier: Apache-2.0
// The only door for JSON that others wrote. A guard walks the text by SAX events before anything is
// built: nlohmann's DOM has no depth limit of its own and overflows the stack on hostile nesting.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <nlohmann/json.hpp>

namespace r1d {

using Json = nlohmann::json;

// What a kind of file may ask of the parser.
struct JsonLimits {
  int64_t max_bytes = 0;
  size_t max_depth = 0;
  size_t max_key_bytes = 0;
  int64_t max_values = 0;  // scalars, arrays and objects
  bool quote = true;       // errors quote the text where it breaks; off for text of clients
};

// Refuses text over its limits and objects that have a key twice.
class JsonGuard : public nlohmann::json_sax<Json> {
 public:
  explicit JsonGuard(const JsonLimits& limits) : limits_(limits) {}

  [[nodiscard]] const JsonLimits& limits() const { return limits_; }
  // Why the walk stopped; OK after a whole one.
  [[nodiscard]] const absl::Status& status() const { return status_; }

  bool null() override { return scalar(std::nullopt); }
  bool boolean(bool value) override;
  bool number_integer(number_integer_t value) override { return scalar(value); }
  bool number_unsigned(number_unsigned_t value) override;
  bool number_float(number_float_t value, const string_t& text) override;
  bool string(string_t& value) override;
  bool binary(binary_t& value) override;
  bool start_object(size_t num_elements) override;
  bool key(string_t& value) override;
  bool end_object() override;
  bool start_array(size_t num_elements) override;
  bool end_array() override;
  bool parse_error(size_t position,
                   const std::string& last_token,
                   const nlohmann::detail::exception& error) override;

 protected:
  // An open array or object; `key` is the one being read, which points into `keys`.
  struct Frame {
    bool is_object = false;
    std::unordered_set<std::string> keys;
    const std::string* key = nullptr;
  };

  // Called for every scalar that the limits let through; `integer` when it is one that fits.
  virtual bool on_scalar(std::optional<int64_t> integer);

  [[nodiscard]] const std::vector<Frame>& frames() const { return frames_; }
  bool refuse(absl::Status status);

 private:
  bool scalar(std::optional<int64_t> integer);
  bool count_value();
  // ` "text"`, or nothing where errors do not quote.
  [[nodiscard]] std::string quoted(const std::string& text, size_t max_chars) const;
  bool open(bool is_object);

  JsonLimits limits_;
  absl::Status status_;
  int64_t num_values_ = 0;
  std::vector<Frame> frames_;
};

// Walks `text` once with `guard`. Never throws.
[[nodiscard]] absl::Status walk_json(std::string_view text, JsonGuard& guard);

// Guard, then DOM. kInvalidArgument says where the text breaks.
[[nodiscard]] absl::StatusOr<Json> parse_json(std::string_view text, const JsonLimits& limits);

// A value for an error text: short ones as they are, others by their kind.
[[nodiscard]] std::string describe(const Json& value);

}  // namespace r1d
