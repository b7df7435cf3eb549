// SPDX-License-Identifier: Apache-2.0
#include "cli/reload.h"

#include <string>
#include <utility>
#include <vector>

#include "r1d/base/status.h"

namespace r1d::cli {
namespace {

// "log.level: info -> debug (r1d.yaml:3)", several with "; " between them.
std::string list(const std::vector<config::Change>& changes) {
  std::string text;
  for (const config::Change& change : changes) {
    text += fmt::format("{}{}: {} -> {} ({})",
                        text.empty() ? "" : "; ",
                        change.key,
                        change.before,
                        change.after,
                        change.origin);
  }
  return text.empty() ? "nothing changed" : text;
}

void report(spdlog::logger& log, const config::Reload& reload) {
  log.info("configuration reloaded: {}", list(reload.applied));
  if (reload.waiting.empty()) return;
  log.warn("configuration: a restart is needed for {}", list(reload.waiting));
}

absl::StatusOr<config::Loaded> read(const config::Sources& sources) {
  R1D_ASSIGN_OR_RETURN(config::Loaded loaded, config::load(sources));
  R1D_RETURN_IF_ERROR(config::require_model(loaded.config));
  return loaded;
}

}  // namespace

LiveConfig::LiveConfig(const config::Config& config, config::Sources sources)
    : sources_(std::move(sources)), active_(std::make_shared<const config::Config>(config)) {}

std::shared_ptr<const config::Config> LiveConfig::active() const {
  const base::MutexLock lock(mu_);
  return active_;
}

void LiveConfig::reload(spdlog::logger& log,
                        const std::function<void(const config::Config&)>& apply) {
  const absl::StatusOr<config::Loaded> loaded = read(sources_);
  if (!loaded.ok()) {
    log.error("configuration not reloaded, the one in force stays: {}",
              message_of(loaded.status()));
    return;
  }
  const config::Reload result = config::reload(*active(), *loaded);
  // A level that hides the report must not come into force before it, nor one that shows it after.
  const bool shown = log.should_log(spdlog::level::info);
  if (shown) report(log, result);
  {
    const base::MutexLock lock(mu_);
    active_ = std::make_shared<const config::Config>(result.config);
  }
  apply(result.config);
  if (!shown) report(log, result);
}

}  // namespace r1d::cli
