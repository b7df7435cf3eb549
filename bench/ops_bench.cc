// SPDX-License-Identifier: Apache-2.0
// Time of the CPU GEMM at DeepSeek-R1's shapes, beside the bandwidth at which as many threads just
// read memory: a product of few tokens cannot be faster than reading its weights.
//   r1d_ops_bench [max_threads]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "r1d/base/random.h"
#include "r1d/ops/cpu_ops.h"

#include "ops/cpu/gemm.h"
#include "ops/cpu/host_memory.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/parallel.h"

namespace r1d::ops::cpu {
namespace {

// Copies of a matrix are used in turn, so that weights come from memory and not from a cache.
constexpr int64_t kColdBytes = int64_t{1} << 30;
constexpr double kSecondsPerCase = 0.3;

struct Shape {
  const char* name;
  int64_t rows, cols;
  DType dtype;
};

const Shape kShapes[] = {{"expert down", 7168, 2048, DType::kF8E4M3},
                         {"q_b / 8 ranks", 3072, 1536, DType::kF8E4M3},
                         {"q_a + kv_a", 2112, 7168, DType::kF8E4M3},
                         {"lm_head / 8 ranks", 16160, 7168, DType::kBF16}};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of one call of body(i), the best of several.
template <class Body>
double best_seconds(const Body& body) {
  double best = 1e9;
  const double end = now() + kSecondsPerCase;
  for (int64_t i = 0; i < 3 || now() < end; ++i) {
    const double start = now();
    body(i);
    best = std::min(best, now() - start);
  }
  return best;
}

// Each thread copies its part into a buffer that stays in its first-level cache: reads only.
double read_bandwidth(const HostMemory& memory, Parallel& parallel) {
  constexpr size_t kPiece = 16384;
  const auto threads = static_cast<size_t>(parallel.num_threads());
  const size_t part = memory.size() / threads / kPiece * kPiece;
  std::vector<std::byte> buffers(threads * kPiece);
  const double seconds = best_seconds([&](int64_t) {
    parallel.run(static_cast<int64_t>(threads), INT64_MAX, [&](int64_t task, int32_t) {
      const std::byte* source = memory.data() + static_cast<size_t>(task) * part;
      std::byte* buffer = buffers.data() + static_cast<size_t>(task) * kPiece;
      for (size_t i = 0; i < part; i += kPiece) std::memcpy(buffer, source + i, kPiece);
    });
  });
  volatile std::byte keep = buffers[0];
  static_cast<void>(keep);
  return static_cast<double>(part * threads) / seconds / 1e9;
}

void bench_shape(const Shape& shape, const HostMemory& weights, Parallel& parallel, Gemm& gemm) {
  const int64_t bytes = shape.rows * shape.cols * dtype_bytes(shape.dtype);
  const int64_t copies = std::max<int64_t>(1, static_cast<int64_t>(weights.size()) / bytes);
  const int64_t scale_cols = (shape.cols + 127) / 128;
  const std::vector<float> scales(static_cast<size_t>((shape.rows + 127) / 128 * scale_cols),
                                  0.01F);
  for (const int64_t tokens : {1, 4, 16, 64}) {
    const std::vector<float> x(static_cast<size_t>(tokens * shape.cols), 0.5F);
    std::vector<float> y(static_cast<size_t>(tokens * shape.rows));
    const double seconds = best_seconds([&](int64_t i) {
      Matrix w{.data = weights.data() + i % copies * bytes,
               .dtype = shape.dtype,
               .rows = shape.rows,
               .cols = shape.cols};
      if (shape.dtype == DType::kF8E4M3) {
        w.scale = scales.data();
        w.scale_cols = scale_cols;
      }
      gemm.run({.weights = w,
                .x = x.data(),
                .x_stride = shape.cols,
                .tokens = tokens,
                .y = y.data(),
                .y_stride = shape.rows});
    });
    const double macs = static_cast<double>(shape.rows * shape.cols * tokens);
    std::printf("%-18s %6ld x %5ld %-7s %7d %6ld %10.3f %10.2f %10.1f\n",
                shape.name,
                static_cast<long>(shape.rows),
                static_cast<long>(shape.cols),
                dtype_name(shape.dtype),
                parallel.num_threads(),
                static_cast<long>(tokens),
                seconds * 1e3,
                static_cast<double>(bytes) / seconds / 1e9,
                2 * macs / seconds / 1e9);
  }
}

// Numbers of ordinary size whether read as bf16 (exponent 120 to 127) or as FP8 (no NaN code): sums
// of subnormals would take many times as long.
void fill(const HostMemory& memory) {
  for (size_t i = 0; i < memory.size(); i += 8) {
    const uint64_t bits = (base::random_bits(1, i) & 0x83BF83BF83BF83BFULL) | 0x3C003C003C003C00ULL;
    std::memcpy(memory.data() + i, &bits, 8);
  }
}

int run(int32_t max_threads) {
  auto memory = HostMemory::allocate(static_cast<size_t>(kColdBytes), "weights");
  if (!memory.ok()) {
    std::fprintf(stderr, "cannot take %ld bytes\n", static_cast<long>(kColdBytes));
    return 1;
  }
  fill(*memory);
  for (const bool bf16_dot : {false, true}) {
    if (bf16_dot && !has_bf16_dot()) continue;
    std::printf("target %s, weights cold, best of %.1f s a line\n",
                cpu_target(bf16_dot).c_str(),
                kSecondsPerCase);
    std::printf("%-18s %14s %-7s %7s %6s %10s %10s %10s\n",
                "weight",
                "rows x cols",
                "dtype",
                "threads",
                "tokens",
                "ms",
                "GB/s",
                "GFLOP/s");
    for (int32_t threads = 1; threads <= max_threads; threads *= 2) {
      Parallel parallel(threads);
      Gemm gemm(parallel, bf16_dot, 7168);
      Arena measure(nullptr);
      gemm.layout(measure);
      auto scratch = HostMemory::allocate(measure.used(), "scratch");
      if (!scratch.ok()) return 1;
      Arena arena(scratch->data());
      gemm.layout(arena);
      const double bandwidth = read_bandwidth(*memory, parallel);
      std::printf("%-18s %14s %-7s %7d %6s %10s %10.2f\n",
                  "plain read",
                  "",
                  "",
                  threads,
                  "",
                  "",
                  bandwidth);
      for (const Shape& shape : kShapes) bench_shape(shape, *memory, parallel, gemm);
    }
  }
  return 0;
}

}  // namespace
}  // namespace r1d::ops::cpu

int main(int argc, char** argv) {
  const auto cores = static_cast<int32_t>(std::max(1U, std::thread::hardware_concurrency()));
  const int32_t threads = argc > 1 ? std::atoi(argv[1]) : cores;
  return r1d::ops::cpu::run(std::max(threads, 1));
}
