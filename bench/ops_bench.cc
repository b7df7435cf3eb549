// SPDX-License-Identifier: Apache-2.0
// Time of the CPU GEMM at DeepSeek's shapes beside two yardsticks of the same run, taken in turn
// with it: the bandwidth at which as many threads just read memory (a product of few tokens cannot
// be faster than reading its weights) and oneDNN's f32 and bf16 products, where the build found it.
//   OMP_NUM_THREADS=N r1d_ops_bench [max_threads] [wall|cpu] [filter] [tokens]
// `cpu` divides the process's CPU time by the threads instead of reading the clock, for a machine
// that others use too; what idle threads wait for is then not seen.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "r1d/base/random.h"
#include "r1d/ops/cpu_ops.h"

#include "bench/dnnl_matmul.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/host_memory.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/parallel.h"

namespace r1d::ops::cpu {
namespace {

// Copies of a matrix are used in turn, so that weights come from memory and not from a cache.
constexpr int64_t kColdBytes = int64_t{1} << 30;
// What one reading of the bandwidth covers; each starts where the last one ended.
constexpr size_t kReadBytes = size_t{128} << 20;
constexpr double kSecondsPerCase = 0.6;
constexpr int64_t kMaxTokens = 512;
constexpr int64_t kMaxCols = 7168;
constexpr int64_t kMaxRows = 16160;

struct Shape {
  const char* name;
  int64_t rows, cols;
  DType dtype;
};

const Shape kShapes[] = {{"expert down", 7168, 2048, DType::kF8E4M3},
                         {"q_b / 8 ranks", 3072, 1536, DType::kF8E4M3},
                         {"q_a + kv_a", 2112, 7168, DType::kF8E4M3},
                         {"lm_head / 8 ranks", 16160, 7168, DType::kBF16},
                         {"1B dense gate", 6144, 2048, DType::kBF16},
                         {"1B expert gate", 1024, 2048, DType::kBF16},
                         {"1B dense gate", 6144, 2048, DType::kF8E4M3},
                         {"1B expert gate", 1024, 2048, DType::kF8E4M3}};

struct Options {
  int32_t threads = 1;
  bool cpu_time = false;
  std::string filter;
  int64_t tokens = 0;  // 0: several
};

// Best seconds of each of several bodies, run in turn until the time for a case is spent.
class Rounds {
 public:
  explicit Rounds(const Options& options)
      : clock_(options.cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC),
        share_(options.cpu_time ? options.threads : 1) {}

  size_t add(std::function<void(int64_t round)> body) {
    bodies_.push_back(std::move(body));
    best_.push_back(1e9);
    return best_.size() - 1;
  }

  void run() {
    const double end = now(CLOCK_MONOTONIC) + kSecondsPerCase * static_cast<double>(best_.size());
    for (int64_t round = 0; round < 3 || now(CLOCK_MONOTONIC) < end; ++round) {
      for (size_t i = 0; i < bodies_.size(); ++i) {
        const double start = now(clock_);
        bodies_[i](round);
        best_[i] = std::min(best_[i], (now(clock_) - start) / share_);
      }
    }
  }

  [[nodiscard]] double best(size_t index) const { return best_[index]; }

 private:
  static double now(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }

  const clockid_t clock_;
  const double share_;
  std::vector<std::function<void(int64_t)>> bodies_;
  std::vector<double> best_;
};

// Each thread copies its part into a buffer that stays in its first-level cache: reads only.
void read_piece(const HostMemory& memory, Parallel& parallel, int64_t round) {
  constexpr size_t kPiece = 16384;
  const auto threads = static_cast<size_t>(parallel.num_threads());
  const size_t first = static_cast<size_t>(round) * kReadBytes % memory.size();
  const size_t part = kReadBytes / threads / kPiece * kPiece;
  parallel.run(static_cast<int64_t>(threads), INT64_MAX, [&](int64_t task, int32_t) {
    alignas(64) std::byte buffer[kPiece];
    const std::byte* source = memory.data() + first + static_cast<size_t>(task) * part;
    for (size_t i = 0; i < part; i += kPiece) {
      std::memcpy(buffer, source + i, kPiece);
      asm volatile("" : : "r"(buffer) : "memory");  // the copy is wanted
    }
  });
}

struct Bench {
  const Options& options;
  const HostMemory& weights;
  float* x;  // [kMaxTokens, kMaxCols]; y likewise for kMaxRows
  float* y;
  Parallel& parallel;
  Gemm& gemm;

