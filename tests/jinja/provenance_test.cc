// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "tests/jinja/render.h"

namespace r1d::jinja {
namespace {

// The output with data in square brackets.
std::string origins(std::string_view source, const Json& data) {
  const auto segments = test::segments_of(source, data);
  if (!segments.ok()) return "error: " + message_of(segments.status());
  std::string shown;
  for (const Segment& segment : *segments) {
    shown += segment.trusted ? segment.text : "[" + segment.text + "]";
  }
  return shown;
}

TEST(ProvenanceTest, TextOfTheTemplateIsTrustedAndVariablesAreData) {
  EXPECT_EQ(origins("<b>{{ s }}<e>", {{"s", "<b>"}}), "<b>[<b>]<e>");
}

TEST(ProvenanceTest, TrustedVariablesAreTrustedAndReplaceDataOfTheirName) {
  const auto parsed = Template::parse("{{ bos }}{{ s }}");
  ASSERT_TRUE(parsed.ok());
  const auto segments = parsed->render({.trusted = {{"bos", "<b>"}},
                                        .data = {{"bos", "forged"}, {"s", "x"}},
                                        .marked = {},
                                        .now = {}});
  ASSERT_TRUE(segments.ok()) << segments.status();
  EXPECT_EQ(*segments, (std::vector<Segment>{{"<b>", true}, {"x", false}}));
}

TEST(ProvenanceTest, ConcatenationKeepsBothOrigins) {
  const Json data{{"s", "d"}};
  EXPECT_EQ(origins("{{ 'a' + s + 'b' }}", data), "a[d]b");
  EXPECT_EQ(origins("{{ 'a' ~ s ~ 1 }}", data), "a[d]1");
  EXPECT_EQ(origins("{% set x = s + '-' %}{{ x + x }}", data), "[d]-[d]-");
  EXPECT_EQ(origins("{{ ('<' + s + '>') * 2 }}", data), "<[d]><[d]>");
}

TEST(ProvenanceTest, PartsOfDataStayData) {
  const Json data{{"s", " x</think>y "}};
  EXPECT_EQ(origins("{{ s.split('</think>')[-1] }}", data), "[y ]");
  EXPECT_EQ(origins("{{ s | trim }}", data), "[x</think>y]");
  EXPECT_EQ(origins("{{ s[1:3] }}{{ s[1] }}{{ s[::-1] }}", data), "[x<x y>kniht/<x ]");
  EXPECT_EQ(origins("{% for c in s %}{{ c }}{% endfor %}", data), "[ x</think>y ]");
  EXPECT_EQ(origins("{{ s|first }}{{ s|list|last }}", data), "[  ]");
}

TEST(ProvenanceTest, PiecesOfMixedTextKeepTheirOrigin) {
  const Json data{{"s", "d d"}};
  EXPECT_EQ(origins("{{ ('a ' + s + ' b').split(' ')|join('|') }}", data), "a|[d]|[d]|b");
  EXPECT_EQ(origins("{{ (' ' + s + ' a ').strip() }}", data), "[d d] a");
  EXPECT_EQ(origins("{{ ('ab' + s)[1:4] }}", data), "b[d ]");
  EXPECT_EQ(origins("{{ ('ab' + s)|upper }}", data), "AB[D D]");
  EXPECT_EQ(origins("{{ ('a\n' + s + '\nb')|indent(1) }}", data), "a\n [d d]\n b");
}

TEST(ProvenanceTest, ReplacementsHaveTheOriginOfTheNewText) {
  const Json data{{"s", "x-y"}, {"dash", "-"}};
  EXPECT_EQ(origins("{{ s|replace('-', '<t>') }}", data), "[x]<t>[y]");
  EXPECT_EQ(origins("{{ 'a-b'.replace('-', dash) }}", data), "a[-]b");
  EXPECT_EQ(origins("{{ '%s!'|format(s) }}", data), "[x-y]!");
}

TEST(ProvenanceTest, JsonAndPrintedListsAreDataAsSoonAsDataIsInThem) {
  const Json data{{"d", {{"k", "<t>"}}}};
  EXPECT_EQ(origins("{{ d|tojson }}", data), "[{\"k\": \"<t>\"}]");
  EXPECT_EQ(origins("{{ {'a': '<t>'}|tojson }}", data), "{\"a\": \"<t>\"}");
  EXPECT_EQ(origins("{{ ['<t>', d.k] }}", data), "[['<t>', '<t>']]");
}

TEST(ProvenanceTest, KeysOfDataAreData) {
  const Json data{{"d", {{"<t>", 1}}}};
  EXPECT_EQ(origins("{% for k, v in d.items() %}{{ k }}={{ v }}{% endfor %}", data), "[<t>]=1");
  EXPECT_EQ(origins("{% for k in d %}{{ k }}{% endfor %}", data), "[<t>]");
}

TEST(ProvenanceTest, MacrosAndBlocksKeepOrigins) {
  const Json data{{"s", "d"}};
  EXPECT_EQ(origins("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(s) }}", data), "<[d]>");
  EXPECT_EQ(origins("{% set b %}<{{ s }}>{% endset %}{{ b }}", data), "<[d]>");
  EXPECT_EQ(origins("{% filter trim %} {{ s }}> {% endfilter %}", data), "[d]>");
}

TEST(ProvenanceTest, ADateInAFormatFromDataIsData) {
  EXPECT_EQ(origins("{{ strftime_now(f) }}{{ strftime_now('%Y') }}", {{"f", "%Y<t>"}}),
            "[2025<t>]2025");
}

TEST(ProvenanceTest, MarkedTextReplacesAStringOfTheData) {
  const auto parsed = Template::parse("{% for m in messages %}{{ m.content }}{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  const Json messages = Json::array({{{"content", "a"}}, {{"content", "b"}}});
  const auto segments =
      parsed->render({.trusted = Json::object(),
                      .data = {{"messages", messages}},
                      .marked = {{"/messages/1/content", {{"<t>", true}, {"c", false}}}},
                      .now = {}});
  ASSERT_TRUE(segments.ok()) << segments.status();
  EXPECT_EQ(*segments, (std::vector<Segment>{{"a", false}, {"<t>", true}, {"c", false}}));
}

}  // namespace
}  // namespace r1d::jinja
