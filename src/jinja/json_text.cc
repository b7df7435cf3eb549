// SPDX-License-Identifier: Apache-2.0
// json.dumps as transformers' tojson calls it.
#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "r1d/base/status.h"

#include "jinja/printing.h"
#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

void append_escape(std::string* out, uint32_t unit) {
  *out += fmt::format("\\u{:04x}", unit);
}

void append_beyond_ascii(std::string* out, char32_t code_point, bool ensure_ascii) {
  if (!ensure_ascii) return append_code_point(out, code_point);
  if (code_point < 0x10000) return append_escape(out, code_point);
  append_escape(out, 0xD800 + ((code_point - 0x10000) >> 10));
  append_escape(out, 0xDC00 + ((code_point - 0x10000) & 0x3FF));
}

std::string json_string(std::string_view text, bool ensure_ascii) {
  constexpr std::string_view kEscaped = "\"\\\n\r\t\b\f";
  constexpr std::string_view kNames = "\"\\nrtbf";
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const char32_t code_point = take_code_point(text, &at);
    const size_t name =
        code_point < 0x80 ? kEscaped.find(static_cast<char>(code_point)) : std::string_view::npos;
    if (name != std::string_view::npos) {
      out += '\\';
      out += kNames[name];
    } else if (code_point < 0x20) {
      append_escape(&out, code_point);
    } else if (code_point >= 0x7F) {
      append_beyond_ascii(&out, code_point, ensure_ascii);
    } else {
      out += static_cast<char>(code_point);
    }
  }
  return out + '"';
}

std::string json_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return float_text(value);
}

class JsonWriter {
 public:
  JsonWriter(Meter& meter, const JsonStyle& style) : meter_(meter), style_(style) {}

  absl::Status append(const Value& value) {
    R1D_RETURN_IF_ERROR(meter_.step());
    if (value.is<None>()) return put("null");
    if (const bool* flag = value.as<bool>()) return put(*flag ? "true" : "false");
    if (const int64_t* integer = value.as<int64_t>()) return put(std::to_string(*integer));
    if (const double* number = value.as<double>()) return put(json_float(*number));
    if (const Text* text = value.text()) return append_text(*text);
    if (const List* list = value.list()) return append_list(*list);
    if (const Dict* dict = value.dict()) return append_dict(*dict);
    return invalid_argument("tojson: '{}' is not JSON", type_name(value));
  }

  Text take() && { return Text(std::move(out_), trusted_); }

 private:
  absl::Status put(std::string_view piece) {
    R1D_RETURN_IF_ERROR(meter_.make(piece.size()));
    out_ += piece;
    return absl::OkStatus();
  }

  absl::Status append_text(const Text& text) {
    trusted_ = trusted_ && text.is_trusted();
    return put(json_string(text.bytes(), style_.ensure_ascii));
  }

  absl::Status new_line() {
    if (!style_.indent) return absl::OkStatus();
    R1D_RETURN_IF_ERROR(put("\n"));
    for (int i = 0; i < level_; ++i) R1D_RETURN_IF_ERROR(put(*style_.indent));
    return absl::OkStatus();
  }

  absl::Status append_list(const List& list) {
    if (list.items.empty()) return put("[]");
    R1D_RETURN_IF_ERROR(put("["));
    ++level_;
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) R1D_RETURN_IF_ERROR(put(style_.item_separator));
      R1D_RETURN_IF_ERROR(new_line());
      R1D_RETURN_IF_ERROR(append(list.items[i]));
    }
    --level_;
    R1D_RETURN_IF_ERROR(new_line());
    return put("]");
  }

  absl::Status append_dict(const Dict& dict) {
    if (dict.entries.empty()) return put("{}");
    R1D_RETURN_IF_ERROR(put("{"));
    ++level_;
    bool is_first = true;
    for (const auto* entry : in_order(dict)) {
      if (!is_first) R1D_RETURN_IF_ERROR(put(style_.item_separator));
      is_first = false;
      R1D_RETURN_IF_ERROR(new_line());
      R1D_RETURN_IF_ERROR(append_text(*entry->first));
      R1D_RETURN_IF_ERROR(put(style_.key_separator));
      R1D_RETURN_IF_ERROR(append(entry->second));
    }
    --level_;
    R1D_RETURN_IF_ERROR(new_line());
    return put("}");
  }

  using Entry = std::pair<TextPtr, Value>;
  [[nodiscard]] std::vector<const Entry*> in_order(const Dict& dict) const {
    std::vector<const Entry*> entries;
    entries.reserve(dict.entries.size());
    for (const Entry& entry : dict.entries) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::sort(entries.begin(), entries.end(), [](const Entry* a, const Entry* b) {
        return a->first->bytes() < b->first->bytes();
      });
    }
    return entries;
  }

  Meter& meter_;
  const JsonStyle& style_;
  std::string out_;
  bool trusted_ = true;
  int level_ = 0;
};

}  // namespace

absl::StatusOr<Text> to_json(Meter& meter, const Value& value, const JsonStyle& style) {
  JsonWriter writer(meter, style);
  R1D_RETURN_IF_ERROR(writer.append(value));
  return std::move(writer).take();
}

}  // namespace r1d::jinja
