// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "r1d/engine/sampling.h"

namespace r1d::engine {

// Stateless: where in the output the closing tokens stand follows from the output alone, so a
// sequence that was preempted goes on as if it had not been. Looks back only while they are due.
std::optional<TokenId> forced_token(std::span<const TokenId> output, const ThinkingLimit& limit) {
  size_t thought = 0;  // where it begins in the output
  if (!limit.starts_open) {
    if (!limit.open || output.empty() || output[0] != *limit.open) return std::nullopt;
    thought = 1;
  }
  const size_t due = thought + static_cast<size_t>(limit.max_tokens);
  if (output.size() < due || output.size() - due >= limit.closing.size()) return std::nullopt;
  const auto begin = output.begin() + static_cast<std::ptrdiff_t>(thought);
  const auto end = output.begin() + static_cast<std::ptrdiff_t>(due);
  if (std::find(begin, end, limit.close) != end) return std::nullopt;
  return limit.closing[output.size() - due];
}

}  // namespace r1d::engine
