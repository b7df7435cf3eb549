// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/packed_layout.h"

#include <algorithm>
#include <span>
#include <utility>

#include "r1d/base/status.h"

namespace r1d::checkpoint {
namespace {

// One tensor of the rank, with the scale of its own if it is FP8.
struct Placed {
  TensorSpec spec;
  TensorSlice slice;
  DType dtype = DType::kBF16;
};

absl::Status check_dtype(const ModelConfig& config, const TensorSpec& spec, DType dtype) {
  const bool may_be_fp8 = spec.quantizable && config.quantization.has_value();
  if ((dtype == DType::kF8E4M3 && !may_be_fp8) || (dtype == DType::kF32 && !spec.may_be_f32)) {
    return invalid_argument(
        "tensor {} is {}, which it may not be in this model", spec.name, dtype_name(dtype));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Placed>> tensors_of_rank(const ModelConfig& config,
                                                    bool with_mtp,
                                                    const RankShard& shard,
                                                    const DTypeOf& dtype_of) {
  std::vector<Placed> all;
  for (TensorSpec& spec : expected_tensors(config, with_mtp)) {
    const TensorSlice slice = slice_of(spec, shard);
    if (spec.duplicate || slice.empty()) continue;
    R1D_ASSIGN_OR_RETURN(const DType dtype, dtype_of(spec.name));
    R1D_RETURN_IF_ERROR(check_dtype(config, spec, dtype));
    all.push_back({std::move(spec), slice, dtype});
  }
  return all;
}

bool is_named(const Placed& placed, std::string_view part) {
  return placed.spec.name.find(part) != std::string::npos;
}

// kv_a right behind q_a: both read the same rows.
void bring_kv_a_forward(std::span<Placed> layer) {
  const auto find = [layer](std::string_view part) {
    return std::find_if(layer.begin(), layer.end(), [part](const Placed& placed) {
      return is_named(placed, part);
    });
  };
  const auto q_a = find(".q_a_proj.");
  const auto kv_a = find(".kv_a_proj_with_mqa.");
  if (q_a < kv_a && kv_a != layer.end()) std::rotate(q_a + 1, kv_a, kv_a + 1);
}

// Sections at offsets from the start of the data.
class Builder {
 public:
  Builder(const ModelConfig& config, int64_t piece_bytes)
      : config_(config), piece_bytes_(piece_bytes) {}

  void add_layer(std::span<Placed> layer) {
    bring_kv_a_forward(layer);
    for (const Placed& placed : layer) {
      if (!placed.spec.rank_1) add(placed, SectionKind::kMatrix, placed.dtype);
    }
    for (const Placed& placed : layer) {
      if (placed.dtype == DType::kF8E4M3) add_scale(placed);
    }
    for (const Placed& placed : layer) {
      if (placed.spec.rank_1) add(placed, SectionKind::kVector, DType::kF32);
    }
    end_ = round_up(end_, kPackedPageBytes);
  }

  PackedLayout finish() {
    layout_.data_begin = kPackedPageBytes + round_up(layout_.table_bytes(), kPackedPageBytes);
    for (PackedSection& section : layout_.sections) section.offset += layout_.data_begin;
    layout_.file_bytes = layout_.data_begin + end_;
    return std::move(layout_);
  }

 private:
  void add(const Placed& placed, SectionKind kind, DType dtype) {
    put({.name = placed.spec.name,
         .kind = kind,
         .dtype = dtype,
         .layer = placed.spec.layer,
         .rows = placed.spec.rows,
         .cols = placed.spec.cols,
         .slice = placed.slice});
  }

  void add_scale(const Placed& placed) {
    const QuantizationConfig& blocks = *config_.quantization;
    const TensorSlice whole =
        scale_slice_of({.rows = {0, placed.spec.rows}, .cols = {0, placed.spec.cols}}, blocks);
    put({.name = scale_name(placed.spec.name),
         .kind = SectionKind::kScale,
         .dtype = DType::kF32,
         .layer = placed.spec.layer,
         .rows = whole.rows.size(),
         .cols = whole.cols.size(),
         .slice = scale_slice_of(placed.slice, blocks)});
  }

  void put(PackedSection section) {
    section.offset = end_;
    section.first_piece = layout_.num_pieces;
    end_ += round_up(section.num_bytes(), kPackedAlignment);
    layout_.num_pieces += section.num_pieces(piece_bytes_);
    layout_.names_bytes += std::ssize(section.name);
    layout_.sections.push_back(std::move(section));
  }

  const ModelConfig& config_;
  const int64_t piece_bytes_;
  PackedLayout layout_;
  int64_t end_ = 0;
};

}  // namespace

int64_t PackedLayout::table_bytes() const {
  return std::ssize(sections) * kSectionRecordBytes + num_pieces * int64_t{sizeof(uint64_t)} +
         names_bytes;
}

absl::StatusOr<PackedLayout> lay_out_packed(const ModelConfig& config,
                                            bool with_mtp,
                                            const RankShard& shard,
                                            int64_t piece_bytes,
                                            const DTypeOf& dtype_of) {
  R1D_ASSIGN_OR_RETURN(std::vector<Placed> all, tensors_of_rank(config, with_mtp, shard, dtype_of));
  Builder builder(config, piece_bytes);
  for (size_t begin = 0; begin < all.size();) {
    size_t end = begin + 1;
    while (end < all.size() && all[end].spec.layer == all[begin].spec.layer) ++end;
    builder.add_layer(std::span(all).subspan(begin, end - begin));
    begin = end;
  }
  return builder.finish();
}

Digest model_digest(const ModelConfig& config, bool with_mtp) {
  DigestBuilder digest;
  if (config.quantization) {
    digest.add(fmt::format(
        "blocks {} {}\n", config.quantization->block_rows, config.quantization->block_cols));
  }
  for (const TensorSpec& spec : expected_tensors(config, with_mtp)) {
    if (spec.duplicate) continue;
    digest.add(fmt::format("{} {} {}\n", spec.name, spec.rows, spec.cols));
  }
  return digest.finish();
}

}  // namespace r1d::checkpoint
