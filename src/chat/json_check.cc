// SPDX-License-Identifier: Apache-2.0
#include "chat/json_check.h"

#include <exception>
#include <string>

#include <nlohmann/json.hpp>

namespace r1d::chat {
namespace {

using PlainJson = nlohmann::json;

// Accepts an object at the top and anything in it, down to the depth limit.
class ObjectCheck : public nlohmann::json_sax<PlainJson> {
 public:
  bool null() override { return depth_ > 0; }
  bool boolean(bool) override { return depth_ > 0; }
  bool number_integer(number_integer_t) override { return depth_ > 0; }
  bool number_unsigned(number_unsigned_t) override { return depth_ > 0; }
  bool number_float(number_float_t, const string_t&) override { return depth_ > 0; }
  bool string(string_t&) override { return depth_ > 0; }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return ++depth_ <= kMaxArgumentsDepth; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return depth_ > 0 && ++depth_ <= kMaxArgumentsDepth; }
  bool end_array() override { return close(); }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  bool close() {
    --depth_;
    return true;
  }

  size_t depth_ = 0;
};

}  // namespace

bool is_json_object(std::string_view text) {
  if (text.size() > kMaxArgumentsBytes) return false;
  ObjectCheck check;
  try {
    return PlainJson::sax_parse(text.begin(), text.end(), &check);
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace r1d::chat
