// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file: refused, or every accepted tensor lies in the data section.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "r1d/base/check.h"

#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace r1d::checkpoint;
  if (size < kSafetensorsLengthBytes) return 0;
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto header_bytes =
      safetensors_header_bytes(bytes.first<kSafetensorsLengthBytes>(), static_cast<int64_t>(size));
  if (!header_bytes.ok()) return 0;
  const std::string_view json(reinterpret_cast<const char*>(data) + kSafetensorsLengthBytes,
                              static_cast<size_t>(*header_bytes));
  const int64_t data_bytes = static_cast<int64_t>(size) - kSafetensorsLengthBytes - *header_bytes;
  const auto tensors = parse_safetensors_header(json, data_bytes);
  if (!tensors.ok()) return 0;
  int64_t covered = 0;
  for (const TensorEntry& tensor : *tensors) {
    R1D_CHECK(tensor.begin == covered && tensor.begin <= tensor.end);
    covered = tensor.end;
  }
  R1D_CHECK(covered == data_bytes);
  return 0;
}
