// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/frame_guard.h"

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/transport/http2_bytes.h"

namespace r1d::transport {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Bytes as_bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// A connection under judgement, on a clock of its own.
class Judged {
 public:
  Judged() { EXPECT_EQ(client(client_start()), std::nullopt); }

  std::optional<Refusal> client(const std::string& bytes) {
    return reason(guard_.client_bytes(as_bytes(bytes), now_));
  }
  std::optional<Refusal> server(const std::string& bytes) {
    return reason(guard_.server_bytes(as_bytes(bytes), now_));
  }
  void pass(Duration time) { now_ += time; }
  FrameGuard& guard() { return guard_; }

 private:
  static std::optional<Refusal> reason(const std::optional<Violation>& violation) {
    if (!violation) return std::nullopt;
    EXPECT_FALSE(violation->what.empty());
    return violation->reason;
  }

  TimePoint now_{};
  FrameGuard guard_{GuardLimits(), now_};
};

std::optional<Refusal> verdict(const std::string& bytes) {
  return Judged().client(bytes);
}

// How many repeats of `bytes_of(i)` are taken before the connection is refused.
int count_taken(Judged& judged, int limit, const std::function<std::string(int)>& bytes_of) {
  for (int i = 0; i < limit; ++i) {
    if (judged.client(bytes_of(i))) return i;
  }
  return limit;
}

TEST(FrameGuardTest, KnowsAHandshakeInAnyPieces) {
  const std::string start = client_start();
  for (size_t piece = 1; piece <= start.size(); ++piece) {
    FrameGuard guard({}, {});
    for (size_t at = 0; at < start.size(); at += piece) {
      EXPECT_FALSE(guard.is_handshake_done());
      EXPECT_FALSE(guard.client_bytes(as_bytes(start.substr(at, piece)), {}).has_value());
    }
    EXPECT_TRUE(guard.is_handshake_done());
  }
}

TEST(FrameGuardTest, RefusesWhatIsNotHttp2) {
  for (const std::string text :
       {"GET / HTTP/1.1\r\n", "\x16\x03\x01", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r"}) {
    FrameGuard guard({}, {});
    const auto violation = guard.client_bytes(as_bytes(text), {});
    ASSERT_TRUE(violation.has_value()) << text;
    EXPECT_EQ(violation->reason, Refusal::kNotHttp2) << text;
  }
}

TEST(FrameGuardTest, WantsSettingsFirst) {
  for (const std::string& first :
       {open_stream(1), ping(), frame_bytes(FrameType::kSettings, kAck, 0)}) {
    FrameGuard guard({}, {});
    const auto violation = guard.client_bytes(as_bytes(std::string(kClientPreface) + first), {});
    ASSERT_TRUE(violation.has_value());
    EXPECT_EQ(violation->reason, Refusal::kFrame);
  }
}

TEST(FrameGuardTest, TakesEveryFrameAClientMaySend) {
  Judged judged;
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kSettings, 0, 0, std::string(36, 's'))),
            std::nullopt);
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kSettings, kAck, 0)), std::nullopt);
  EXPECT_EQ(judged.client(window_update(0, 1 << 20)), std::nullopt);
  EXPECT_EQ(judged.client(open_stream(1)), std::nullopt);
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kData, 0, 1, std::string(16384, 'd'))),
            std::nullopt);
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kData, kEndStream, 1)), std::nullopt);
  EXPECT_EQ(judged.client(ping()), std::nullopt);
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kPing, kAck, 0, "01234567")), std::nullopt);
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kPriority, 0, 3, "01234")), std::nullopt);
  EXPECT_EQ(judged.client(reset_stream(1)), std::nullopt);
  EXPECT_EQ(judged.client(frame_bytes(static_cast<FrameType>(0xFA), 0, 0, "unknown")),
            std::nullopt);
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kGoaway,
                                      0,
                                      0,
                                      "0000"
                                      "1111")),
            std::nullopt);
}

