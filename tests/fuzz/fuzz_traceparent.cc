// SPDX-License-Identifier: Apache-2.0
// Any bytes as a traceparent: what is taken is made of parts of the input, and is written in a form
// that reads back the same. Then the same bytes as every text of a log record, which stays one line
// of valid JSON.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "r1d/base/check.h"
#include "r1d/base/trace_context.h"

#include "base/log_record.h"

namespace r1d::base {
namespace {

void check_traceparent(std::string_view text) {
  const auto context = parse_traceparent(text);
  if (!context.has_value()) return;
  R1D_CHECK(text.substr(3, 32) == context->trace_id && text.substr(36, 16) == context->span_id);
  const std::string written = to_traceparent(*context);
  const auto again = parse_traceparent(written);
  R1D_CHECK(again.has_value() && again->trace_id == context->trace_id);
  R1D_CHECK(again->span_id == context->span_id && again->sampled == context->sampled);
  R1D_CHECK(!text.starts_with("00") || text.size() == written.size());
}

void check_record(std::string_view text) {
  const LogField field("text", text);
  const LogRecord record{.time = {},
                         .level = LogLevel::info,
                         .stage = text,
                         .message = text,
                         .trace_id = text,
                         .fields = {&field, 1}};
  std::string line;
  append_json(record, line);
  R1D_CHECK(line.find('\n') == line.size() - 1);
  const auto parsed = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  R1D_CHECK(parsed.is_object() && parsed["message"] == parsed["context"]["text"]);
  line.clear();
  append_text(record, /*color=*/false, line);
  R1D_CHECK(line.find('\n') == line.size() - 1 && line.find('\x1b') == std::string::npos);
}

}  // namespace
}  // namespace r1d::base

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  r1d::base::check_traceparent(text);
  r1d::base::check_record(text);
  return 0;
}
