// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <absl/status/status.h>

#include "r1d/device/cuda.h"
#include "r1d/ops/ops.h"

#include "kernels/sampler/sampler.h"
#include "ops/cuda/arena.h"

namespace r1d::ops::cuda {

// Chooses tokens from logits on the device: sends a step's parameters, runs the kernel, brings the
// results back. Threads: confined to the rank's thread.
class DeviceSampler {
 public:
  // `max_rows` of logits at most, `vocab` ids.
  DeviceSampler(int32_t max_rows, int32_t vocab, int32_t capability, int32_t num_sms)
      : max_rows_(max_rows),
        plan_(kernels::plan_sampler(max_rows, vocab, capability, num_sms)),
        capability_(capability),
        num_sms_(num_sms) {}

  void layout(Arena& arena);
  [[nodiscard]] absl::Status
  create();  // staging memory for rows; lists grow with what is asked for

  [[nodiscard]] int64_t buffer_bytes() const;  // on the device, what create() takes

  // Enqueues sampling of request.rows from logits [rows, stride] f32.
  [[nodiscard]] absl::Status enqueue(const SampleRequest& request,
                                     const float* logits,
                                     int64_t stride,
                                     const device::Stream& stream);
  // After the stream has been synchronised: fills the request's results.
  void collect(SampleRequest& request) const;

 private:
  // Puts the request into pinned memory, in the device's own structs; returns the bytes used.
  size_t stage(const SampleRequest& request);
  [[nodiscard]] absl::Status reserve(const SampleRequest& request, const device::Stream& stream);

  const int32_t max_rows_;
  const kernels::SamplerPlan plan_;
  const int32_t capability_;
  const int32_t num_sms_;
  std::byte* workspace_ = nullptr;  // zeroed once, as the kernel wants it
  device::PinnedMemory staging_;    // parameters out, and behind them results back
  device::DeviceMemory inputs_;
  device::PinnedMemory results_;
  device::DeviceMemory outputs_;
};

}  // namespace r1d::ops::cuda
