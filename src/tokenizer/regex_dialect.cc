// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/regex_dialect.h"

#include <cstdint>

#include "r1d/base/status.h"
#include "r1d/base/text.h"

namespace r1d::tokenizer {
namespace {

// White_Space, Unicode 16.
constexpr std::string_view kWhiteSpace =
    R"(\x09-\x0D\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

// Code points that the general categories gained after Unicode 14, up to Unicode 16, as the regex
// engine of Hugging Face `tokenizers` 0.23 sees them (probed with every code point).
constexpr std::string_view kNewerLetters =
    R"(\x{1C89}-\x{1C8A}\x{A7CB}-\x{A7CD}\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3})"
    R"(\x{10D4A}-\x{10D65}\x{10D6F}-\x{10D85}\x{10EC2}-\x{10EC4}\x{1123F}-\x{11240})"
    R"(\x{11380}-\x{11389}\x{1138B}\x{1138E}\x{11390}-\x{113B5}\x{113B7}\x{113D1})"
    R"(\x{113D3}\x{11BC0}-\x{11BE0}\x{11F02}\x{11F04}-\x{11F10}\x{11F12}-\x{11F33})"
    R"(\x{1342F}\x{13441}-\x{13446}\x{13460}-\x{143FA}\x{16100}-\x{1611D})"
    R"(\x{16D40}-\x{16D6C}\x{18CFF}\x{1B132}\x{1B155}\x{1DF25}-\x{1DF2A})"
    R"(\x{1E030}-\x{1E06D}\x{1E4D0}-\x{1E4EB}\x{1E5D0}-\x{1E5ED}\x{1E5F0}\x{2B739})"
    R"(\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})";

constexpr std::string_view kNewerMarks =
    R"(\x{897}\x{CF3}\x{ECE}\x{10D69}-\x{10D6D}\x{10EFC}-\x{10EFF}\x{11241})"
    R"(\x{113B8}-\x{113C0}\x{113C2}\x{113C5}\x{113C7}-\x{113CA}\x{113CC}-\x{113D0})"
    R"(\x{113D2}\x{113E1}-\x{113E2}\x{11F00}-\x{11F01}\x{11F03}\x{11F34}-\x{11F3A})"
    R"(\x{11F3E}-\x{11F42}\x{11F5A}\x{13440}\x{13447}-\x{13455}\x{1611E}-\x{1612F})"
    R"(\x{1E08F}\x{1E4EC}-\x{1E4EF}\x{1E5EE}-\x{1E5EF})";

constexpr std::string_view kNewerNumbers =
    R"(\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11F50}-\x{11F59})"
    R"(\x{16130}-\x{16139}\x{16D70}-\x{16D79}\x{1CCF0}-\x{1CCF9}\x{1D2C0}-\x{1D2D3})"
    R"(\x{1E4F0}-\x{1E4F9}\x{1E5F1}-\x{1E5FA})";

constexpr std::string_view kNewerPunctuation =
    R"(\x{1B4E}-\x{1B4F}\x{1B7F}\x{10D6E}\x{113D4}-\x{113D5}\x{113D7}-\x{113D8})"
    R"(\x{11B00}-\x{11B09}\x{11BE1}\x{11F43}-\x{11F4F}\x{16D6D}-\x{16D6F}\x{1E5FF})";

constexpr std::string_view kNewerSymbols =
    R"(\x{2427}-\x{2429}\x{2FFC}-\x{2FFF}\x{31E4}-\x{31E5}\x{31EF}\x{10D8E}-\x{10D8F})"
    R"(\x{1CC00}-\x{1CCEF}\x{1CD00}-\x{1CEB3}\x{1F6DC}\x{1F774}-\x{1F776})"
    R"(\x{1F77B}-\x{1F77F}\x{1F7D9}\x{1F8B2}-\x{1F8BB}\x{1F8C0}-\x{1F8C1})"
    R"(\x{1FA75}-\x{1FA77}\x{1FA87}-\x{1FA89}\x{1FA8F}\x{1FAAD}-\x{1FAAF})"
    R"(\x{1FABB}-\x{1FABF}\x{1FAC6}\x{1FACE}-\x{1FACF}\x{1FADA}-\x{1FADC}\x{1FADF})"
    R"(\x{1FAE8}-\x{1FAE9}\x{1FAF7}-\x{1FAF8}\x{1FBCB}-\x{1FBEF})";

std::string_view newer_members(char category) {
  switch (category) {
    case 'L':
      return kNewerLetters;
    case 'M':
      return kNewerMarks;
    case 'N':
      return kNewerNumbers;
    case 'P':
      return kNewerPunctuation;
    case 'S':
      return kNewerSymbols;
    default:
      return {};
  }
}

// Copies a pattern, rewriting the escapes whose meaning differs.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : rest_(pattern) {}

