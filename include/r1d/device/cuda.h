// SPDX-License-Identifier: Apache-2.0
// Owners of CUDA's handles: the only code that makes or frees one. Move-only, made by factories,
// each used on the thread whose device was chosen with use_device(). A failed release is logged.
// Only code below a `cuda` folder includes this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <memory>
#include <span>
#include <string>

#include <absl/status/statusor.h>

namespace r1d::device {

// A Status from a CUDA call: kResourceExhausted for memory, else kUnavailable, with call, file and
// line.
[[nodiscard]] absl::Status cuda_status(cudaError_t error,
                                       const char* call,
                                       const char* file,
                                       int line);

// Runs a call that returns cudaError_t; leaves the function with a Status when it fails.
#define R1D_CUDA_TRY(call)                                                     \
  do {                                                                         \
    if (const cudaError_t r1d_error = (call); r1d_error != cudaSuccess) {      \
      return ::r1d::device::cuda_status(r1d_error, #call, __FILE__, __LINE__); \
    }                                                                          \
  } while (false)

// Makes GPU `index` the calling thread's.
[[nodiscard]] absl::Status use_device(int32_t index);

// Whether GPU `device` can read and write the memory of GPU `peer` itself, over NVLink or PCIe.
[[nodiscard]] absl::StatusOr<bool> can_access_peer(int32_t device, int32_t peer);
// Lets the calling thread's GPU do so, for all memory of `peer` there is and will be.
[[nodiscard]] absl::Status enable_peer_access(int32_t peer);

struct DeviceMemoryInfo {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};
[[nodiscard]] absl::StatusOr<DeviceMemoryInfo> memory_info();

// Bytes on the device, zeroed; 256-byte aligned.
class DeviceMemory {
 public:
  // kResourceExhausted names `what`, the bytes wanted and the bytes free.
  [[nodiscard]] static absl::StatusOr<DeviceMemory> allocate(size_t bytes, const std::string& what);
  DeviceMemory() = default;
  [[nodiscard]] std::byte* data() const { return data_.get(); }
  [[nodiscard]] size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

// Page-locked host memory, which the device copies from and to at full speed.
class PinnedMemory {
 public:
  [[nodiscard]] static absl::StatusOr<PinnedMemory> allocate(size_t bytes, const std::string& what);
  PinnedMemory() = default;
  [[nodiscard]] std::byte* data() const { return data_.get(); }
  [[nodiscard]] size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

// An ordered queue of device work, independent of the legacy default stream.
class Stream {
 public:
  [[nodiscard]] static absl::StatusOr<Stream> create();
  Stream() = default;
  [[nodiscard]] cudaStream_t get() const { return stream_.get(); }
  // Waits, asleep, until everything enqueued so far is done; the device's error if it failed.
  [[nodiscard]] absl::Status synchronize() const;
  // Enqueue copies. Host memory must be pinned to overlap, and live until the copy is done.
  [[nodiscard]] absl::Status copy_in(void* device, const void* host, size_t bytes) const;
  [[nodiscard]] absl::Status copy_out(void* host, const void* device, size_t bytes) const;
  [[nodiscard]] absl::Status copy_within(void* to, const void* from, size_t bytes) const;
  [[nodiscard]] absl::Status zero(void* device, size_t bytes) const;

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const;
  };
  std::unique_ptr<CUstream_st, Destroy> stream_;
};

// A point in a stream; with times.
class Event {
 public:
  [[nodiscard]] static absl::StatusOr<Event> create();
  Event() = default;
  [[nodiscard]] absl::Status record(const Stream& stream) const;
  [[nodiscard]] absl::Status synchronize() const;
  // Microseconds from `begin` to this one; both are done.
  [[nodiscard]] absl::StatusOr<double> micros_since(const Event& begin) const;

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const;
  };
  std::unique_ptr<CUevent_st, Destroy> event_;
};

// Work recorded once and launched many times.
class Graph {
 public:
  // Between the two, what is enqueued on `stream` by this thread is recorded and does not run.
  [[nodiscard]] static absl::Status begin_recording(const Stream& stream);
  // Ends the recording also when something in it failed; then the error is returned.
  [[nodiscard]] static absl::StatusOr<Graph> end_recording(const Stream& stream);
  Graph() = default;
  [[nodiscard]] absl::Status launch(const Stream& stream) const;
  // Sends the graph to the device, so that the first launch is as fast as the others.
  [[nodiscard]] absl::Status upload(const Stream& stream) const;
  [[nodiscard]] int64_t num_nodes() const { return num_nodes_; }

 private:
  struct Destroy {
    void operator()(cudaGraphExec_t exec) const;
  };
  std::unique_ptr<CUgraphExec_st, Destroy> exec_;
  int64_t num_nodes_ = 0;
};

// bf16 products through cuBLASLt: out [M, N] f32 or bf16 = x [M, K] w [N, K]^T, rows `*_stride`
// elements apart.
class BlasLt {
 public:
  [[nodiscard]] static absl::StatusOr<BlasLt> create();
  [[nodiscard]] static int64_t workspace_bytes();  // on the device, what create() takes
  BlasLt();
  BlasLt(BlasLt&&) noexcept;
  BlasLt& operator=(BlasLt&&) noexcept;
  ~BlasLt();

  struct Product {
    const void* x = nullptr;
    int64_t x_stride = 0;
    const void* w = nullptr;
    int64_t w_stride = 0;
    void* out = nullptr;
    int64_t out_stride = 0;
    int64_t m = 0;
    int64_t n = 0;
    int64_t k = 0;
    bool f32_out = false;
  };
  // Enqueues. kInvalidArgument with the shape when the library has no kernel for it.
  [[nodiscard]] absl::Status multiply(const Product& product, const Stream& stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace r1d::device
