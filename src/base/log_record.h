// SPDX-License-Identifier: Apache-2.0
// A log record and its two forms. Neither lets a text break out of its place: control characters,
// C1 controls and marks that turn the direction of writing are escaped, invalid UTF-8 is replaced.
#pragma once

#include <chrono>
#include <span>
#include <string>
#include <string_view>

#include "r1d/base/log.h"

namespace r1d::base {

struct LogRecord {
  std::chrono::system_clock::time_point time;
  LogLevel level = LogLevel::info;
  std::string_view stage;
  std::string_view message;
  std::string_view trace_id;  // "" in a record about no request
  std::span<const LogField> fields;
};

// Append the record and a line end.
// {"timestamp":"2026-01-31T12:00:00.123Z","level":"info","stage":"..","message":"..",
//  "trace_id":"..","context":{..}}; trace_id and context only where there is something to say.
void append_json(const LogRecord& record, std::string& out);
// 2026-01-31 12:00:00.123 info  stage: message key=value key="two words" trace_id=...
void append_text(const LogRecord& record, bool color, std::string& out);
// The same from the message on, without the line end.
void append_words(const LogRecord& record, std::string& out);

}  // namespace r1d::base
