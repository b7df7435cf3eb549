// SPDX-License-Identifier: Apache-2.0
// The shape-agnostic kernels on R1's sizes and the small checkpoints': one line per shape. "floor"
// is the larger of the bytes at 4300 GB/s and the flops at 600 TFLOPS (mma.sync bf16) or 60 TFLOPS
// (f32).
#include <cstring>
#include <memory>
#include <numeric>

#include "kernels/generic/generic.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels::generic {
namespace {

using test::DeviceArray;
using test::graph_time_us;

constexpr double kBandwidth = 4300e9;
constexpr double kTensorFlops = 600e12;
constexpr double kFloatFlops = 60e12;
constexpr size_t kRotated = size_t{120} << 20;  // more than the L2

__nv_bfloat16* bf16(DeviceArray<uint16_t>& array) {
  return reinterpret_cast<__nv_bfloat16*>(array.data());
}

void print(
    const char* name, double us, double dependent_us, double bytes, double flops, double peak) {
  const double floor = 1e6 * std::max(bytes / kBandwidth, flops / peak);
  std::printf("%-44s %9.1f us (dependent %9.1f) %7.0f GB/s %7.1f TF floor %8.1f (%3.0f%%)\n",
              name,
              us,
              dependent_us,
              1e-3 * bytes / us,
              1e-6 * flops / us,
              floor,
              100 * floor / us);
  std::fflush(stdout);
}

// Copies of one weight, zeros: only their traffic counts.
struct Weights {
  DeviceArray<uint8_t> data;
  DeviceArray<float> scale;
  std::vector<ops::Matrix> matrices;
  Weights(DType dtype, int64_t rows, int64_t cols, int32_t copies)
      : data(static_cast<size_t>(rows * cols * dtype_bytes(dtype) * copies), 0),
        scale(static_cast<size_t>((rows / 128 + 1) * (cols / 128 + 1)), 0) {
    for (int32_t i = 0; i < copies; ++i) {
      ops::Matrix w;
      w.data = data.data() + i * rows * cols * dtype_bytes(dtype);
      w.dtype = dtype;
      w.rows = rows;
      w.cols = cols;
      w.scale = scale.data();
      w.scale_cols = (cols + 127) / 128;
      matrices.push_back(w);
    }
  }
};

void time_gemm(
    const char* what, DType dtype, int64_t rows, int64_t cols, int64_t tokens, bool exact = false) {
  const int64_t bytes = rows * cols * dtype_bytes(dtype);
  const int copies =
      static_cast<int>(std::min<int64_t>(24, static_cast<int64_t>(kRotated) / bytes + 1));
  const Weights weights(dtype, rows, cols, copies);
  DeviceArray<uint16_t> x(static_cast<size_t>(tokens * cols), 0);
  DeviceArray<uint16_t> out(static_cast<size_t>(tokens * rows), 0);
  double us[2];
  for (const bool dependent : {false, true}) {
    us[dependent] = graph_time_us(
        std::max(copies, 4),
        [&](int i, cudaStream_t stream) {
          Gemm problem;
          problem.weights = weights.matrices[static_cast<size_t>(i % copies)];
          problem.x = bf16(x);
          problem.x_stride = cols;
          problem.num_tokens = tokens;
          problem.out = out.data();
          problem.out_stride = rows;
          problem.exact = exact;
          R1D_MUST(gemm(problem, {stream, dependent}));
        },
        5);
  }
  char name[96];
  std::snprintf(name,
                sizeof(name),
                "%s %ldx%ld %s T%ld",
                what,
                static_cast<long>(rows),
                static_cast<long>(cols),
                dtype_name(dtype),
                static_cast<long>(tokens));
  print(name,
        us[0],
        us[1],
        static_cast<double>(bytes + 2 * tokens * (rows + cols)),
        2.0 * static_cast<double>(rows * cols * tokens),
        exact ? kFloatFlops : kTensorFlops);
}

void time_grouped(int32_t num_experts, int32_t k, int64_t rows, int64_t cols, int64_t tokens) {
  const Weights weights(DType::kF8E4M3, rows, cols, num_experts);
  DeviceArray<ops::Matrix> matrices(weights.matrices);
  std::vector<int32_t> choices;
  std::mt19937_64 random(3);
  std::vector<int32_t> ids(static_cast<size_t>(num_experts));
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<bool> used(ids.size(), false);
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(ids.begin(), ids.end(), random);
    choices.insert(choices.end(), ids.begin(), ids.begin() + k);
    for (int32_t j = 0; j < k; ++j) used[static_cast<size_t>(ids[static_cast<size_t>(j)])] = true;
  }
  const int64_t num_slots = tokens * k;
  DeviceArray<int32_t> experts(choices);
  DeviceArray<int32_t> offset(static_cast<size_t>(num_experts) + 1);
  DeviceArray<int32_t> slots(static_cast<size_t>(num_slots));
  const ExpertLists lists{offset.data(), slots.data()};
  DeviceArray<uint16_t> x(static_cast<size_t>(tokens * cols), 0);
  DeviceArray<uint16_t> out(static_cast<size_t>(num_slots * rows), 0);
  double list_us = graph_time_us(
      8,
      [&](int, cudaStream_t stream) {
        R1D_MUST(build_lists(experts.data(), num_slots, 0, num_experts, lists, {stream, false}));
      },
      5);
  double us[2];
  for (const bool dependent : {false, true}) {
    us[dependent] = graph_time_us(
        4,
        [&](int, cudaStream_t stream) {
          GroupedGemm problem;
          problem.weights = matrices.data();
          problem.dtype = DType::kF8E4M3;
          problem.rows = rows;
          problem.cols = cols;
          problem.num_experts = num_experts;
          problem.lists = lists;
          problem.x = bf16(x);
          problem.x_stride = cols;
          problem.slots_per_x_row = k;
          problem.out = bf16(out);
          problem.out_stride = rows;
          problem.num_slots = num_slots;
          problem.max_count = tokens;
          R1D_MUST(grouped_gemm(problem, {stream, dependent}));
        },
        5);
  }
  const auto active = static_cast<double>(std::count(used.begin(), used.end(), true));
  char name[96];
  std::snprintf(name,
                sizeof(name),
                "experts %ldx%ld F8 T%ld (lists %.1f us)",
                static_cast<long>(rows),
                static_cast<long>(cols),
                static_cast<long>(tokens),
                list_us);
  print(name,
        us[0],
        us[1],
        active * static_cast<double>(rows * cols) +
            static_cast<double>(2 * (tokens * cols + num_slots * rows)),
        2.0 * static_cast<double>(num_slots * rows * cols),
        kTensorFlops);
}

