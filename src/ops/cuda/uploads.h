// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include <absl/status/statusor.h>

#include "r1d/base/status.h"
#include "r1d/device/cuda.h"

namespace r1d::ops::cuda {

// Copies from page-locked memory to the device on a stream of their own, numbered from 1. Made on
// first use. Confined to the rank's thread.
class Uploads {
 public:
  [[nodiscard]] absl::StatusOr<uint64_t> start(std::byte* device,
                                               std::span<const std::byte> staged) {
    if (!stream_) R1D_RETURN_IF_ERROR(create());
    // The ring is full: the event to be used again stands for a copy of long ago.
    if (last_ >= kNumEvents) R1D_RETURN_IF_ERROR(wait(last_ + 1 - kNumEvents));
    R1D_RETURN_IF_ERROR(stream_->copy_in(device, staged.data(), staged.size()));
    R1D_RETURN_IF_ERROR(event_of(last_ + 1).record(*stream_));
    return ++last_;
  }

  [[nodiscard]] absl::Status wait(uint64_t upload) {
    if (upload <= done_) return absl::OkStatus();
    R1D_RETURN_IF_ERROR(event_of(upload).synchronize());
    done_ = upload;
    return absl::OkStatus();
  }

 private:
  static constexpr uint64_t kNumEvents = 256;

  absl::Status create() {
    R1D_ASSIGN_OR_RETURN(device::Stream stream, device::Stream::create());
    for (device::Event& event : events_) {
      R1D_ASSIGN_OR_RETURN(event, device::Event::create());
    }
    stream_ = std::move(stream);
    return absl::OkStatus();
  }

  [[nodiscard]] const device::Event& event_of(uint64_t upload) const {
    return events_[upload % kNumEvents];
  }

  std::optional<device::Stream> stream_;
  std::array<device::Event, kNumEvents> events_;
  uint64_t last_ = 0;  // started
  uint64_t done_ = 0;  // known to be done
};

}  // namespace r1d::ops::cuda
