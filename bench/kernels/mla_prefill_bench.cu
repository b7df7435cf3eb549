// SPDX-License-Identifier: Apache-2.0
// Times mla_prefill and the kernels before it. One line a shape: medians over graph replays, inputs
// rotated over more than 100 MB, on the plain and on the programmatic launch path. Arguments: a
// shape's name, a factor for the replays, a pause in ms before each measurement (the GPU cools;
// under load its power limit lowers the clock).
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/mla_prefill/mla_prefill.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

struct Shape {
  const char* name;
  int heads;
  int sequences;
  int query;
  int context;
  double public_us;  // FlashAttention-3, anchors-h200.txt; 0: not measured
};

constexpr Shape kShapes[] = {
    {"h16 2048", 16, 1, 2048, 2048, 42},
    {"h16 8192", 16, 1, 8192, 8192, 488},
    {"h16 4 x 2048", 16, 4, 2048, 2048, 0},
    {"h16 2048 behind 6144", 16, 1, 2048, 8192, 0},
    {"h16 64 x 128", 16, 64, 128, 128, 0},
    {"h16 512", 16, 1, 512, 512, 0},
    {"h128 2048", 128, 1, 2048, 2048, 309},
    {"h128 8192", 128, 1, 8192, 8192, 4211},
};

// bf16 noise of one megabyte, repeated: power, and so the clock, depends on the values.
void fill(DeviceArray<uint16_t>& array, uint64_t seed) {
  static const std::vector<uint16_t> noise = test::to_bf16(test::random_floats(1 << 19, 1));
  const size_t shift = seed * 12345 % 1000 * 8;
  for (size_t at = 0; at < array.size(); at += noise.size() - shift) {
    const size_t count = std::min(noise.size() - shift, array.size() - at);
    R1D_MUST(
        cudaMemcpy(array.data() + at, noise.data() + shift, count * 2, cudaMemcpyHostToDevice));
  }
}

struct Inputs {
  Inputs(int64_t tokens, int64_t keys, int64_t heads)
      : q(tokens * heads * 192),
        kv(keys * heads * 256),
        k_pe(keys * 64),
        out(tokens * heads * 128),
        scales(heads * tokens) {
    fill(q, 1);
    fill(kv, 2);
    fill(k_pe, 3);
  }
  DeviceArray<uint16_t> q, kv, k_pe, out;
  DeviceArray<float> scales;
};

void bench_attention(const Shape& shape, int repeats, int pause_ms) {
  std::vector<PrefillSequence> sequences;
  for (int i = 0; i < shape.sequences; ++i) {
    sequences.push_back({.query_begin = i * shape.query,
                         .query_len = shape.query,
                         .context_len = shape.context,
                         .num_positions = shape.context,
                         .key_begin = i * shape.context});
  }
  const int64_t tokens = int64_t{shape.sequences} * shape.query;
  const int64_t keys = int64_t{shape.sequences} * shape.context;
  const double input_bytes = 2.0 * shape.heads * (192 * tokens + 256 * keys);
  const int copies = std::min(6, 1 + static_cast<int>(100e6 / input_bytes));
  std::vector<std::unique_ptr<Inputs>> inputs;
  for (int i = 0; i < copies; ++i) {
    inputs.push_back(std::make_unique<Inputs>(tokens, keys, shape.heads));
  }
  const std::vector<MlaPrefillTile> tiles = plan_mla_prefill(sequences.data(), shape.sequences);
  const DeviceArray<MlaPrefillTile> tiles_device(tiles);
  DeviceArray<uint32_t> counter(1, 0);

  const auto run = [&](int i, bool as_codes, Launch launch) {
    Inputs& input = *inputs[i % copies];
    MlaPrefill problem;
    problem.q = reinterpret_cast<const __nv_bfloat16*>(input.q.data());
    problem.kv = reinterpret_cast<const __nv_bfloat16*>(input.kv.data());
    problem.k_pe = reinterpret_cast<const __nv_bfloat16*>(input.k_pe.data());
    problem.out = reinterpret_cast<__nv_bfloat16*>(input.out.data());
    if (as_codes) {
      problem.codes = {.data = reinterpret_cast<uint8_t*>(input.out.data()),
                       .scale = input.scales.data(),
                       .cols = int64_t{shape.heads} * 128,
                       .scale_stride = tokens};
    }
    problem.num_tokens = tokens;
    problem.num_keys = keys;
    problem.num_heads = shape.heads;
    problem.scale = 1 / std::sqrt(192.0F);
    problem.tiles = tiles_device.data();
    problem.num_tiles = static_cast<int32_t>(tiles.size());
    problem.counter = counter.data();
    R1D_MUST(mla_prefill(problem, launch));
  };
  const double flops = mla_prefill_flops(sequences.data(), shape.sequences, shape.heads);
  const int calls = flops > 1e12 ? 3 : 12;
  const int replays = (flops > 1e12 ? 5 : 12) * repeats;
  const auto pause = [&] { std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms)); };
  const auto time = [&](bool dependent, bool as_codes) {
    pause();
    return test::graph_time_us(
        calls,
        [&](int i, cudaStream_t s) {
          run(i, as_codes, {s, dependent});
        },
        replays);
  };
  const double us = time(false, false);
  const double dependent_us = time(true, false);
  const double codes_us = time(true, true);
  const double bytes = input_bytes + 2.0 * shape.heads * 128 * tokens;
  const double floor_us = std::max(flops / 790e6, bytes / 4.3e6);
  std::printf(
      "attention %-20s %7.1f us [%7.1f, codes %7.1f] %4.0f TFLOPS [%4.0f] floor %7.1f us "
      "(%3.0f%%)",
      shape.name,
      us,
      dependent_us,
      codes_us,
      flops / us * 1e-6,
      flops / dependent_us * 1e-6,
      floor_us,
      100 * floor_us / us);
  if (shape.public_us > 0) {
    std::printf(" FA3 %6.0f us, ratio %.2f", shape.public_us, us / shape.public_us);
  }
  std::printf("\n");
}

