// SPDX-License-Identifier: Apache-2.0
// Times the FP8 products for many tokens at R1's shapes: one line a shape, the chosen tile first,
// then (with argument `tiles`) every tile.
#include <cstring>
#include <memory>

#include "kernels/fp8_gemm_prefill/fp8_gemm_prefill.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

constexpr double kBytesPerUs = 4.3e6;
constexpr double kFlopsPerUs = 1.5e9;

struct Shape {
  const char* name;
  int64_t rows;
  int64_t cols;
  double public_us[3];  // the best public kernel at 64, 256 and 4096 tokens, 0 where unknown
};
constexpr Shape kShapes[] = {
    {"qkv_a", 2112, 7168, {9.4, 11.9, 94.1}},
    {"q_b/8", 3072, 1536, {4.7, 5.8, 32.0}},
    {"kv_b/8", 4096, 512, {3.1, 4.1, 19.3}},
    {"o/8", 7168, 2048, {6.5, 9.8, 93.6}},
    {"gate_up/8", 4608, 7168, {13.6, 23.5, 191.3}},
    {"down/8", 7168, 2304, {7.2, 10.9, 102.2}},
    {"sh_gate_up/8", 512, 7168, {9.4, 9.7, 23.4}},
    {"sh_down/8", 7168, 256, {3.0, 4.7, 22.3}},
    {"o", 7168, 16384, {34.5, 55.2, 671.1}},
};

// Codes without NaN: a random block, copied over the array.
void fill_codes(DeviceArray<uint8_t>& array, uint64_t seed) {
  const std::vector<uint8_t> block = test::random_f8(std::min<size_t>(array.size(), 1 << 22), seed);
  for (size_t at = 0; at < array.size(); at += block.size()) {
    R1D_MUST(cudaMemcpy(array.data() + at,
                        block.data(),
                        std::min(block.size(), array.size() - at),
                        cudaMemcpyHostToDevice));
  }
}

struct Problem {
  Problem(const Shape& s, int64_t tokens, int copies_wanted)
      : copies(copies_wanted),
        tiles(copies_wanted * s.rows * s.cols),
        w_scale(std::vector<float>((s.rows + 127) / 128 * (s.cols / 128), 1e-3F)),
        x(tokens * s.cols),
        x_scale(std::vector<float>(s.cols / 128 * tokens, 1e-3F)),
        out(tokens * s.rows) {
    fill_codes(tiles, 1);
    fill_codes(x, 2);
  }
  int copies;
  DeviceArray<uint8_t> tiles;
  DeviceArray<float> w_scale;
  DeviceArray<uint8_t> x;
  DeviceArray<float> x_scale;
  DeviceArray<__nv_bfloat16> out;
};

int copies_of(const Shape& s, int64_t tokens) {
  const int64_t bytes = s.rows * s.cols;
  return tokens >= 1024 ? 2 : static_cast<int>(std::min<int64_t>(40, 120'000'000 / bytes + 1));
}

void bench_shape(const Shape& s, int32_t tokens, double public_us, bool all_tiles) {
  Problem problem(s, tokens, copies_of(s, tokens));
  const QuantizedRows x{problem.x.data(), problem.x_scale.data(), s.cols, tokens};
  const auto time = [&](const Fp8PrefillTile& tile, bool dependent) {
    const int calls = std::max(problem.copies, tokens >= 1024 ? 6 : 20);
    return test::graph_time_us(
        calls,
        [&](int i, cudaStream_t stream) {
          const TiledMatrix w{problem.tiles.data() + i % problem.copies * s.rows * s.cols,
                              problem.w_scale.data(),
                              s.rows,
                              s.cols};
          R1D_MUST(fp8_gemm_prefill(w,
                                    x,
                                    tokens,
                                    problem.out.data(),
                                    s.rows,
                                    tile,
                                    {.stream = stream, .dependent = dependent}));
        },
        6);
  };
  const double flops = 2.0 * tokens * s.rows * s.cols;
  const double bytes =
      static_cast<double>(s.rows) * s.cols + static_cast<double>(tokens) * (s.cols + 2 * s.rows);
  const double floor = std::max(flops / kFlopsPerUs, bytes / kBytesPerUs);
  const Fp8PrefillTile tile = fp8_gemm_prefill_tile(tokens, s.rows, s.cols);
  const double us = time(tile, false);
  std::printf(
      "%-13s %5ldx%-5ld M %5d  %7.1f us  [dependent %7.1f]  %6.0f TFLOPS %5.0f GB/s  floor %6.1f  "
      "public %6.1f  ratio %4.2f  tile %dx%d c%d k%d",
      s.name,
      s.rows,
      s.cols,
      tokens,
      us,
      time(tile, true),
      flops / us * 1e-6,
      bytes / us * 1e-3,
      floor,
      public_us,
      public_us > 0 ? us / public_us : 0,
      tile.block_rows,
      tile.block_cols,
      tile.cluster,
      tile.k_groups);
  if (all_tiles) {
    for (const Fp8PrefillTile& t : fp8_gemm_prefill_tiles()) {
      if (t.block_rows == 64 && tokens > 1024) continue;
      std::printf(
          " | %dx%d.%d.%d %.1f", t.block_rows, t.block_cols, t.cluster, t.k_groups, time(t, false));
    }
  }
  std::printf("\n");
}

void bench_gate_up(int64_t intermediate, int32_t tokens) {
  const Shape s{"", 2 * intermediate, 7168, {}};
  Problem problem(s, tokens, copies_of(s, tokens));
  DeviceArray<float> h_scale(intermediate / 128 * tokens);
  const QuantizedRows h{
      reinterpret_cast<uint8_t*>(problem.out.data()), h_scale.data(), intermediate, tokens};
  const QuantizedRows x{problem.x.data(), problem.x_scale.data(), s.cols, tokens};
  const double us = test::graph_time_us(
      std::max(problem.copies, 6),
      [&](int i, cudaStream_t stream) {
        const TiledGateUp w{problem.tiles.data() + i % problem.copies * s.rows * s.cols,
                            problem.w_scale.data(),
                            problem.w_scale.data(),
                            intermediate,
                            s.cols};
        R1D_MUST(fp8_gate_up_prefill(w, x, tokens, h, {.stream = stream}));
      },
      6);
  std::printf("gate_up + SwiGLU + quantize, I %5ld M %5d  %7.1f us  %6.0f TFLOPS\n",
              intermediate,
              tokens,
              us,
              4e-6 * tokens * intermediate * 7168 / us);
}

}  // namespace
}  // namespace r1d::kernels

int main(int argc, char** argv) {
  using namespace r1d::kernels;
  if (test::compute_capability() < 90) {
    std::printf("needs a GPU of compute capability 9.0\n");
    return 0;
  }
  const bool all_tiles = argc > 1 && std::strcmp(argv[1], "tiles") == 0;
  for (const Shape& s : kShapes) {
    bench_shape(s, 65, s.public_us[0], all_tiles);
    bench_shape(s, 128, 0, all_tiles);
    bench_shape(s, 256, s.public_us[1], all_tiles);
    bench_shape(s, 1024, 0, all_tiles);
    bench_shape(s, 4096, s.public_us[2], all_tiles);
    bench_shape(s, 8192, 0, all_tiles);
  }
  for (const int32_t tokens : {128, 1024, 4096, 8192}) {
    bench_gate_up(2304, tokens);
    bench_gate_up(256, tokens);
  }
  return 0;
}
