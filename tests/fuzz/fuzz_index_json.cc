// SPDX-License-Identifier: Apache-2.0
// Any bytes as model.safetensors.index.json: refused, or file names that stay in the directory.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "r1d/base/check.h"

#include "checkpoint/index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace r1d::checkpoint;
  const auto index = parse_index(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!index.ok()) return 0;
  for (const std::string& file : index->files) {
    R1D_CHECK(file.find('/') == std::string::npos && file.find('\0') == std::string::npos);
    R1D_CHECK(file != "." && file != "..");
  }
  for (const auto& [tensor, file_idx] : index->file_of) {
    R1D_CHECK(file_idx >= 0 && static_cast<size_t>(file_idx) < index->files.size());
  }
  return 0;
}
