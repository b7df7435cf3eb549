// SPDX-License-Identifier: Apache-2.0
// Stop strings on streamed text, across any split into pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::chat {

// Lets text through until a stop string is complete. Held back is only the longest tail of the text
// that is a proper prefix of a stop string; text and stop strings in UTF-8 are never cut inside a
// character.
//
// The stop string that is complete first wins, so that generation ends with the token that
// completes it and the result does not depend on how the text was split. With "abcd" and "bc",
// "abcd" stops after "abc" and leaves "a". Of several completed by the same byte, the longest (the
// one that starts first) is cut.
//
// Time: at most two steps per byte and stop string on average, whatever the text
// (Knuth-Morris-Pratt). Threads: confined to one.
class StopMatcher {
 public:
  static constexpr size_t kMaxStops = 64;
  static constexpr size_t kMaxStopBytes = 1024;

  // Matches nothing and holds nothing back.
  StopMatcher() = default;

  // `include_stop`: the matched string stays in the output. kInvalidArgument for too many stop
  // strings, or one that is empty or too long.
  [[nodiscard]] static absl::StatusOr<StopMatcher> create(const std::vector<std::string>& stops,
                                                          bool include_stop);

  // Appends to `released` what may go out now. True once a stop string has matched: nothing is
  // released any more then.
  bool push(std::string_view text, std::string& released);

  // Appends what was held back, as the text ends here or goes on after something else: no match
  // spans a flush.
  void flush(std::string& released);

  // Which of the stop strings given to create() matched.
  [[nodiscard]] std::optional<size_t> matched_idx() const { return matched_idx_; }

 private:
  struct Pattern {
    std::string text;
    // border[n - 1]: length of the longest proper prefix of text[0, n) that is also its suffix.
    std::vector<uint16_t> border;
    size_t progress = 0;  // bytes of `text` that the output ends with

    void step(char byte);
    [[nodiscard]] bool complete() const { return progress == text.size(); }
  };

  // Steps every pattern. The index of the longest one that `byte` completes.
  std::optional<size_t> step(char byte);
  [[nodiscard]] size_t longest_progress() const;

  std::vector<Pattern> patterns_;
  bool include_stop_ = false;
  std::string held_;
  std::optional<size_t> matched_idx_;
};

}  // namespace r1d::chat
