// SPDX-License-Identifier: Apache-2.0
// What may change while a daemon runs.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/config/config.h"

#include "config/schema.h"

namespace r1d::config {
namespace {

using testing::IsEmpty;

// "log.level: info -> debug (flag --log-level)"
std::vector<std::string> texts(const std::vector<Change>& changes) {
  std::vector<std::string> out;
  for (const Change& change : changes) {
    out.push_back(
        fmt::format("{}: {} -> {} ({})", change.key, change.before, change.after, change.origin));
  }
  return out;
}

Loaded loaded_with(const Overrides& flags) {
  const auto loaded = load({.flags = flags});
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return *loaded;
}

TEST(ReloadTest, TakesWhatMayChangeAndKeepsTheRest) {
  const Reload result = reload(Config{},
                               loaded_with({{"log.level", "debug"},
                                            {"scheduler.max_waiting_requests", "2"},
                                            {"engine.world_size", "2"}}));
  EXPECT_THAT(texts(result.applied),
              testing::ElementsAre(
                  "scheduler.max_waiting_requests: 1024 -> 2 (flag --max-waiting-requests)",
                  "log.level: info -> debug (flag --log-level)"));
  EXPECT_THAT(texts(result.waiting),
              testing::ElementsAre("engine.world_size: 1 -> 2 (flag --world-size)"));
  EXPECT_EQ(result.config.log.level, "debug");
  EXPECT_EQ(result.config.scheduler.max_waiting_requests, 2);
  EXPECT_EQ(result.config.engine.world_size, 1);
}

TEST(ReloadTest, GoesBackToTheDefaultOfAKeyThatIsNoLongerGiven) {
  Config active;
  active.log.level = "debug";
  const Reload result = reload(active, loaded_with({}));
  EXPECT_THAT(texts(result.applied), testing::ElementsAre("log.level: debug -> info (default)"));
  EXPECT_EQ(result.config.log.level, "info");
}

TEST(ReloadTest, FindsNothingWhereNothingChanged) {
  const Reload result = reload(Config{}, loaded_with({{"server.drain_timeout", "600s"}}));
  EXPECT_THAT(result.applied, IsEmpty());
  EXPECT_THAT(result.waiting, IsEmpty());
  EXPECT_EQ(print(result.config), print(Config{}));
}

// A key that stays must not make the new value of one that changes impossible.
TEST(ReloadTest, LetsKeysThatMayChangeTakeAnyValueByThemselves) {
  for (const Key& key : schema()) {
    if (!key.live) continue;
    std::vector<std::string> values(key.choices.begin(), key.choices.end());
    if (values.empty()) values = {std::to_string(key.min), std::to_string(key.max)};
    if (key.type == Type::kBoolean) values = {"false", "true"};
    for (const std::string& value : values) {
      EXPECT_TRUE(load({.flags = {{std::string(key.name), value}}}).ok()) << key.name << value;
    }
  }
}

TEST(ReloadTest, TheReferenceMarksWhatMayChange) {
  EXPECT_THAT(
      reference_markdown(),
      testing::HasSubstr("| `log.level` | `--log-level` | `info` | choice: trace, debug, info, "
                         "warn, error | *Live.* "));
}

}  // namespace
}  // namespace r1d::config
