// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace r1d::tokenizer {

// One "Split" of a pre-tokenizer, behaviour Isolated: matches become pieces, and so does what lies
// between them. Looks no further than the piece it is given.
// Threads: const after make().
class Splitter {
 public:
  // `pattern`: as in tokenizer.json. Compiled with PCRE2's JIT.
  [[nodiscard]] static absl::StatusOr<Splitter> make(std::string_view pattern);
  ~Splitter();
  Splitter(Splitter&&) noexcept;
  Splitter& operator=(Splitter&&) noexcept;

  // Appends the pieces of each of `texts` (valid UTF-8) to `pieces`. kInvalidArgument when the
  // pattern needs more backtracking than its limit.
  [[nodiscard]] absl::Status split(std::span<const std::string_view> texts,
                                   std::vector<std::string_view>& pieces) const;

 private:
  struct Compiled;
  explicit Splitter(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace r1d::tokenizer
