// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "config/problems.h"
#include "config/schema.h"

namespace r1d::config {

constexpr size_t kMaxYamlBytes = size_t{1} << 20;

// One key with its value, as text, and the line it stands on.
struct YamlEntry {
  const Key* key = nullptr;  // of schema()
  std::string name;          // as it was written: the key's or its alias
  std::string value;
  int line = 0;
};

struct YamlFile {
  std::vector<YamlEntry> entries;  // one a name at most, so as few as the schema has
  std::vector<Problem> problems;   // kMaxProblems at most, and one that says so
  bool complete = true;            // the parser came to the end
};

// Reads sections of keys with plain values, the only form a configuration has, and objects to all
// else: unknown names, lists, deeper levels, anchors and aliases, a second document, a name given
// twice (a key beside its alias is the caller's to judge). What is objected to is left out, and the
// rest is read as if it were not there. Problems begin with "origin:line". Values are not judged
// here. Cost: the parser's events are taken as they come and no tree is built, so memory stays in
// proportion to the text, which may be kMaxYamlBytes long.
[[nodiscard]] YamlFile read_yaml(const std::string& text, const std::string& origin);

}  // namespace r1d::config
