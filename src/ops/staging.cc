// SPDX-License-Identifier: Apache-2.0
// Uploads of an Ops that has no copies beside its own work: done when they are started.
#include <cstdlib>
#include <memory>

#include "r1d/base/status.h"
#include "r1d/ops/ops.h"

namespace r1d::ops {
namespace {

constexpr size_t kPageBytes = 4096;

class PlainBuffer final : public Buffer {
 public:
  explicit PlainBuffer(size_t bytes)
      : size_((bytes + kPageBytes - 1) / kPageBytes * kPageBytes),
        data_(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, size_))) {}
  [[nodiscard]] std::byte* data() override { return data_.get(); }
  [[nodiscard]] size_t size() const override { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  size_t size_;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Buffer>> Ops::allocate_staging(size_t bytes,
                                                              const std::string& what) {
  auto buffer = std::make_unique<PlainBuffer>(bytes);
  if (buffer->data() == nullptr) {
    return resource_exhausted("{}: cannot take {} bytes of host memory", what, bytes);
  }
  return buffer;
}

absl::StatusOr<uint64_t> Ops::start_upload(std::byte* device, std::span<const std::byte> staged) {
  R1D_RETURN_IF_ERROR(upload(device, staged));
  return 0;
}

absl::Status Ops::wait_upload(uint64_t /*upload*/) {
  return absl::OkStatus();
}

}  // namespace r1d::ops
