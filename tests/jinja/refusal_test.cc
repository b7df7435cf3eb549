// SPDX-License-Identifier: Apache-2.0
// What is not supported is refused when parsing, by name and line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jinja/render.h"

namespace r1d::jinja {
namespace {

std::string refusal(std::string_view source) {
  return message_of(Template::parse(source).status());
}

TEST(RefusalTest, UnknownNamesAreRefusedEvenWhereTheyWouldNotRun) {
  EXPECT_EQ(refusal("{% if 0 %}\n{{ x|nope }}{% endif %}"), "line 2: unknown filter 'nope'");
  EXPECT_EQ(refusal("{% if 0 %}\n{{ x is nope }}{% endif %}"), "line 2: unknown test 'nope'");
  EXPECT_EQ(refusal("{% if 0 %}\n{{ x.nope() }}{% endif %}"), "line 2: unknown method 'nope'");
  EXPECT_EQ(refusal("{% if 0 %}\n{{ nope() }}{% endif %}"), "line 2: unknown function 'nope'");
  EXPECT_EQ(refusal("{{ x|map('nope') }}"), "line 1: unknown filter 'nope'");
  EXPECT_EQ(refusal("{{ x|selectattr('a', 'nope') }}"), "line 1: unknown test 'nope'");
}

TEST(RefusalTest, UnsupportedTagsAreNamed) {
  for (const std::string name : {"include", "import", "extends", "block", "call", "do"}) {
    EXPECT_EQ(refusal("{% " + name + " 'x' %}"),
              "line 1: the tag '" + name + "' is not known here");
  }
  EXPECT_EQ(refusal("{% endif %}"), "line 1: the tag 'endif' is not known here");
  EXPECT_EQ(refusal("{% for x in y recursive %}"), "line 1: 'recursive' loops are not supported");
}

TEST(RefusalTest, ArgumentsAreChecked) {
  EXPECT_EQ(refusal("{{ x|trim('a', 'b') }}"), "line 1: 'trim' takes at most 1 arguments");
  EXPECT_EQ(refusal("{{ x|tojson(indnt=1) }}"), "line 1: 'tojson' has no argument 'indnt'");
  EXPECT_EQ(refusal("{{ x|replace('a') }}"), "line 1: 'replace' lacks 'new'");
  EXPECT_EQ(refusal("{{ x|default('a', default_value='b') }}"),
            "line 1: 'default' has 'default_value' twice");
  EXPECT_EQ(refusal("{{ f(*x) }}"), "line 1: '*' in a call is not supported");
}

TEST(RefusalTest, BrokenSyntaxNamesWhatIsFound) {
  EXPECT_EQ(refusal("{{ }}"), "line 1: expected a value, found '}}'");
  EXPECT_EQ(refusal("{{ a b }}"), "line 1: expected '}}', found 'b'");
  EXPECT_EQ(refusal("{{ (1] }}"), "line 1: unexpected ']'");
  EXPECT_EQ(refusal("{{ a ? b }}"), "line 1: unexpected '?'");
  EXPECT_EQ(refusal("{% set 1 = 2 %}"), "line 1: expected a name to assign to, found '1'");
  EXPECT_EQ(refusal("{% break %}"), "line 1: 'break' outside of a loop");
  EXPECT_EQ(refusal("{{ 99999999999999999999 }}"),
            "line 1: the integer 99999999999999999999 does not fit 64 bits");
  EXPECT_EQ(refusal("\xff"), "the template is not UTF-8");
}

TEST(RefusalTest, FailuresWhileRenderingNameTheLine) {
  EXPECT_EQ(test::render("a\n{{ x.y }}"), "error: line 2: 'x' is undefined");
  EXPECT_EQ(test::render("\n\n{{ d.items }}", {{"d", {{"items", 1}}}}),
            "error: line 3: 'items' is a method of a dict: call it, or write ['items']");
}

TEST(RefusalTest, TheTextOfRaiseExceptionIsReportedWithoutTheDataInIt) {
  EXPECT_EQ(test::render("a\n{{ raise_exception('no ' ~ 'tools') }}"),
            "error: line 2: the template refuses: no tools");
  EXPECT_EQ(test::render("{{ raise_exception('role ' ~ who ~ '?') }}", {{"who", "a secret"}}),
            "error: line 1: the template refuses: role ...?");
}

TEST(RefusalTest, DataThatIsNotUtf8IsRefusedByItsPlace) {
  EXPECT_EQ(test::render("x", {{"messages", Json::array({{{"content", "\xff"}}})}}),
            "error: /messages/0/content: text that is not UTF-8");
}

TEST(RefusalTest, LettersWhoseCaseIsUnknownAreRefusedNotGuessed) {
  EXPECT_EQ(test::render("{{ s|upper }}", {{"s", "straße"}}),
            "error: line 1: upper and lower case of U+00DF are not supported");
}

TEST(RefusalTest, ATemplateSaysWhichVariablesItReads) {
  const auto parsed = Template::parse("{% set y = 1 %}{{ tools|tojson }}{{ f.tool }}");
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(parsed->reads("tools"));
  EXPECT_FALSE(parsed->reads("tool"));
  EXPECT_FALSE(parsed->reads("y"));
}

}  // namespace
}  // namespace r1d::jinja
