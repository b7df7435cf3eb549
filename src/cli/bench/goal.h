// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>

#include "cli/bench/record.h"

namespace r1d::cli::bench {

// What a request must keep to count as good, in seconds: of ttft, tpot and e2e those that matter.
struct Goal {
  std::map<std::string, double> limits;

  // "ttft:500ms,tpot:50ms". kInvalidArgument names the part that is wrong.
  [[nodiscard]] static absl::StatusOr<Goal> parse(std::string_view text);

  // It ended well, and within every limit. An answer of one token has no gaps to be late.
  [[nodiscard]] bool met_by(const Record& record) const;
};

}  // namespace r1d::cli::bench
