// SPDX-License-Identifier: Apache-2.0
// What a configuration file may and may not hold.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/config/config.h"

namespace r1d::config {
namespace {

using testing::HasSubstr;

std::string refusal(const std::string& yaml) {
  const auto config = parse_yaml(yaml, "f.yaml");
  return config.ok() ? "accepted" : message_of(config.status());
}

TEST(YamlTest, AcceptsEmptyFilesAndSections) {
  for (const char* yaml :
       {"", "\n# only a comment\n", "---\n", "engine:\n", "engine: {}\nlog:\n"}) {
    EXPECT_EQ(refusal(yaml), "accepted") << yaml;
  }
}

TEST(YamlTest, ReadsBlockAndFlowAndQuotedForms) {
  const auto config = parse_yaml(
      "engine: {world_size: 2, \"num_threads\": '4'}\r\nlog:\r\n  level: \"debug\"\r\n", "f");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->engine.world_size, 2);
  EXPECT_EQ(config->engine.num_threads, 4);
  EXPECT_EQ(config->log.level, "debug");
}

TEST(YamlTest, NamesTheLineOfUnknownNames) {
  EXPECT_EQ(refusal("log:\n  level: info\n  colour: red\n").substr(0, 35),
            "f.yaml:3: unknown key \"log.colour\";");
  EXPECT_EQ(refusal("\nengin:\n  world_size: 1\n"),
            "f.yaml:2: unknown key \"engin\"; did you mean engine?");
  EXPECT_EQ(refusal("world_size: 1\n"),
            "f.yaml:1: unknown key \"world_size\"; did you mean engine.world_size?");
  EXPECT_THAT(refusal("engine:\n  ? \"\"\n  : 1\n"),
              HasSubstr("f.yaml:2: unknown key \"engine.\""));
}

TEST(YamlTest, RefusesAKeyGivenTwice) {
  EXPECT_EQ(refusal("engine:\n  world_size: 1\n  world_size: 1\n"),
            "f.yaml:3: engine.world_size: given before, on line 2");
  EXPECT_EQ(refusal("engine:\n  world_size: 1\nlog: {}\nengine:\n  num_threads: 1\n"),
            "f.yaml:4: engine: this section was given before");
}

TEST(YamlTest, RefusesOtherShapes) {
  EXPECT_THAT(refusal("just text"), HasSubstr("f.yaml:1: expected sections"));
  EXPECT_THAT(refusal("- engine\n"), HasSubstr("f.yaml:1: expected a plain value, found a list"));
  EXPECT_EQ(refusal("engine: 3\n"),
            "f.yaml:1: engine: expected a section with keys below it, found \"3\"");
  EXPECT_EQ(refusal("engine: [1]\n"), "f.yaml:1: engine: expected a plain value, found a list");
  EXPECT_EQ(refusal("engine:\n  world_size: [1]\n"),
            "f.yaml:2: engine.world_size: expected a plain value, found a list");
  EXPECT_EQ(refusal("engine:\n  world_size:\n    count: 1\n"),
            "f.yaml:3: engine.world_size: expected a plain value, found a mapping");
  EXPECT_EQ(
      refusal("engine:\n  world_size:\n"),
      "f.yaml:2: engine.world_size: expected a value; leave the line out to keep the default");
  EXPECT_THAT(refusal("engine:\n  ? {a: b}\n  : 1\n"), HasSubstr("found a mapping"));
  EXPECT_THAT(refusal("? {a: b}\n: 1\n"), HasSubstr("found a mapping"));
  EXPECT_THAT(refusal("~: 1\n"), HasSubstr("expected a name, found nothing"));
  EXPECT_THAT(refusal("log: {}\n---\nlog: {}\n"),
              HasSubstr("f.yaml:2: expected the end of the file"));
}

TEST(YamlTest, RefusesAnchorsAndAliases) {
  EXPECT_EQ(refusal("engine: &a\n  world_size: 1\n"),
            "f.yaml:1: anchors and aliases are not supported");
  EXPECT_EQ(refusal("engine:\n  world_size: &a 1\n  num_threads: *a\n"),
            "f.yaml:2: anchors and aliases are not supported");
  EXPECT_EQ(refusal("engine:\n  world_size: *a\n").substr(0, 9), "f.yaml:2:");
}

TEST(YamlTest, SaysWhereItIsNotYaml) {
  EXPECT_THAT(refusal("engine:\n  world_size: \"1\n"), HasSubstr("f.yaml:"));
  EXPECT_THAT(refusal("engine: {world_size: 1\n"), HasSubstr("not YAML"));
  EXPECT_THAT(refusal("engine:\n  world_size: 1\n log: @\n"), HasSubstr("f.yaml:3: not YAML"));
}

TEST(YamlTest, RefusesLongAndDeepFiles) {
  EXPECT_THAT(refusal(std::string(1 << 20, '\n') + "\n"),
              HasSubstr("expected at most 1048576 bytes, found 1048577"));
  EXPECT_THAT(refusal(std::string(100000, '[')), HasSubstr("found a list"));
  EXPECT_THAT(refusal(std::string(100000, '{')), HasSubstr("found a mapping"));
}

}  // namespace
}  // namespace r1d::config
