// SPDX-License-Identifier: Apache-2.0
#include "jinja/printing.h"

#include <array>
#include <charconv>
#include <cmath>
#include <string>
#include <utility>

#include "r1d/base/status.h"

#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

// Python's repr, into one string; remembers whether data went in.
class Representation {
 public:
  explicit Representation(Meter& meter) : meter_(meter) {}

  absl::Status append(const Value& value) {
    R1D_RETURN_IF_ERROR(meter_.step());
    if (value.is<None>()) return put("None");
    if (const bool* flag = value.as<bool>()) return put(*flag ? "True" : "False");
    if (const int64_t* integer = value.as<int64_t>()) return put(std::to_string(*integer));
    if (const double* number = value.as<double>()) return put(float_text(*number));
    if (value.is_undefined()) return put("Undefined");
    if (const Text* text = value.text()) return append_quoted(*text);
    if (const List* list = value.list()) return append_list(*list);
    if (const Dict* dict = value.dict()) return append_dict(*dict);
    return invalid_argument("a {} cannot be printed", type_name(value));
  }

  Text take() && { return Text(std::move(out_), trusted_); }

 private:
  absl::Status put(std::string_view piece) {
    R1D_RETURN_IF_ERROR(meter_.make(piece.size()));
    out_ += piece;
    return absl::OkStatus();
  }

  absl::Status append_list(const List& list) {
    R1D_RETURN_IF_ERROR(put(list.is_tuple ? "(" : "["));
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) R1D_RETURN_IF_ERROR(put(", "));
      R1D_RETURN_IF_ERROR(append(list.items[i]));
    }
    if (!list.is_tuple) return put("]");
    return put(list.items.size() == 1 ? ",)" : ")");
  }

  absl::Status append_dict(const Dict& dict) {
    R1D_RETURN_IF_ERROR(put("{"));
    for (size_t i = 0; i < dict.entries.size(); ++i) {
      if (i > 0) R1D_RETURN_IF_ERROR(put(", "));
      R1D_RETURN_IF_ERROR(append_quoted(*dict.entries[i].first));
      R1D_RETURN_IF_ERROR(put(": "));
      R1D_RETURN_IF_ERROR(append(dict.entries[i].second));
    }
    return put("}");
  }

  absl::Status append_quoted(const Text& text) {
    trusted_ = trusted_ && text.is_trusted();
    const bool has_single = text.bytes().find('\'') != std::string::npos;
    const bool has_double = text.bytes().find('"') != std::string::npos;
    const char quote = has_single && !has_double ? '"' : '\'';
    std::string quoted(1, quote);
    for (size_t at = 0; at < text.size();) {
      append_character(&quoted, take_code_point(text.bytes(), &at), quote);
    }
    quoted += quote;
    return put(quoted);
  }

  // NOTE: Python also escapes rarer unprintable characters; repr of such text is not something that
  // chat templates show.
  static void append_character(std::string* out, char32_t code_point, char quote) {
    if (code_point == '\n') {
      *out += "\\n";
    } else if (code_point == '\r') {
      *out += "\\r";
    } else if (code_point == '\t') {
      *out += "\\t";
    } else if (code_point == '\\' || code_point == static_cast<char32_t>(quote)) {
      *out += '\\';
      *out += static_cast<char>(code_point);
    } else if (code_point < 0x20 || (code_point >= 0x7F && code_point <= 0xA0) ||
               code_point == 0xAD) {
      *out += fmt::format("\\x{:02x}", static_cast<uint32_t>(code_point));
    } else {
      append_code_point(out, code_point);
    }
  }

  Meter& meter_;
  std::string out_;
  bool trusted_ = true;
};

}  // namespace

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 64> buffer;
  const auto print = [&](std::chars_format format) {
    return std::string(
        buffer.data(),
        std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format).ptr);
  };
  // repr changes to exponents below 1e-4 and from 1e16 on.
  std::string text = print(std::chars_format::scientific);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return text;
  text = print(std::chars_format::fixed);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

absl::StatusOr<TextPtr> to_text(Meter& meter, const Value& value) {
  if (const auto* text = value.as<TextPtr>()) return *text;
  if (value.is_undefined()) return std::make_shared<const Text>();
  Representation representation(meter);
  R1D_RETURN_IF_ERROR(representation.append(value));
  return std::make_shared<const Text>(std::move(representation).take());
}

}  // namespace r1d::jinja
