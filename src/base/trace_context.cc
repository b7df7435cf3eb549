// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/trace_context.h"

#include <algorithm>

#include <fmt/format.h>

#include "r1d/base/random.h"

namespace r1d::base {
namespace {

// Offsets in "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".
constexpr size_t kTraceAt = 3;
constexpr size_t kTraceDigits = 32;
constexpr size_t kSpanAt = kTraceAt + kTraceDigits + 1;
constexpr size_t kSpanDigits = 16;
constexpr size_t kFlagsAt = kSpanAt + kSpanDigits + 1;
constexpr size_t kSize = kFlagsAt + 2;

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
}

bool is_zero(std::string_view digits) {
  return digits.find_first_not_of('0') == std::string_view::npos;
}

bool is_sampled(char last_digit) {
  const int value = last_digit <= '9' ? last_digit - '0' : last_digit - 'a' + 10;
  return (value & 1) != 0;
}

}  // namespace

std::optional<TraceContext> parse_traceparent(std::string_view text) {
  if (text.size() < kSize) return std::nullopt;
  for (const size_t dash : {kTraceAt - 1, kSpanAt - 1, kFlagsAt - 1}) {
    if (text[dash] != '-') return std::nullopt;
  }
  const std::string_view version = text.substr(0, kTraceAt - 1);
  const std::string_view trace_id = text.substr(kTraceAt, kTraceDigits);
  const std::string_view span_id = text.substr(kSpanAt, kSpanDigits);
  const std::string_view flags = text.substr(kFlagsAt, 2);
  for (const std::string_view part : {version, trace_id, span_id, flags}) {
    if (!is_hex(part)) return std::nullopt;
  }
  if (version == "ff" || is_zero(trace_id) || is_zero(span_id)) return std::nullopt;
  if (text.size() > kSize && (version == "00" || text[kSize] != '-')) return std::nullopt;
  return TraceContext{.trace_id = std::string(trace_id),
                      .span_id = std::string(span_id),
                      .sampled = is_sampled(flags.back())};
}

std::string to_traceparent(const TraceContext& context) {
  return fmt::format(
      "00-{}-{}-{}", context.trace_id, context.span_id, context.sampled ? "01" : "00");
}

TraceContext TraceIds::next(const std::optional<TraceContext>& client) {
  TraceContext context;
  context.trace_id = client.has_value() ? client->trace_id
                                        : fmt::format("{:016x}{:016x}", next_bits(), next_bits());
  context.span_id = fmt::format("{:016x}", next_bits());
  context.sampled = client.has_value() && client->sampled;
  return context;
}

// Not 0, which no id may be.
uint64_t TraceIds::next_bits() {
  const uint64_t bits = random_bits(seed_, counter_.fetch_add(1, std::memory_order_relaxed));
  return bits != 0 ? bits : 1;
}

}  // namespace r1d::base