  void shape(const Shape& shape, int64_t tokens) const;
};

void Bench::shape(const Shape& shape, int64_t tokens) const {
  const int64_t bytes = shape.rows * shape.cols * dtype_bytes(shape.dtype);
  const int64_t copies = static_cast<int64_t>(weights.size()) / bytes;
  const int64_t scale_cols = (shape.cols + 127) / 128;
  const std::vector<float> scales(static_cast<size_t>((shape.rows + 127) / 128 * scale_cols),
                                  0.01F);
  Rounds rounds(options);
  const size_t product = rounds.add([&](int64_t round) {
    Matrix w{.data = weights.data() + round % copies * bytes,
             .dtype = shape.dtype,
             .rows = shape.rows,
             .cols = shape.cols};
    if (shape.dtype == DType::kF8E4M3) {
      w.scale = scales.data();
      w.scale_cols = scale_cols;
    }
    gemm.run({.weights = w,
              .x = x,
              .x_stride = shape.cols,
              .tokens = tokens,
              .y = y,
              .y_stride = shape.rows});
  });
  const size_t read = rounds.add([&](int64_t round) { read_piece(weights, parallel, round); });
  size_t yardsticks[2] = {0, 0};
  for (const bool bf16 : {false, true}) {
    auto call = tokens < 64 ? nullptr : bench::dnnl_matmul(bf16, tokens, shape.rows, shape.cols);
    if (call) yardsticks[bf16] = rounds.add([call](int64_t) { call(); });
  }
  rounds.run();
  const double seconds = rounds.best(product);
  const double flops = 2 * static_cast<double>(shape.rows * shape.cols * tokens) / 1e9;
  const double bandwidth = static_cast<double>(bytes) / seconds / 1e9;
  const double plain = static_cast<double>(kReadBytes) / rounds.best(read) / 1e9;
  std::printf("%-17s %6ld x %4ld %-7s %7d %6ld %9.3f %7.2f %7.2f %5.2f %8.1f",
              shape.name,
              static_cast<long>(shape.rows),
              static_cast<long>(shape.cols),
              dtype_name(shape.dtype),
              parallel.num_threads(),
              static_cast<long>(tokens),
              seconds * 1e3,
              bandwidth,
              plain,
              bandwidth / plain,
              flops / seconds);
  for (const size_t index : yardsticks) {
    if (index != 0) std::printf(" %8.1f", flops / rounds.best(index));
  }
  std::printf("\n");
  std::fflush(stdout);
}

// Numbers of ordinary size whether read as bf16 (exponent 120 to 127) or as FP8 (no NaN code): sums
// of subnormals would take many times as long.
void fill(const HostMemory& memory) {
  for (size_t i = 0; i < memory.size(); i += 8) {
    const uint64_t bits = (base::random_bits(1, i) & 0x83BF83BF83BF83BFULL) | 0x3C003C003C003C00ULL;
    std::memcpy(memory.data() + i, &bits, 8);
  }
}

int run(const Options& options, bool bf16_dot, const HostMemory& memory) {
  std::printf("target %s, %s time, weights cold, %s\n",
              cpu_target(bf16_dot).c_str(),
              options.cpu_time ? "CPU" : "wall",
              bench::dnnl_description().c_str());
  std::printf("%-17s %13s %-7s %7s %6s %9s %7s %7s %5s %8s %8s %8s\n",
              "weight",
              "rows x cols",
              "dtype",
              "threads",
              "tokens",
              "ms",
              "GB/s",
              "read",
              "share",
              "GFLOP/s",
              "1DNN f32",
              "bf16");
  Parallel parallel(options.threads);
  Gemm gemm(parallel, bf16_dot, kMaxCols);
  float* x = nullptr;
  float* y = nullptr;
  const auto layout = [&](Arena& arena) {
    gemm.layout(arena);
    x = arena.take<float>(kMaxTokens * kMaxCols);
    y = arena.take<float>(kMaxTokens * kMaxRows);
  };
  Arena measure(nullptr);
  layout(measure);
  auto scratch = HostMemory::allocate(measure.used(), "scratch");
  if (!scratch.ok()) return 1;
  Arena arena(scratch->data());
  layout(arena);
  std::fill_n(x, kMaxTokens * kMaxCols, 0.5F);
  for (const Shape& shape : kShapes) {
    if (std::string(shape.name).find(options.filter) == std::string::npos) continue;
    for (const int64_t tokens : {int64_t{1}, int64_t{4}, int64_t{16}, int64_t{64}, kMaxTokens}) {
      if (options.tokens != 0 && tokens != options.tokens) continue;
      Bench{options, memory, x, y, parallel, gemm}.shape(shape, tokens);
    }
  }
  return 0;
}

int run_all(Options options, int32_t max_threads) {
  auto memory = HostMemory::allocate(static_cast<size_t>(kColdBytes), "weights");
  if (!memory.ok()) {
    std::fprintf(stderr, "cannot take %ld bytes\n", static_cast<long>(kColdBytes));
    return 1;
  }
  fill(*memory);
  for (const bool bf16_dot : {false, true}) {
    if (bf16_dot && !has_bf16_dot()) continue;
    for (options.threads = 1; options.threads <= max_threads; options.threads *= 2) {
      if (run(options, bf16_dot, *memory) != 0) return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace r1d::ops::cpu

int main(int argc, char** argv) {
  const auto cores = static_cast<int32_t>(std::max(1U, std::thread::hardware_concurrency()));
  const int32_t threads = argc > 1 ? std::atoi(argv[1]) : cores;
  const r1d::ops::cpu::Options options{.threads = 1,
                                       .cpu_time = argc > 2 && std::strcmp(argv[2], "cpu") == 0,
                                       .filter = argc > 3 ? argv[3] : "",
                                       .tokens = argc > 4 ? std::atoi(argv[4]) : 0};
  return r1d::ops::cpu::run_all(options, std::max(threads, 1));
}
