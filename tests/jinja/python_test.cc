// SPDX-License-Identifier: Apache-2.0
// Every rendering that tests/tools/make_chat_vectors.py had Python's jinja2 make, made again.
#include <map>

#include <gtest/gtest.h>

#include "tests/jinja/render.h"

namespace r1d::jinja {
namespace {

// The same text, or a refusal where Python raised.
void expect_like_python(const absl::StatusOr<std::vector<Segment>>& segments, const Json& line) {
  if (line.contains("error")) {
    EXPECT_FALSE(segments.ok()) << "Python raised " << line["error"] << ", here:\n"
                                << joined(*segments);
    return;
  }
  ASSERT_TRUE(segments.ok()) << segments.status();
  EXPECT_EQ(joined(*segments), line["prompt"].get<std::string>());
}

TEST(PythonTest, ConversationsRenderAsInPython) {
  std::map<std::string, std::string> sources;
  int num_lines = 0;
  for (const Json& line : test::json_lines("conversations.jsonl")) {
    SCOPED_TRACE("line " + std::to_string(++num_lines));
    const auto name = line["template"].get<std::string>();
    if (!sources.contains(name)) sources[name] = test::fixture(name + ".jinja");
    expect_like_python(test::segments_of(sources[name], line["variables"]), line);
  }
  EXPECT_GE(num_lines, 200);
  EXPECT_EQ(sources.size(), 7);
}

TEST(PythonTest, SnippetsOfTheLanguageRenderAsInPython) {
  const std::vector<Json> lines = test::json_lines("snippets.jsonl");
  ASSERT_GT(lines.size(), 80);
  for (size_t i = 1; i < lines.size(); ++i) {
    const auto source = lines[i]["source"].get<std::string>();
    SCOPED_TRACE(source);
    expect_like_python(test::segments_of(source, lines[0]["variables"]), lines[i]);
  }
}

}  // namespace
}  // namespace r1d::jinja
