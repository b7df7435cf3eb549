// SPDX-License-Identifier: Apache-2.0
// Fixed-width numbers and text of binary headers, whatever the order of the machine's bytes.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "r1d/base/check.h"

namespace r1d::checkpoint {

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

class LittleEndianWriter {
 public:
  template <std::unsigned_integral T>
  void put(T value) {
    for (size_t i = 0; i < sizeof(T); ++i) bytes_ += static_cast<char>(value >> (8 * i) & 0xFFU);
  }
  void put(std::string_view text) { bytes_ += text; }
  void pad_to(size_t size) {
    R1D_CHECK(bytes_.size() <= size);
    bytes_.resize(size, '\0');
  }

  [[nodiscard]] const std::string& bytes() const { return bytes_; }
  [[nodiscard]] std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Reading past the end is a fault of the caller, who knows the size beforehand.
class LittleEndianReader {
 public:
  explicit LittleEndianReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  [[nodiscard]] T get() {
    const std::span<const std::byte> own = take(sizeof(T));
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      value = static_cast<T>(value | std::to_integer<T>(own[i]) << (8 * i));
    }
    return value;
  }
  [[nodiscard]] std::string text(size_t size) {
    const std::span<const std::byte> own = take(size);
    return {reinterpret_cast<const char*>(own.data()), own.size()};
  }
  [[nodiscard]] size_t left() const { return bytes_.size(); }

 private:
  std::span<const std::byte> take(size_t size) {
    R1D_CHECK(size <= bytes_.size());
    const std::span<const std::byte> own = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return own;
  }

  std::span<const std::byte> bytes_;
};

}  // namespace r1d::checkpoint
