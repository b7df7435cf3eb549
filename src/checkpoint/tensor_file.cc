// SPDX-License-Identifier: Apache-2.0
#include "r1d/checkpoint/tensor_file.h"

#include "r1d/base/status.h"

#include "checkpoint/safetensors.h"

namespace r1d::checkpoint {

absl::StatusOr<std::map<std::string, std::vector<float>>> read_f32_tensors(
    const std::string& path) {
  R1D_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::open(path, path));
  std::map<std::string, std::vector<float>> tensors;
  for (const TensorEntry& entry : file.tensors()) {
    if (entry.dtype != "F32") {
      return invalid_argument(
          "{}: tensor {} has dtype {}, expected F32", path, entry.name, entry.dtype);
    }
    std::vector<float> values(static_cast<size_t>(entry.end - entry.begin) / sizeof(float));
    R1D_RETURN_IF_ERROR(file.read_at(entry.begin, std::as_writable_bytes(std::span(values))));
    tensors.emplace(entry.name, std::move(values));
  }
  return tensors;
}

}  // namespace r1d::checkpoint
