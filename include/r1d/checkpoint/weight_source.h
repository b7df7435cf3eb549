// SPDX-License-Identifier: Apache-2.0
// The one door through which weights come: a Hugging Face directory, dummy weights, or what r1d
// packed (packed.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <absl/status/statusor.h>

#include "r1d/base/dtype.h"
#include "r1d/base/file.h"
#include "r1d/checkpoint/model_config.h"
#include "r1d/checkpoint/shard_plan.h"

namespace r1d::checkpoint {

// How a tensor is stored. A rank-1 tensor has cols == 1.
struct StoredTensor {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 1;
};

// How a tensor's bytes are compared with those that were written, piece by piece.
struct PieceCheck {
  int64_t piece_bytes = 0;  // the last piece may be short; 0: nothing is compared
  // kDataLoss, with the place, where `bytes` are not those of the piece. Thread-safe.
  std::function<absl::Status(int64_t piece, std::span<const std::byte> bytes)> compare;
};

// Where a part of a tensor lies in a file: row-major and dense from byte `begin` on.
struct TensorBytes {
  const File* file = nullptr;  // the source's
  std::string file_name;       // for errors
  int64_t begin = 0;           // from the start of the file
  TensorSlice held;            // the rows and columns that stand there
  PieceCheck check;            // of all that stands there
};

// How a dummy tensor's values come about: element (row, col) is center + amplitude * u with u
// uniform in [-1, 1) made from random_bits(key, row << 32 | col / n) for the n elements of 8 bytes
// (src/checkpoint/dummy_source.cc), so that a device can make them without a copy.
struct SeededTensor {
  uint64_t key = 0;
  float center = 0;
  float amplitude = 0;
};

// Threads: const and thread-safe after creation; ranks read in parallel.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  [[nodiscard]] virtual const ModelConfig& config() const = 0;

  // True when the source holds the MTP layers.
  [[nodiscard]] virtual bool has_mtp() const = 0;

  // kNotFound when the source has no tensor of that name.
  [[nodiscard]] virtual absl::StatusOr<StoredTensor> find(const std::string& name) const = 0;

  // Copies rows x cols of tensor `name`, as stored, row-major and dense, to `dest`, whose size is
  // exactly the slice's bytes. kDataLoss names file and tensor on a failed or short read.
  [[nodiscard]] virtual absl::Status read(const std::string& name,
                                          const TensorSlice& slice,
                                          std::span<std::byte> dest) const = 0;

  // The source as rank `rank` of its world reads it: where every rank has a file, from its own.
  // Lives as long as this.
  [[nodiscard]] virtual const WeightSource& for_rank(int32_t rank) const {
    static_cast<void>(rank);
    return *this;
  }

  // Where `slice` of tensor `name` stands, as it is, for those that read many tensors at once
  // (WeightLoad); `held` covers it. nullopt: read() alone can tell.
  [[nodiscard]] virtual std::optional<TensorBytes> locate(const std::string& name,
                                                          const TensorSlice& slice) const {
    static_cast<void>(name);
    static_cast<void>(slice);
    return std::nullopt;
  }

  // For dummy weights, what read() would compute; nullopt for weights from files.
  [[nodiscard]] virtual std::optional<SeededTensor> seeded(const std::string& name) const {
    static_cast<void>(name);
    return std::nullopt;
  }
};

// Opens a Hugging Face directory: config.json and model.safetensors.index.json (or one
// model.safetensors). Headers are read and everything is checked against expected_tensors() before
// any weight memory is taken: missing, extra, overlapping, truncated, wrongly shaped or typed
// tensors, absent shards and lying headers are refused by file and tensor name. Missing MTP layers
// only mean has_mtp() == false; `rotary_emb.inv_freq` tensors are ignored.
[[nodiscard]] absl::StatusOr<std::unique_ptr<WeightSource>> open_hugging_face(
    const std::string& dir);

// Seeded weights of the right shapes, dtypes (FP8 when the config says so) and scale, made on read:
// no file is touched. The value of an element depends on (seed, name, row, col) alone, so any
// sharding sees the same model.
[[nodiscard]] std::unique_ptr<WeightSource> make_dummy_source(const ModelConfig& config,
                                                              uint64_t seed);

// The largest token id that the directory's tokenizer.json defines, or nullopt when there is no
// tokenizer.json. Ids beyond it are padding rows of the vocabulary and must never be sampled.
[[nodiscard]] absl::StatusOr<std::optional<TokenId>> last_token_id(const std::string& dir);

// generation_config.json's defaults that r1d honours.
struct GenerationDefaults {
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int32_t> top_k;
  std::vector<TokenId> eos_token_ids;  // empty: config.json's
};
[[nodiscard]] absl::StatusOr<GenerationDefaults> load_generation_defaults(const std::string& dir);

// `r1d inspect`: architecture, parameters, dtypes, bytes per rank, KV bytes per token; plain text.
// World size and split of a packed directory are its own, and what is asked must be the same; else
// they are 1 and kTensor unless given.
[[nodiscard]] absl::StatusOr<std::string> inspect_report(const std::string& dir,
                                                         std::optional<int32_t> world_size,
                                                         std::optional<ExpertSplit> expert_split);

}  // namespace r1d::checkpoint
