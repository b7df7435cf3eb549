// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <absl/status/statusor.h>

#include "r1d/ops/ops.h"

namespace r1d::ops::cpu {

// Zeroed memory, 64-byte aligned, freed on destruction. Large pieces come from the kernel page by
// page when first touched, in huge pages where it can: scratch that a deployment never uses costs
// nothing.
class HostMemory {
 public:
  HostMemory() = default;
  HostMemory(HostMemory&& other) noexcept { *this = std::move(other); }
  HostMemory& operator=(HostMemory&& other) noexcept;
  ~HostMemory() { reset(); }

  // kResourceExhausted names `what`. Zero bytes are allowed.
  [[nodiscard]] static absl::StatusOr<HostMemory> allocate(size_t bytes, const std::string& what);

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] size_t size() const { return size_; }

 private:
  void reset();

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// HostMemory behind the interface of ops.h; `share` counts it.
[[nodiscard]] std::unique_ptr<Buffer> make_buffer(HostMemory memory, MemoryMeter::Share share);

// Cuts one block into arrays. Without memory it only counts, so that one layout function both
// measures and hands out.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  // `count` elements, 64-byte aligned; null while counting.
  template <class T>
  [[nodiscard]] T* take(int64_t count) {
    const size_t begin = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + begin);
  }
  [[nodiscard]] size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace r1d::ops::cpu
