// SPDX-License-Identifier: Apache-2.0
// `r1d faults`, and `r1d serve --fault`.
#include <cstdio>
#include <cstdlib>

#include "r1d/base/fault.h"
#include "r1d/base/status.h"

#include "cli/commands.h"

namespace r1d::cli {

absl::Status list_faults() {
  fmt::print("fault points are {} this build\n",
             base::kFaultsCompiledIn ? "compiled into" : "NOT compiled into");
  fmt::print(
      "r1d serve --fault NAME[=ACTION][@rankN][@[SKIP+]COUNT | @PROBABILITY], or "
      "R1D_FAULT=SPEC,...\n");
  for (const base::FaultInfo& fault : base::fault_points()) {
    fmt::print("\n{}\n  where    {}\n  actions  {}\n  effect   {}\n",
               fault.name,
               fault.where,
               fault.actions,
               fault.effect);
  }
  return absl::OkStatus();
}

absl::Status arm_faults(const std::vector<std::string>& specs) {
  if (const char* variable = std::getenv("R1D_FAULT"); variable != nullptr) {
    const absl::Status armed = base::arm_faults(variable);
    if (!armed.ok()) return absl::Status(armed.code(), "R1D_FAULT: " + message_of(armed));
  }
  for (const std::string& spec : specs) {
    const absl::Status armed = base::arm_faults(spec);
    if (!armed.ok()) return absl::Status(armed.code(), "--fault: " + message_of(armed));
  }
  return absl::OkStatus();
}

}  // namespace r1d::cli
