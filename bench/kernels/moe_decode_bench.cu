// SPDX-License-Identifier: Apache-2.0
// Times router and decode experts at R1 sizes. Routing is uniform at random and differs from call
// to call, as do the router's and the shared expert's weights, so weights come from memory, not
// from L2.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/fp8_gemm/fp8_gemm.h"
#include "kernels/moe_decode/moe_decode.h"
#include "kernels/norm/norm.h"
#include "kernels/router/router.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

constexpr int kCalls = 16;
constexpr int kExperts = 256;
constexpr int kTopK = 8;
constexpr int64_t kHidden = 7168;
constexpr double kBytesPerUs = 4.3e6;

__global__ void fill(uint8_t* to, size_t bytes, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < bytes;
       i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9E3779B9U + seed;
    x = (x ^ (x >> 16)) * 0x7FEB352DU;
    const uint8_t code = (x ^ (x >> 15)) >> 9;
    to[i] = code & 0xBF;  // no NaN
  }
}

std::unique_ptr<DeviceArray<uint8_t>> random_bytes(size_t bytes, uint32_t seed) {
  auto array = std::make_unique<DeviceArray<uint8_t>>(bytes);
  fill<<<1056, 256>>>(array->data(), bytes, seed);
  R1D_MUST(cudaDeviceSynchronize());
  return array;
}

struct Lists {
  explicit Lists(int tokens)
      : num_blocks(1),
        blocks(max_expert_blocks(tokens, kTopK, kExperts)),
        entries(tokens * kTopK) {}
  ExpertLists view() { return {num_blocks.data(), blocks.data(), entries.data()}; }
  DeviceArray<int32_t> num_blocks;
  DeviceArray<ExpertBlock> blocks;
  DeviceArray<int32_t> entries;
};

// The router's weights, one copy a call; 59 MB in all.
struct Router {
  Router() : weight(random_bytes(kCalls * kExperts * kHidden * 2, 9)), bias(kExperts, 0) {}
  const uint8_t* at(int call) const { return weight->data() + call * kExperts * kHidden * 2; }
  std::unique_ptr<DeviceArray<uint8_t>> weight;
  DeviceArray<float> bias;
};

struct Step {
  explicit Step(int num_tokens)
      : tokens(num_tokens),
        stride((tokens + 3) / 4 * 4),
        x(random_bytes(tokens * kHidden, 3)),
        x_scale(std::vector<float>(kHidden / 128 * stride, 1e-3F)),
        x_bf16(test::to_bf16(test::random_floats(tokens * kHidden, 5))),
        weights(std::vector<float>(tokens * kTopK, 0.3F)),
        router_workspace(route_decode_workspace(tokens, kHidden, kExperts), 0),
        out(tokens * kHidden) {
    std::mt19937 random(tokens);
    std::vector<int32_t> all(kExperts);
    std::iota(all.begin(), all.end(), 0);
    for (int call = 0; call < kCalls; ++call) {
      std::vector<int32_t> chosen;
      for (int t = 0; t < tokens; ++t) {
        std::shuffle(all.begin(), all.end(), random);
        chosen.insert(chosen.end(), all.begin(), all.begin() + kTopK);
      }
      experts.push_back(std::make_unique<DeviceArray<int32_t>>(chosen));
      lists.push_back(std::make_unique<Lists>(tokens));
      R1D_MUST(list_experts(
          experts.back()->data(), tokens, kTopK, {0, kExperts, nullptr}, lists.back()->view(), {}));
      std::sort(chosen.begin(), chosen.end());
      active +=
          static_cast<double>(std::unique(chosen.begin(), chosen.end()) - chosen.begin()) / kCalls;
      R1D_MUST(cudaDeviceSynchronize());
    }
  }
  int tokens;
  int64_t stride;
  std::unique_ptr<DeviceArray<uint8_t>> x;
  DeviceArray<float> x_scale;
  DeviceArray<uint16_t> x_bf16;
  std::vector<std::unique_ptr<DeviceArray<int32_t>>> experts;  // of each call
  DeviceArray<float> weights;
  DeviceArray<uint8_t> router_workspace;
  DeviceArray<uint16_t> out;
  std::vector<std::unique_ptr<Lists>> lists;
  double active = 0;
};

void route(const Router& router, Step& step, int call, const Launch& launch) {
  const RouterRules rules{kExperts, kTopK, 8, 4, true, 2.5F};
  R1D_MUST(route_decode(router.at(call),
                        RouterWeightType::kBf16,
                        router.bias.data(),
                        reinterpret_cast<const __nv_bfloat16*>(step.x_bf16.data()),
                        step.tokens,
                        kHidden,
                        rules,
                        {0, kExperts, nullptr},
                        {step.experts[0]->data(), step.weights.data()},
                        step.lists[0]->view(),
                        step.router_workspace.data(),
                        launch));
}

