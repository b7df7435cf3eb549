// SPDX-License-Identifier: Apache-2.0
// Decode products at R1's shapes: microseconds a call, plain and under programmatic launch, against
// the floor and the best public kernel on the same GPU. `fp8_gemm_bench sweep` also tries other
// splits.
#include <cstring>
#include <memory>

#include "kernels/fp8_gemm/fp8_gemm.h"
#include "kernels/fp8_gemm/fp8_gemm_plan.h"
#include "kernels/quantize/quantize.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels::test {
namespace {

constexpr double kBytesPerUs = 4.3e6;
constexpr size_t kRotated = size_t{160} << 20;  // of weights, three times the L2
constexpr int64_t kMostTokens = 64;

__global__ void fill(uint32_t* words, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    words[i] = (static_cast<uint32_t>(i) * 2654435761U) & 0xBFBFBFBFU;  // no NaN
  }
}

// Keeps the GPU busy until its clocks stand, and says where.
__global__ void spin(long long cycles, long long* nanoseconds) {
  unsigned long long begin = 0;
  unsigned long long end = 0;
  const long long first = clock64();
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  while (clock64() - first < cycles) {
  }
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(end));
  if (blockIdx.x == 0 && threadIdx.x == 0) *nanoseconds = static_cast<long long>(end - begin);
}
void print_clock() {
  constexpr long long kCycles = 100'000'000;
  DeviceArray<long long> nanoseconds(1);
  spin<<<132, 128>>>(kCycles, nanoseconds.data());
  const double ns = static_cast<double>(nanoseconds.download()[0]);
  std::printf("SM clock %.0f MHz\n", static_cast<double>(kCycles) / ns * 1e3);
}

struct Shape {
  const char* name;
  int64_t rows;
  int64_t cols;
  bool gate_up;
  double best[4];  // public, at 1, 8, 16 and 64 tokens; 16 as 8
};
// The better of DeepGEMM (programmatic launch) and the swapped-operand products.
const Shape kShapes[] = {
    {"qkv_a", 2112, 7168, false, {11.3, 10.2, 10.2, 9.4}},
    {"q_a", 1536, 7168, false, {10.5, 10.1, 10.1, 9.2}},
    {"q_b/8", 3072, 1536, false, {5.0, 5.0, 5.0, 4.7}},
    {"kv_b/8", 4096, 512, false, {3.3, 3.2, 3.2, 3.1}},
    {"o/8", 7168, 2048, false, {6.4, 6.4, 6.4, 6.5}},
    {"shared gate_up/8", 512, 7168, true, {9.9, 10.3, 10.3, 9.4}},
    {"shared down/8", 7168, 256, false, {3.0, 2.9, 2.9, 3.0}},
    {"dense gate_up/8", 4608, 7168, true, {13.1, 12.9, 12.9, 13.6}},
    {"dense down/8", 7168, 2304, false, {7.5, 7.2, 7.2, 7.2}},
    {"q_b", 24576, 1536, false, {12.3, 12.4, 12.4, 13.4}},
    {"o", 7168, 16384, false, {34.4, 34.0, 34.0, 34.5}},
    {"shared gate_up", 4096, 7168, true, {12.5, 11.9, 11.9, 10.8}},
    {"dense gate_up", 36864, 7168, true, {66.5, 67.2, 67.2, 68.3}},
    {"dense down", 7168, 18432, false, {36.3, 36.4, 36.4, 38.5}},
};
constexpr int64_t kTokens[4] = {1, 8, 16, 64};

// Copies of one weight, enough to miss the L2, and inputs that all shapes share.
struct Weights {
  explicit Weights(const Shape& shape)
      : shape(shape),
        copies(static_cast<int>(
            std::max<size_t>(2, kRotated / static_cast<size_t>(shape.rows * shape.cols)))),
        tiles(static_cast<size_t>(shape.rows * shape.cols) * static_cast<size_t>(copies), 0),
        scale(std::vector<float>(static_cast<size_t>((shape.rows / 64 + 3) * (shape.cols / 128)),
                                 0.01F)) {
    fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(tiles.data()), tiles.size() / 4);
    R1D_MUST(cudaDeviceSynchronize());
  }
  DecodeArguments arguments(int call, int64_t tokens, void* out) const {
    DecodeArguments a;
    a.tiles = tiles.data() +
              static_cast<size_t>(call % copies) * static_cast<size_t>(shape.rows * shape.cols);
    a.scale[0] = a.scale[1] = scale.data();
    a.strips = static_cast<int>(shape.rows / 64);
    a.strips_per_scale = shape.gate_up ? 4 : 2;
    a.k_blocks = static_cast<int>(shape.cols / 128);
    a.tokens = static_cast<int>(tokens);
    a.out = out;
    a.out_stride = shape.gate_up ? shape.rows / 2 : shape.rows;
    a.output = shape.gate_up ? DecodeOutput::kSiluTimesUp : DecodeOutput::kBf16;
    a.plan.split = decode_split(a.strips, a.k_blocks);
    a.plan.stages = decode_stages(a.strips, a.k_blocks, tokens, a.plan.split);
    return a;
  }
  Shape shape;
  int copies;
  DeviceArray<uint8_t> tiles;
  DeviceArray<float> scale;
};