void bench_prepare(int keys) {
  constexpr int kBlock = 64;
  constexpr int kHeads = 16;
  const int copies = 8;
  const int blocks = keys / kBlock;
  std::vector<int32_t> ids(blocks);
  for (int i = 0; i < blocks; ++i) ids[i] = (i * 37) % blocks;
  const std::vector<PrefillSequence> sequences = {
      {.query_len = keys, .context_len = keys, .num_positions = keys}};
  const DeviceArray<int32_t> ids_device(ids);
  const DeviceArray<PrefillSequence> sequences_device(sequences);
  std::vector<std::unique_ptr<DeviceArray<uint16_t>>> caches;
  for (int i = 0; i < copies; ++i) {
    caches.push_back(std::make_unique<DeviceArray<uint16_t>>(int64_t{keys} * 576));
    fill(*caches.back(), i);
  }
  DeviceArray<uint16_t> c(int64_t{keys} * 512);
  DeviceArray<uint16_t> k_pe(int64_t{keys} * 64);
  DeviceArray<uint8_t> data(int64_t{keys} * 512);
  DeviceArray<float> scale(4 * int64_t{keys});
  std::vector<std::unique_ptr<DeviceArray<uint16_t>>> queries;
  for (int i = 0; i < 3; ++i) {
    queries.push_back(std::make_unique<DeviceArray<uint16_t>>(int64_t{keys} * kHeads * 192));
    fill(*queries.back(), i);
  }
  const DeviceArray<float> angles(test::random_floats(int64_t{keys} * 64, 5));
  const auto gather = [&](int i) {
    GatherLatents g;
    g.cache = {caches[i % copies]->data(), kBlock, 576};
    g.block_ids = ids_device.data();
    g.sequences = sequences_device.data();
    g.num_sequences = 1;
    g.num_keys = keys;
    g.k_pe = reinterpret_cast<__nv_bfloat16*>(k_pe.data());
    return g;
  };
  const auto line = [&](const char* name,
                        double bytes,
                        const std::function<void(int, Launch)>& body) {
    const double us = test::graph_time_us(24, [&](int i, cudaStream_t s) { body(i, {s, false}); });
    const double dependent = test::graph_time_us(24, [&](int i, cudaStream_t s) {
      body(i, {s, true});
    });
    std::printf("%-18s %5d %6.2f us [%6.2f] %5.0f GB/s floor %5.2f us\n",
                name,
                keys,
                us,
                dependent,
                bytes / us * 1e-3,
                bytes / 4.3e6);
  };
  line("gather bf16", keys * 2304.0, [&](int i, Launch l) {
    R1D_MUST(gather_latents(gather(i), reinterpret_cast<__nv_bfloat16*>(c.data()), l));
  });
  line("gather e4m3", keys * 1808.0, [&](int i, Launch l) {
    R1D_MUST(gather_latents(gather(i), QuantizedRows{data.data(), scale.data(), 512, keys}, l));
  });
  line("rotate h16", keys * (kHeads * 256.0 + 256), [&](int i, Launch l) {
    auto* q = reinterpret_cast<__nv_bfloat16*>(queries[i % 3]->data());
    R1D_MUST(rotate_queries(q, angles.data(), keys, kHeads, true, l));
  });
}

}  // namespace
}  // namespace r1d::kernels

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  const int repeats = argc > 2 ? std::atoi(argv[2]) : 1;
  const int pause_ms = argc > 3 ? std::atoi(argv[3]) : 0;
  for (const auto& shape : r1d::kernels::kShapes) {
    if (only.empty() || only == shape.name) r1d::kernels::bench_attention(shape, repeats, pause_ms);
  }
  if (only.empty()) {
    for (const int keys : {2048, 8192}) r1d::kernels::bench_prepare(keys);
  }
  return 0;
}
