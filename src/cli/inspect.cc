// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <optional>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "cli/commands.h"

namespace r1d::cli {

absl::Status inspect(const InspectOptions& options) {
  std::optional<checkpoint::ExpertSplit> split;  // unless asked for, a packed directory's own
  if (options.expert_parallel) split = checkpoint::ExpertSplit::kExpert;
  R1D_ASSIGN_OR_RETURN(const std::string report,
                       checkpoint::inspect_report(options.dir, options.world_size, split));
  std::fputs(report.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace r1d::cli
