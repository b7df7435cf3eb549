// SPDX-License-Identifier: Apache-2.0
// What a configuration file may and may not hold.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/config/config.h"

#include "config/yaml_reader.h"

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

std::vector<std::string> problems_of(const std::string& yaml) {
  std::vector<std::string> messages;
  for (const Problem& problem : read_yaml(yaml, "f").problems) messages.push_back(problem.message);
  return messages;
}

TEST(YamlTest, GoesOnBehindEachProblem) {
  EXPECT_THAT(problems_of("log: &a\n"
                          "  level: *a\n"
                          "  format: {a: [1, {b: 2}], c: 3}\n"
                          "  requests:\n"
                          "  ? [x, y]\n"
                          "  : 1\n"
                          "engine: 3\n"
                          "colour: {red: [1]}\n"
                          "log:\n"
                          "  level: info\n"
                          "  shade: dark\n"
                          "server: [a]\n"
                          "chat:\n"
                          "  match_control_token: true\n"),
              testing::ElementsAre(
                  "f:1: anchors and aliases are not supported",
                  "f:2: anchors and aliases are not supported",
                  "f:3: log.format: expected a plain value, found a mapping",
                  "f:4: log.requests: expected a value; leave the line out to keep the default",
                  "f:5: log: expected a plain value, found a list",
                  "f:7: engine: expected a section with keys below it, found \"3\"",
                  testing::StartsWith("f:8: unknown key \"colour\"; did you mean "),
                  "f:9: log: this section was given before",
                  "f:10: log.level: given before, on line 2",
                  testing::StartsWith("f:11: unknown key \"log.shade\"; did you mean "),
                  "f:12: server: expected a plain value, found a list",
                  "f:14: unknown key \"chat.match_control_token\"; did you mean "
                  "chat.match_control_tokens?"));
}

TEST(YamlTest, KeepsWhatIsGoodBesideWhatIsNot) {
  const YamlFile file = read_yaml(
      "engine:\n  word_size: {a: 1}\n  num_threads: 4\nlog: 1\nchat: {match_control_tokens: "
      "true}\n",
      "f");
  ASSERT_EQ(file.entries.size(), 2U);
  EXPECT_EQ(file.entries[0].name, "engine.num_threads");
  EXPECT_EQ(file.entries[1].name, "chat.match_control_tokens");
  EXPECT_EQ(file.entries[1].line, 5);
  EXPECT_TRUE(file.complete);
  EXPECT_EQ(file.problems.size(), 2U);
}

TEST(YamlTest, SaysWhereTheTextStopsBeingYamlBehindTheOtherProblems) {
  EXPECT_THAT(problems_of("engine:\n  word_size: 1\nlog:\n  level: @\n"),
              testing::ElementsAre(HasSubstr("f:2: unknown key"), HasSubstr("f:4: not YAML")));
}

TEST(YamlTest, TellsAHundredProblemsAndThatThereAreMore) {
  std::string yaml = "log:\n";
  for (int i = 0; i < 200; ++i) yaml += "  colour" + std::to_string(i) + ": red\n";
  const std::vector<std::string> messages = problems_of(yaml);
  ASSERT_EQ(messages.size(), kMaxProblems + 1);
  EXPECT_THAT(messages[kMaxProblems - 1], HasSubstr("f:101: unknown key \"log.colour99\""));
  EXPECT_EQ(messages.back(), "f:102: more problems than 100; the rest is not judged");
}

TEST(YamlTest, RefusesLongAndDeepFiles) {
  EXPECT_THAT(refusal(std::string(1 << 20, '\n') + "\n"),
              HasSubstr("expected at most 1048576 bytes, found 1048577"));
  EXPECT_THAT(refusal(std::string(100000, '[')), HasSubstr("found a list"));
  EXPECT_THAT(refusal(std::string(100000, '{')), HasSubstr("found a mapping"));
}

}  // namespace
}  // namespace r1d::config
