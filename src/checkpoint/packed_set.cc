// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/packed_set.h"

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "r1d/base/status.h"
#include "r1d/base/text.h"

#include "checkpoint/packed_layout.h"

namespace r1d::checkpoint {
namespace {

const char* split_name(ExpertSplit split) {
  return split == ExpertSplit::kTensor ? "a slice of every expert on each rank"
                                       : "whole experts on each rank (--expert-parallel)";
}

// The world sizes in the names of a directory's packed files.
std::set<int32_t> world_sizes_in(const std::string& dir) {
  std::set<int32_t> sizes;
  std::error_code error;
  for (std::filesystem::directory_iterator file(dir, error), end; !error && file != end;
       file.increment(error)) {
    const auto size = world_size_of_name(file->path().filename().string());
    if (size) sizes.insert(*size);
  }
  return sizes;
}

absl::StatusOr<int32_t> find_world_size(const std::string& dir, const ReadOptions& options) {
  const std::set<int32_t> sizes = world_sizes_in(dir);
  if (sizes.empty()) return not_found("{}: has no {}", dir, packed_file_name(0, 1));
  if (sizes.size() > 1) {
    return failed_precondition("{}: has files of world size {} and of {}; leave those of one",
                               dir,
                               *sizes.begin(),
                               *sizes.rbegin());
  }
  const int32_t size = *sizes.begin();
  if (options.world_size.value_or(size) != size) {
    return failed_precondition(
        "{}: packed for world size {}, asked for {}: serve it with --world-size {}, or pack the "
        "checkpoint again",
        dir,
        size,
        *options.world_size,
        size);
  }
  return size;
}

// Slices are what the ranks read, so a difference in any field is a difference of the model.
std::string describe(const PackedSection& section) {
  return fmt::format("{} {} [{}, {}], rows {} to {}, columns {} to {}, at byte {}",
                     printable(section.name),
                     dtype_name(section.dtype),
                     section.rows,
                     section.cols,
                     section.slice.rows.begin,
                     section.slice.rows.end,
                     section.slice.cols.begin,
                     section.slice.cols.end,
                     section.offset);
}

bool same(const PackedSection& a, const PackedSection& b) {
  return a.name == b.name && a.kind == b.kind && a.dtype == b.dtype && a.layer == b.layer &&
         a.rows == b.rows && a.cols == b.cols && a.slice.rows == b.slice.rows &&
         a.slice.cols == b.slice.cols && a.offset == b.offset && a.first_piece == b.first_piece;
}

absl::Status compare(const std::vector<PackedSection>& found,
                     const std::vector<PackedSection>& needed) {
  for (size_t i = 0; i < std::min(found.size(), needed.size()); ++i) {
    if (same(found[i], needed[i])) continue;
    return invalid_argument(
        "packed for another model than config.json describes: section {} is {}, expected {}",
        i,
        describe(found[i]),
        describe(needed[i]));
  }
  if (found.size() == needed.size()) return absl::OkStatus();
  return invalid_argument(
      "packed for another model than config.json describes: {} sections, expected {}",
      found.size(),
      needed.size());
}

// The file holds exactly what the writer would have put there for config.json.
absl::Status check_against_config(const ModelConfig& config, const PackedFile& file) {
  const PackedPage& page = file.page();
  R1D_ASSIGN_OR_RETURN(const RankShard shard,
                       make_rank_shard(config, page.rank, page.world_size, page.expert_split));
  std::unordered_map<std::string, DType> dtypes;
  for (const PackedSection& section : file.sections()) dtypes.emplace(section.name, section.dtype);
  R1D_ASSIGN_OR_RETURN(
      const PackedLayout layout,
      lay_out_packed(config,
                     page.has_mtp,
                     shard,
                     page.piece_bytes,
                     [&](const std::string& name) -> absl::StatusOr<DType> {
                       const auto found = dtypes.find(name);
                       if (found != dtypes.end()) return found->second;
                       return invalid_argument(
                           "packed for another model than config.json describes: tensor {} is "
                           "missing",
                           name);
                     }));
  R1D_RETURN_IF_ERROR(compare(file.sections(), layout.sections));
  if (page.model != model_digest(config, page.has_mtp)) {
    return invalid_argument("packed for another model than config.json describes");
  }
  if (page.file_bytes != layout.file_bytes) {
    return invalid_argument("is {} bytes long, expected {}", page.file_bytes, layout.file_bytes);
  }
  return absl::OkStatus();
}

// The file is the one its name says, and of the packing that rank 0's file is of.
absl::Status check_identity(const PackedFile& file, const PackedFile& first, int32_t rank) {
  const PackedPage& page = file.page();
  if (page.rank != rank || file.name() != packed_file_name(rank, page.world_size)) {
    return invalid_argument(
        "holds rank {} of {}, which its name does not say", page.rank, page.world_size);
  }
  if (page.set != first.page().set || page.expert_split != first.page().expert_split ||
      page.has_mtp != first.page().has_mtp || page.piece_bytes != first.page().piece_bytes) {
    return invalid_argument("comes from another packing than {}", first.name());
  }
  return absl::OkStatus();
}

absl::StatusOr<PackedFile> open_rank(const std::string& dir, int32_t rank, int32_t world_size) {
  const std::string name = packed_file_name(rank, world_size);
  absl::StatusOr<PackedFile> file = PackedFile::open(dir + "/" + name, name);
  if (absl::IsNotFound(file.status())) {
    return failed_precondition(
        "{}: is missing; {} files of {} ranks belong together", name, world_size, world_size);
  }
  return file;
}

void add_tensors(const PackedFile& file, PackedSet& set) {
  const auto rank = static_cast<size_t>(file.page().rank);
  for (size_t i = 0; i < file.sections().size(); ++i) {
    const PackedSection& section = file.sections()[i];
    PackedSet::Tensor& tensor = set.tensors[section.name];
    tensor.stored = {.dtype = section.dtype, .rows = section.rows, .cols = section.cols};
    tensor.section_idxs.resize(static_cast<size_t>(file.page().world_size), -1);
    tensor.section_idxs[rank] = static_cast<int32_t>(i);
  }
}

}  // namespace

bool is_packed(const std::string& dir) {
  return !world_sizes_in(dir).empty();
}

absl::StatusOr<PackedSet> open_packed_set(const std::string& dir, const ReadOptions& options) {
  R1D_ASSIGN_OR_RETURN(const int32_t world_size, find_world_size(dir, options));
  PackedSet set;
  R1D_ASSIGN_OR_RETURN(set.config, ModelConfig::load(dir + "/config.json"));
  set.files.reserve(static_cast<size_t>(world_size));
  for (int32_t rank = 0; rank < world_size; ++rank) {
    R1D_ASSIGN_OR_RETURN(PackedFile file, open_rank(dir, rank, world_size));
    set.files.push_back(std::move(file));
    const PackedFile& last = set.files.back();
    absl::Status status = check_identity(last, set.files.front(), rank);
    if (status.ok()) status = check_against_config(set.config, last);
    if (!status.ok()) return with_context(status, last.name());
    add_tensors(last, set);
  }
  const ExpertSplit split = set.page().expert_split;
  if (options.expert_split.value_or(split) != split) {
    return failed_precondition("{}: packed with {}, asked for {}: pack the checkpoint again",
                               dir,
                               split_name(split),
                               split_name(*options.expert_split));
  }
  return set;
}

}  // namespace r1d::checkpoint
