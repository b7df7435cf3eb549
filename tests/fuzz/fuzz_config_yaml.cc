// SPDX-License-Identifier: Apache-2.0
// Any bytes as a configuration file: refused with a message that begins with the file's name, or
// accepted, and then print() writes what reads back the same.
#include <cstddef>
#include <cstdint>
#include <string>

#include "r1d/base/check.h"
#include "r1d/base/status.h"
#include "r1d/config/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto config = r1d::config::parse_yaml(text, "fuzz");
  if (!config.ok()) {
    R1D_CHECK(r1d::message_of(config.status()).starts_with("fuzz:"));
    return 0;
  }
  const std::string printed = r1d::config::print(*config);
  const auto again = r1d::config::parse_yaml(printed, "printed");
  R1D_CHECK(again.ok());
  R1D_CHECK(r1d::config::print(*again) == printed);
  return 0;
}
