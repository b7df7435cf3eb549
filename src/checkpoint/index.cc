// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/index.h"

#include <map>
#include <utility>

#include "r1d/base/status.h"

#include "checkpoint/errors.h"
#include "checkpoint/json.h"

namespace r1d::checkpoint {
namespace {

constexpr size_t kMaxFiles = 4096;  // each stays open

// A name that can only mean a file of the directory itself.
bool is_plain_file_name(const std::string& name) {
  constexpr size_t kMaxNameBytes = 255;
  return name.size() <= kMaxNameBytes && name.ends_with(".safetensors") &&
         name.find_first_of("/\\") == std::string::npos && printable(name, kMaxNameBytes) == name;
}

absl::Status check_file_name(const std::string& tensor, const Json& file) {
  if (file.is_string() && is_plain_file_name(file.get_ref<const std::string&>())) {
    return absl::OkStatus();
  }
  return invalid_argument(
      "weight_map: tensor {} is mapped to {}, expected the plain name of a "
      ".safetensors file of this directory",
      printable(tensor),
      describe(file));
}

}  // namespace

absl::StatusOr<CheckpointIndex> parse_index(std::string_view text) {
  R1D_ASSIGN_OR_RETURN(const Json json, parse_json(text, kIndexJson));
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object() || map->empty()) {
    return invalid_argument("weight_map: expected an object of tensor names and files");
  }
  std::map<std::string, std::vector<std::string>> tensors_of;
  for (const auto& [tensor, file] : map->items()) {
    R1D_RETURN_IF_ERROR(check_file_name(tensor, file));
    tensors_of[file.get_ref<const std::string&>()].push_back(tensor);
  }
  if (tensors_of.size() > kMaxFiles) {
    return invalid_argument("weight_map: names more than {} files", kMaxFiles);
  }
  CheckpointIndex index;
  index.file_of.reserve(map->size());
  for (auto& [file, tensors] : tensors_of) {
    const auto file_idx = static_cast<int32_t>(index.files.size());
    index.files.push_back(file);
    for (std::string& tensor : tensors) index.file_of.emplace(std::move(tensor), file_idx);
  }
  return index;
}

}  // namespace r1d::checkpoint
