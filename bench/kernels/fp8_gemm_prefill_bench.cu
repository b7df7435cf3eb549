// SPDX-License-Identifier: Apache-2.0
// Times the FP8 products for many tokens at R1's shapes: one line a shape, the chosen tile first,
// then (with argument `tiles`) every tile. Operands are normal values, quantized as activations and
// weights are; with `uniform`, codes of uniformly random bits. Above some 1000 tokens the bits
// decide about the power, and the power about the clock. `most=N`: shapes up to N tokens.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <cuda_fp8.h>

#include "kernels/fp8_gemm_prefill/fp8_gemm_prefill.h"
#include "kernels/quantize/quantize.h"
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

enum class Codes { kNormal, kUniform };

// Normal values, each group's largest magnitude scaled to e4m3's largest value.
std::vector<uint8_t> quantized_normal(size_t count, size_t group, uint64_t seed) {
  const std::vector<float> values = test::random_floats(count, seed);
  std::vector<uint8_t> codes(count);
  for (size_t at = 0; at < count; at += group) {
    const size_t end = std::min(count, at + group);
    float largest = 0;
    for (size_t i = at; i < end; ++i) largest = std::max(largest, std::fabs(values[i]));
    for (size_t i = at; i < end; ++i)
      codes[i] = __nv_cvt_float_to_fp8(values[i] * 448.0F / largest, __NV_SATFINITE, __NV_E4M3);
  }
  return codes;
}

// Fills an array with copies of one random block. `group`: values that share a scale.
void fill_codes(DeviceArray<uint8_t>& array, Codes kind, size_t group, uint64_t seed) {
  const size_t count = std::min<size_t>(array.size(), 1 << 20);
  const std::vector<uint8_t> block =
      kind == Codes::kNormal ? quantized_normal(count, group, seed) : test::random_f8(count, seed);
  for (size_t at = 0; at < array.size(); at += block.size()) {
    R1D_MUST(cudaMemcpy(array.data() + at,
                        block.data(),
                        std::min(block.size(), array.size() - at),
                        cudaMemcpyHostToDevice));
  }
}