// `sequences` equal sequences. Prefill when query_len > 1.
void time_attention(const AttentionDims& dims,
                    int32_t sequences,
                    int32_t query_len,
                    int32_t context_len,
                    bool split) {
  const int32_t block_size = 64;
  const int64_t width = dims.latent + dims.rope;
  const int64_t tokens = int64_t{sequences} * query_len;
  const int32_t blocks = (context_len + block_size - 1) / block_size;
  std::vector<int32_t> query_begin;
  std::vector<int32_t> block_begin;
  for (int32_t s = 0; s < sequences; ++s) {
    query_begin.push_back(s * query_len);
    block_begin.push_back(s * blocks);
  }
  std::vector<int32_t> ids(static_cast<size_t>(sequences * blocks));
  std::iota(ids.begin(), ids.end(), 0);
  DeviceArray<int32_t> device_query_begin(query_begin);
  DeviceArray<int32_t> device_query_len(
      std::vector<int32_t>(static_cast<size_t>(sequences), query_len));
  DeviceArray<int32_t> device_context_len(
      std::vector<int32_t>(static_cast<size_t>(sequences), context_len));
  DeviceArray<int32_t> device_block_begin(block_begin);
  DeviceArray<int32_t> device_ids(ids);
  DeviceArray<uint16_t> cache(ids.size() * static_cast<size_t>(block_size * width), 0);
  DeviceArray<float> q_latent(static_cast<size_t>(tokens * dims.heads * width), 0);
  DeviceArray<float> o_latent(static_cast<size_t>(tokens * dims.heads * dims.latent), 0);
  DeviceArray<uint16_t> q(static_cast<size_t>(tokens * dims.heads * (dims.nope + dims.rope)), 0);
  DeviceArray<uint16_t> out(static_cast<size_t>(tokens * dims.heads * dims.v), 0);
  DeviceArray<float> cos_sin(static_cast<size_t>(tokens * dims.rope), 0);
  const Weights kv_b(DType::kF8E4M3, int64_t{dims.heads} * (dims.nope + dims.v), dims.latent, 1);
  DeviceArray<uint8_t> workspace(split ? attend_workspace_bytes(dims, tokens, context_len) : 1);
  double us[3];
  us[0] = graph_time_us(
      4,
      [&](int, cudaStream_t stream) {
        Absorb problem;
        problem.dims = dims;
        problem.kv_b = kv_b.matrices[0];
        problem.q = bf16(q);
        problem.q_stride = int64_t{dims.heads} * (dims.nope + dims.rope);
        problem.cos_sin = cos_sin.data();
        problem.q_latent = q_latent.data();
        problem.num_tokens = tokens;
        R1D_MUST(absorb(problem, {stream, false}));
      },
      5);
  us[2] = graph_time_us(
      4,
      [&](int, cudaStream_t stream) {
        Expand problem;
        problem.dims = dims;
        problem.kv_b = kv_b.matrices[0];
        problem.o_latent = o_latent.data();
        problem.out = bf16(out);
        problem.out_stride = int64_t{dims.heads} * dims.v;
        problem.num_tokens = tokens;
        R1D_MUST(expand(problem, {stream, false}));
      },
      5);
  us[1] = graph_time_us(
      2,
      [&](int, cudaStream_t stream) {
        Attend problem;
        problem.dims = dims;
        problem.q_latent = q_latent.data();
        problem.cache = {cache.data(), block_size, static_cast<int32_t>(width)};
        problem.sequences = {device_query_begin.data(),
                             device_query_len.data(),
                             device_context_len.data(),
                             device_block_begin.data(),
                             device_ids.data(),
                             sequences};
        problem.softmax_scale = 0.1F;
        problem.o_latent = o_latent.data();
        problem.num_tokens = tokens;
        problem.workspace = split ? reinterpret_cast<float*>(workspace.data()) : nullptr;
        problem.max_context_len = context_len;
        R1D_MUST(attend(problem, {stream, false}));
      },
      4);
  const double pairs = static_cast<double>(tokens) * (context_len - (query_len - 1) / 2.0);
  const double flops = 2.0 * pairs * dims.heads * static_cast<double>(2 * dims.latent + dims.rope);
  const double bytes = 2.0 * sequences * static_cast<double>(context_len * width);
  char name[96];
  std::snprintf(name,
                sizeof(name),
                "attend H%d R%d %d x %d of %d%s",
                dims.heads,
                dims.latent,
                sequences,
                query_len,
                context_len,
                split ? " split" : "");
  print(name, us[1], us[1], bytes, flops, kFloatFlops);
  std::printf("    absorb %.1f us, expand %.1f us\n", us[0], us[2]);
}

}  // namespace
}  // namespace r1d::kernels::generic

