// SPDX-License-Identifier: Apache-2.0
// Which bytes of which tensor stand where in a rank's packed file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/model_config.h"
#include "r1d/checkpoint/shard_plan.h"

#include "checkpoint/packed_checksum.h"

namespace r1d::checkpoint {

// Layers, and the file as a whole, start and end at pages: what O_DIRECT asks for.
inline constexpr int64_t kPackedPageBytes = 4096;
// Tensors start at what model::WeightStore aligns them to.
inline constexpr int64_t kPackedAlignment = 128;
inline constexpr int64_t kSectionRecordBytes = 88;

enum class SectionKind : uint8_t { kMatrix, kScale, kVector };

// A rank's slice of one tensor.
struct PackedSection {
  std::string name;  // of the tensor
  SectionKind kind = SectionKind::kMatrix;
  DType dtype = DType::kF32;  // as packed: scales and vectors are F32
  int32_t layer = -1;         // -1: in none
  int64_t rows = 0;           // of the whole tensor
  int64_t cols = 0;
  TensorSlice slice;
  int64_t offset = 0;       // in the file
  int64_t first_piece = 0;  // of its checksums

  [[nodiscard]] int64_t row_bytes() const { return slice.cols.size() * dtype_bytes(dtype); }
  [[nodiscard]] int64_t num_bytes() const { return slice.rows.size() * row_bytes(); }
  [[nodiscard]] int64_t end() const { return offset + num_bytes(); }
  [[nodiscard]] int64_t num_pieces(int64_t piece_bytes) const {
    return (num_bytes() + piece_bytes - 1) / piece_bytes;
  }
};

struct PackedLayout {
  std::vector<PackedSection> sections;  // in the order of their bytes
  int64_t num_pieces = 0;
  int64_t names_bytes = 0;
  int64_t data_begin = 0;  // behind the header
  int64_t file_bytes = 0;

  // Records, checksums and names, before they are padded to whole pages.
  [[nodiscard]] int64_t table_bytes() const;
};

[[nodiscard]] constexpr int64_t round_up(int64_t bytes, int64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// How a tensor is stored, by its name.
using DTypeOf = std::function<absl::StatusOr<DType>(const std::string& name)>;

// The file of one rank. A layer's bytes are those that model::WeightStore has in its buffer for it:
// matrices in load order with kv_a behind q_a, then scales, then vectors as F32, each aligned to
// 128 bytes; the layers follow each other in load order. kInvalidArgument for a dtype that the
// tensor may not have.
[[nodiscard]] absl::StatusOr<PackedLayout> lay_out_packed(const ModelConfig& config,
                                                          bool with_mtp,
                                                          const RankShard& shard,
                                                          int64_t piece_bytes,
                                                          const DTypeOf& dtype_of);

// Of the names and shapes of all tensors, and the blocks of scales: which model was packed. What
// else stands in config.json (context length, token ids, rotary scaling) may change without packing
// again.
[[nodiscard]] Digest model_digest(const ModelConfig& config, bool with_mtp);

}  // namespace r1d::checkpoint
