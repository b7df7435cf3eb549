// SPDX-License-Identifier: Apache-2.0
#include "config/schema.h"

#include <set>

#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "config/suggest.h"

namespace r1d::config {
namespace {

TEST(SchemaTest, NamesKeysFlagsAndVariablesOnce) {
  std::set<std::string> names;
  std::set<std::string> flags;
  std::set<std::string> variables;
  for (const Key& key : schema()) {
    EXPECT_TRUE(names.insert(std::string(key.name)).second) << key.name;
    EXPECT_TRUE(flags.insert(std::string(key.flag)).second) << key.flag;
    EXPECT_TRUE(variables.insert(key.environment()).second) << key.name;
    EXPECT_TRUE(key.flag.starts_with("--")) << key.name;
    EXPECT_EQ(std::count(key.name.begin(), key.name.end(), '.'), 1) << key.name;
    EXPECT_TRUE(key.help.ends_with('.')) << key.name;
    if (!key.variable.empty()) {
      EXPECT_TRUE(variables.insert(std::string(key.variable)).second) << key.variable;
    }
    if (key.alias.empty()) continue;
    EXPECT_TRUE(names.insert(std::string(key.alias)).second) << key.alias;
    EXPECT_TRUE(flags.insert(key.alias_flag()).second) << key.alias;
    EXPECT_TRUE(variables.insert(key.alias_environment()).second) << key.alias;
    EXPECT_EQ(key.alias.substr(0, key.alias.find('.')), key.section()) << key.alias;
  }
}

TEST(SchemaTest, SaysWhatIntegersCount) {
  for (const Key& key : schema()) {
    if (key.type != Type::kInteger || key.name.ends_with("_seed")) continue;
    EXPECT_FALSE(key.unit.empty()) << key.name << ": add .in(\"tokens\") or the like to its row";
  }
}

TEST(SchemaTest, ReadsBackEveryDefault) {
  for (const Key& key : schema()) {
    const std::string text = get_value(key, Config{});
    if (key.type == Type::kString) continue;
    Config config;
    const absl::Status status = set_value(key, text, config);
    EXPECT_TRUE(status.ok()) << key.name << " = " << text << ": " << status;
    EXPECT_EQ(get_value(key, config), text) << key.name;
  }
}

TEST(SchemaTest, GivesEachKeyAFieldOfItsOwn) {
  std::set<const void*> fields;
  Config config;
  for (const Key& key : schema()) {
    const void* field =
        std::visit([&](auto ref) -> const void* { return &ref(config); }, key.field);
    EXPECT_TRUE(fields.insert(field).second) << key.name;
  }
}

TEST(SchemaTest, KeepsRangesWithinTheirFields) {
  for (const Key& key : schema()) {
    if (!std::holds_alternative<int32_t& (*)(Config&)>(key.field) || !key.choices.empty()) continue;
    EXPECT_GE(key.min, std::numeric_limits<int32_t>::min()) << key.name;
    EXPECT_LE(key.max, std::numeric_limits<int32_t>::max()) << key.name;
  }
}

TEST(SchemaTest, TakesBothEndsOfARangeAndNothingBeyond) {
  for (const Key& key : schema()) {
    const bool ranged = key.choices.empty() && key.max > key.min;
    if (!ranged) continue;
    Config config;
    EXPECT_TRUE(set_value(key, std::to_string(key.min), config).ok()) << key.name;
    EXPECT_TRUE(set_value(key, std::to_string(key.max), config).ok()) << key.name;
    EXPECT_FALSE(set_value(key, std::to_string(key.min - 1), config).ok()) << key.name;
    if (key.max == std::numeric_limits<int64_t>::max()) continue;
    EXPECT_FALSE(set_value(key, std::to_string(key.max + 1), config).ok()) << key.name;
  }
}

TEST(SchemaTest, LeavesTheFieldAloneWhenTheValueIsRefused) {
  for (const Key& key : schema()) {
    Config config;
    EXPECT_FALSE(set_value(key, "\n", config).ok()) << key.name;
    EXPECT_EQ(get_value(key, config), get_value(key, Config{})) << key.name;
  }
}

TEST(SchemaTest, NamesVariablesAndFlagsAfterKeys) {
  EXPECT_EQ(find_key("scheduler.max_tokens"), find_key("scheduler.max_num_batched_tokens"));
  EXPECT_EQ(find_key("scheduler.max_tokens")->alias_environment(), "R1D_SCHEDULER__MAX_TOKENS");
  EXPECT_EQ(find_key("scheduler.max_tokens")->alias_flag(), "--max-tokens");
  EXPECT_EQ(find_key("engine.world_size")->environment(), "R1D_ENGINE__WORLD_SIZE");
}

TEST(SuggestTest, CountsEdits) {
  EXPECT_EQ(edit_distance("", ""), 0U);
  EXPECT_EQ(edit_distance("abc", ""), 3U);
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
  EXPECT_EQ(edit_distance("same", "same"), 0U);
}

TEST(SuggestTest, FindsTheNearestWordWhereOneIsNear) {
  const std::vector<std::string> flags{"--model", "--max-batch-size", "--max-tokens"};
  EXPECT_EQ(nearest("--max-batch-sise", flags), "--max-batch-size");
  EXPECT_EQ(nearest("--max_tokens", flags), "--max-tokens");
  EXPECT_EQ(nearest("--colour", flags), "");
  EXPECT_EQ(nearest("--x", {}), "");
}

TEST(SuggestTest, FindsTheNearestName) {
  EXPECT_EQ(unknown_name("engine.wrold_size").message,
            "unknown key \"engine.wrold_size\"; did you mean engine.world_size?");
  EXPECT_EQ(unknown_name("sheduler").message, "unknown key \"sheduler\"; did you mean scheduler?");
  EXPECT_EQ(unknown_name("worldsize").message,
            "unknown key \"worldsize\"; did you mean engine.world_size?");
  EXPECT_EQ(unknown_name("max_token").message,
            "unknown key \"max_token\"; did you mean scheduler.max_tokens?");
  EXPECT_EQ(unknown_environment("R1D_ENGINE__WORLDSIZE").message,
            "unknown environment variable \"R1D_ENGINE__WORLDSIZE\"; did you mean "
            "R1D_ENGINE__WORLD_SIZE?");
}

}  // namespace
}  // namespace r1d::config
