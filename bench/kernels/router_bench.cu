// SPDX-License-Identifier: Apache-2.0
// Times R1's router: route_decode, the median over graph replays of calls on weights of more than
// 100 MB in turn, with and without programmatic launch (no public kernel does the three together);
// and for many tokens route_logits and route_from_logits.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "kernels/router/router.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

constexpr int kCalls = 32;
constexpr int kExperts = 256;
constexpr int kTopK = 8;
constexpr int64_t kHidden = 7168;
constexpr double kBytesPerUs = 4.3e6;

// Copies of one router, a call's each: 117 MB in all.
std::unique_ptr<DeviceArray<uint16_t>> routers() {
  constexpr size_t kOne = kExperts * kHidden;
  auto all = std::make_unique<DeviceArray<uint16_t>>(kCalls * kOne);
  const auto one = test::to_bf16(test::random_floats(kOne, 1, 0.02F));
  R1D_MUST(cudaMemcpy(all->data(), one.data(), kOne * 2, cudaMemcpyHostToDevice));
  for (int call = 1; call < kCalls; ++call) {
    R1D_MUST(
        cudaMemcpy(all->data() + call * kOne, all->data(), kOne * 2, cudaMemcpyDeviceToDevice));
  }
  return all;
}

void measure(const uint16_t* weight, int tokens) {
  DeviceArray<uint16_t> x(test::to_bf16(test::random_floats(tokens * kHidden, 2)));
  DeviceArray<float> bias(test::random_floats(kExperts, 3, 0.05F));
  DeviceArray<int32_t> experts(tokens * kTopK);
  DeviceArray<float> weights(tokens * kTopK);
  DeviceArray<int32_t> num_blocks(1);
  DeviceArray<ExpertBlock> blocks(max_expert_blocks(tokens, kTopK, kExperts));
  DeviceArray<int32_t> entries(tokens * kTopK);
  DeviceArray<uint8_t> workspace(route_decode_workspace(tokens, kHidden, kExperts), 0);
  double us[2];
  for (const bool dependent : {false, true}) {
    us[dependent] = test::graph_time_us(kCalls, [&](int call, cudaStream_t stream) {
      R1D_MUST(route_decode(weight + call * kExperts * kHidden,
                            RouterWeightType::kBf16,
                            bias.data(),
                            reinterpret_cast<const __nv_bfloat16*>(x.data()),
                            tokens,
                            kHidden,
                            {kExperts, kTopK, 8, 4, true, 2.5F},
                            {0, kExperts, nullptr},
                            {experts.data(), weights.data()},
                            {num_blocks.data(), blocks.data(), entries.data()},
                            workspace.data(),
                            {stream, dependent}));
    });
  }
  const double bytes = 2.0 * kHidden * (kExperts + tokens);
  std::printf("router 256x7168 bf16  T%-3d  %6.2f us, programmatic %6.2f us, floor %.2f\n",
              tokens,
              us[0],
              us[1],
              bytes / kBytesPerUs);
  std::fflush(stdout);
}

void measure_many(const uint16_t* weight, int tokens) {
  constexpr int kChunks = 10;
  DeviceArray<uint16_t> x(tokens * kHidden);
  const auto noise = test::to_bf16(test::random_floats(1 << 20, 2));
  for (size_t at = 0; at < x.size(); at += noise.size()) {
    const size_t count = std::min(noise.size(), x.size() - at);
    R1D_MUST(cudaMemcpy(x.data() + at, noise.data(), count * 2, cudaMemcpyHostToDevice));
  }
  DeviceArray<float> logits(tokens * kExperts);
  DeviceArray<float> bias(test::random_floats(kExperts, 3, 0.01F));
  DeviceArray<int32_t> experts(tokens * kTopK);
  DeviceArray<float> weights(tokens * kTopK);
  const auto multiply = [&](const Launch& launch) {
    R1D_MUST(route_logits(reinterpret_cast<const __nv_bfloat16*>(weight),
                          reinterpret_cast<const __nv_bfloat16*>(x.data()),
                          kHidden,
                          tokens,
                          kHidden,
                          kExperts,
                          logits.data(),
                          kExperts,
                          launch));
  };
  const auto choose = [&](const Launch& launch) {
    R1D_MUST(route_from_logits(logits.data(),
                               kExperts,
                               bias.data(),
                               tokens,
                               {kExperts, kTopK, 8, 4, true, 2.5F},
                               {experts.data(), weights.data()},
                               launch));
  };
  const auto time = [&](const auto& body) {
    return test::graph_time_us(kChunks, [&](int, cudaStream_t stream) { body({stream, true}); });
  };
  std::printf("router of T%-5d programmatic: logits %6.2f us, choice %6.2f us, both %6.2f us\n",
              tokens,
              time(multiply),
              time(choose),
              time([&](const Launch& launch) {
                multiply(launch);
                choose(launch);
              }));
  std::fflush(stdout);
}

}  // namespace
}  // namespace r1d::kernels

int main() {
  const auto weight = r1d::kernels::routers();
  for (const int tokens : {1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256}) {
    r1d::kernels::measure(weight->data(), tokens);
  }
  for (const int tokens : {1024, 4096, 6144, 8192}) {
    r1d::kernels::measure_many(weight->data(), tokens);
  }
}
