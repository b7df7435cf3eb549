// SPDX-License-Identifier: Apache-2.0
// The variables that running code sees: those of the blocks it stands in, then the template's own.
#pragma once

#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "jinja/value.h"

namespace r1d::jinja {

class Scopes {
 public:
  Scopes() : scopes_(1) {}

  // Null when the name has no value. A macro's code does not see its caller's blocks.
  [[nodiscard]] const Value* find(std::string_view name) const {
    for (size_t i = scopes_.size(); i-- > first_seen_;) {
      if (const auto found = scopes_[i].find(name); found != scopes_[i].end()) {
        return &found->second;
      }
    }
    const auto found = scopes_[0].find(name);
    return found == scopes_[0].end() ? nullptr : &found->second;
  }

  // How many scopes a look-up may have to ask.
  [[nodiscard]] size_t num_seen() const { return scopes_.size() - first_seen_; }

  // In the innermost scope. `name` must outlive the scope.
  void set(std::string_view name, Value value) {
    scopes_.back().insert_or_assign(name, std::move(value));
  }

  void open() { scopes_.emplace_back(); }
  void close() { scopes_.pop_back(); }

  // Opens a macro's scope; close_macro takes what this returned.
  [[nodiscard]] size_t open_macro() {
    scopes_.emplace_back();
    return std::exchange(first_seen_, scopes_.size() - 1);
  }
  void close_macro(size_t caller) {
    scopes_.pop_back();
    first_seen_ = caller;
  }

 private:
  std::vector<std::unordered_map<std::string_view, Value>> scopes_;  // the first is the template's
  size_t first_seen_ = 0;
};

}  // namespace r1d::jinja
