// SPDX-License-Identifier: Apache-2.0
// Templates that mean harm end early, with the limit's name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jinja/render.h"

namespace r1d::jinja {
namespace {

using test::render;
using ::testing::HasSubstr;

// A twentieth of the real limits: sanitizers are slow, and what ends early ends early.
constexpr Limits kSmall{.steps = 500'000, .memory_bytes = 12 << 20};

std::string render_small(std::string_view source) {
  return render(source, Json::object(), kSmall);
}

std::string repeated(std::string_view text, int count) {
  std::string result;
  for (int i = 0; i < count; ++i) result += text;
  return result;
}

TEST(LimitsTest, LongSourcesAreRefused) {
  EXPECT_THAT(render(std::string(300'000, 'a')), HasSubstr("300000 bytes, at most 262144"));
}

TEST(LimitsTest, DeepSyntaxIsRefusedWhateverItIsMadeOf) {
  const int n = 50'000;
  for (const std::string& source : {
           "{{ " + repeated("(", n) + "1" + repeated(")", n) + " }}",
           "{{ " + repeated("[", n) + repeated("]", n) + " }}",
           "{{ " + repeated("{'a':", n / 2) + "1" + repeated("}", n / 2) + " }}",
           "{{ " + repeated("-", n) + "1 }}",
           "{{ " + repeated("not ", n) + "1 }}",
           "{{ 1" + repeated("+1", n) + " }}",
           "{{ 1" + repeated(" and 1", n / 2) + " }}",
           "{{ a" + repeated(".b", n) + " }}",
           "{{ a" + repeated("[0]", n) + " }}",
           "{{ a" + repeated("|trim", n) + " }}",
           "{{ " + repeated("1 if 1 else ", n / 3) + "1 }}",
           "{{ 1" + repeated(" if 1", n) + " }}",
           "{{ a" + repeated(" is defined", n / 3) + " }}",
           "{{ 1 is eq " + repeated("(", n) + repeated(")", n) + " }}",
           repeated("{% if 1 %}", n / 3),
           repeated("{% for a in b %}", n / 4),
           repeated("{% set x %}", n / 3),
       }) {
    EXPECT_THAT(render(source), HasSubstr("nested deeper than 128 levels")) << source.substr(0, 40);
  }
}

TEST(LimitsTest, WideSyntaxIsNoDepth) {
  EXPECT_EQ(render("{{ [" + repeated("1,", 20'000) + "]|length }}"), "20000");
  EXPECT_EQ(render("{% if 0 %}" + repeated("{% elif 0 %}", 10'000) + "{% else %}x{% endif %}"),
            "x");
  EXPECT_EQ(render("{{ 1" + repeated(" ~ 1", 20) + " }}").size(), 21);
}

TEST(LimitsTest, UnterminatedTagsNameTheirLine) {
  EXPECT_EQ(render("a\n{{ x"), "error: line 2: a tag has no end");
  EXPECT_EQ(render("a\n{% if x"), "error: line 2: a tag has no end");
  EXPECT_EQ(render("\n\n{# x"), "error: line 3: a comment has no end");
  EXPECT_EQ(render("{% raw %}\n{% endra %}"), "error: line 1: a raw block has no end");
  EXPECT_EQ(render("{{ 'x }}"), "error: line 1: a string has no end");
  EXPECT_EQ(render("{% if x %}\na"),
            "error: line 2: expected 'endif', found the end of the template");
  EXPECT_EQ(render("{% for x in y %}"),
            "error: line 1: expected 'endfor', found the end of the template");
}

TEST(LimitsTest, AHugeRangeIsRefused) {
  EXPECT_THAT(render("{% for i in range(1000000000) %}{% endfor %}"),
              HasSubstr("range: more than 100000 values"));
}

TEST(LimitsTest, NestedLoopsRunOutOfSteps) {
  EXPECT_THAT(render_small("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}"
                           "{% endfor %}"),
              HasSubstr("limit of 500000 steps"));
}

TEST(LimitsTest, DoublingAStringRunsOutOfMemory) {
  const std::string doubling =
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ";
  EXPECT_THAT(render_small(doubling + "ns.s + ns.s %}{% endfor %}"), HasSubstr("bytes of memory"));
  EXPECT_THAT(render_small(doubling + "ns.s ~ ns.s %}{% endfor %}"), HasSubstr("bytes of memory"));
  EXPECT_THAT(render_small(doubling + "ns.s|replace('x', 'xx') %}{% endfor %}"),
              HasSubstr("bytes of memory"));
  EXPECT_THAT(render_small(doubling + "[ns.s, ns.s]|join %}{% endfor %}"),
              HasSubstr("bytes of memory"));
  EXPECT_THAT(render_small("{{ 'x' * 1000000000000 }}"), HasSubstr("bytes of memory"));
}

TEST(LimitsTest, ListsThatHoldThemselvesTwiceRunOutWhenTheyArePrinted) {
  const std::string pairs =
      "{% set ns = namespace(l=['x']) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
      "{% endfor %}";
  EXPECT_THAT(render_small(pairs + "{{ ns.l }}"), HasSubstr("limit of"));
  EXPECT_THAT(render_small(pairs + "{{ ns.l|tojson }}"), HasSubstr("limit of"));
  EXPECT_THAT(render_small(pairs + "{% set a = ns.l %}{{ [a, 1] == [a, 1] }}"),
              HasSubstr("limit of"));
}

TEST(LimitsTest, DeepValuesAreRefused) {
  EXPECT_THAT(render("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}"
                     "{% set ns.l = [ns.l] %}{% endfor %}"),
              HasSubstr("128 levels of nesting"));
}

TEST(LimitsTest, DeepDataIsRefused) {
  Json deep = 1;
  for (int i = 0; i < 2000; ++i) deep = Json::array({std::move(deep)});
  EXPECT_THAT(render("x", {{"deep", std::move(deep)}}), HasSubstr("limit of"));
}

TEST(LimitsTest, ANamespaceInItselfIsNotFollowed) {
  EXPECT_THAT(render("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me }}"),
              HasSubstr("a namespace cannot be printed"));
}

TEST(LimitsTest, EndlessRecursionOfMacrosIsRefused) {
  EXPECT_THAT(render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
              HasSubstr("512 levels of depth"));
}

TEST(LimitsTest, OutputIsBounded) {
  Limits limits;
  limits.output_bytes = 1000;
  EXPECT_THAT(render("{% for i in range(1000) %}xx{% endfor %}", Json::object(), limits),
              HasSubstr("1000 bytes of output"));
}

TEST(LimitsTest, SearchingIsLinear) {
  // A naive search would compare 10^11 bytes.
  const Json data{{"s", std::string(600'000, 'a')}, {"n", std::string(300'000, 'a') + "b"}};
  EXPECT_EQ(render("{{ n in s }}{{ s.split(n)|length }}{{ s.count(n) }}{{ s.find(n) }}", data),
            "False10-1");
}

TEST(LimitsTest, LongNamesAreRefused) {
  EXPECT_EQ(render("{{ " + repeated("a", 300) + " }}"),
            "error: line 1: a name has more than 256 bytes");
}

TEST(LimitsTest, LookingUpLongKeysCostsTheirLength) {
  const Json data{{"d", {{"k", 1}}}, {"key", std::string(1'000'000, 'k')}};
  const std::string often = "{% for i in range(50000) %}";
  EXPECT_THAT(render(often + "{{ d[key] }}{% endfor %}", data, kSmall), HasSubstr("steps"));
  EXPECT_THAT(render(often + "{{ key in d }}{% endfor %}", data, kSmall), HasSubstr("steps"));
  EXPECT_THAT(render(often + "{{ d.get(key) }}{% endfor %}", data, kSmall), HasSubstr("steps"));
}

TEST(LimitsTest, LimitsAreResourceExhausted) {
  EXPECT_EQ(test::segments_of("{{ range(1000000) }}").status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace r1d::jinja
