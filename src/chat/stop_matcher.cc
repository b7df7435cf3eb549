// SPDX-License-Identifier: Apache-2.0
#include "r1d/chat/stop_matcher.h"

#include <algorithm>

#include "r1d/base/status.h"

namespace r1d::chat {
namespace {

std::vector<uint16_t> borders_of(std::string_view text) {
  std::vector<uint16_t> border(text.size(), 0);
  size_t length = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (length > 0 && text[length] != text[i]) length = border[length - 1];
    if (text[length] == text[i]) ++length;
    border[i] = static_cast<uint16_t>(length);
  }
  return border;
}

}  // namespace

void StopMatcher::Pattern::step(char byte) {
  while (progress > 0 && text[progress] != byte) progress = border[progress - 1];
  if (text[progress] == byte) ++progress;
}

absl::StatusOr<StopMatcher> StopMatcher::create(const std::vector<std::string>& stops,
                                                bool include_stop) {
  if (stops.size() > kMaxStops) {
    return invalid_argument("{} stop strings, at most {} are accepted", stops.size(), kMaxStops);
  }
  StopMatcher matcher;
  matcher.include_stop_ = include_stop;
  for (const std::string& stop : stops) {
    if (stop.empty()) return invalid_argument("a stop string is empty");
    if (stop.size() > kMaxStopBytes) {
      return invalid_argument(
          "a stop string is {} bytes long, at most {} are accepted", stop.size(), kMaxStopBytes);
    }
    matcher.patterns_.push_back({.text = stop, .border = borders_of(stop), .progress = 0});
  }
  return matcher;
}

std::optional<size_t> StopMatcher::step(char byte) {
  std::optional<size_t> longest;
  for (size_t i = 0; i < patterns_.size(); ++i) {
    patterns_[i].step(byte);
    if (!patterns_[i].complete()) continue;
    if (!longest || patterns_[i].text.size() > patterns_[*longest].text.size()) longest = i;
  }
  return longest;
}

size_t StopMatcher::longest_progress() const {
  size_t longest = 0;
  for (const Pattern& pattern : patterns_) longest = std::max(longest, pattern.progress);
  return longest;
}

bool StopMatcher::push(std::string_view text, std::string& released) {
  if (matched_idx_) return true;
  size_t end = held_.size();
  held_ += text;
  for (const char byte : text) {
    ++end;
    matched_idx_ = step(byte);
    if (!matched_idx_) continue;
    // Every prefix of the match was held back, so its first byte still is.
    const size_t cut = include_stop_ ? 0 : patterns_[*matched_idx_].text.size();
    released.append(held_, 0, end - cut);
    held_.clear();
    return true;
  }
  const size_t free = held_.size() - longest_progress();
  released.append(held_, 0, free);
  held_.erase(0, free);
  return false;
}

void StopMatcher::flush(std::string& released) {
  released += held_;
  held_.clear();
  for (Pattern& pattern : patterns_) pattern.progress = 0;
}

}  // namespace r1d::chat