void bench_router() {
  std::printf("router 256x7168 bf16: both launches, us; floor us; best public: none measured\n");
  Router router;
  for (const int tokens : {1, 4, 8, 16, 64, 128, 256}) {
    Step step(tokens);
    double us[2];
    for (const bool dependent : {false, true}) {
      us[dependent] = test::graph_time_us(kCalls, [&](int i, cudaStream_t stream) {
        route(router, step, i, {stream, dependent});
      });
    }
    const double floor = kExperts * kHidden * 2 / kBytesPerUs;
    std::printf("router       T%-3d  %6.2f us, programmatic %6.2f us, floor %.2f\n",
                tokens,
                us[0],
                us[1],
                floor);
  }
}

// What stands between one layer's experts and the next one's router, for the chain: o-like and
// qkv_a's products and the norms, so that kernels of other kinds come in between.
class Between {
 public:
  explicit Between(int tokens)
      : tokens_(tokens),
        products_(std::min(tokens, static_cast<int>(kFp8DecodeMaxTokens))),
        stride_((tokens + 3) / 4 * 4),
        tiles_(random_bytes(kCalls * (kQkv + kO), 21)),
        scale_(std::vector<float>(kHidden * kHidden / (128 * 128), 1e-3F)),
        norm_(std::vector<float>(kHidden, 1.0F)),
        residual_(test::to_bf16(test::random_floats(tokens * kHidden, 6))),
        normed_(tokens * kHidden),
        codes_(tokens * kHidden),
        code_scale_(kHidden / 128 * stride_),
        qkv_(tokens * kQkvRows),
        heads_(random_bytes(tokens * kOCols, 22)),
        head_scale_(std::vector<float>(kOCols / 128 * stride_, 1e-3F)),
        o_(tokens * kHidden) {}

  void run(int call, const DeviceArray<uint16_t>& experts_out, const Launch& launch) {
    const uint8_t* tiles = tiles_->data() + call * (kQkv + kO);
    norm(experts_out, launch);
    R1D_MUST(fp8_gemm_decode({tiles, scale_.data(), kQkvRows, kHidden},
                             {codes_.data(), code_scale_.data(), kHidden, stride_},
                             products_,
                             reinterpret_cast<__nv_bfloat16*>(qkv_.data()),
                             kQkvRows,
                             launch));
    R1D_MUST(fp8_gemm_decode({tiles + kQkv, scale_.data(), kHidden, kOCols},
                             {heads_->data(), head_scale_.data(), kOCols, stride_},
                             products_,
                             reinterpret_cast<__nv_bfloat16*>(o_.data()),
                             kHidden,
                             launch));
    norm(o_, launch);
  }

 private:
  static constexpr int64_t kQkvRows = 2112;
  static constexpr int64_t kOCols = 2048;
  static constexpr int64_t kQkv = kQkvRows * kHidden;
  static constexpr int64_t kO = kHidden * kOCols;
  void norm(const DeviceArray<uint16_t>& part, const Launch& launch) {
    AddNorm a;
    a.partial = part.data();
    a.residual = reinterpret_cast<__nv_bfloat16*>(residual_.data());
    a.weight = norm_.data();
    a.tokens = tokens_;
    a.cols = kHidden;
    a.out.bf16 = reinterpret_cast<__nv_bfloat16*>(normed_.data());
    a.out.quantized = {codes_.data(), code_scale_.data(), kHidden, stride_};
    R1D_MUST(add_norm(a, launch));
  }
  int tokens_;
  int products_;
  int64_t stride_;
  std::unique_ptr<DeviceArray<uint8_t>> tiles_;
  DeviceArray<float> scale_;
  DeviceArray<float> norm_;
  DeviceArray<uint16_t> residual_;
  DeviceArray<uint16_t> normed_;
  DeviceArray<uint8_t> codes_;
  DeviceArray<float> code_scale_;
  DeviceArray<uint16_t> qkv_;
  std::unique_ptr<DeviceArray<uint8_t>> heads_;
  DeviceArray<float> head_scale_;
  DeviceArray<uint16_t> o_;
};

// `best` = the best public kernels' gate_up + down + shared gate_up + shared down, 0: not measured.
struct Case {
  int tokens;
  double best;
};

