// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace r1d::base {
namespace {

// Writes the message as the inside of a JSON string, so that no text can forge a second record.
class JsonMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& msg,
              const std::tm& /*time*/,
              spdlog::memory_buf_t& out) override {
    for (const char c : msg.payload) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        out.push_back('\\');
        out.push_back(c);
      } else if (byte < 0x20 || byte == 0x7F) {
        fmt::format_to(std::back_inserter(out), "\\u{:04x}", byte);
      } else {
        out.push_back(c);
      }
    }
  }
  [[nodiscard]] std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<JsonMessage>();
  }
};

}  // namespace

void init_logging(const std::string& level, LogFormat format) {
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto root = std::make_shared<spdlog::logger>("r1d", std::move(sink));
  root->flush_on(spdlog::level::info);
  auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc);
  formatter->add_flag<JsonMessage>('*');
  formatter->set_pattern(
      format == LogFormat::kJson
          ? R"({"timestamp":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l","stage":"%n","message":"%*"})"
          : "%Y-%m-%d %H:%M:%S.%e %^%-5l%$ %n: %v");
  root->set_formatter(std::move(formatter));
  spdlog::drop_all();
  spdlog::set_default_logger(std::move(root));
  set_log_level(level);
}

void set_log_level(const std::string& level) {
  spdlog::set_level(spdlog::level::from_str(level));
}

std::shared_ptr<spdlog::logger> make_logger(const std::string& stage) {
  if (auto known = spdlog::get(stage)) return known;
  auto logger = spdlog::default_logger()->clone(stage);
  try {
    spdlog::register_logger(logger);
  } catch (const spdlog::spdlog_ex&) {
    // Another thread was first; this one writes to the same place.
    if (auto known = spdlog::get(stage)) return known;
  }
  return logger;
}

}  // namespace r1d::base
