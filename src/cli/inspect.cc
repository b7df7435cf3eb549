// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "cli/commands.h"

namespace r1d::cli {

absl::Status inspect(const InspectOptions& options) {
  const auto split =
      options.expert_parallel ? checkpoint::ExpertSplit::kExpert : checkpoint::ExpertSplit::kTensor;
  R1D_ASSIGN_OR_RETURN(const std::string report,
                       checkpoint::inspect_report(options.dir, options.world_size, split));
  std::fputs(report.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace r1d::cli
