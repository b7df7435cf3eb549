// SPDX-License-Identifier: Apache-2.0
// What kernel tests and benchmarks share: owned device arrays, seeded data, guards, and timing by
// graph replay. A test that needs a GPU begins with R1D_NEEDS_GPU(), which skips it visibly where
// there is none (or one too old).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime_api.h>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/dtype.h"

namespace r1d::kernels::test {

inline void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::abort();  // the context is lost: nothing after it can be believed
}
#define R1D_MUST(call) ::r1d::kernels::test::must((call), #call)

// 90 for sm_90; 0 without a GPU.
inline int compute_capability() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return 0;
  cudaDeviceProp properties{};
  R1D_MUST(cudaGetDeviceProperties(&properties, 0));
  return properties.major * 10 + properties.minor;
}
#define R1D_NEEDS_GPU(least)                                                               \
  if (::r1d::kernels::test::compute_capability() < (least)) {                              \
    GTEST_SKIP() << "needs a GPU of compute capability " << (least) / 10.0 << " or later"; \
  }

// An array on the device, with 256 guard bytes behind it that check() reads back.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, uint8_t poison = 0xFF) : count_(count) {
    R1D_MUST(cudaMalloc(&data_, bytes() + kGuard));
    R1D_MUST(cudaMemset(data_, poison, bytes()));  // 0xFF: NaN in f32, bf16 and e4m3
    R1D_MUST(cudaMemset(reinterpret_cast<uint8_t*>(data_) + bytes(), kGuardByte, kGuard));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) { upload(host); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

  void upload(const std::vector<T>& host) {
    R1D_MUST(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  void poison(uint8_t byte = 0xFF) { R1D_MUST(cudaMemset(data_, byte, bytes())); }
  // Waits for the device; fails the test when the guard was overwritten.
  std::vector<T> download() const {
    R1D_MUST(cudaDeviceSynchronize());
    std::vector<T> host(count_);
    R1D_MUST(cudaMemcpy(host.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    std::vector<uint8_t> guard(kGuard);
    R1D_MUST(cudaMemcpy(guard.data(),
                        reinterpret_cast<const uint8_t*>(data_) + bytes(),
                        kGuard,
                        cudaMemcpyDeviceToHost));
    for (const uint8_t byte : guard) EXPECT_EQ(byte, kGuardByte) << "wrote behind the end";
    return host;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr uint8_t kGuardByte = 0xA5;
  T* data_ = nullptr;
  size_t count_ = 0;
};

// Seeded host data.
inline std::vector<float> random_floats(size_t count, uint64_t seed, float scale = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}
inline std::vector<uint16_t> to_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  std::transform(
      values.begin(), values.end(), bits.begin(), [](float v) { return f32_to_bf16(v); });
  return bits;
}
inline std::vector<float> from_bf16(const std::vector<uint16_t>& bits) {
  std::vector<float> values(bits.size());
  std::transform(
      bits.begin(), bits.end(), values.begin(), [](uint16_t b) { return bf16_to_f32(b); });
  return values;
}
// Uniform over the finite e4m3 codes.
inline std::vector<uint8_t> random_f8(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> codes(count);
  for (uint8_t& code : codes) {
    do {
      code = static_cast<uint8_t>(random());
    } while ((code & 0x7F) == 0x7F);
  }
  return codes;
}

// ||got - want|| / ||want||; infinite when anything is not finite.
template <typename Got, typename Want>
double relative_l2(const std::vector<Got>& got, const std::vector<Want>& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    if (!std::isfinite(difference)) return INFINITY;
    error += difference * difference;
    norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

// Median microseconds of one call: `calls` of body(i, stream) are captured into one graph (body
// should rotate over enough weight copies to exceed the 50 MB L2) and the graph is replayed.
inline double graph_time_us(int calls,
                            const std::function<void(int, cudaStream_t)>& body,
                            int replays = 12) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  R1D_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  body(0, stream);  // first call outside: lazy loading
  R1D_MUST(cudaStreamSynchronize(stream));
  R1D_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) body(i, stream);
  R1D_MUST(cudaStreamEndCapture(stream, &graph));
  R1D_MUST(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  R1D_MUST(cudaEventCreate(&begin));
  R1D_MUST(cudaEventCreate(&end));
  std::vector<double> times;
  for (int r = 0; r < replays + 3; ++r) {
    R1D_MUST(cudaEventRecord(begin, stream));
    R1D_MUST(cudaGraphLaunch(exec, stream));
    R1D_MUST(cudaEventRecord(end, stream));
    R1D_MUST(cudaStreamSynchronize(stream));
    float ms = 0;
    R1D_MUST(cudaEventElapsedTime(&ms, begin, end));
    if (r >= 3) times.push_back(1e3 * ms / calls);
  }
  std::sort(times.begin(), times.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return times[times.size() / 2];
}

}  // namespace r1d::kernels::test
