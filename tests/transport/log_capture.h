// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include "base/log_sink.h"

namespace r1d::transport {

// Has loggers made during its life write JSON here. One at a time; loggers made before it, and
// after it, are others.
class LogCapture {
 public:
  explicit LogCapture(base::LogLevel level) : before_(spdlog::default_logger()) {
    sink_ = std::make_shared<base::LogSink>(fileno(file_), base::LogSink::Form{.json = true});
    auto root = std::make_shared<spdlog::logger>("captured", sink_);
    root->set_level(level);
    use(std::move(root));
  }
  ~LogCapture() {
    use(before_);
    sink_->writer().flush(std::chrono::minutes(1));
    std::fclose(file_);
  }
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;

  // What has been logged so far.
  std::string text() {
    EXPECT_TRUE(sink_->writer().flush(std::chrono::minutes(1)));
    std::string all;
    std::rewind(file_);
    for (int c = std::fgetc(file_); c != EOF; c = std::fgetc(file_)) {
      all += static_cast<char>(c);
    }
    return all;
  }
  // Its records with this message.
  std::vector<nlohmann::json> records(const std::string& message) {
    std::vector<nlohmann::json> found;
    std::istringstream lines(text());
    for (std::string line; std::getline(lines, line);) {
      nlohmann::json record = nlohmann::json::parse(line);
      if (record["message"] == message) found.push_back(std::move(record));
    }
    return found;
  }

 private:
  static void use(std::shared_ptr<spdlog::logger> root) {
    spdlog::drop_all();
    spdlog::set_default_logger(std::move(root));
  }

  const std::shared_ptr<spdlog::logger> before_;
  std::FILE* const file_ = std::tmpfile();
  std::shared_ptr<base::LogSink> sink_;
};

}  // namespace r1d::transport
