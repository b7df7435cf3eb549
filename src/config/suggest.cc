// SPDX-License-Identifier: Apache-2.0
#include "config/suggest.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "config/schema.h"
#include "config/values.h"

namespace r1d::config {
namespace {

// Keeps the suggestion whose spelling needs the fewest edits; the first of equals.
class Nearest {
 public:
  // Names are short; what is far longer is like none of them and need not cost more.
  explicit Nearest(std::string_view name) : name_(name.substr(0, 64)) {}

  void offer(std::string_view spelling, std::string_view suggestion) {
    const size_t distance = edit_distance(name_, spelling);
    if (distance >= least_) return;
    least_ = distance;
    best_ = suggestion;
  }
  [[nodiscard]] const std::string& best() const { return best_; }
  [[nodiscard]] size_t distance() const { return least_; }

 private:
  std::string_view name_;
  size_t least_ = std::numeric_limits<size_t>::max();
  std::string best_;
};

}  // namespace

size_t edit_distance(std::string_view a, std::string_view b) {
  // row[j]: distance of the letters of `a` seen so far to the first j letters of `b`.
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

UnknownName unknown_name(std::string_view name) {
  const bool dotted = name.find('.') != std::string_view::npos;
  Nearest nearest(name);
  for (const Key& key : schema()) {
    if (!dotted) nearest.offer(key.section(), key.section());
    nearest.offer(dotted ? key.name : key.last_part(), key.name);
    if (key.alias.empty()) continue;
    nearest.offer(dotted ? key.alias : key.alias.substr(key.alias.find('.') + 1), key.alias);
  }
  return {fmt::format("unknown key {}; did you mean {}?", quote(name), nearest.best()),
          nearest.best()};
}

UnknownName unknown_environment(std::string_view name) {
  Nearest nearest(name);
  for (const Key& key : schema()) {
    nearest.offer(key.environment(), key.name);
    if (!key.alias.empty()) nearest.offer(key.alias_environment(), key.alias);
  }
  const Key* key = find_key(nearest.best());
  const bool is_alias = key->name != nearest.best();
  return {fmt::format("unknown environment variable {}; did you mean {}?",
                      quote(name),
                      is_alias ? key->alias_environment() : key->environment()),
          nearest.best()};
}

std::string nearest(const std::string& text, const std::vector<std::string>& words) {
  Nearest nearest(text);
  for (const std::string& word : words) nearest.offer(word, word);
  return nearest.distance() <= std::max<size_t>(2, text.size() / 4) ? nearest.best() : "";
}

}  // namespace r1d::config
