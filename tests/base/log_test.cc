// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/log.h"

#include <array>
#include <fcntl.h>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include "r1d/base/text.h"

#include "base/log_record.h"
#include "base/log_sink.h"
#include "base/log_writer.h"

namespace r1d::base {
namespace {

using nlohmann::json;
using ::testing::Contains;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

// 2026-01-31T12:34:56.789Z
const std::chrono::system_clock::time_point kTime{1769862896789ms};

std::string json_line(const LogRecord& record) {
  std::string line;
  append_json(record, line);
  return line;
}

std::string text_line(const LogRecord& record) {
  std::string line;
  append_text(record, /*color=*/false, line);
  return line;
}

LogRecord record_of(std::string_view message, std::span<const LogField> fields = {}) {
  return {.time = kTime,
          .level = LogLevel::info,
          .stage = "test",
          .message = message,
          .trace_id = {},
          .fields = fields};
}

TEST(LogRecordTest, HasTheKeysThatCollectorsRead) {
  const std::string text = "two words";
  const std::vector<LogField> fields = {{"method", "Chat"},
                                        {"input_length", size_t{42}},
                                        {"total_ms", 1.5},
                                        {"stream", true},
                                        {"text", text}};
  LogRecord record = record_of("request finished", fields);
  record.level = LogLevel::warn;
  record.trace_id = "0af7651916cd43dd8448eb211c80319c";
  EXPECT_EQ(json_line(record),
            R"({"timestamp":"2026-01-31T12:34:56.789Z","level":"warn","stage":"test",)"
            R"("message":"request finished","trace_id":"0af7651916cd43dd8448eb211c80319c",)"
            R"("context":{"method":"Chat","input_length":42,"total_ms":1.5,"stream":true,)"
            R"("text":"two words"}})"
            "\n");
  EXPECT_EQ(text_line(record),
            "2026-01-31 12:34:56.789 warn  test: request finished method=Chat input_length=42 "
            "total_ms=1.5 stream=true text=\"two words\" "
            "trace_id=0af7651916cd43dd8448eb211c80319c\n");
}

TEST(LogRecordTest, NamesLevelsAsTheConfigurationDoes) {
  for (const auto& [level, name] : {std::pair(LogLevel::trace, "trace"),
                                    std::pair(LogLevel::debug, "debug"),
                                    std::pair(LogLevel::info, "info"),
                                    std::pair(LogLevel::warn, "warn"),
                                    std::pair(LogLevel::err, "error")}) {
    LogRecord record = record_of("x");
    record.level = level;
    EXPECT_EQ(json::parse(json_line(record))["level"], name);
    EXPECT_EQ(spdlog::level::from_str(name), level);
  }
}

TEST(LogRecordTest, IsValidJsonForAnyBytes) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  // Bytes that matter to JSON, to UTF-8 and to terminals come more often than by chance.
  const std::string_view often =
      "\"\\\n\r\t\x1b\x7f{}:,\xc2\x9b\xe2\x80\xae\xf0\x9f\x98\x80\xed\xa0";
  const auto any_bytes = [&] {
    std::string bytes(random() % 40, '\0');
    for (char& c : bytes) {
      c = random() % 2 == 0 ? often[random() % often.size()] : static_cast<char>(random());
    }
    return bytes;
  };
  for (int i = 0; i < 20000; ++i) {
    const std::string message = any_bytes();
    const std::string text = any_bytes();
    const std::vector<LogField> fields = {{"text", text}, {"n", i}};
    const std::string line = json_line(record_of(message, fields));
    ASSERT_EQ(line.find('\n'), line.size() - 1) << line;
    ASSERT_EQ(line.find('\x1b'), std::string::npos);
    const json parsed = json::parse(line);  // throws, and so fails, when it is not JSON
    std::string expected;
    append_as_utf8(message, expected);
    ASSERT_EQ(parsed["message"].get<std::string>(), expected);
    expected.clear();
    append_as_utf8(text, expected);
    ASSERT_EQ(parsed["context"]["text"].get<std::string>(), expected);
    ASSERT_EQ(parsed["context"]["n"], i);
  }
}

TEST(LogRecordTest, StaysOneLineOfTextForAnyBytes) {
  const std::string evil =
      "a\n2026-01-31 forged\x1b[2J\x07\xc2\x9b"
      "1m\xe2\x80\xae\xff";
  const std::vector<LogField> fields = {{"text", evil}};
  const std::string line = text_line(record_of(evil, fields));
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  EXPECT_THAT(line,
              HasSubstr("a\\n2026-01-31 forged\\u001b[2J\\u0007\\u009b1m\\u202e\xEF\xBF\xBD"));
  for (const char c : line.substr(0, line.size() - 1)) {
    EXPECT_FALSE(static_cast<uint8_t>(c) < 0x20 || c == 0x7F) << static_cast<int>(c);
  }
}

TEST(LogRecordTest, QuotesWhatIsNoWord) {
  const std::vector<LogField> fields = {
      {"word", "a-b_c/1.2"}, {"empty", ""}, {"pair", "k=v"}, {"quote", "say \"hi\""}};
  EXPECT_THAT(text_line(record_of("m", fields)),
              HasSubstr(R"(m word=a-b_c/1.2 empty="" pair="k=v" quote="say \"hi\"")"));
}

TEST(LogRecordTest, WritesNumbersThatJsonHas) {
  const std::vector<LogField> fields = {{"nan", std::numeric_limits<double>::quiet_NaN()},
                                        {"inf", std::numeric_limits<double>::infinity()},
                                        {"tiny", 1e-300},
                                        {"low", std::numeric_limits<int64_t>::min()}};
  const json context = json::parse(json_line(record_of("m", fields)))["context"];
  EXPECT_TRUE(context["nan"].is_null());
  EXPECT_TRUE(context["inf"].is_null());
  EXPECT_EQ(context["tiny"], 1e-300);
  EXPECT_EQ(context["low"], std::numeric_limits<int64_t>::min());
}

// A pipe that holds a page, and whose reader reads when a test says so.
class SmallPipe {
 public:
  SmallPipe() {
    EXPECT_EQ(::pipe(ends_.data()), 0);
    EXPECT_GE(::fcntl(ends_[1], F_SETPIPE_SZ, 4096), 4096);
  }
  ~SmallPipe() {
    close_reader();
    close_writer();
  }
  [[nodiscard]] int writer() const { return ends_[1]; }
  void close_reader() { close(ends_[0]); }
  void close_writer() { close(ends_[1]); }
  void keep_writer() { ends_[1] = -1; }

  // Reads until `end` is the end of what came.
  std::string read_until(const std::string& end) {
    std::string all;
    std::array<char, 65536> buffer{};
    while (!all.ends_with(end)) {
      const ssize_t count = ::read(ends_[0], buffer.data(), buffer.size());
      if (count <= 0) break;
      all.append(buffer.data(), static_cast<size_t>(count));
    }
    return all;
  }

 private:
  static void close(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
  std::array<int, 2> ends_{-1, -1};
};

std::string lost(int64_t count) {
  return "lost " + std::to_string(count) + "\n";
}

// What comes out of the pipe until all that was written is out, by lines.
std::vector<std::string> read_all(LogWriter& writer, SmallPipe& pipe) {
  std::thread end([&writer] {
    writer.flush(60s);
    writer.write("end\n", /*urgent=*/true);
  });
  std::istringstream text(pipe.read_until("end\n"));
  end.join();
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  lines.pop_back();
  return lines;
}

TEST(LogWriterTest, NeverWaitsForAReaderAndSaysWhatWasLost) {
  constexpr int64_t kLost = 1000;
  SmallPipe pipe;
  LogWriter writer(pipe.writer(), 16384, lost);
  const std::string padding(90, '.');
  int64_t num_written = 0;
  while (writer.num_dropped() < kLost) {  // far more than pipe and queue hold; returns at all
    writer.write(fmt::format("{:08} {}\n", num_written++, padding), /*urgent=*/false);
  }
  // Whole lines in order, and where some are missing a line that says how many.
  int64_t next = 0;
  int64_t num_lost = 0;
  for (const std::string& line : read_all(writer, pipe)) {
    if (line.starts_with("lost ")) {
      next += std::stoll(line.substr(5));
      num_lost += std::stoll(line.substr(5));
    } else {
      ASSERT_EQ(line, fmt::format("{:08} {}", next++, padding));
    }
  }
  EXPECT_EQ(next, num_written);
  EXPECT_EQ(num_lost, kLost);
}

TEST(LogWriterTest, GoesOnOnceItIsRead) {
  SmallPipe pipe;
  LogWriter writer(pipe.writer(), 4096, lost);
  while (writer.num_dropped() == 0) writer.write(std::string(99, '.') + "\n", false);
  EXPECT_EQ(read_all(writer, pipe).back(), "lost 1");
  writer.write("after\n", false);
  EXPECT_EQ(pipe.read_until("after\n"), "after\n");
}

TEST(LogWriterTest, KeepsRoomForUrgentLines) {
  SmallPipe pipe;
  LogWriter writer(pipe.writer(), 16384, lost);
  while (writer.num_dropped() == 0) writer.write(std::string(99, '.') + "\n", false);
  writer.write("urgent\n", /*urgent=*/true);
  EXPECT_EQ(writer.num_dropped(), 1);
  EXPECT_THAT(read_all(writer, pipe), Contains("urgent"));
}

TEST(LogWriterTest, IsNotHeldUpByAReaderThatNeverReads) {
  SmallPipe pipe;
  const auto start = std::chrono::steady_clock::now();
  {
    LogWriter writer(pipe.writer(), 65536, lost);
    for (int i = 0; i < 300; ++i) writer.write(std::string(99, '.') + "\n", false);
    EXPECT_FALSE(writer.flush(1ms));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, 30 * LogWriter::kLastWait);
  pipe.keep_writer();  // the thread that was left behind may use it once more
}

TEST(LogWriterTest, GivesUpWhatNobodyCanRead) {
  SmallPipe pipe;
  pipe.close_reader();
  LogWriter writer(pipe.writer(), 65536, lost);
  writer.write("to nobody\n", false);
  EXPECT_TRUE(writer.flush(60s));  // and SIGPIPE did not end the process
}

TEST(LogSinkTest, WritesPlainCallsAndEventsFromManyThreads) {
  constexpr int kThreads = 4;
  constexpr int kRecords = 500;
  SmallPipe pipe;
  const auto sink = std::make_shared<LogSink>(pipe.writer(), LogSink::Form{.json = true});
  spdlog::logger logger("stage", sink);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&logger, t] {
      for (int i = 0; i < kRecords; ++i) {
        logger.info("plain {} \"{}\"", t, i);
        log_event(logger, LogLevel::info, "event", {{"thread", t}, {"i", i}}, "abc");
      }
    });
  }
  std::thread end([&] {
    for (std::thread& thread : threads) thread.join();
    logger.error("end");
    sink->writer().flush(60s);
    pipe.close_writer();
  });
  std::istringstream lines(pipe.read_until("never"));
  end.join();
  int num_plain = 0;
  int num_events = 0;
  for (std::string line; std::getline(lines, line);) {
    const json record = json::parse(line);
    EXPECT_EQ(record["stage"], "stage");
    num_plain += record["message"].get<std::string>().starts_with("plain") ? 1 : 0;
    num_events += record.contains("context") && record["trace_id"] == "abc" ? 1 : 0;
  }
  EXPECT_EQ(num_plain, kThreads * kRecords);
  EXPECT_EQ(num_events, kThreads * kRecords);
}

