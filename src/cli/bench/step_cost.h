// SPDX-License-Identifier: Apache-2.0
// What a step cannot do without, and what the machine gives when it does nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include <absl/status/statusor.h>

#include "r1d/base/clock.h"
#include "r1d/base/thread_pool.h"
#include "r1d/checkpoint/weight_source.h"

namespace r1d::cli::bench {

// By the weights that a token meets: all of a layer but the routed experts it is not sent to.
// Attention over the cache comes on top, and is little at short contexts.
struct StepCost {
  double decode_bytes = 0;      // of weights that one token reads, the head among them
  double flops_per_token = 0;   // of products, without the head's
  double flops_per_logits = 0;  // of the head, once a sequence and step

  [[nodiscard]] double prefill_flops(int64_t tokens, int64_t sequences) const {
    return static_cast<double>(tokens) * flops_per_token +
           static_cast<double>(sequences) * flops_per_logits;
  }
};
[[nodiscard]] absl::StatusOr<StepCost> step_cost(const checkpoint::WeightSource& weights);

// Reads memory that no cache holds and does nothing with it, on as many threads as a model has.
class PlainRead {
 public:
  // kResourceExhausted when there is no memory for it.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<PlainRead>> create(int32_t num_threads,
                                                                         size_t total_bytes);
  ~PlainRead();
  PlainRead(const PlainRead&) = delete;
  PlainRead& operator=(const PlainRead&) = delete;

  // Bytes a second of one reading, which goes on where the last one ended.
  [[nodiscard]] double bytes_per_second();

 private:
  PlainRead(std::byte* data, size_t size, int32_t num_threads);

  std::byte* const data_;  // mapped
  const size_t size_;      // a multiple of what one reading takes
  size_t next_ = 0;
  base::ThreadPool pool_;
  const SteadyClock clock_;
};

}  // namespace r1d::cli::bench
