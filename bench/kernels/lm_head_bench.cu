// SPDX-License-Identifier: Apache-2.0
// Times bf16_gemm_decode: medians over graph replays, weights rotated over more than 100 MB,
// without and with programmatic dependent launch. `lm_head_bench all` also times other plans.
#include <cstdio>
#include <cstring>
#include <memory>

#include "kernels/lm_head/lm_head.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

constexpr double kBytesPerUs = 4.3e6;
constexpr double kFlopsPerUs = 668e6;

// cuBLASLt, bf16, through PyTorch 2.11 on an H200: us at 1, 8, 64 and 256 rows; 0: not measured.
struct Shape {
  int64_t n;
  int64_t k;
  double library_us[4];

  double library(int64_t m) const {
    return m == 1     ? library_us[0]
           : m == 8   ? library_us[1]
           : m == 64  ? library_us[2]
           : m == 256 ? library_us[3]
                      : 0;
  }
};

// Zeros would draw less power than real weights, and so clock higher.
std::vector<uint16_t> noise(size_t count) {
  static const std::vector<uint16_t> kBase = test::to_bf16(test::random_floats(1 << 20, 1));
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < count; i += kBase.size()) {
    std::copy_n(kBase.begin(),
                std::min(kBase.size(), count - i),
                values.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return values;
}

class Bench {
 public:
  explicit Bench(const Shape& s)
      : s_(s),
        copies_(std::max<int64_t>(2, 120'000'000 / (2 * s.n * s.k) + 1)),
        w_(noise(static_cast<size_t>(copies_ * s.n * s.k))),
        x_(noise(static_cast<size_t>(256 * s.k))),
        out_(static_cast<size_t>(256 * s.n)) {}

  void run(int64_t m, const Bf16GemmPlan& plan, bool chosen) {
    double us[2];
    for (const bool dependent : {false, true}) {
      us[dependent] = test::graph_time_us(
          static_cast<int>(std::max<int64_t>(8, copies_)), [&](int i, cudaStream_t stream) {
            R1D_MUST(bf16_gemm_decode(
                {.w = reinterpret_cast<__nv_bfloat16*>(w_.data()) + i % copies_ * s_.n * s_.k,
                 .x = reinterpret_cast<__nv_bfloat16*>(x_.data()),
                 .m = m,
                 .n = s_.n,
                 .k = s_.k,
                 .out = out_.data(),
                 .plan = &plan},
                {.stream = stream, .dependent = dependent}));
          });
    }
    const auto rows = static_cast<double>(m);
    const double weights = static_cast<double>(s_.n) * static_cast<double>(s_.k);
    const double bytes = 2 * weights + rows * static_cast<double>(2 * s_.k + 4 * s_.n);
    const double floor = std::max(bytes / kBytesPerUs, 2 * weights * rows / kFlopsPerUs);
    std::printf(
        "%6d x %4d M %3d %s %3dx%-3d split %d: %7.2f us, dependent %7.2f us  %5.0f GB/s %4.0f TF  "
        "floor %6.2f us (%3.0f %%)",
        static_cast<int>(s_.n),
        static_cast<int>(s_.k),
        static_cast<int>(m),
        plan.path == Bf16GemmPlan::Path::kMma ? "mma  " : "wgmma",
        plan.tile_rows,
        plan.tile_tokens,
        plan.split,
        us[0],
        us[1],
        bytes / us[1] * 1e-3,
        2 * weights * rows / us[1] * 1e-6,
        floor,
        100 * floor / us[1]);
    if (s_.library(m) > 0)
      std::printf("  cuBLASLt %5.1f us (x %.2f)", s_.library(m), s_.library(m) / us[1]);
    std::printf("%s\n", chosen ? "  chosen" : "");
  }

  void all(int64_t m) {
    const Bf16GemmPlan chosen = plan_bf16_gemm(m, s_.n, s_.k, 90, false);
    run(m, chosen, true);
    run(m,
        {.path = Bf16GemmPlan::Path::kMma, .tile_rows = 32, .tile_tokens = m <= 8 ? 8 : 32},
        false);
    const std::vector<int> tiles = m <= 8    ? std::vector{8}
                                   : m <= 16 ? std::vector{16}
                                   : m <= 64 ? std::vector{64}
                                             : std::vector{128};
    for (const int tokens : tiles) {
      for (const int rows : {64, 128}) {
        if (rows == 64 ? tokens > 64 : tokens < 32) continue;
        for (const int split : {1, 2, 3, 4, 8}) {
          const int64_t ctas = (s_.n + rows - 1) / rows * split;
          if (ctas > 300 && split > 1) continue;
          if (ctas < 40) continue;
          if (rows == chosen.tile_rows && tokens == chosen.tile_tokens && split == chosen.split)
            continue;
          run(m, {.tile_rows = rows, .tile_tokens = tokens, .split = split}, false);
        }
      }
    }
  }

 private:
  Shape s_;
  int64_t copies_;
  DeviceArray<uint16_t> w_, x_;
  DeviceArray<float> out_;
};

}  // namespace
}  // namespace r1d::kernels

int main(int argc, char** argv) {
  using namespace r1d::kernels;  // NOLINT: a program of one file
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
  const bool all = argc > 1 && std::strcmp(argv[1], "all") == 0;
  constexpr Shape kShapes[] = {{16160, 7168, {}},
                               {1536, 7168, {11.0, 10.8, 11.3, 14.9}},
                               {576, 7168, {7.8, 7.9, 9.1, 10.0}},
                               {2112, 7168, {13.3, 13.3, 14.0, 16.8}},
                               {3072, 1536, {6.5, 6.5, 6.8, 6.9}},
                               {7168, 2048, {11.9, 10.5, 10.7, 12.9}},
                               {4608, 7168, {24.0, 22.3, 24.4, 27.6}}};
  for (const Shape& s : kShapes) {
    Bench bench(s);
    for (const int64_t m : {1, 8, 16, 32, 64, 128, 256}) {
      if (all && (m == 1 || m == 8 || m == 64 || m == 256)) {
        bench.all(m);
      } else {
        bench.run(m, plan_bf16_gemm(m, s.n, s.k, 90, false), true);
      }
    }
  }
  return 0;
}
