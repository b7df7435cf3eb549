// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/checkpoint/weight_load.h"

#include "checkpoint/errors.h"
#include "checkpoint/packed_set.h"

namespace r1d::checkpoint {
namespace {

bool covers(const Range& whole, const Range& part) {
  return whole.begin <= part.begin && part.end <= whole.end;
}

// Rows of the section, at their full width.
bool holds(const PackedSection& section, const TensorSlice& slice) {
  return covers(section.slice.rows, slice.rows) && section.slice.cols == slice.cols;
}

absl::StatusOr<const PackedSet::Tensor*> find_tensor(const PackedSet& set,
                                                     const std::string& name) {
  const auto found = set.tensors.find(name);
  if (found == set.tensors.end()) {
    return not_found("the packed checkpoint has no tensor {}", printable(name));
  }
  return &found->second;
}

absl::Status read_section(const PackedFile& file,
                          size_t index,
                          const TensorSlice& slice,
                          std::span<std::byte> dest,
                          bool verify) {
  const PackedSection& section = file.sections()[index];
  R1D_CHECK(std::ssize(dest) == slice.rows.size() * section.row_bytes());
  const int64_t begin = (slice.rows.begin - section.slice.rows.begin) * section.row_bytes();
  return file.read(index, begin, dest, verify);
}

absl::Status not_a_slice(const PackedSet& set, const std::string& name, const TensorSlice& slice) {
  return failed_precondition(
      "{}: rows {} to {}, columns {} to {} are no rank's part of it; the weights are packed for "
      "world size {}",
      name,
      slice.rows.begin,
      slice.rows.end,
      slice.cols.begin,
      slice.cols.end,
      set.files.size());
}

// What one rank reads, from its own file.
class RankSource final : public WeightSource {
 public:
  RankSource(const PackedSet& set, const WeightSource& all, size_t rank, bool verify)
      : set_(set), all_(all), rank_(rank), verify_(verify) {}

  [[nodiscard]] const ModelConfig& config() const override { return set_.config; }
  [[nodiscard]] bool has_mtp() const override { return all_.has_mtp(); }
  [[nodiscard]] absl::StatusOr<StoredTensor> find(const std::string& name) const override {
    return all_.find(name);
  }
  [[nodiscard]] absl::Status read(const std::string& name,
                                  const TensorSlice& slice,
                                  std::span<std::byte> dest) const override {
    R1D_ASSIGN_OR_RETURN(const PackedSet::Tensor* tensor, find_tensor(set_, name));
    if (slice.empty()) return absl::OkStatus();
    const std::optional<size_t> index = section_of(*tensor, slice);
    if (!index) return with_context(not_a_slice(set_, name, slice), file().name());
    return read_section(file(), *index, slice, dest, verify_);
  }

  [[nodiscard]] std::optional<TensorBytes> locate(const std::string& name,
                                                  const TensorSlice& slice) const override {
    const auto tensor = set_.tensors.find(name);
    if (slice.empty() || tensor == set_.tensors.end()) return std::nullopt;
    const std::optional<size_t> index = section_of(tensor->second, slice);
    if (!index) return std::nullopt;
    const PackedSection& section = file().sections()[*index];
    if (verify_ && !can_check(section, slice)) return std::nullopt;
    return TensorBytes{.file = &file().file(),
                       .file_name = file().name(),
                       .begin = section.offset,
                       .held = section.slice,
                       .check = verify_ ? check_of(*index) : PieceCheck{}};
  }

 private:
  [[nodiscard]] const PackedFile& file() const { return set_.files[rank_]; }

  // Parts of a piece and large ones are compared by read().
  [[nodiscard]] bool can_check(const PackedSection& section, const TensorSlice& slice) const {
    return slice.rows == section.slice.rows && slice.cols == section.slice.cols &&
           file().page().piece_bytes <= kMostCheckedPieceBytes;
  }
  [[nodiscard]] PieceCheck check_of(size_t index) const {
    return {.piece_bytes = file().page().piece_bytes,
            .compare = [&file = file(), index](int64_t piece, std::span<const std::byte> bytes) {
              return file.check_piece(index, piece, bytes);
            }};
  }

  [[nodiscard]] std::optional<size_t> section_of(const PackedSet::Tensor& tensor,
                                                 const TensorSlice& slice) const {
    const int32_t index = tensor.section_idxs[rank_];
    if (index < 0) return std::nullopt;
    const auto found = static_cast<size_t>(index);
    return holds(file().sections()[found], slice) ? std::optional(found) : std::nullopt;
  }

  const PackedSet& set_;
  const WeightSource& all_;
  const size_t rank_;
  const bool verify_;
};

class PackedSource final : public WeightSource {
 public:
  PackedSource(PackedSet set, bool verify) : set_(std::move(set)) {
    for (size_t rank = 0; rank < set_.files.size(); ++rank) {
      ranks_.push_back(std::make_unique<RankSource>(set_, *this, rank, verify));
    }
  }

  [[nodiscard]] const ModelConfig& config() const override { return set_.config; }
  [[nodiscard]] bool has_mtp() const override { return set_.page().has_mtp; }

  [[nodiscard]] absl::StatusOr<StoredTensor> find(const std::string& name) const override {
    R1D_ASSIGN_OR_RETURN(const PackedSet::Tensor* tensor, find_tensor(set_, name));
    return tensor->stored;
  }

  // From the first rank that has it.
  [[nodiscard]] absl::Status read(const std::string& name,
                                  const TensorSlice& slice,
                                  std::span<std::byte> dest) const override {
    R1D_ASSIGN_OR_RETURN(const PackedSet::Tensor* tensor, find_tensor(set_, name));
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      const int32_t index = tensor->section_idxs[rank];
      if (index < 0) continue;
      if (holds(set_.files[rank].sections()[static_cast<size_t>(index)], slice)) {
        return ranks_[rank]->read(name, slice, dest);
      }
    }
    return slice.empty() ? absl::OkStatus() : not_a_slice(set_, name, slice);
  }

  [[nodiscard]] const WeightSource& for_rank(int32_t rank) const override {
    R1D_CHECK(0 <= rank && rank < std::ssize(ranks_));
    return *ranks_[static_cast<size_t>(rank)];
  }

 private:
  const PackedSet set_;
  std::vector<std::unique_ptr<RankSource>> ranks_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> open_packed(const std::string& dir,
                                                          const ReadOptions& options) {
  R1D_ASSIGN_OR_RETURN(PackedSet set, open_packed_set(dir, options));
  return std::make_unique<PackedSource>(std::move(set), options.verify_checksums);
}

absl::StatusOr<std::unique_ptr<WeightSource>> open_checkpoint(const std::string& dir,
                                                              const ReadOptions& options) {
  return is_packed(dir) ? open_packed(dir, options) : open_hugging_face(dir);
}

absl::StatusOr<PackedInfo> read_packed_info(const std::string& dir) {
  R1D_ASSIGN_OR_RETURN(const PackedSet set, open_packed_set(dir, {}));
  PackedInfo info{.version = kPackedVersion,
                  .world_size = set.page().world_size,
                  .expert_split = set.page().expert_split,
                  .file_bytes = {},
                  .source = set.page().source};
  for (const PackedFile& file : set.files) info.file_bytes.push_back(file.page().file_bytes);
  return info;
}

}  // namespace r1d::checkpoint