  absl::StatusOr<std::string> run() {
    while (!rest_.empty()) {
      const char c = rest_[0];
      if (c == '\\') {
        R1D_RETURN_IF_ERROR(escape());
      } else if (in_class_) {
        R1D_RETURN_IF_ERROR(inside_class(c));
      } else {
        if (c == '[')
          open_class();
        else
          copy(1);
      }
    }
    return out_;
  }

 private:
  void copy(size_t count) {
    out_.append(rest_.substr(0, count));
    rest_.remove_prefix(count);
  }

  void open_class() {
    copy(1);
    if (rest_.starts_with('^')) copy(1);
    if (rest_.starts_with(']')) copy(1);  // a member when it comes first
    in_class_ = true;
  }

  absl::Status inside_class(char c) {
    // Oniguruma nests and intersects classes, PCRE2 does not.
    if (c == '[' || rest_.starts_with("&&")) {
      return invalid_argument("a class inside a character class is not supported");
    }
    if (c == ']') in_class_ = false;
    copy(1);
    return absl::OkStatus();
  }

  absl::Status escape() {
    if (rest_.size() < 2) return invalid_argument("ends in a backslash");
    switch (rest_[1]) {
      case 's':
        members(kWhiteSpace, 2);
        return absl::OkStatus();
      case 'S':
        return not_white_space();
      case 'p':
        return property();
      case 'w':
      case 'W':
      case 'd':
      case 'D':
      case 'b':
      case 'B':
      case 'h':
      case 'H':
      case 'X':
      case 'R':
      case 'P':
        return invalid_argument("\\{} is not supported", rest_[1]);
      default:
        copy(2);
        return absl::OkStatus();
    }
  }

  // A set that replaces an escape of `size` characters.
  void members(std::string_view set, size_t size) {
    rest_.remove_prefix(size);
    if (!in_class_) out_ += '[';
    out_ += set;
    if (!in_class_) out_ += ']';
  }

  absl::Status not_white_space() {
    if (in_class_) return invalid_argument("\\S inside a character class is not supported");
    out_.append("[^").append(kWhiteSpace).append("]");
    rest_.remove_prefix(2);
    return absl::OkStatus();
  }

  // \p{L}, or a name that both engines know alike.
  absl::Status property() {
    const size_t end = rest_.find('}');
    if (!rest_.starts_with("\\p{") || end == std::string_view::npos) {
      return invalid_argument("\\p is not followed by a name in braces");
    }
    const std::string_view name = rest_.substr(3, end - 3);
    const std::string_view newer = name.size() == 1 ? newer_members(name[0]) : std::string_view();
    if (newer.empty()) {
      return invalid_argument("\\p{{{}}} is not supported; L, M, N, P and S are",
                              printable(name, 20));
    }
    const std::string set = std::string(rest_.substr(0, end + 1)).append(newer);
    members(set, end + 1);
    return absl::OkStatus();
  }

  std::string_view rest_;
  std::string out_;
  bool in_class_ = false;
};

}  // namespace

absl::StatusOr<std::string> to_pcre2(std::string_view pattern) {
  return Translator(pattern).run();
}

}  // namespace r1d::tokenizer
