// SPDX-License-Identifier: Apache-2.0
// Jinja templates as chat checkpoints ship them: parsed once, rendered often. The language is the
// part of Jinja2 that such templates use, with transformers' settings (trim_blocks, lstrip_blocks,
// loop controls, tojson, raise_exception, strftime_now); the rest is refused by name when parsing.
//
// Templates are untrusted: time, memory, output and depth are bounded. So are the variables: every
// piece of text remembers through all operations whether the template (or a trusted variable) wrote
// it or whether it came from data, so that control tokens are recognised in the first kind alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>
#include <nlohmann/json.hpp>

namespace r1d::jinja {

using Json = nlohmann::ordered_json;

// Text of one origin. Neighbours in an output differ in `trusted`, and none is empty.
struct Segment {
  std::string text;  // UTF-8
  bool trusted = false;

  friend bool operator==(const Segment& a, const Segment& b) = default;
};

// Passing one of these is kResourceExhausted with the limit's name; kInvalidArgument for what the
// source alone shows (its size and nesting).
struct Limits {
  size_t source_bytes = 256 << 10;
  // Nesting of expressions and blocks in the source, and of lists and dicts in values.
  int depth = 128;
  // Expressions and blocks that run inside each other, macro calls included.
  int run_depth = 512;
  // Expressions, statements, loop rounds, values looked at; 64 bytes scanned or copied are one
  // more. Ten million are about a second.
  int64_t steps = 10'000'000;
  // All bytes of text, lists and dicts ever made while rendering, whether or not they are still
  // held.
  int64_t memory_bytes = 256 << 20;
  int64_t output_bytes = 32 << 20;
};

// Strings in the data with pieces of both origins, by JSON pointer ("/messages/0/content"). The
// string that stands there in the data is replaced.
using MarkedTexts = std::map<std::string, std::vector<Segment>, std::less<>>;

struct Inputs {
  Json trusted =
      Json::object();          // variables whose text counts as the template's own: bos_token, ...
  Json data = Json::object();  // variables that came from a request; `trusted` wins on equal names
  MarkedTexts marked;
  std::chrono::system_clock::time_point now;  // for strftime_now, in the process's time zone
};

// Thread-safe: const after parse().
class Template {
 public:
  // kInvalidArgument names the line and what is wrong or not supported.
  [[nodiscard]] static absl::StatusOr<Template> parse(std::string_view source,
                                                      const Limits& limits = {});
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  // kInvalidArgument: the template failed on these inputs (line and reason) or called
  // raise_exception (its text).
  [[nodiscard]] absl::StatusOr<std::vector<Segment>> render(const Inputs& inputs) const;

  // Whether the template reads a variable of this name (one that it does not only assign).
  [[nodiscard]] bool reads(std::string_view name) const;

 private:
  struct Program;
  explicit Template(std::unique_ptr<const Program> program);
  std::unique_ptr<const Program> program_;
};

// The texts of all segments in a row.
[[nodiscard]] std::string joined(const std::vector<Segment>& segments);

}  // namespace r1d::jinja
