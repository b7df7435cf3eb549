// SPDX-License-Identifier: Apache-2.0
// Owner of an NCCL communicator. The library is loaded when the first one is made, so that a host
// without it runs everything that needs no second GPU. Only code below a `cuda` folder includes
// this.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include <absl/status/statusor.h>

#include "r1d/base/mutex.h"
#include "r1d/device/cuda.h"

namespace r1d::device {

// What the ranks of one communicator share.
struct NcclId {
  std::array<char, 128> bytes{};
};
[[nodiscard]] absl::StatusOr<NcclId> make_nccl_id();

// One rank of a communicator. Operations are enqueued on a stream and must not be recorded into
// graphs: abort() would wait for those.
// Threads: operations and async_error() by the rank's thread, whose device was chosen; abort() by
// any. Lifecycle: destroyed after the stream's work is done, or after abort().
class NcclComm {
 public:
  // Waits until all ranks have called it, each on its own thread.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<NcclComm>> join(const NcclId& id,
                                                                      int32_t world_size,
                                                                      int32_t rank);
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  // out = sum over ranks of in, bf16; out may be in.
  [[nodiscard]] absl::Status all_reduce_bf16(const void* in,
                                             void* out,
                                             int64_t count,
                                             const Stream& stream);

  // Rows of `cols` f32 from every other rank into rank 0's `matrix` (rows `stride` apart), those of
  // rank r from column r * cols on. `matrix` is the rank's own dense rows elsewhere.
  [[nodiscard]] absl::Status gather_columns_f32(
      float* matrix, int64_t rows, int64_t cols, int64_t stride, const Stream& stream);

  // kUnavailable with NCCL's text when an operation has failed since it was enqueued.
  [[nodiscard]] absl::Status async_error();

  // Ends operations that run and makes later ones fail with kUnavailable. While the rank's thread
  // is in a call of NCCL's it only notes the wish, which that thread carries out.
  void abort();

 private:
  struct State;
  explicit NcclComm(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace r1d::device
