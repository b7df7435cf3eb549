// SPDX-License-Identifier: Apache-2.0
// What is wrong with a configuration: all of it, so that one look mends it.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/schema.h"

namespace r1d::config {

// No more are told of one file: a file of another kind has thousands.
constexpr size_t kMaxProblems = 100;

struct Problem {
  std::string message;  // begins with the place
  std::string about{};  // the key or section whose value is not known for it; "": none
  int line = 0;         // of a file; 0: elsewhere
};

// Problems in the order in which they are to be told.
class Problems {
 public:
  void add(Problem problem);
  // No value is known: the file could not be read to its end.
  void doubt_all() { all_doubtful_ = true; }
  // Puts the problems so far, which are those of a file, in the order of their lines.
  void sort_by_line();

  // What a problem was about may be meant differently than it was read, so nothing is to be
  // concluded from its value.
  [[nodiscard]] bool is_doubtful(const Key& key) const;
  [[nodiscard]] bool empty() const { return problems_.empty(); }
  [[nodiscard]] const std::string& first() const { return problems_.front().message; }
  [[nodiscard]] std::vector<std::string> messages() const;

 private:
  std::vector<Problem> problems_;
  std::set<const Key*> doubtful_;
  bool all_doubtful_ = false;
};

}  // namespace r1d::config
