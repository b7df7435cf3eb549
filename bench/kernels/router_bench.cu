// SPDX-License-Identifier: Apache-2.0
// Times route_decode for R1's router: the median over graph replays of calls on weights of more
// than 100 MB in turn, with and without programmatic launch. No public kernel does the three
// together.
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

}  // namespace
}  // namespace r1d::kernels

int main() {
  const auto weight = r1d::kernels::routers();
  for (const int tokens : {1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256}) {
    r1d::kernels::measure(weight->data(), tokens);
  }
}
