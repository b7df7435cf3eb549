// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>

#include <spdlog/logger.h>

#include "r1d/base/mutex.h"
#include "r1d/config/config.h"

namespace r1d::cli {

// The configuration in force, which a reload may change.
// Threads: active() is thread-safe, reload() belongs to the main thread.
class LiveConfig {
 public:
  LiveConfig(const config::Config& config, config::Sources sources);

  [[nodiscard]] std::shared_ptr<const config::Config> active() const;

  // Reads the sources again. With an error nothing changes; else `apply` gets the configuration
  // that is in force from now on. Logs what became of it.
  void reload(spdlog::logger& log, const std::function<void(const config::Config&)>& apply);

 private:
  const config::Sources sources_;
  mutable base::Mutex mu_;
  std::shared_ptr<const config::Config> active_ ABSL_GUARDED_BY(mu_);
};

}  // namespace r1d::cli
