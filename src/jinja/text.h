// SPDX-License-Identifier: Apache-2.0
// A string in which every byte knows whether the template or data wrote it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "r1d/jinja/template.h"

namespace r1d::jinja {

// Bytes and the runs of one origin in them.
// Invariant: runs end in rising order, the last at bytes().size(); neighbours differ in `trusted`.
class Text {
 public:
  Text() = default;
  Text(std::string bytes, bool trusted);

  [[nodiscard]] const std::string& bytes() const { return bytes_; }
  [[nodiscard]] size_t size() const { return bytes_.size(); }
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  // True for empty text.
  [[nodiscard]] bool is_trusted() const;
  // What holding it costs.
  [[nodiscard]] size_t footprint() const { return bytes_.size() + runs_.size() * sizeof(Run); }

  void append(std::string_view bytes, bool trusted);
  void append(const Text& text);

  // Bytes [begin, end), which must lie in the text.
  [[nodiscard]] Text slice(size_t begin, size_t end) const;
  [[nodiscard]] std::vector<Segment> segments() const;

 private:
  struct Run {
    size_t end = 0;
    bool trusted = false;
  };

  void close_run(bool trusted);

  std::string bytes_;
  std::vector<Run> runs_;
};

}  // namespace r1d::jinja
