// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/shard_set.h"

#include <utility>

#include "r1d/base/status.h"

#include "checkpoint/errors.h"
#include "checkpoint/index.h"
#include "checkpoint/json.h"

namespace r1d::checkpoint {
namespace {

constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kSingleFile = "model.safetensors";

// Frequencies that old exports stored; r1d computes its own.
bool is_ignored(std::string_view tensor) {
  return tensor.ends_with("rotary_emb.inv_freq");
}

// Adds the tensors of the newly opened last file. `index` is null when there is none.
absl::Status add_tensors(const CheckpointIndex* index, ShardSet& set) {
  const SafetensorsFile& file = set.files.back();
  const auto file_idx = static_cast<int32_t>(set.files.size()) - 1;
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    const std::string& name = file.tensors()[i].name;
    if (is_ignored(name)) continue;
    if (index != nullptr) {
      const auto mapped = index->file_of.find(name);
      if (mapped == index->file_of.end()) {
        return invalid_argument(
            "{}: tensor {} is not in {}", file.name(), printable(name), kIndexFile);
      }
      if (mapped->second != file_idx) {
        return invalid_argument("{}: tensor {} belongs to {} as {} says",
                                file.name(),
                                printable(name),
                                index->files[static_cast<size_t>(mapped->second)],
                                kIndexFile);
      }
    }
    set.tensors.emplace(name, ShardSet::Place{file_idx, static_cast<int32_t>(i)});
  }
  return absl::OkStatus();
}

// Every tensor of the index was found in its shard. The sorted-first absent one is named, so that
// the same fault gives the same text each time.
absl::Status check_index_is_met(const CheckpointIndex& index, const ShardSet& set) {
  const std::pair<const std::string, int32_t>* absent = nullptr;
  for (const auto& mapping : index.file_of) {
    if (is_ignored(mapping.first) || set.tensors.contains(mapping.first)) continue;
    if (absent == nullptr || mapping.first < absent->first) absent = &mapping;
  }
  if (absent == nullptr) return absl::OkStatus();
  return invalid_argument("{}: tensor {} is not in {}, to which it is mapped",
                          kIndexFile,
                          printable(absent->first),
                          index.files[static_cast<size_t>(absent->second)]);
}

absl::StatusOr<ShardSet> open_indexed(const std::string& dir, std::string_view text) {
  absl::StatusOr<CheckpointIndex> index = parse_index(text);
  if (!index.ok()) return with_context(index.status(), kIndexFile);
  ShardSet set;
  set.listing = kIndexFile;
  set.files.reserve(index->files.size());
  set.tensors.reserve(index->file_of.size());
  for (const std::string& name : index->files) {
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::open(dir + "/" + name, name);
    if (absl::IsNotFound(file.status())) {
      return invalid_argument("{}: shard {} does not exist", kIndexFile, name);
    }
    if (!file.ok()) return file.status();
    set.files.push_back(*std::move(file));
    R1D_RETURN_IF_ERROR(add_tensors(&*index, set));
  }
  R1D_RETURN_IF_ERROR(check_index_is_met(*index, set));
  return set;
}

absl::StatusOr<ShardSet> open_single(const std::string& dir) {
  absl::StatusOr<SafetensorsFile> file =
      SafetensorsFile::open(dir + "/" + kSingleFile, kSingleFile);
  if (absl::IsNotFound(file.status())) {
    return not_found("{}: has neither {} nor {}", dir, kIndexFile, kSingleFile);
  }
  if (!file.ok()) return file.status();
  ShardSet set;
  set.listing = kSingleFile;
  set.files.push_back(*std::move(file));
  R1D_RETURN_IF_ERROR(add_tensors(nullptr, set));
  return set;
}

}  // namespace

absl::StatusOr<ShardSet> open_shards(const std::string& dir) {
  const absl::StatusOr<std::string> text =
      read_text_file(dir + "/" + kIndexFile, kIndexJson.max_bytes);
  if (absl::IsNotFound(text.status())) return open_single(dir);
  if (!text.ok()) return with_context(text.status(), kIndexFile);
  return open_indexed(dir, *text);
}

}  // namespace r1d::checkpoint
