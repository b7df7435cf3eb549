// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/goal.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <vector>

#include "r1d/base/status.h"

#include "cli/bench/units.h"

namespace r1d::cli::bench {

absl::StatusOr<Goal> Goal::parse(std::string_view text) {
  constexpr std::string_view kNames[] = {"ttft", "tpot", "e2e"};
  Goal goal;
  for (const std::string& part : split(text, ',')) {
    const std::vector<std::string> sides = split(part, ':');
    const auto seconds = sides.size() == 2 ? parse_seconds(sides[1]) : std::nullopt;
    const bool known =
        std::find(std::begin(kNames), std::end(kNames), sides[0]) != std::end(kNames);
    if (!known || !seconds) {
      return invalid_argument(
          "\"{}\": expected ttft, tpot or e2e, a colon and a duration, e.g. ttft:500ms,tpot:50ms",
          part);
    }
    if (!goal.limits.emplace(sides[0], *seconds).second)
      return invalid_argument("\"{}\": {} is given twice", text, sides[0]);
  }
  return goal;
}

bool Goal::met_by(const Record& record) const {
  if (!record.ok()) return false;
  for (const auto& [name, limit] : limits) {
    const std::optional<double> value = name == "ttft"   ? record.ttft()
                                        : name == "tpot" ? record.tpot()
                                                         : record.e2e();
    if (value && *value > limit) return false;
    if (!value && name != "tpot") return false;
  }
  return true;
}

}  // namespace r1d::cli::bench
