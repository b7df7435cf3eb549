// SPDX-License-Identifier: Apache-2.0
#include "jinja/text.h"

#include <algorithm>
#include <utility>

namespace r1d::jinja {

Text::Text(std::string bytes, bool trusted) : bytes_(std::move(bytes)) {
  close_run(trusted);
}

bool Text::is_trusted() const {
  return runs_.empty() || (runs_.size() == 1 && runs_[0].trusted);
}

// Gives the bytes behind the last run their origin.
void Text::close_run(bool trusted) {
  const size_t covered = runs_.empty() ? 0 : runs_.back().end;
  if (covered == bytes_.size()) return;
  if (!runs_.empty() && runs_.back().trusted == trusted) {
    runs_.back().end = bytes_.size();
  } else {
    runs_.push_back({bytes_.size(), trusted});
  }
}

void Text::append(std::string_view bytes, bool trusted) {
  bytes_.append(bytes);
  close_run(trusted);
}

void Text::append(const Text& text) {
  size_t begin = 0;
  for (const Run& run : text.runs_) {
    append(std::string_view(text.bytes_).substr(begin, run.end - begin), run.trusted);
    begin = run.end;
  }
}

Text Text::slice(size_t begin, size_t end) const {
  Text result;
  if (begin >= end) return result;
  auto run = std::upper_bound(
      runs_.begin(), runs_.end(), begin, [](size_t at, const Run& r) { return at < r.end; });
  for (; begin < end; ++run) {
    const size_t stop = std::min(end, run->end);
    result.append(std::string_view(bytes_).substr(begin, stop - begin), run->trusted);
    begin = stop;
  }
  return result;
}

std::vector<Segment> Text::segments() const {
  std::vector<Segment> result;
  result.reserve(runs_.size());
  size_t begin = 0;
  for (const Run& run : runs_) {
    result.push_back({bytes_.substr(begin, run.end - begin), run.trusted});
    begin = run.end;
  }
  return result;
}

}  // namespace r1d::jinja