TEST(LogTest, WritesNothingBelowItsLevel) {
  SmallPipe pipe;
  const auto sink = std::make_shared<LogSink>(pipe.writer(), LogSink::Form{});
  spdlog::logger logger("stage", sink);
  logger.set_level(LogLevel::warn);
  log_event(logger, LogLevel::info, "hidden", {});
  log_event(logger, LogLevel::err, "seen", {});
  EXPECT_THAT(pipe.read_until("seen\n"), ::testing::Not(HasSubstr("hidden")));
}

TEST(LogTest, ChangesTheLevelOfEveryLogger) {
  const auto one = make_logger("one");
  EXPECT_EQ(make_logger("one"), one);
  set_log_level("error");
  const auto two = make_logger("two");
  for (const auto& logger : {one, two}) {
    EXPECT_FALSE(logger->should_log(LogLevel::warn));
    EXPECT_TRUE(logger->should_log(LogLevel::err));
  }
  set_log_level("debug");
  for (const auto& logger : {one, two}) EXPECT_TRUE(logger->should_log(LogLevel::debug));
  set_log_level("info");
}

TEST(LogTest, RoundsToTheMicrosecond) {
  EXPECT_EQ(log_ms(1234567ns), 1.235);
  EXPECT_EQ(log_ms(0ns), 0);
}

}  // namespace
}  // namespace r1d::base
