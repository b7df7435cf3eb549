// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <absl/status/status.h>

#include "r1d/device/cuda.h"
#include "r1d/ops/cuda_ops.h"
#include "r1d/ops/ops.h"

#include "kernels/common/layout.h"
#include "kernels/mla_prefill/mla_prefill.h"
#include "ops/cuda/arena.h"

namespace r1d::ops::cuda {

// The keys of a prefill that fit the key buffer together, and the tiles of queries that attend to
// them.
struct KeyWindow {
  const kernels::PrefillSequence* sequences = nullptr;  // device [num_prefill]
  const kernels::MlaPrefillTile* tiles = nullptr;       // device
  int32_t num_tiles = 0;
  int64_t num_keys = 0;
};

// A step as the kernels read it. Sequences with few query tokens stand first ("decode": they take
// the absorbed form of MLA), the others behind ("prefill"), and so do their tokens: the order
// inside is ours, only logit rows look out. Everything goes to the device in one copy from pinned
// memory, which is there twice: one step may be on its way while the next is laid out.
// Threads: confined to the rank's thread.
class DeviceStep {
 public:
  static constexpr int32_t kMaxDecodeQuery =
      4;  // query tokens of a sequence that takes the absorbed form
  static constexpr int32_t kMaxGraphTokens = 256;

  DeviceStep(const ModelDims& dims, const CudaOptions& options, bool splits_prefill);

  [[nodiscard]] absl::Status create();        // pinned memory and the device's copy
  [[nodiscard]] int64_t input_bytes() const;  // of each, what create() takes
  void layout(Arena& arena);                  // what kernels derive: positions, slots, angles

  // Checks `inputs`, lays them out for `padded_tokens` tokens (0: as many as there are; else every
  // sequence has one token and padding sequences are added) and enqueues the copy.
  [[nodiscard]] absl::Status begin(const StepInputs& inputs,
                                   int32_t padded_tokens,
                                   const device::Stream& stream);

  [[nodiscard]] int64_t num_tokens() const { return num_tokens_; }  // padding included
  [[nodiscard]] int64_t num_decode_tokens() const { return num_decode_tokens_; }
  [[nodiscard]] int64_t num_prefill_tokens() const { return num_tokens_ - num_decode_tokens_; }
  [[nodiscard]] int32_t max_decode_query() const { return max_decode_query_; }
  [[nodiscard]] int32_t num_logit_rows() const { return num_logit_rows_; }  // padding included
  [[nodiscard]] int64_t total_context() const { return total_context_; }
  [[nodiscard]] int64_t decode_context() const { return decode_context_; }
  [[nodiscard]] int64_t max_context() const { return max_context_; }
  [[nodiscard]] double prefill_pairs() const { return prefill_pairs_; }  // query-key pairs seen

  [[nodiscard]] kernels::StepSequences all() const;
  [[nodiscard]] kernels::StepSequences decode() const;
  [[nodiscard]] const std::vector<KeyWindow>& windows() const { return windows_; }
  [[nodiscard]] int32_t num_prefill() const { return num_sequences_ - num_decode_; }

  [[nodiscard]] int32_t* ids() const { return ids_; }
  // Whether an id is one that the step before samples: see follow_row().
  [[nodiscard]] bool follows() const { return follows_; }
  // One value on the device: how many tokens there are without padding, which stands behind them.
  [[nodiscard]] const int32_t* live_tokens() const { return live_tokens_; }
  [[nodiscard]] const int32_t* logit_rows() const { return logit_rows_; }
  [[nodiscard]] int32_t* positions() const { return positions_; }
  [[nodiscard]] int64_t* slots() const { return slots_; }
  [[nodiscard]] float* cos_sin() const { return cos_sin_; }

  [[nodiscard]] int64_t key_capacity() const { return key_capacity_; }
  // True when a step may need several windows, so that running sums need memory.
  [[nodiscard]] bool may_need_windows() const { return longest_keys_ > key_capacity_; }

 private:
  [[nodiscard]] absl::Status check(const StepInputs& inputs) const;
  void order(const StepInputs& inputs);
  void lay_out_tokens(const StepInputs& inputs, int32_t padded_tokens);
  void lay_out_sequences(const StepInputs& inputs, int32_t padded_tokens);
  void lay_out_rows(const StepInputs& inputs, int32_t padded_tokens);
  void lay_out_windows(const StepInputs& inputs);
  void count_work(const StepInputs& inputs);

  // Takes `count` values of the staging area: where the host writes, and where they will stand.
  template <typename T>
  struct Piece {
    T* host;
    T* device;
  };
  template <typename T>
  Piece<T> take(int64_t count);

  const ModelDims& dims_;
  const CudaOptions& options_;
  const bool splits_prefill_;
  const int64_t key_capacity_;
  const int64_t longest_keys_;
  std::array<device::PinnedMemory, 2> staging_;  // in turn: a copy may still wait for a step
  size_t turn_ = 0;
  device::DeviceMemory inputs_;
  size_t used_ = 0;

  std::vector<size_t> order_;         // sequences, decode first
  std::vector<int32_t> token_begin_;  // of each sequence (by its own index), in our order
  int32_t num_sequences_ = 0;
  int32_t num_decode_ = 0;
  int64_t num_tokens_ = 0;
  int64_t num_decode_tokens_ = 0;
  int32_t max_decode_query_ = 1;
  int32_t num_logit_rows_ = 0;
  int64_t total_context_ = 0;
  int64_t decode_context_ = 0;
  int64_t max_context_ = 0;
  double prefill_pairs_ = 0;

  int32_t* ids_ = nullptr;
  bool follows_ = false;
  const int32_t* live_tokens_ = nullptr;
  const int32_t* logit_rows_ = nullptr;
  kernels::StepSequences sequences_;
  std::vector<KeyWindow> windows_;
  int32_t* positions_ = nullptr;
  int64_t* slots_ = nullptr;
  float* cos_sin_ = nullptr;
};

}  // namespace r1d::ops::cuda
