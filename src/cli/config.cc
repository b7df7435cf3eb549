// SPDX-License-Identifier: Apache-2.0
// `r1d config`: what a configuration says, without a model.
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "r1d/base/status.h"

#include "cli/commands.h"

namespace r1d::cli {

absl::Status check_config(const config::Sources& sources) {
  const std::vector<std::string> problems = config::problems(sources);
  if (!problems.empty()) {
    // The last is told by whoever is given the status.
    for (size_t i = 0; i + 1 < problems.size(); ++i) fmt::print(stderr, "r1d: {}\n", problems[i]);
    return invalid_argument("{}", problems.back());
  }
  R1D_ASSIGN_OR_RETURN(const config::Loaded loaded, config::load(sources));
  fmt::print("{}: ok\n", sources.file);
  // A file may leave the model to whoever starts the daemon.
  const absl::Status model = config::require_model(loaded.config);
  if (!model.ok()) fmt::print("to serve with it: {}\n", message_of(model));
  return absl::OkStatus();
}

absl::Status show_config(const config::Sources& sources) {
  R1D_ASSIGN_OR_RETURN(const config::Loaded loaded, config::load(sources));
  std::fputs(config::print(loaded).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace r1d::cli
