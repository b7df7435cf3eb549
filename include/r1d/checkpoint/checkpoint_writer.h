// SPDX-License-Identifier: Apache-2.0
// Writes a weight source as a Hugging Face directory: what open_hugging_face() reads back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/weight_source.h"

namespace r1d::checkpoint {

struct WriteOptions {
  int64_t shard_bytes = 5'000'000'000;  // data of one file at most; a larger tensor has its own
  int32_t num_threads = 1;              // each has one piece of a tensor in memory, at most 16 MiB
};

struct WrittenCheckpoint {
  int64_t num_tensors = 0;  // scales included
  int64_t num_bytes = 0;    // of tensor data
  int32_t num_files = 0;    // shards
};

// Writes every expected tensor of `source`, and the scale of each that is FP8, into shards named as
// R1's are (model-00001-of-000163.safetensors), then model.safetensors.index.json, and last
// config.json with the text `config_json`: a directory without it is not finished. The copies of
// embedding and head in MTP layers are left out. Threads make and write pieces of all files side by
// side. Not synced to the device: that is left to the system.
//
// `dir` is created. kFailedPrecondition when it is not empty, kResourceExhausted when the disk has
// too little room: before anything is written where the file system tells, else by file and byte.
// What was begun is removed on failure.
[[nodiscard]] absl::StatusOr<WrittenCheckpoint> write_checkpoint(const WeightSource& source,
                                                                 std::string_view config_json,
                                                                 const std::string& dir,
                                                                 const WriteOptions& options);

}  // namespace r1d::checkpoint