TEST(FrameGuardTest, RefusesFramesOfAWrongFormOrOrder) {
  const std::vector<std::string> wrong = {
      frame_bytes(FrameType::kData, 0, 0, "data"),
      frame_bytes(FrameType::kHeaders, kEndHeaders, 0, "h"),
      frame_bytes(FrameType::kHeaders, kEndHeaders, 2, "h"),
      frame_bytes(FrameType::kContinuation, kEndHeaders, 1, "h"),
      frame_bytes(FrameType::kPushPromise, kEndHeaders, 1, "h"),
      frame_bytes(FrameType::kSettings, 0, 1),
      frame_bytes(FrameType::kSettings, 0, 0, "12345"),
      frame_bytes(FrameType::kSettings, kAck, 0, "123456"),
      frame_bytes(FrameType::kSettings, 0, 0, std::string(33 * 6, 's')),
      frame_bytes(FrameType::kPing, 0, 0, "0123456"),
      frame_bytes(FrameType::kPing, 0, 1, "01234567"),
      frame_bytes(FrameType::kPriority, 0, 1, "0123"),
      frame_bytes(FrameType::kRstStream, 0, 1, "01234"),
      frame_bytes(FrameType::kRstStream, 0, 0, "0123"),
      reset_stream(1),  // which nobody opened
      frame_bytes(FrameType::kWindowUpdate, 0, 0, "012"),
      window_update(0, 0),
      window_update(1, 0x80000000),
      frame_head(static_cast<FrameType>(0xFA), 0, 0, 1 << 20),
      open_stream(1) + frame_bytes(FrameType::kContinuation, kEndHeaders, 1, "h"),
  };
  for (size_t i = 0; i < wrong.size(); ++i) EXPECT_EQ(verdict(wrong[i]), Refusal::kFrame) << i;
}

TEST(FrameGuardTest, NothingComesBetweenHeadersAndTheirContinuation) {
  const std::string begun = frame_bytes(FrameType::kHeaders, 0, 1, "h");
  EXPECT_EQ(verdict(begun + frame_bytes(FrameType::kContinuation, kEndHeaders, 1, "h") + ping()),
            std::nullopt);
  for (const std::string& between : {ping(),
                                     open_stream(3),
                                     frame_bytes(FrameType::kData, 0, 1, "d"),
                                     frame_bytes(static_cast<FrameType>(0xFA), 0, 1),
                                     frame_bytes(FrameType::kContinuation, kEndHeaders, 3, "h")}) {
    EXPECT_EQ(verdict(begun + between), Refusal::kFrame);
  }
}

TEST(FrameGuardTest, LimitsAHeaderBlockHoweverItIsCut) {
  constexpr size_t kLimit = 16 << 10;
  EXPECT_EQ(verdict(open_stream(1, kLimit)), std::nullopt);
  EXPECT_EQ(verdict(frame_head(FrameType::kHeaders, kEndHeaders, 1, kLimit + 1)),
            Refusal::kHeaderBlock)
      << "by what it announces, before it comes";
  const std::string half = frame_bytes(FrameType::kHeaders, 0, 1, std::string(kLimit / 2, 'h'));
  const std::string rest(kLimit / 2, 'h');
  EXPECT_EQ(verdict(half + frame_bytes(FrameType::kContinuation, kEndHeaders, 1, rest)),
            std::nullopt);
  EXPECT_EQ(verdict(half + frame_bytes(FrameType::kContinuation, kEndHeaders, 1, rest + "h")),
            Refusal::kHeaderBlock);
  // The next block starts from nothing.
  EXPECT_EQ(verdict(open_stream(1, kLimit) + open_stream(3, kLimit)), std::nullopt);
}

TEST(FrameGuardTest, EndsAFloodOfEmptyContinuations) {
  Judged judged;
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kHeaders, 0, 1, "h")), std::nullopt);
  EXPECT_EQ(judged.guard().header_block(), 1U);
  EXPECT_EQ(
      count_taken(judged, 1000, [](int) { return frame_bytes(FrameType::kContinuation, 0, 1); }),
      GuardLimits().max_continuations);
}