void bench_experts(const char* name,
                   int64_t inner,
                   const std::vector<Case>& cases,
                   const std::vector<int>& only_tokens) {
  const int64_t gate_up = 2 * inner * kHidden;
  const int64_t down = inner * kHidden;
  const int64_t scales = inner / 128 * (kHidden / 128);
  const int shared_copies = inner <= 256 ? kCalls : 2;
  auto gate_up_tiles = random_bytes(kExperts * gate_up, 1);
  auto down_tiles = random_bytes(kExperts * down, 2);
  auto shared_tiles = random_bytes(shared_copies * (gate_up + down), 3);
  DeviceArray<float> scale(std::vector<float>(kExperts * scales, 1e-3F));
  const RoutedExperts routed{gate_up_tiles->data(),
                             gate_up,
                             scale.data(),
                             scale.data(),
                             scales,
                             down_tiles->data(),
                             down,
                             scale.data(),
                             scales,
                             inner,
                             kExperts};
  Router router;
  for (const Case& c : cases) {
    if (!only_tokens.empty() &&
        std::find(only_tokens.begin(), only_tokens.end(), c.tokens) == only_tokens.end()) {
      continue;
    }
    Step step(c.tokens);
    DeviceArray<uint8_t> workspace(
        moe_decode_workspace({c.tokens, kTopK, kExperts, kHidden, inner, inner}), 0);
    const auto run = [&](int i, const Launch& launch) {
      const uint8_t* shared = shared_tiles->data() + i % shared_copies * (gate_up + down);
      R1D_MUST(moe_decode({step.x->data(), step.x_scale.data(), kHidden, step.stride},
                          c.tokens,
                          {step.experts[i]->data(), step.weights.data()},
                          kTopK,
                          {0, kExperts, nullptr},
                          step.lists[i]->view(),
                          routed,
                          {{shared, scale.data(), scale.data(), inner, kHidden},
                           {shared + gate_up, scale.data(), kHidden, inner}},
                          reinterpret_cast<__nv_bfloat16*>(step.out.data()),
                          workspace.data(),
                          launch));
    };
    double us[2];
    for (const bool dependent : {false, true}) {
      us[dependent] = test::graph_time_us(kCalls, [&](int i, cudaStream_t stream) {
        run(i, {stream, dependent});
      });
    }
    // The router before it; its own lists go unused, so that the experts stay uniformly drawn.
    Step other(c.tokens);
    const double chained = test::graph_time_us(kCalls, [&](int i, cudaStream_t stream) {
      route(router, other, i, {stream, true});
      run(i, {stream, true});
    });
    Between between(c.tokens);
    const double layers = test::graph_time_us(kCalls, [&](int i, cudaStream_t stream) {
      between.run(i, step.out, {stream, true});
      route(router, other, i, {stream, true});
      run(i, {stream, true});
    });
    const double bytes = (step.active + 1) * (gate_up + down + 12.0 * scales);
    const double floor = bytes / kBytesPerUs;
    std::printf(
        "%-12s T%-3d experts %5.1f  %7.1f us, programmatic %7.1f us (%4.0f GB/s), floor %6.1f "
        "(%.2fx)",
        name,
        c.tokens,
        step.active,
        us[0],
        us[1],
        bytes / us[1] * 1e-3,
        floor,
        us[1] / floor);
    if (c.best > 0) std::printf(", best public %6.1f (%.2fx)", c.best, us[1] / c.best);
    std::printf("; router + experts %7.1f us, chain %7.1f us\n", chained, layers);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace r1d::kernels

// Arguments: names of the parts to run (router, sharded, whole; all without any) and, behind them,
// token counts.
int main(int argc, char** argv) {
  using namespace r1d::kernels;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  std::vector<int> only_tokens;
  for (const std::string& a : arguments) {
    if (std::atoi(a.c_str()) > 0) only_tokens.push_back(std::atoi(a.c_str()));
  }
  const auto wanted = [&](const char* part) {
    return arguments.empty() ||
           std::find(arguments.begin(), arguments.end(), part) != arguments.end();
  };
  if (test::compute_capability() < 90) {
    std::printf("needs a GPU of compute capability 9.0\n");
    return 0;
  }
  if (wanted("router")) bench_router();
  if (wanted("sharded")) {
    bench_experts(
        "moe_decode/8",
        256,
        {{1, 32.3}, {2, 0}, {4, 0}, {8, 95.6}, {16, 0}, {32, 0}, {64, 313}, {128, 0}, {256, 372}},
        only_tokens);
  }
  if (wanted("whole")) {
    bench_experts(
        "moe_decode", 2048, {{1, 107.6}, {8, 599.7}, {64, 2224}, {256, 2624}}, only_tokens);
  }
  return 0;
}
