// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/check.h"
#include "r1d/config/config.h"

#include "config/checks.h"
#include "config/schema.h"

namespace r1d::config {

Reload reload(const Config& active, const Loaded& next) {
  Reload result{.config = active, .applied = {}, .waiting = {}};
  for (const Key& key : schema()) {
    Change change{.key = std::string(key.name),
                  .before = get_value(key, active),
                  .after = get_value(key, next.config),
                  .origin = origin_of(next, key)};
    if (change.before == change.after) continue;
    if (key.live) R1D_CHECK(set_value(key, change.after, result.config).ok());
    (key.live ? result.applied : result.waiting).push_back(std::move(change));
  }
  return result;
}

}  // namespace r1d::config
