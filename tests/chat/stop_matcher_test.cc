// SPDX-License-Identifier: Apache-2.0
#include "r1d/chat/stop_matcher.h"

#include <cstdint>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace r1d::chat {
namespace {

struct Result {
  std::string text;
  std::optional<size_t> matched_idx;

  bool operator==(const Result&) const = default;
};

void PrintTo(const Result& result, std::ostream* out) {
  *out << '"' << result.text << "\" matched "
       << (result.matched_idx ? int(*result.matched_idx) : -1);
}

StopMatcher make(const std::vector<std::string>& stops, bool include_stop = false) {
  auto matcher = StopMatcher::create(stops, include_stop);
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  return *std::move(matcher);
}

Result run(StopMatcher matcher, const std::vector<std::string>& pieces) {
  Result result;
  for (const std::string& piece : pieces) matcher.push(piece, result.text);
  matcher.flush(result.text);
  result.matched_idx = matcher.matched_idx();
  return result;
}

// The definition: the shortest prefix of the text that ends with a stop string, and the longest of
// those.
Result naive(const std::vector<std::string>& stops, bool include_stop, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string_view prefix = std::string_view(text).substr(0, end);
    std::optional<size_t> best;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (!prefix.ends_with(stops[i])) continue;
      if (!best || stops[i].size() > stops[*best].size()) best = i;
    }
    if (best) return {text.substr(0, include_stop ? end : end - stops[*best].size()), best};
  }
  return {text, std::nullopt};
}

std::string random_text(std::mt19937& random, size_t min, size_t max) {
  const size_t size = std::uniform_int_distribution<size_t>(min, max)(random);
  std::string text;
  while (text.size() < size) text += "aab"[random() % 3];
  return text;
}

std::vector<std::string> random_pieces(std::mt19937& random, const std::string& text) {
  std::vector<std::string> pieces;
  for (size_t at = 0; at < text.size();) {
    pieces.push_back(text.substr(at, 1 + random() % 4));
    at += pieces.back().size();
  }
  return pieces;
}

TEST(StopMatcherTest, EqualsTheWholeTextResultForEverySplit) {
  constexpr uint32_t kSeed = 71;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  for (int round = 0; round < 20'000; ++round) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) stop = random_text(random, 1, 6);
    const std::string text = random_text(random, 0, 24);
    const bool include_stop = round % 2 == 0;
    const Result expected = naive(stops, include_stop, text);
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      ASSERT_EQ(run(make(stops, include_stop), {text.substr(0, cut), text.substr(cut)}), expected)
          << text << " cut at " << cut << ", stops " << testing::PrintToString(stops);
    }
    ASSERT_EQ(run(make(stops, include_stop), random_pieces(random, text)), expected)
        << text << ", stops " << testing::PrintToString(stops);
  }
}

TEST(StopMatcherTest, HoldsBackOnlyWhatMayBecomeAStopString) {
  StopMatcher matcher = make({"\n\nUser:", "\n\nSystem:"});
  std::string released;
  EXPECT_FALSE(matcher.push("Hello\n", released));
  EXPECT_EQ(released, "Hello");
  EXPECT_FALSE(matcher.push("\n", released));
  EXPECT_EQ(released, "Hello");
  EXPECT_FALSE(matcher.push("\n", released));
  EXPECT_EQ(released, "Hello\n");
  EXPECT_FALSE(matcher.push("Us", released));
  EXPECT_EQ(released, "Hello\n");
  EXPECT_TRUE(matcher.push("er: x", released));
  EXPECT_EQ(released, "Hello\n");
}

TEST(StopMatcherTest, TheStringThatIsCompleteFirstWins) {
  EXPECT_EQ(run(make({"abcd", "bc"}), {"xabcd"}), (Result{"xa", 1}));
  EXPECT_EQ(run(make({"bc", "abc"}), {"xabcd"}), (Result{"x", 1}));
}

TEST(StopMatcherTest, IncludeStopKeepsTheStringAndNothingAfterIt) {
  EXPECT_EQ(run(make({"END"}, true), {"a E", "ND b"}), (Result{"a END", 0}));
}

TEST(StopMatcherTest, ReleasesNothingAfterAMatch) {
  StopMatcher matcher = make({"."});
  std::string released;
  EXPECT_TRUE(matcher.push("a.b", released));
  EXPECT_TRUE(matcher.push("c", released));
  matcher.flush(released);
  EXPECT_EQ(released, "a");
}

TEST(StopMatcherTest, NoMatchSpansAFlush) {
  StopMatcher matcher = make({"abc"});
  std::string released;
  matcher.push("ab", released);
  matcher.flush(released);
  EXPECT_FALSE(matcher.push("c", released));
  EXPECT_EQ(released, "abc");
}

TEST(StopMatcherTest, WithoutStopStringsNothingIsHeld) {
  StopMatcher matcher;
  std::string released;
  EXPECT_FALSE(matcher.push("text", released));
  EXPECT_EQ(released, "text");
}

TEST(StopMatcherTest, NeverCutsACharacter) {
  // U+00E8 and U+00E9 share their first byte.
  EXPECT_EQ(run(make({"\u00E9"}), {"\u00E8", "x\u00E9"}), (Result{"\u00E8x", 0}));
  StopMatcher matcher = make({"\u00E9!"});
  std::string released;
  matcher.push("x\u00E9", released);
  EXPECT_EQ(released, "x");
  matcher.push("\u00E8", released);
  EXPECT_EQ(released, "x\u00E9\u00E8");
}

TEST(StopMatcherTest, ManyLongStopStringsOnTheirOwnPrefixesTakeLinearTime) {
  // Each byte of the text is within each of the 64 stop strings; by trying each place anew this
  // would be 64 x 1024 steps a byte, half a minute in all.
  std::vector<std::string> stops;
  for (size_t i = 0; i < StopMatcher::kMaxStops; ++i) {
    stops.push_back(std::string(StopMatcher::kMaxStopBytes - 1 - i, 'a') + "b");
  }
  StopMatcher matcher = make(stops);
  const std::string text(1 << 19, 'a');
  std::string released;
  for (size_t at = 0; at < text.size(); at += 4) matcher.push(text.substr(at, 4), released);
  EXPECT_EQ(released.size(), text.size() - (StopMatcher::kMaxStopBytes - 1));
  matcher.flush(released);
  EXPECT_EQ(released, text);
}

TEST(StopMatcherTest, RefusesEmptyLongAndTooManyStopStrings) {
  EXPECT_FALSE(StopMatcher::create({""}, false).ok());
  EXPECT_FALSE(StopMatcher::create({std::string(StopMatcher::kMaxStopBytes + 1, 'x')}, false).ok());
  EXPECT_TRUE(StopMatcher::create({std::string(StopMatcher::kMaxStopBytes, 'x')}, false).ok());
  EXPECT_FALSE(
      StopMatcher::create(std::vector<std::string>(StopMatcher::kMaxStops + 1, "x"), false).ok());
}

}  // namespace
}  // namespace r1d::chat
