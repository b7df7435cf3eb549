// SPDX-License-Identifier: Apache-2.0
// Packed checkpoints: a file a rank, with that rank's slices in the order in which its device holds
// them, each piece with its checksum. docs/packed-format.md is the format.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "r1d/checkpoint/shard_plan.h"
#include "r1d/checkpoint/weight_source.h"

namespace r1d::checkpoint {

// How the reader means to read. A packed directory fits one way alone; what is left open is taken
// from it.
struct ReadOptions {
  std::optional<int32_t> world_size = std::nullopt;
  std::optional<ExpertSplit> expert_split = std::nullopt;
  bool verify_checksums = true;  // of packed weights, as they are read
};

// Whether `dir` holds packed rank files, whole or not.
[[nodiscard]] bool is_packed(const std::string& dir);

// Opens what pack_checkpoint() wrote: config.json, and every rank's file. Headers are always
// checked, against each other and against config.json. The source answers for the slices of its own
// world size, whole or by rows, and for_rank() reads one rank's file alone. Vectors are packed as
// F32. kFailedPrecondition when it is packed for another world size or split; kInvalidArgument and
// kDataLoss name the file, and the tensor where it is one.
[[nodiscard]] absl::StatusOr<std::unique_ptr<WeightSource>> open_packed(const std::string& dir,
                                                                        const ReadOptions& options);

// open_packed() for a packed directory, else open_hugging_face().
[[nodiscard]] absl::StatusOr<std::unique_ptr<WeightSource>> open_checkpoint(
    const std::string& dir, const ReadOptions& options);

// What a packed directory says of itself.
struct PackedInfo {
  int32_t version = 0;
  int32_t world_size = 0;
  ExpertSplit expert_split = ExpertSplit::kTensor;
  std::vector<int64_t> file_bytes;  // by rank
  std::string source;               // who packed it, and from what
};
[[nodiscard]] absl::StatusOr<PackedInfo> read_packed_info(const std::string& dir);

// Told how much is done, 0 .. 1, from any thread, one call at a time; an error stops the work.
using PackProgress = std::function<absl::Status(double fraction)>;

struct PackOptions {
  int32_t world_size = 1;
  ExpertSplit expert_split = ExpertSplit::kTensor;
  int32_t num_threads = 1;          // each has a few MiB of a tensor in memory
  int64_t piece_bytes = 4 << 20;    // that one checksum covers: a power of two from 4 KiB to 1 GiB
  PackProgress progress = nullptr;  // null: none
};

struct Packed {
  std::vector<int64_t> file_bytes;  // by rank
  int64_t num_sections = 0;         // of all ranks
  int64_t copied_bytes = 0;  // config.json, the tokenizer and what else is read beside weights
};

// Packs the Hugging Face directory `model_dir` into `dir`, which is created. Every file is written
// under a name ending in ".r1d-partial", synced, and renamed when all are whole, config.json last.
// Refused: a directory that holds anything but what an interrupted run left behind, one that
// another process packs into, and a disk with too little room, with the sum. What was begun is
// removed on failure.
[[nodiscard]] absl::StatusOr<Packed> pack_checkpoint(const std::string& model_dir,
                                                     const std::string& dir,
                                                     const PackOptions& options);

struct VerifiedPack {
  int64_t num_bytes = 0;              // read
  int64_t num_sections = 0;           // of all ranks
  int64_t num_damaged = 0;            // sections
  std::vector<std::string> findings;  // the first few, by file, section and tensor
};

// Reads every byte of a packed directory against its checksums. Padding must be zero.
[[nodiscard]] absl::StatusOr<VerifiedPack> verify_packed(const std::string& dir,
                                                         int32_t num_threads,
                                                         const PackProgress& progress);

}  // namespace r1d::checkpoint
