// SPDX-License-Identifier: Apache-2.0
// What an Ops object takes its memory for, and how much of it: by a plan, and counted. No CUDA
// types: host code reads this header.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace r1d::ops {

enum class MemoryKind : uint8_t {
  kWeights,      // as loaded, and in forms that kernels read
  kLatentCache,  // pages of all layers
  kActivations,  // what passes from block to block of the model
  kWorkspaces,   // what operators need within a block, inputs of a step, logits on a device
  kCollectives,  // buffers through which ranks meet
  kCount,
};
inline constexpr size_t kMemoryKinds = static_cast<size_t>(MemoryKind::kCount);

// "weights", "latent_cache", ...: label values and words of a log.
[[nodiscard]] constexpr const char* memory_kind_name(MemoryKind kind) {
  constexpr std::array<const char*, kMemoryKinds> kNames{
      "weights", "latent_cache", "activations", "workspaces", "collectives"};
  return kNames[static_cast<size_t>(kind)];
}

// Bytes by kind.
class MemoryUse {
 public:
  [[nodiscard]] int64_t& operator[](MemoryKind kind) { return bytes_[static_cast<size_t>(kind)]; }
  [[nodiscard]] int64_t operator[](MemoryKind kind) const {
    return bytes_[static_cast<size_t>(kind)];
  }
  [[nodiscard]] int64_t total() const {
    int64_t sum = 0;
    for (const int64_t bytes : bytes_) sum += bytes;
    return sum;
  }
  bool operator==(const MemoryUse&) const = default;

 private:
  std::array<int64_t, kMemoryKinds> bytes_{};
};

// Counts what is taken and given back. Thread-safe. Outlives the shares it hands out.
class MemoryMeter {
 public:
  // Counts until it is destroyed. Move-only.
  class Share {
   public:
    Share() = default;
    Share(MemoryMeter& meter, MemoryKind kind, int64_t bytes)
        : meter_(&meter), kind_(kind), bytes_(bytes) {
      meter.add(kind, bytes);
    }
    Share(Share&& other) noexcept { *this = std::move(other); }
    Share& operator=(Share&& other) noexcept {
      std::swap(meter_, other.meter_);
      std::swap(kind_, other.kind_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Share() {
      if (meter_ != nullptr) meter_->add(kind_, -bytes_);
    }

   private:
    MemoryMeter* meter_ = nullptr;
    MemoryKind kind_ = MemoryKind::kWorkspaces;
    int64_t bytes_ = 0;
  };

  void add(MemoryKind kind, int64_t bytes) {
    bytes_[static_cast<size_t>(kind)].fetch_add(bytes, std::memory_order_relaxed);
  }
  [[nodiscard]] MemoryUse use() const {
    MemoryUse use;
    for (size_t kind = 0; kind < kMemoryKinds; ++kind) {
      use[static_cast<MemoryKind>(kind)] = bytes_[kind].load(std::memory_order_relaxed);
    }
    return use;
  }

 private:
  std::array<std::atomic<int64_t>, kMemoryKinds> bytes_{};
};

// A device's own memory as its driver sees it, whoever holds it.
struct DeviceBytes {
  int64_t total = 0;
  int64_t free_at_start = 0;  // when the Ops object was attached, before it took anything
  int64_t free_now = 0;
};

}  // namespace r1d::ops
