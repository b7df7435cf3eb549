// SPDX-License-Identifier: Apache-2.0
// Structured logs, one object per line on standard error (json) or one readable line (text).
// Prompts and outputs never reach a log.
#pragma once

#include <memory>
#include <string>

#include <spdlog/logger.h>

namespace r1d::base {

enum class LogFormat : uint8_t { kText, kJson };

// Sets what loggers made from now on print. Called once by main, before the first stage is built.
// `level`: trace, debug, info, warn, error; anything else is kInvalidArgument by the config's
// check.
void init_logging(const std::string& level, LogFormat format);

// The same level for every logger there is, and those to come. Thread-safe.
void set_log_level(const std::string& level);

// The logger of one stage ("scheduler", "engine", ...); the same for each call. Thread-safe.
std::shared_ptr<spdlog::logger> make_logger(const std::string& stage);

}  // namespace r1d::base
