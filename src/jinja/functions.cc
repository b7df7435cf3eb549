// SPDX-License-Identifier: Apache-2.0
// Global functions, and the look-up of all builtins. namespace() and dict() take any names and are
// the evaluator's own.
#include <algorithm>
#include <array>
#include <ctime>
#include <string>
#include <vector>

#include "r1d/base/status.h"

#include "jinja/builtins.h"
#include "jinja/call_values.h"
#include "jinja/printing.h"

namespace r1d::jinja {
namespace {

// Jinja2's sandbox has the same bound.
constexpr int64_t kMaxRange = 100'000;

absl::StatusOr<Value> range(CallContext& context, const Value&, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(int64_t begin, integer_or(arguments[0], 0, "range: start"));
  R1D_ASSIGN_OR_RETURN(int64_t end, integer_or(arguments[1], begin, "range: stop"));
  R1D_ASSIGN_OR_RETURN(const int64_t step, integer_or(arguments[2], 1, "range: step"));
  if (arguments[1].is_undefined()) begin = 0;
  if (step == 0) return invalid_argument("range: the step is zero");
  std::vector<Value> items;
  for (int64_t at = begin; step > 0 ? at < end : at > end;) {
    if (static_cast<int64_t>(items.size()) == kMaxRange) {
      return resource_exhausted("range: more than {} values", kMaxRange);
    }
    items.push_back({at});
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return make_list(context.meter, std::move(items), false);
}

// What the template itself says. Data of the request may have been put into it, and an error is no
// place for them.
std::string own_words(const Text& text) {
  std::string words;
  for (const Segment& segment : text.segments()) words += segment.trusted ? segment.text : "...";
  return words;
}

absl::StatusOr<Value> raise_exception(CallContext& context, const Value&, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const TextPtr reason, to_text(context.meter, arguments[0]));
  return invalid_argument("the template refuses: {}", own_words(*reason));
}

absl::StatusOr<Value> strftime_now(CallContext& context, const Value&, CallArguments arguments) {
  R1D_ASSIGN_OR_RETURN(const Text* format, text_of(arguments[0], "strftime_now: the format"));
  const std::time_t seconds = std::chrono::system_clock::to_time_t(context.now);
  std::tm local = {};
  localtime_r(&seconds, &local);
  // A space in front tells an empty result from one that does not fit.
  std::array<char, 256> buffer;
  const std::string spaced = " " + format->bytes();
  const size_t size = std::strftime(buffer.data(), buffer.size(), spaced.c_str(), &local);
  if (size == 0) return invalid_argument("strftime_now: the date is too long");
  // The format may repeat what data wrote, so its origin is the result's.
  return make_text(context.meter,
                   Text(std::string(buffer.data() + 1, size - 1), format->is_trusted()));
}

const Builtin* find(std::span<const Builtin> table, std::string_view name) {
  const auto found = std::find_if(
      table.begin(), table.end(), [&](const Builtin& builtin) { return builtin.name == name; });
  return found == table.end() ? nullptr : &*found;
}

}  // namespace

std::span<const Builtin> functions() {
  static const std::vector<Builtin> functions = {
      {"raise_exception", raise_exception, {"message"}, 1},
      {"range", range, {"start", "stop", "step"}, 1},
      {"strftime_now", strftime_now, {"format"}, 1},
  };
  return functions;
}

const Builtin* find_filter(std::string_view name) {
  const Builtin* filter = find(text_filters(), name);
  return filter != nullptr ? filter : find(sequence_filters(), name);
}

const Builtin* find_test(std::string_view name) {
  return find(tests(), name);
}

const Builtin* find_method(std::string_view name) {
  return find(methods(), name);
}

const Builtin* find_function(std::string_view name) {
  return find(functions(), name);
}

}  // namespace r1d::jinja
