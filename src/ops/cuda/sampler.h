// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
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

  // Enqueues sampling of request.rows from logits [rows, stride] f32. So may be done once more
  // before the results of the first are collected.
  [[nodiscard]] absl::Status enqueue(const SampleRequest& request,
                                     const float* logits,
                                     int64_t stride,
                                     const device::Stream& stream);
  // After the oldest request that was enqueued and not collected is done: fills its results.
  void collect(SampleRequest& request);
  // Nothing is to be collected any more.
  void forget() { num_collected_ = num_enqueued_; }

  // What the newest request chooses, [max_rows] on the device, at the same place for every request.
  [[nodiscard]] const kernels::SampledRow* sampled() const;

 private:
  // Page-locked memory of one request: parameters out, results back.
  struct Host {
    device::PinnedMemory inputs;
    device::PinnedMemory results;
  };

  // Puts the request into pinned memory, in the device's own structs; returns the bytes used.
  static size_t stage(const SampleRequest& request, std::byte* to);
  [[nodiscard]] absl::Status reserve(const SampleRequest& request,
                                     Host& host,
                                     const device::Stream& stream);
  [[nodiscard]] static absl::Status reserve_host(Host& host, size_t inputs, size_t results);

  const int32_t max_rows_;
  const kernels::SamplerPlan plan_;
  const int32_t capability_;
  const int32_t num_sms_;
  std::byte* workspace_ = nullptr;  // zeroed once, as the kernel wants it
  std::array<Host, 2> hosts_;       // in turn
  uint64_t num_enqueued_ = 0;
  uint64_t num_collected_ = 0;
  device::DeviceMemory inputs_;
  device::DeviceMemory sampled_;  // never moves: what follows it reads it from a recorded graph
  device::DeviceMemory top_;      // most likely tokens, then their log-probabilities
};

}  // namespace r1d::ops::cuda