TEST(FrameGuardTest, SaysWhetherAHeaderBlockIsOpen) {
  Judged judged;
  EXPECT_EQ(judged.client(open_stream(1)), std::nullopt);
  EXPECT_EQ(judged.guard().header_block(), 0U);
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kHeaders, 0, 3, "h")), std::nullopt);
  EXPECT_EQ(judged.guard().header_block(), 3U);
  EXPECT_EQ(judged.client(frame_bytes(FrameType::kContinuation, kEndHeaders, 3, "h")),
            std::nullopt);
  EXPECT_EQ(judged.guard().header_block(), 0U);
}

TEST(FrameGuardTest, EndsRapidResets) {
  Judged judged;
  const int taken = count_taken(judged, 10000, [](int i) {
    const auto stream = static_cast<uint32_t>(2 * i + 1);
    return open_stream(stream) + reset_stream(stream);
  });
  EXPECT_EQ(taken, GuardLimits().min_streams - 1);
}

TEST(FrameGuardTest, CountsResetsThatTheServerIsMadeToSend) {
  Judged judged;
  int taken = 0;
  for (; taken < 10000; ++taken) {
    const auto stream = static_cast<uint32_t>(2 * taken + 1);
    EXPECT_EQ(judged.client(open_stream(stream)), std::nullopt);
    if (judged.server(reset_stream(stream, 1)) == Refusal::kResetRate) break;
  }
  EXPECT_EQ(taken, GuardLimits().min_streams - 1);
}

TEST(FrameGuardTest, AnAnswerThatCameEarlyIsNoReset) {
  Judged judged;
  for (uint32_t stream = 1; stream < 10000; stream += 2) {
    EXPECT_EQ(judged.client(open_stream(stream)), std::nullopt);
    ASSERT_EQ(judged.server(reset_stream(stream, kNoError)), std::nullopt);
  }
}

TEST(FrameGuardTest, LetsClientsCancelHalfOfTheirYoungStreams) {
  Judged judged;
  for (uint32_t stream = 1; stream < 40000; stream += 4) {
    ASSERT_EQ(judged.client(open_stream(stream) + open_stream(stream + 2) + reset_stream(stream)),
              std::nullopt)
        << stream;
    ASSERT_EQ(judged.server(frame_bytes(FrameType::kHeaders, kEndHeaders, stream + 2, "answer")),
              std::nullopt);
    judged.pass(milliseconds(1));
  }
}

TEST(FrameGuardTest, LetsClientsCancelWhatHasRunForAWhile) {
  Judged judged;
  for (uint32_t round = 0; round < 20; ++round) {
    for (uint32_t i = 0; i < 200; ++i) {
      ASSERT_EQ(judged.client(open_stream(2 * (200 * round + i) + 1)), std::nullopt);
    }
    judged.pass(milliseconds(1200));
    for (uint32_t i = 0; i < 200; ++i) {
      ASSERT_EQ(judged.client(reset_stream(2 * (200 * round + i) + 1)), std::nullopt);
    }
  }
}

TEST(FrameGuardTest, LetsClientsCancelEverythingAtAModerateRate) {
  Judged judged;
  for (uint32_t stream = 1; stream < 4000; stream += 2) {
    ASSERT_EQ(judged.client(open_stream(stream) + reset_stream(stream)), std::nullopt) << stream;
    judged.pass(milliseconds(25));
  }
}

TEST(FrameGuardTest, ForgetsALongGoodPastWhenResetsBegin) {
  Judged judged;
  uint32_t stream = 1;
  for (int i = 0; i < 20000; ++i, stream += 2) {
    ASSERT_EQ(judged.client(open_stream(stream)), std::nullopt);
    judged.pass(milliseconds(1));
  }
  judged.pass(seconds(11));
  const int taken = count_taken(judged, 10000, [&](int) {
    stream += 2;
    return open_stream(stream) + reset_stream(stream);
  });
  EXPECT_EQ(taken, GuardLimits().min_streams - 1);
}

