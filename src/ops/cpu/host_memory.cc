// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/host_memory.h"

#include <array>
#include <cstring>
#include <new>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

#include <linux/mempolicy.h>

#include "r1d/base/status.h"

namespace r1d::ops::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kMappedBytes = size_t{2} << 20;  // a huge page; smaller pieces come from the heap

// Memory of a thread that prefers a NUMA node keeps that preference also where another thread, such
// as one that reads weights into it, touches it first. A hint: the calls may be refused.
void keep_numa_preference(void* data, size_t bytes) {
  constexpr unsigned long kMaxNodes = 1024;
  std::array<unsigned long, kMaxNodes / (8 * sizeof(unsigned long))> nodes{};
  int mode = MPOL_DEFAULT;
  if (syscall(SYS_get_mempolicy, &mode, nodes.data(), kMaxNodes, nullptr, 0UL) != 0) return;
  if (mode != MPOL_PREFERRED) return;
  static_cast<void>(syscall(SYS_mbind, data, bytes, mode, nodes.data(), kMaxNodes, 0U));
}

std::byte* take(size_t bytes) {
  if (bytes < kMappedBytes) {
    void* data = ::operator new(bytes, kAlignment, std::nothrow);
    if (data != nullptr) std::memset(data, 0, bytes);
    return static_cast<std::byte*>(data);
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  madvise(data, bytes, MADV_HUGEPAGE);  // a hint: slower without, not wrong
  keep_numa_preference(data, bytes);
  return static_cast<std::byte*>(data);
}

class HostBuffer final : public Buffer {
 public:
  HostBuffer(HostMemory memory, MemoryMeter::Share share)
      : memory_(std::move(memory)), share_(std::move(share)) {}
  [[nodiscard]] std::byte* data() override { return memory_.data(); }
  [[nodiscard]] size_t size() const override { return memory_.size(); }

 private:
  HostMemory memory_;
  const MemoryMeter::Share share_;
};

}  // namespace

HostMemory& HostMemory::operator=(HostMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void HostMemory::reset() {
  if (data_ == nullptr) return;
  if (size_ < kMappedBytes) {
    ::operator delete(data_, kAlignment);
  } else {
    munmap(data_, size_);
  }
  data_ = nullptr;
}

absl::StatusOr<HostMemory> HostMemory::allocate(size_t bytes, const std::string& what) {
  HostMemory memory;
  memory.data_ = take(bytes);
  if (memory.data_ == nullptr) {
    return resource_exhausted("{}: cannot take {} bytes of host memory", what, bytes);
  }
  memory.size_ = bytes;
  return memory;
}

std::unique_ptr<Buffer> make_buffer(HostMemory memory, MemoryMeter::Share share) {
  return std::make_unique<HostBuffer>(std::move(memory), std::move(share));
}

}  // namespace r1d::ops::cpu
