// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

namespace r1d::tokenizer {
namespace {

constexpr int kLastCharacter = 0x143;

// Bytes that are printable in Latin-1 stand for themselves; the other 68, in order, are written
// from U+0100 on.
constexpr bool writes_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         (byte >= 0xAE && byte <= 0xFF);
}

// Character -> byte, or -1.
constexpr std::array<int16_t, kLastCharacter + 1> make_table() {
  std::array<int16_t, kLastCharacter + 1> table{};
  table.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    table[static_cast<size_t>(writes_itself(byte) ? byte : next++)] = static_cast<int16_t>(byte);
  }
  return table;
}

constexpr auto kByteOf = make_table();
static_assert(kByteOf[0x120] == ' ' && kByteOf[0x10A] == '\n' && kByteOf[kLastCharacter] == 0xAD);

}  // namespace

std::optional<std::string> bytes_from_alphabet(std::string_view written) {
  std::string bytes;
  bytes.reserve(written.size());
  for (size_t i = 0; i < written.size(); ++i) {
    int character = static_cast<uint8_t>(written[i]);
    if (character >= 0xC2 && character <= 0xC5 && i + 1 < written.size()) {
      character = (character & 0x1F) << 6 | (static_cast<uint8_t>(written[++i]) & 0x3F);
    } else if (character >= 0x80) {
      return std::nullopt;
    }
    if (character > kLastCharacter || kByteOf[static_cast<size_t>(character)] < 0) {
      return std::nullopt;
    }
    bytes += static_cast<char>(kByteOf[static_cast<size_t>(character)]);
  }
  return bytes;
}

}  // namespace r1d::tokenizer
