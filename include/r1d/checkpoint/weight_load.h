// SPDX-License-Identifier: Apache-2.0
// Reads the weights of all ranks of a process together: every byte of the files once, in large
// pieces, in file order, on many threads.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/shard_plan.h"
#include "r1d/checkpoint/weight_source.h"

namespace r1d::checkpoint {

// Pieces up to this size are compared by the threads that read them.
inline constexpr int64_t kMostCheckedPieceBytes = 4 << 20;

struct LoadOptions {
  bool direct = false;      // past the page cache (O_DIRECT), where the file system can
  int32_t num_threads = 0;  // that read; 0: a core each, 4 to 32
  // A read that fails in a way that may pass (EIO, ESTALE, ETIMEDOUT) is tried again after this
  // time, then after twice as long, and so on.
  std::chrono::milliseconds first_retry{50};
  int32_t max_attempts = 8;
};

// Why a read had to be tried again.
enum class RetryCause : uint8_t { kIo, kStale, kTimeout };
inline constexpr size_t kNumRetryCauses = 3;

struct LoadReport {
  int64_t bytes_read = 0;  // from files
  double seconds = 0;      // from when all ranks had asked until all had their weights
  int32_t num_threads = 0;
  int32_t num_files = 0;
  int32_t num_direct_files = 0;                    // read past the page cache to their ends
  std::array<int64_t, kNumRetryCauses> retries{};  // by RetryCause
};

// A part of a tensor that a rank wants.
struct WeightTarget {
  std::string name;   // of the tensor, for errors
  TensorBytes bytes;  // where it stands
  DType dtype = DType::kF32;
  TensorSlice slice;          // not empty, within bytes.held; the whole of it where it is checked
  std::byte* dest = nullptr;  // the slice's bytes, dense
  bool staged = false;        // `dest` is memory that the host cannot write
};

// Copies to memory that the host cannot write; calls come from one thread.
class StagedCopy {
 public:
  virtual ~StagedCopy() = default;
  // Host memory, 4096-byte aligned, that stays until this object goes. Called once.
  [[nodiscard]] virtual absl::StatusOr<std::byte*> allocate(size_t bytes) = 0;
  // Starts a copy. `staged` lies in that memory and is not changed before wait(the result) is over.
  [[nodiscard]] virtual absl::StatusOr<uint64_t> copy(std::byte* device,
                                                      std::span<const std::byte> staged) = 0;
  // Waits for this copy and all that were started before it.
  [[nodiscard]] virtual absl::Status wait(uint64_t ticket) = 0;
};

// Told on the caller's thread how many of its bytes came; an error stops the load for all.
using BytesArrived = std::function<absl::Status(int64_t bytes)>;

// One load. Each of `num_ranks` threads calls read() once; reading begins when all have. A read
// that fails for good, one that finds too few bytes or others than were written, or a file that
// changes meanwhile ends it for all ranks (kDataLoss with file, tensor and byte).
// Memory: 4 MiB a reading thread, and for ranks that need it staging memory: 8 MiB a reading thread
// divided among them, at least 16 MiB a rank.
// Threads: thread-safe. Reading threads start in the constructor, on no particular cores, and end
// with the load.
class WeightLoad {
 public:
  // `stop` ends the load with kCancelled, also while it waits to try a read again.
  WeightLoad(const LoadOptions& options, int32_t num_ranks, std::stop_token stop = {});
  ~WeightLoad();
  WeightLoad(const WeightLoad&) = delete;
  WeightLoad& operator=(const WeightLoad&) = delete;

  // Returns when all `targets` are filled, or the load has failed and nothing touches them any
  // more. `copy`: needed for those that are staged, else null. The sources of the targets outlive
  // the call.
  [[nodiscard]] absl::Status read(std::vector<WeightTarget> targets,
                                  StagedCopy* copy,
                                  const BytesArrived& arrived);

  // Ends the load for all ranks with `why`: for a rank that will not call read().
  void abort(const absl::Status& why);

  // When every rank's read() has returned.
  [[nodiscard]] LoadReport report() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::checkpoint