struct Problem {
  Problem(const Shape& s, int64_t tokens, int copies_wanted, Codes codes)
      : copies(copies_wanted),
        tiles(copies_wanted * s.rows * s.cols),
        w_scale(std::vector<float>((s.rows + 127) / 128 * (s.cols / 128), 1e-3F)),
        x(tokens * s.cols),
        x_scale(std::vector<float>(s.cols / 128 * tokens, 1e-3F)),
        out(tokens * s.rows) {
    fill_codes(tiles, codes, 128 * 128, 1);
    fill_codes(x, codes, 128, 2);
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

struct Options {
  Codes codes = Codes::kNormal;
  bool all_tiles = false;
  int32_t most_tokens = 1 << 20;
};

void bench_shape(const Shape& s, int32_t tokens, double public_us, const Options& options) {
  if (tokens > options.most_tokens) return;
  Problem problem(s, tokens, copies_of(s, tokens), options.codes);
  const QuantizedRows x{problem.x.data(), problem.x_scale.data(), s.cols, tokens};
  const auto launch = [&](int i, const Fp8PrefillTile& tile, const Launch& how) {
    const TiledMatrix w{problem.tiles.data() + i % problem.copies * s.rows * s.cols,
                        problem.w_scale.data(),
                        s.rows,
                        s.cols};
    R1D_MUST(fp8_gemm_prefill(w, x, tokens, problem.out.data(), s.rows, tile, how));
  };
  const auto time = [&](const Fp8PrefillTile& tile, bool dependent) {
    return test::graph_time_us(
        std::max(problem.copies, tokens >= 1024 ? 6 : 20),
        [&](int i, cudaStream_t stream) {
          launch(i, tile, {.stream = stream, .dependent = dependent});
        },
        6);
  };
  // Behind a kernel that leaves room beside it, as in a step: what a product adds to a
  // quantization.
  const bool few = tokens <= 256;
  DeviceArray<__nv_bfloat16> raw(few ? tokens * s.cols : 1);
  if (few) {
    const std::vector<uint16_t> bits = test::to_bf16(test::random_floats(tokens * s.cols, 3));
    R1D_MUST(cudaMemcpy(raw.data(), bits.data(), raw.bytes(), cudaMemcpyHostToDevice));
  }
  const auto quantize = [&](cudaStream_t stream) {
    R1D_MUST(quantize_rows(raw.data(), s.cols, tokens, x, {.stream = stream, .dependent = true}));
  };
  const double quantize_us = few ? test::graph_time_us(
                                       20, [&](int, cudaStream_t stream) { quantize(stream); }, 6)
                                 : 0;
  const auto time_behind = [&](const Fp8PrefillTile& tile) {
    if (!few) return 0.0;
    const double us = test::graph_time_us(
        std::max(problem.copies, 20),
        [&](int i, cudaStream_t stream) {
          quantize(stream);
          launch(i, tile, {.stream = stream, .dependent = true});
        },
        6);
    return us - quantize_us;
  };
  const double flops = 2.0 * tokens * s.rows * s.cols;
  const double bytes =
      static_cast<double>(s.rows) * s.cols + static_cast<double>(tokens) * (s.cols + 2 * s.rows);
  const double floor = std::max(flops / kFlopsPerUs, bytes / kBytesPerUs);
  const Fp8PrefillTile tile = fp8_gemm_prefill_tile(tokens, s.rows, s.cols);
  const double us = time(tile, false);
  std::printf(
      "%-13s %5ldx%-5ld M %5d  %7.1f us  [dependent %7.1f, behind %5.1f]  %6.0f TFLOPS %5.0f GB/s  "
      "floor %6.1f  "
      "public %6.1f  ratio %4.2f  tile %dx%d k%d s%d",
      s.name,
      s.rows,
      s.cols,
      tokens,
      us,
      time(tile, true),
      time_behind(tile),
      flops / us * 1e-6,
      bytes / us * 1e-3,
      floor,
      public_us,
      public_us > 0 ? us / public_us : 0,
      tile.block_rows,
      tile.block_cols,
      tile.k_groups,
      tile.split);
  if (options.all_tiles) {
    for (const Fp8PrefillTile& t : fp8_gemm_prefill_tiles()) {
      if (tokens > 1024 && (t.block_rows == 64 || t.split > 0)) continue;
      if (t.split > s.cols / 128) continue;
      std::printf(" | %dx%d.%d.%d %.1f [%.1f, %.1f]",
                  t.block_rows,
                  t.block_cols,
                  t.k_groups,
                  t.split,
                  time(t, false),
                  time(t, true),
                  time_behind(t));
    }
  }
  std::printf("\n");
}

void bench_gate_up(int64_t intermediate, int32_t tokens, const Options& options) {
  if (tokens > options.most_tokens) return;
  const Shape s{"", 2 * intermediate, 7168, {}};
  Problem problem(s, tokens, copies_of(s, tokens), options.codes);
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
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "tiles") == 0) options.all_tiles = true;
    if (std::strcmp(argv[i], "uniform") == 0) options.codes = Codes::kUniform;
    if (std::strncmp(argv[i], "most=", 5) == 0) options.most_tokens = std::atoi(argv[i] + 5);
  }
  for (const Shape& s : kShapes) {
    for (const int32_t tokens : {16, 32}) bench_shape(s, tokens, 0, options);
    bench_shape(s, 64, s.public_us[0], options);
    bench_shape(s, 128, 0, options);
    bench_shape(s, 256, s.public_us[1], options);
    bench_shape(s, 1024, 0, options);
    bench_shape(s, 4096, s.public_us[2], options);
    bench_shape(s, 8192, 0, options);
  }
  for (const int32_t tokens : {128, 1024, 4096, 8192}) {
    bench_gate_up(2304, tokens, options);
    bench_gate_up(256, tokens, options);
  }
  return 0;
}
