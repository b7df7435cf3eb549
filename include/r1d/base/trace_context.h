// SPDX-License-Identifier: Apache-2.0
// W3C Trace Context (level 1): which trace a request belongs to. r1d takes it from a client's
// `traceparent`, writes it into every log record about the request and hands it back. It makes no
// calls of its own and exports no spans, so `tracestate` is not read.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace r1d::base {

struct TraceContext {
  std::string trace_id;  // 32 lower-case hex digits, not all 0
  std::string span_id;   // 16 of them, not all 0: the call that this stands for
  bool sampled = false;
};

// Reads `VERSION-TRACE_ID-SPAN_ID-FLAGS`. None when it is not that to the letter: version 00 has
// nothing behind the flags, a higher one may have "-..."; ff, upper case and zero ids are invalid.
[[nodiscard]] std::optional<TraceContext> parse_traceparent(std::string_view text);

// In version 00.
[[nodiscard]] std::string to_traceparent(const TraceContext& context);

// Makes ids that no other run of the daemon makes. Thread-safe.
class TraceIds {
 public:
  // `seed`: random bits of this run.
  explicit TraceIds(uint64_t seed) : seed_(seed) {}

  // The context of a call: a new span of the client's trace, or of a trace of its own.
  [[nodiscard]] TraceContext next(const std::optional<TraceContext>& client);

 private:
  [[nodiscard]] uint64_t next_bits();

  const uint64_t seed_;
  std::atomic<uint64_t> counter_{0};
};

}  // namespace r1d::base
