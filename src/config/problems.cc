// SPDX-License-Identifier: Apache-2.0
#include "config/problems.h"

#include <algorithm>
#include <utility>

namespace r1d::config {

void Problems::add(Problem problem) {
  if (const Key* key = find_key(problem.about); key != nullptr) doubtful_.insert(key);
  for (const Key& key : schema()) {
    if (key.section() == problem.about) doubtful_.insert(&key);
  }
  problems_.push_back(std::move(problem));
}

void Problems::sort_by_line() {
  std::stable_sort(problems_.begin(), problems_.end(), [](const Problem& a, const Problem& b) {
    return a.line < b.line;
  });
}

bool Problems::is_doubtful(const Key& key) const {
  return all_doubtful_ || doubtful_.contains(&key);
}

std::vector<std::string> Problems::messages() const {
  std::vector<std::string> messages;
  messages.reserve(problems_.size());
  for (const Problem& problem : problems_) messages.push_back(problem.message);
  return messages;
}

}  // namespace r1d::config
