// SPDX-License-Identifier: Apache-2.0
// The example configuration and the reference say what the schema says.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/config/config.h"

#include "config/schema.h"
#include "config/yaml_reader.h"
#include "tests/support/test_data.h"

namespace r1d::config {
namespace {

const std::string kExample = test::data("../../configs/r1d.yaml");
const std::string kReference = test::data("../../docs/configuration.md");

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in.is_open()) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void expect_generated(const std::string& path, const std::string& text) {
  if (std::getenv("R1D_UPDATE_DOCS") != nullptr) std::ofstream(path) << text;
  EXPECT_EQ(read_file(path), text)
      << path << " is out of date; regenerate: R1D_UPDATE_DOCS=1 r1d_config_test";
}

TEST(DocumentsTest, ExampleIsTheOneGenerated) {
  expect_generated(kExample, example_yaml());
}

TEST(DocumentsTest, ReferenceIsTheOneGenerated) {
  expect_generated(kReference, reference_markdown());
}

TEST(DocumentsTest, ExampleHoldsTheDefaults) {
  const auto config = parse_yaml(read_file(kExample), "configs/r1d.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(print(*config), print(Config{}));
}

TEST(DocumentsTest, ExampleNamesEveryKeyInOrder) {
  const YamlFile file = read_yaml(read_file(kExample), "configs/r1d.yaml");
  ASSERT_TRUE(file.problems.empty()) << file.problems.front().message;
  ASSERT_EQ(file.entries.size(), schema().size());
  for (size_t i = 0; i < schema().size(); ++i) EXPECT_EQ(file.entries[i].key, &schema()[i]);
}

TEST(DocumentsTest, ExampleSaysOfEveryKeyWhatItMayBe) {
  const std::string example = example_yaml();
  for (const KeyInfo& info : keys()) {
    const size_t line = example.find("\n  " + info.key.substr(info.key.find('.') + 1) + ": ");
    ASSERT_NE(line, std::string::npos) << info.key;
    const size_t comment = example.rfind("# " + info.type, line);
    ASSERT_NE(comment, std::string::npos) << info.key;
    EXPECT_THAT(
        example.substr(comment, line - comment),
        testing::AllOf(testing::HasSubstr("default "), testing::HasSubstr(info.default_value)))
        << info.key;
  }
}

TEST(DocumentsTest, KeysListTheSchema) {
  const std::vector<KeyInfo> infos = keys();
  ASSERT_EQ(infos.size(), schema().size());
  EXPECT_EQ(infos.front().key, "model.path");
  EXPECT_EQ(infos.front().flag, "--model");
  for (const KeyInfo& info : infos) {
    EXPECT_THAT(reference_markdown(),
                testing::HasSubstr("| `" + info.key + "` | `" + info.flag + "` |"));
    EXPECT_FALSE(info.type.empty() || info.help.empty()) << info.key;
  }
}

}  // namespace
}  // namespace r1d::config
