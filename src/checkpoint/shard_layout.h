// SPDX-License-Identifier: Apache-2.0
// Which tensor stands in which file of a checkpoint to be written, and where.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/weight_source.h"

namespace r1d::checkpoint {

struct PlacedTensor {
  std::string name;
  StoredTensor stored;
  bool rank_1 = false;
  int64_t begin = 0;  // in the file's data section

  [[nodiscard]] int64_t row_bytes() const { return stored.cols * dtype_bytes(stored.dtype); }
  [[nodiscard]] int64_t num_bytes() const { return stored.rows * row_bytes(); }
};

struct ShardLayout {
  std::string file;    // its name
  std::string header;  // the JSON, padded; without the 8 bytes of its length
  int64_t data_bytes = 0;
  std::vector<PlacedTensor> tensors;  // in the order of their data

  [[nodiscard]] int64_t data_begin() const;
  [[nodiscard]] int64_t file_bytes() const { return data_begin() + data_bytes; }
};

// Tensors in load order, dealt out to files of at most `shard_bytes`. Inside a file wide types come
// first, so that every tensor is aligned to its type.
[[nodiscard]] absl::StatusOr<std::vector<ShardLayout>> lay_out_shards(const WeightSource& source,
                                                                      int64_t shard_bytes);

// The text of model.safetensors.index.json.
[[nodiscard]] std::string index_json(const std::vector<ShardLayout>& shards);

}  // namespace r1d::checkpoint