int main() {
  using namespace r1d::kernels::generic;  // NOLINT(google-build-using-namespace)
  using r1d::DType;
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const int64_t tokens : {1, 8, 16, 64, 256, 4096}) {
      time_gemm("kv_a", dtype, 576, 7168, tokens);
      time_gemm("q_b/8", dtype, 3072, 1536, tokens);
      time_gemm("gate_up/8", dtype, 4608, 7168, tokens);
    }
    time_gemm("gate_up", dtype, 36864, 7168, 1);
    time_gemm("gate_up", dtype, 36864, 7168, 4096);
  }
  time_gemm("lm_head/8", DType::kBF16, 16160, 7168, 1);
  time_gemm("golden", DType::kBF16, 384, 128, 4);
  time_gemm("router exact", DType::kBF16, 256, 7168, 1, true);
  time_gemm("router exact", DType::kBF16, 256, 7168, 4096, true);
  for (const int64_t tokens : {1, 16, 64, 256, 4096}) time_grouped(256, 8, 256, 7168, tokens);
  constexpr AttentionDims kRank{16, 512, 128, 64, 128};
  constexpr AttentionDims kSmall{4, 64, 32, 16, 32};
  time_attention(kSmall, 1, 2048, 2048, false);
  time_attention(kSmall, 1, 1, 2048, false);
  time_attention(kSmall, 1, 1, 2048, true);
  time_attention(kRank, 1, 2048, 2048, false);
  time_attention(kRank, 1, 1, 4096, false);
  time_attention(kRank, 1, 1, 4096, true);
  time_attention(kRank, 16, 1, 4096, true);
  time_attention(kRank, 64, 1, 4096, true);
  return 0;
}
