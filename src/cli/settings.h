// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <list>
#include <string>

#include <CLI/CLI.hpp>

#include "r1d/config/config.h"

namespace r1d::cli {

// The flags of a subcommand that stand for keys of the configuration.
// Lifecycle: add_to() before the command line is parsed, sources() after. Stays where it is, as
// CLI11 points into it.
class Settings {
 public:
  Settings() = default;
  Settings(const Settings&) = delete;
  Settings& operator=(const Settings&) = delete;

  void add_to(CLI::App& command);

  // The flags that were given, behind the environment of this process and `file` ("": none).
  [[nodiscard]] config::Sources sources(const std::string& file) const;

 private:
  struct Flag {
    std::string key;  // or its alias
    std::string text;
    const CLI::Option* option = nullptr;
  };
  void add_flag(CLI::App& command,
                const std::string& key,
                const std::string& flag,
                const std::string& type,
                const std::string& help);

  std::list<Flag> flags_;
};

}  // namespace r1d::cli