struct Io {
  Io()
      : x(static_cast<size_t>(kMostTokens) * 18432, 0x3C),  // 0.0115..: finite bf16
        codes(static_cast<size_t>(kMostTokens) * 18432, 0x30),
        scale(std::vector<float>(144 * kMostTokens, 0.01F)),
        out(static_cast<size_t>(kMostTokens) * 36864) {}
  void take(DecodeArguments& a, bool quantized) const {
    if (quantized) {
      a.x_codes = codes.data();
      a.x_scale = scale.data();
      a.x_scale_stride = kMostTokens;
    } else {
      a.x_rows = x.data();
    }
    a.x_stride = int64_t{a.k_blocks} * 128;
  }
  DeviceArray<__nv_bfloat16> x;
  DeviceArray<uint8_t> codes;
  DeviceArray<float> scale;
  DeviceArray<__nv_bfloat16> out;
};

double time_of(const Weights& w,
               Io& io,
               int64_t tokens,
               bool quantized,
               bool dependent,
               const DecodePlan* plan) {
  const int calls = std::max(8, std::min(w.copies, 64));
  return graph_time_us(calls, [&](int i, cudaStream_t stream) {
    DecodeArguments a = w.arguments(i, tokens, io.out.data());
    io.take(a, quantized);
    if (plan != nullptr) a.plan = *plan;
    R1D_MUST(enqueue_decode(a, {stream, dependent}));
  });
}

void bench_shape(const Shape& shape, Io& io, bool sweep) {
  const Weights w(shape);
  for (int i = 0; i < 4; ++i) {
    const int64_t tokens = kTokens[i];
    const DecodePlan plan = w.arguments(0, tokens, nullptr).plan;
    const double bytes = static_cast<double>(shape.rows * shape.cols) +
                         static_cast<double>(tokens * (2 * shape.rows + 2 * shape.cols));
    const double floor_us = bytes / kBytesPerUs;
    const double plain = time_of(w, io, tokens, false, false, nullptr);
    const double chained = time_of(w, io, tokens, false, true, nullptr);
    const double codes = time_of(w, io, tokens, true, true, nullptr);
    std::printf(
        "%-17s %5ldx%-5ld T%-2ld split %d stages %2d | plain %6.2f us | dependent %6.2f us %5.0f "
        "GB/s | from codes %6.2f | "
        "floor %5.2f target %5.2f public %5.1f (%.2fx)\n",
        shape.name,
        shape.rows,
        shape.cols,
        tokens,
        plan.split,
        plan.stages,
        plain,
        chained,
        bytes / chained * 1e-3,
        codes,
        floor_us,
        std::min(shape.best[i], 1.15 * floor_us + 2),
        shape.best[i],
        shape.best[i] / chained);
    if (!sweep || tokens == 16) continue;
    std::printf("    splits:");
    for (int split = 1; split <= std::min<int64_t>(8, shape.cols / 128); ++split) {
      DecodePlan other{split, 0};
      other.stages = decode_stages(shape.rows / 64, shape.cols / 128, tokens, split);
      if (other.stages < 1 || shape.cols / 128 / split > 20) continue;
      std::printf(" %d(%d): %.2f %.2f",
                  split,
                  other.stages,
                  time_of(w, io, tokens, false, false, &other),
                  time_of(w, io, tokens, false, true, &other));
    }
    std::printf("\n");
  }
}

// The dense products of one MoE layer behind each other, as a step runs them (without what stands
// between).
void bench_chain(Io& io) {
  constexpr int kChain[] = {0, 2, 4, 5, 6};
  std::vector<std::unique_ptr<Weights>> weights;
  double bytes = 0;
  for (const int index : kChain) {
    weights.push_back(std::make_unique<Weights>(kShapes[index]));
    bytes += static_cast<double>(kShapes[index].rows * kShapes[index].cols);
  }
  for (const int64_t tokens : kTokens) {
    double times[2];
    for (const bool dependent : {false, true}) {
      constexpr int kLayers = 10;
      times[dependent ? 1 : 0] =
          5 * graph_time_us(5 * kLayers, [&](int i, cudaStream_t stream) {
            DecodeArguments a =
                weights[static_cast<size_t>(i % 5)]->arguments(i / 5, tokens, io.out.data());
            io.take(a, false);
            R1D_MUST(enqueue_decode(a, {stream, dependent}));
          });
    }
    std::printf(
        "chain qkv_a, q_b/8, o/8, shared gate_up/8, shared down/8: T%-2ld plain %6.2f us, "
        "dependent %6.2f us, floor %.2f\n",
        tokens,
        times[0],
        times[1],
        bytes / kBytesPerUs);
  }
}

}  // namespace
}  // namespace r1d::kernels::test

int main(int argc, char** argv) {
  using namespace r1d::kernels::test;
  if (compute_capability() < 90) {
    std::printf("needs a GPU of compute capability 9.0\n");
    return 0;
  }
  const bool sweep = argc > 1 && std::strcmp(argv[1], "sweep") == 0;
  Io io;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  print_clock();
  bench_chain(io);
  for (const Shape& shape : kShapes) bench_shape(shape, io, sweep);
  print_clock();
  return 0;
}
