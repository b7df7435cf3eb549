// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/log.h"
#include "r1d/base/status.h"
#include "r1d/device/cuda.h"

namespace r1d::device {
namespace {

void warn_if_failed(cudaError_t error, const char* call) {
  if (error != cudaSuccess)
    base::make_logger("device")->warn("{}: {}", call, cudaGetErrorString(error));
}

}  // namespace

absl::StatusOr<Stream> Stream::create() {
  Stream stream;
  cudaStream_t handle = nullptr;
  R1D_CUDA_TRY(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking));
  stream.stream_.reset(handle);
  return stream;
}

void Stream::Destroy::operator()(cudaStream_t stream) const {
  warn_if_failed(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

absl::Status Stream::synchronize() const {
  R1D_CUDA_TRY(cudaStreamSynchronize(get()));
  return absl::OkStatus();
}

absl::Status Stream::copy_in(void* device, const void* host, size_t bytes) const {
  R1D_CUDA_TRY(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, get()));
  return absl::OkStatus();
}

absl::Status Stream::copy_out(void* host, const void* device, size_t bytes) const {
  R1D_CUDA_TRY(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, get()));
  return absl::OkStatus();
}

absl::Status Stream::copy_within(void* to, const void* from, size_t bytes) const {
  R1D_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, get()));
  return absl::OkStatus();
}

absl::Status Stream::zero(void* device, size_t bytes) const {
  R1D_CUDA_TRY(cudaMemsetAsync(device, 0, bytes, get()));
  return absl::OkStatus();
}

absl::StatusOr<Event> Event::create() {
  Event event;
  cudaEvent_t handle = nullptr;
  R1D_CUDA_TRY(cudaEventCreateWithFlags(&handle, cudaEventBlockingSync));
  event.event_.reset(handle);
  return event;
}

void Event::Destroy::operator()(cudaEvent_t event) const {
  warn_if_failed(cudaEventDestroy(event), "cudaEventDestroy");
}

absl::Status Event::record(const Stream& stream) const {
  R1D_CUDA_TRY(cudaEventRecord(event_.get(), stream.get()));
  return absl::OkStatus();
}

absl::Status Event::synchronize() const {
  R1D_CUDA_TRY(cudaEventSynchronize(event_.get()));
  return absl::OkStatus();
}

absl::StatusOr<double> Event::micros_since(const Event& begin) const {
  float milliseconds = 0;
  R1D_CUDA_TRY(cudaEventElapsedTime(&milliseconds, begin.event_.get(), event_.get()));
  return 1e3 * static_cast<double>(milliseconds);
}

absl::Status Graph::begin_recording(const Stream& stream) {
  R1D_CUDA_TRY(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  return absl::OkStatus();
}

absl::StatusOr<Graph> Graph::end_recording(const Stream& stream) {
  cudaGraph_t recorded = nullptr;
  R1D_CUDA_TRY(cudaStreamEndCapture(stream.get(), &recorded));
  Graph graph;
  cudaGraphExec_t exec = nullptr;
  size_t nodes = 0;
  const cudaError_t counted = cudaGraphGetNodes(recorded, nullptr, &nodes);
  const cudaError_t made = cudaGraphInstantiate(&exec, recorded, 0);
  warn_if_failed(cudaGraphDestroy(recorded), "cudaGraphDestroy");
  R1D_CUDA_TRY(made);
  graph.exec_.reset(exec);
  R1D_CUDA_TRY(counted);
  graph.num_nodes_ = static_cast<int64_t>(nodes);
  return graph;
}

void Graph::Destroy::operator()(cudaGraphExec_t exec) const {
  warn_if_failed(cudaGraphExecDestroy(exec), "cudaGraphExecDestroy");
}

absl::Status Graph::launch(const Stream& stream) const {
  R1D_CUDA_TRY(cudaGraphLaunch(exec_.get(), stream.get()));
  return absl::OkStatus();
}

absl::Status Graph::upload(const Stream& stream) const {
  R1D_CUDA_TRY(cudaGraphUpload(exec_.get(), stream.get()));
  return absl::OkStatus();
}

}  // namespace r1d::device
