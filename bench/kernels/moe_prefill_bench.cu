// SPDX-License-Identifier: Apache-2.0
// Times the routed experts of one R1 layer at many tokens: 256 experts, top 8, uniform routing.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <set>

#include "kernels/moe_prefill/moe_prefill.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

constexpr double kBytesPerUs = 4.3e6;
constexpr double kFlopsPerUs = 1.5e9;
constexpr int32_t kExperts = 256;
constexpr int32_t kSms = 132;
constexpr int32_t kSlots = 8;
constexpr int64_t kDim = 7168;

void fill_codes(DeviceArray<uint8_t>& array, uint64_t seed) {
  const std::vector<uint8_t> block = test::random_f8(std::min<size_t>(array.size(), 1 << 22), seed);
  for (size_t at = 0; at < array.size(); at += block.size()) {
    R1D_MUST(cudaMemcpy(array.data() + at,
                        block.data(),
                        std::min(block.size(), array.size() - at),
                        cudaMemcpyHostToDevice));
  }
}

std::vector<int32_t> uniform_experts(int32_t tokens) {
  std::mt19937 random(1);
  std::vector<int32_t> ids(kExperts);
  for (int32_t e = 0; e < kExperts; ++e) ids[e] = e;
  std::vector<int32_t> experts;
  for (int32_t t = 0; t < tokens; ++t) {
    for (int32_t s = 0; s < kSlots; ++s) std::swap(ids[s], ids[s + random() % (kExperts - s)]);
    experts.insert(experts.end(), ids.begin(), ids.begin() + kSlots);
  }
  return experts;
}

struct Layer {
  explicit Layer(int64_t intermediate)
      : i(intermediate),
        gate_up(kExperts * 2 * i * kDim),
        gate_up_scale(std::vector<float>(kExperts * (i / 128) * (kDim / 128), 1e-3F)),
        down(kExperts * i * kDim),
        down_scale(std::vector<float>(kExperts * (i / 128) * (kDim / 128), 1e-3F)) {
    fill_codes(gate_up, 1);
    fill_codes(down, 2);
  }
  ExpertGateUp gate_up_weight() const {
    const int64_t scales = i / 128 * (kDim / 128);
    return {{gate_up.data(), gate_up_scale.data(), gate_up_scale.data(), i, kDim},
            2 * i * kDim,
            scales};
  }
  ExpertDown down_weight() const {
    return {{down.data(), down_scale.data(), kDim, i}, i * kDim, i / 128 * (kDim / 128)};
  }
  int64_t i;
  DeviceArray<uint8_t> gate_up;
  DeviceArray<float> gate_up_scale;
  DeviceArray<uint8_t> down;
  DeviceArray<float> down_scale;
};

struct Line {
  const char* name;
  double us;
  double dependent_us;
  double bytes;
  double flops;
  double public_us;
};
void print(int64_t intermediate, int32_t tokens, const Line& line) {
  const double floor = std::max(line.flops / kFlopsPerUs, line.bytes / kBytesPerUs);
  std::printf(
      "I %4ld M %5d %-12s %7.1f us [dependent %7.1f] %5.0f GB/s %5.0f TFLOPS floor %6.1f public "
      "%6.1f ratio to floor %4.2f\n",
      intermediate,
      tokens,
      line.name,
      line.us,
      line.dependent_us,
      line.bytes / line.us * 1e-3,
      line.flops / line.us * 1e-6,
      floor,
      line.public_us,
      floor > 0 ? line.us / floor : 0);
}

