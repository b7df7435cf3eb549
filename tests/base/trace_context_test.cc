// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/trace_context.h"

#include <set>

#include <gtest/gtest.h>

namespace r1d::base {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kSpan[] = "b7ad6b7169203331";
const std::string kValid = std::string("00-") + kTrace + "-" + kSpan + "-01";

TEST(TraceContextTest, ReadsTheIdsAndTheSampledFlag) {
  const auto context = parse_traceparent(kValid);
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_id, kTrace);
  EXPECT_EQ(context->span_id, kSpan);
  EXPECT_TRUE(context->sampled);
  EXPECT_EQ(to_traceparent(*context), kValid);
}

TEST(TraceContextTest, TakesOnlyTheLowestFlagAsSampled) {
  const std::string head = kValid.substr(0, kValid.size() - 2);
  for (const auto& [flags, sampled] : {std::pair("00", false),
                                       std::pair("01", true),
                                       std::pair("02", false),
                                       std::pair("03", true),
                                       std::pair("fe", false),
                                       std::pair("ff", true)}) {
    const auto context = parse_traceparent(head + flags);
    ASSERT_TRUE(context.has_value()) << flags;
    EXPECT_EQ(context->sampled, sampled) << flags;
    EXPECT_TRUE(to_traceparent(*context).ends_with(sampled ? "-01" : "-00")) << flags;
  }
}

TEST(TraceContextTest, RefusesWhatIsNotToTheLetter) {
  const std::string trace = kTrace;
  const std::string span = kSpan;
  for (const std::string& text : {
           std::string(),
           std::string("00"),
           std::string(55, '-'),
           std::string(55, '0'),
           " " + kValid,
           kValid + " ",
           kValid + "-",                                           // version 00 ends here
           kValid + "-extra",                                      //
           kValid.substr(0, 54),                                   // one digit short
           "00-" + std::string(32, '0') + "-" + span + "-01",      // no trace
           "00-" + trace + "-" + std::string(16, '0') + "-01",     // no span
           "00-0AF7651916CD43DD8448EB211C80319C-" + span + "-01",  // upper case
           "00-" + trace + "-B7AD6B7169203331-01",                 //
           "0A-" + trace + "-" + span + "-01",                     //
           "00-" + trace + "-" + span + "-0A",                     //
           "ff-" + trace + "-" + span + "-01",                     // never a version
           "0g-" + trace + "-" + span + "-01",                     //
           "00-" + trace.substr(1) + "g-" + span + "-01",          //
           "00-" + trace + "-" + span.substr(1) + "g-01",          //
           "00-" + trace + "-" + span + "-0g",                     //
           "00_" + trace + "-" + span + "-01",                     //
           "00-" + trace + "_" + span + "-01",                     //
           "00-" + trace + "-" + span + "_01",                     //
           "00-" + trace.substr(1) + "--" + span + "-01",          // a dash among the digits
           "01-" + trace + "-" + span + "-01extra",                // no dash behind the flags
           std::string("00-") + trace + "-" + span + "-0" + '\0',  //
       }) {
    EXPECT_FALSE(parse_traceparent(text).has_value()) << text;
  }
}

TEST(TraceContextTest, ReadsHigherVersionsAsFarAsItKnowsThem) {
  for (const char* version : {"01", "cc", "fe"}) {
    for (const char* rest : {"", "-", "-more", "-01-02"}) {
      const auto context = parse_traceparent(std::string(version) + kValid.substr(2) + rest);
      ASSERT_TRUE(context.has_value()) << version << rest;
      EXPECT_EQ(context->trace_id, kTrace);
      EXPECT_EQ(to_traceparent(*context), kValid) << "goes on as version 00";
    }
  }
}

TEST(TraceContextTest, ContinuesTheClientsTraceUnderASpanOfItsOwn) {
  TraceIds ids(1);
  const TraceContext next = ids.next(parse_traceparent(kValid));
  EXPECT_EQ(next.trace_id, kTrace);
  EXPECT_NE(next.span_id, kSpan);
  EXPECT_TRUE(next.sampled);
}

TEST(TraceContextTest, MakesValidIdsThatDiffer) {
  TraceIds ids(7);
  TraceIds other_run(8);
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    for (TraceIds* maker : {&ids, &other_run}) {
      const TraceContext context = maker->next(std::nullopt);
      EXPECT_FALSE(context.sampled);
      EXPECT_TRUE(parse_traceparent(to_traceparent(context)).has_value());
      EXPECT_TRUE(seen.insert(context.trace_id).second);
      EXPECT_TRUE(seen.insert(context.span_id).second);
    }
  }
}

}  // namespace
}  // namespace r1d::base
