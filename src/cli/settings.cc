// SPDX-License-Identifier: Apache-2.0
#include "cli/settings.h"

#include <unistd.h>

#include <fmt/format.h>

namespace r1d::cli {
namespace {

std::vector<std::string> environment_entries() {
  std::vector<std::string> entries;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry)
    entries.emplace_back(*entry);
  return entries;
}

std::string section_of(const std::string& key) {
  return key.substr(0, key.find('.'));
}

}  // namespace

void Settings::add_to(CLI::App& command) {
  for (const config::KeyInfo& info : config::keys()) {
    const std::string range = info.range.empty() ? "" : fmt::format(" ({})", info.range);
    add_flag(command,
             info.key,
             info.flag,
             info.type,
             fmt::format("{}{} [{}]", info.help, range, info.default_value));
    if (info.alias.empty()) continue;
    add_flag(command, info.alias, info.alias_flag, info.type, "The same as " + info.flag);
  }
}

void Settings::add_flag(CLI::App& command,
                        const std::string& key,
                        const std::string& flag,
                        const std::string& type,
                        const std::string& help) {
  Flag& added = flags_.emplace_back(Flag{.key = key, .text = {}, .option = nullptr});
  added.option =
      command.add_option(flag, added.text, help)->type_name(type)->group(section_of(key));
}

config::Sources Settings::sources(const std::string& file) const {
  config::Sources sources{.file = file, .environment = environment_entries(), .flags = {}};
  for (const Flag& flag : flags_) {
    if (flag.option->count() > 0) sources.flags.emplace_back(flag.key, flag.text);
  }
  return sources;
}

}  // namespace r1d::cli