TEST(FrameGuardTest, EndsFloodsOfFramesThatCarryNothing) {
  const std::vector<std::string> frames = {
      ping(),
      frame_bytes(FrameType::kPing, kAck, 0, "01234567"),
      frame_bytes(FrameType::kSettings, 0, 0),
      frame_bytes(FrameType::kSettings, kAck, 0),
      window_update(0, 1),
      frame_bytes(FrameType::kPriority, 0, 1, "01234"),
      frame_bytes(FrameType::kData, 0, 1),
      frame_bytes(FrameType::kData, 0, 1, "d"),
      frame_bytes(static_cast<FrameType>(0xFA), 0, 0),
      frame_bytes(FrameType::kHeaders, kEndHeaders, 1, "trailers"),
      frame_bytes(FrameType::kGoaway,
                  0,
                  0,
                  "0000"
                  "1111"),
  };
  for (const std::string& frame : frames) {
    Judged judged;
    EXPECT_EQ(judged.client(open_stream(1)), std::nullopt);
    std::optional<Refusal> refusal;
    for (int i = 0; i <= GuardLimits().control_burst && !refusal; ++i) {
      refusal = judged.client(frame);
    }
    EXPECT_EQ(refusal, Refusal::kControlRate);
  }
}

TEST(FrameGuardTest, TheServersPingAnswersEarnNothing) {
  Judged judged;
  const int taken = count_taken(judged, 100000, [&](int) {
    EXPECT_EQ(judged.server(frame_bytes(FrameType::kPing, kAck, 0, "01234567")), std::nullopt);
    EXPECT_EQ(judged.server(frame_bytes(FrameType::kSettings, kAck, 0)), std::nullopt);
    return ping();
  });
  EXPECT_LE(taken, GuardLimits().control_burst);
}

TEST(FrameGuardTest, ControlFramesMayGrowWithWhatIsAnswered) {
  Judged judged;
  EXPECT_EQ(judged.client(open_stream(1)), std::nullopt);
  // As a client does that opens both windows and measures the way for every message.
  for (int i = 0; i < 100000; ++i) {
    ASSERT_EQ(judged.server(frame_bytes(FrameType::kData, 0, 1, "token")), std::nullopt);
    ASSERT_EQ(judged.client(window_update(0, 14) + window_update(1, 14) + ping()), std::nullopt)
        << i;
  }
}

TEST(FrameGuardTest, CreditsComeBackWithTime) {
  Judged judged;
  EXPECT_EQ(count_taken(judged, 900, [](int) { return ping(); }), 900);
  for (int i = 0; i < 10000; ++i) {
    judged.pass(milliseconds(10));
    ASSERT_EQ(judged.client(ping()), std::nullopt);
  }
}

TEST(FrameGuardTest, KnowsWhereTheServerStands) {
  Judged judged;
  EXPECT_TRUE(judged.guard().is_server_between_frames());
  const std::string frame = frame_bytes(FrameType::kData, 0, 1, "token");
  for (size_t size = 1; size < frame.size(); ++size) {
    EXPECT_EQ(judged.server(frame.substr(0, size)), std::nullopt);
    EXPECT_FALSE(judged.guard().is_server_between_frames());
    EXPECT_EQ(judged.server(frame.substr(size)), std::nullopt);
    EXPECT_TRUE(judged.guard().is_server_between_frames());
  }
}

TEST(FrameTest, AGoodbyeIsWhatFrameReadersRead) {
  for (const bool first : {false, true}) {
    std::vector<Frame> frames;
    FrameReader reader;
    reader.feed(as_bytes(goaway_bytes(kEnhanceYourCalm, "why", first)), [&](const Frame& frame) {
      frames.push_back(frame);
      return true;
    });
    EXPECT_TRUE(reader.at_boundary());
    ASSERT_EQ(frames.size(), first ? 2U : 1U);
    EXPECT_EQ(frames.back().type, FrameType::kGoaway);
    EXPECT_EQ(frames.back().length, 8U + 3U);
    EXPECT_EQ(frames.back().stream, 0U);
  }
}

}  // namespace
}  // namespace r1d::transport