void bench(const Layer& layer, int32_t tokens, double gate_up_public_us, double down_public_us) {
  const int64_t pairs = int64_t{tokens} * kSlots;
  const int64_t i = layer.i;
  const std::vector<int32_t> experts_host = uniform_experts(tokens);
  const auto active =
      static_cast<double>(std::set<int32_t>(experts_host.begin(), experts_host.end()).size());
  DeviceArray<int32_t> experts(experts_host);
  DeviceArray<float> weights(std::vector<float>(pairs, 0.125F));
  DeviceArray<uint8_t> x_data(tokens * kDim);
  fill_codes(x_data, 3);
  DeviceArray<float> x_scale(std::vector<float>(kDim / 128 * tokens, 1e-3F));
  DeviceArray<uint8_t> h_data(pairs * i);
  DeviceArray<float> h_scale(i / 128 * pairs);
  DeviceArray<__nv_bfloat16> y(pairs * kDim);
  DeviceArray<__nv_bfloat16> out(tokens * kDim, 0);
  DeviceArray<int32_t> row_pair(pairs);
  DeviceArray<int32_t> pair_row(pairs);
  DeviceArray<int32_t> tiles(moe_max_tiles(tokens, kSlots, kExperts) * 4);
  DeviceArray<int32_t> wide_tiles(moe_max_wide_tiles(tokens, kSlots, kExperts) * 4);
  DeviceArray<int32_t> totals(3);
  DeviceArray<int32_t> progress(kMoeProgress, 0);
  const PairLists lists{row_pair.data(),
                        pair_row.data(),
                        tiles.data(),
                        wide_tiles.data(),
                        totals.data(),
                        progress.data()};
  const QuantizedRows x{x_data.data(), x_scale.data(), kDim, tokens};
  const QuantizedRows h{h_data.data(), h_scale.data(), i, pairs};

  using Body = std::function<void(const Launch&)>;
  const Body make_lists = [&](const Launch& l) {
    R1D_MUST(moe_expert_lists(experts.data(), tokens, kSlots, 0, kExperts, lists, l));
  };
  const Body gate_up = [&](const Launch& l) {
    R1D_MUST(moe_gate_up(layer.gate_up_weight(), x, tokens, kSlots, lists, h, l));
  };
  const Body down = [&](const Launch& l) {
    R1D_MUST(moe_down_combine(layer.down_weight(),
                              h,
                              lists,
                              weights.data(),
                              out.data(),
                              tokens,
                              kSlots,
                              y.data(),
                              moe_down_block(tokens, kSlots, kDim),
                              out.data(),
                              l));
  };
  const Body slabs = [&](const Launch& l) {
    R1D_MUST(moe_down_slabs(layer.down_weight(),
                            h,
                            lists,
                            kExperts,
                            weights.data(),
                            out.data(),
                            tokens,
                            kSlots,
                            kSms,
                            y.data(),
                            out.data(),
                            l));
  };
  const auto time = [&](const Body& body, bool dependent) {
    return test::graph_time_us(
        3, [&](int, cudaStream_t stream) { body({.stream = stream, .dependent = dependent}); }, 5);
  };
  const auto line =
      [&](const char* name, const Body& body, double bytes, double flops, double public_us) {
        const double us = time(body, false);
        print(i, tokens, {name, us, time(body, true), bytes, flops, public_us});
      };
  const auto rows = static_cast<double>(pairs);
  const double row_flops = 2.0 * rows * i * kDim;
  line("lists", make_lists, rows * 12, 0, 0);
  line("gate_up",
       gate_up,
       active * 2 * i * kDim + tokens * kDim + rows * i,
       2 * row_flops,
       gate_up_public_us);
  line("down+combine",
       down,
       active * i * kDim + rows * i + rows * kDim * 4 + tokens * kDim * 4.0,
       row_flops,
       down_public_us);
  const bool in_slabs = moe_down_slabs_serves(tokens, kSlots, kExperts, kDim, i, kSms);
  if (in_slabs)
    line("slabs",
         slabs,
         active * i * kDim + rows * i + tokens * kDim * 4.0,
         row_flops,
         down_public_us);
  const Body all = [&](const Launch& l) {
    make_lists(l);
    gate_up(l);
    in_slabs ? slabs(l) : down(l);
  };
  line("all", all, active * 3 * i * kDim + tokens * kDim * 5.0, 3 * row_flops, 0);
}

}  // namespace
}  // namespace r1d::kernels

// moe_prefill_bench [I [tokens]]: all cases, or those of one I, or one.
int main(int argc, char** argv) {
  using namespace r1d::kernels;
  if (test::compute_capability() < 90) {
    std::printf("needs a GPU of compute capability 9.0\n");
    return 0;
  }
  struct Case {
    int64_t intermediate;
    int32_t tokens;
    double gate_up_public_us;
    double down_public_us;
  };
  constexpr Case kCases[] = {{256, 65, 190.2, 111.5},
                             {256, 256, 220.8, 136.9},
                             {256, 1024, 0, 0},
                             {256, 2048, 0, 0},
                             {256, 4096, 419.4, 310.0},
                             {256, 8192, 0, 0},
                             {2048, 256, 1717.5, 882.9},
                             {2048, 4096, 2979.6, 1424.2}};
  const int64_t only_intermediate = argc > 1 ? std::atoll(argv[1]) : 0;
  const int32_t only_tokens = argc > 2 ? std::atoi(argv[2]) : 0;
  std::unique_ptr<Layer> layer;
  for (const Case& c : kCases) {
    if (only_intermediate != 0 && c.intermediate != only_intermediate) continue;
    if (only_tokens != 0 && c.tokens != only_tokens) continue;
    if (layer == nullptr || layer->i != c.intermediate) {
      layer.reset();
      layer = std::make_unique<Layer>(c.intermediate);
    }
    bench(*layer, c.tokens, c.gate_up_public_us, c.down_public_us);
  }
  return 0;
}
