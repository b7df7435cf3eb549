// SPDX-License-Identifier: Apache-2.0
// Times mla_decode's kernels, their chain, and the chain with the output product, at R1's sizes:
// medians over graph replays, with caches and weights of as many layers as exceed 120 MB in turn.
#include <cstring>
#include <memory>

#include "kernels/fp8_gemm/fp8_gemm.h"
#include "kernels/fp8_gemm_prefill/fp8_gemm_prefill.h"
#include "kernels/mla_decode/mla_decode.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

constexpr int kReplays = 7;

struct Shape {
  int heads;
  int sequences;
  int context;
  int queries;
  double best;  // public kernels, us: two W products of 3.2 and the decode kernel
  bool fp8_cache = false;
};

// An e4m3 cache of `blocks` blocks of 64 tokens: random codes below 0.7 under scales of 1 / 512,
// random rope.
std::unique_ptr<DeviceArray<uint16_t>> random_fp8_cache(size_t blocks) {
  constexpr size_t kTokens = 64;
  std::vector<uint8_t> block = test::random_f8(kTokens * 512, 1);
  const auto rope = test::to_bf16(test::random_floats(kTokens * 64, 2, 0.7F));
  const std::vector<float> scales(kTokens * 4, 1.0F / 512);
  const auto append = [&](const auto& values) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
    block.insert(block.end(), bytes, bytes + values.size() * sizeof(values[0]));
  };
  append(rope);
  append(scales);
  auto array = std::make_unique<DeviceArray<uint16_t>>(blocks * block.size() / 2);
  auto* to = reinterpret_cast<uint8_t*>(array->data());
  R1D_MUST(cudaMemcpy(to, block.data(), block.size(), cudaMemcpyHostToDevice));
  for (size_t done = 1; done < blocks; done *= 2) {
    R1D_MUST(cudaMemcpy(to + done * block.size(),
                        to,
                        std::min(done, blocks - done) * block.size(),
                        cudaMemcpyDeviceToDevice));
  }
  return array;
}

// Device memory filled with repetitions of random bf16 values.
std::unique_ptr<DeviceArray<uint16_t>> random_array(size_t count, float scale) {
  auto array = std::make_unique<DeviceArray<uint16_t>>(count);
  const size_t chunk = std::min<size_t>(count, size_t{1} << 18);
  array->upload(test::to_bf16(test::random_floats(chunk, 1, scale)));
  for (size_t at = chunk; at < count; at += chunk) {
    R1D_MUST(cudaMemcpy(array->data() + at,
                        array->data(),
                        std::min(chunk, count - at) * 2,
                        cudaMemcpyDeviceToDevice));
  }
  return array;
}

// The output product o of as many layers: random tiles, one scale.
class OutputProducts {
 public:
  OutputProducts(int heads, int layers)
      : cols_(int64_t{heads} * 128),
        tiles_(random_array(static_cast<size_t>(layers * kRows * cols_ / 2), 1)),
        scale_(std::vector<float>(static_cast<size_t>(kRows / 128 * heads), 0.01F)) {}

  cudaError_t enqueue(int layer, const QuantizedRows& x, int tokens, const Launch& launch) {
    const TiledMatrix w{
        .tiles = reinterpret_cast<const uint8_t*>(tiles_->data()) + layer * kRows * cols_,
        .scale = scale_.data(),
        .rows = kRows,
        .cols = cols_};
    auto* to = reinterpret_cast<__nv_bfloat16*>(out_.data());
    constexpr int kDecodeTokens = 32;
    return tokens <= kDecodeTokens ? fp8_gemm_decode(w, x, tokens, to, kRows, launch)
                                   : fp8_gemm_prefill(w, x, tokens, to, kRows, false, launch);
  }

 private:
  static constexpr int64_t kRows = 7168;
  static constexpr int64_t kMaxTokens = 256;
  const int64_t cols_;
  std::unique_ptr<DeviceArray<uint16_t>> tiles_;
  DeviceArray<float> scale_;
  DeviceArray<uint16_t> out_{kRows * kMaxTokens};
};

void measure(const Shape& s) {
  constexpr int kRow = 576;
  const int tokens = s.sequences * s.queries;
  const int blocks = (s.context + 63) / 64 * s.sequences;
  const int token_bytes = s.fp8_cache ? 656 : 2 * kRow;
  const double cache_bytes = 1.0 * token_bytes * s.sequences * s.context;
  const double weight_bytes = 2.0 * s.heads * 128 * 512 * 2;
  const double bytes =
      cache_bytes + weight_bytes + 2.0 * tokens * s.heads * (192 + 2 * 576 + 2 * 512 + 128);
  const int layers = std::max(1, static_cast<int>(std::ceil(120e6 / bytes)));
  const int calls = std::max(layers, 8);
  const size_t all_blocks = static_cast<size_t>(layers) * blocks;
  auto cache =
      s.fp8_cache ? random_fp8_cache(all_blocks) : random_array(all_blocks * 64 * kRow, 0.7F);
  auto absorbed = random_array(mla_absorbed_bytes(s.heads) / 2 * layers, 0.05F);
  auto q = random_array(static_cast<size_t>(tokens) * s.heads * 192, 1);
  DeviceArray<float> table(test::random_floats(static_cast<size_t>(tokens) * 64, 3));
  DeviceArray<uint16_t> q_latent(static_cast<size_t>(tokens) * s.heads * kRow);
  DeviceArray<uint16_t> attention(static_cast<size_t>(tokens) * s.heads * 128);
  auto* const rows = reinterpret_cast<__nv_bfloat16*>(attention.data());
  OutputProducts products(s.heads, layers);
  DeviceArray<uint8_t> codes(static_cast<size_t>(tokens) * s.heads * 128);
  const int64_t scale_stride = (tokens + 3) / 4 * 4;
  DeviceArray<float> code_scales(static_cast<size_t>(s.heads * scale_stride));
  const QuantizedRows quantized{
      codes.data(), code_scales.data(), int64_t{s.heads} * 128, scale_stride};
  std::vector<int32_t> begin, len, context, first, ids;
  for (int i = 0; i < s.sequences; ++i) {
    begin.push_back(i * s.queries);
    len.push_back(s.queries);
    context.push_back(s.context);
    first.push_back(static_cast<int32_t>(ids.size()));
    for (int b = 0; b < (s.context + 63) / 64; ++b) ids.push_back(static_cast<int32_t>(ids.size()));
  }
  std::shuffle(ids.begin(), ids.end(), std::mt19937_64(5));
  DeviceArray<int32_t> d_begin(begin), d_len(len), d_context(context), d_first(first), d_ids(ids);
  const StepSequences sequences{
      d_begin.data(), d_len.data(), d_context.data(), d_first.data(), d_ids.data(), s.sequences};
  std::printf("h%-3d b%-3d q%d kv%-6d %s",
              s.heads,
              s.sequences,
              s.queries,
              s.context,
              s.fp8_cache ? "fp8 " : "bf16");
  double chain = 0;
  for (const bool deterministic : {false, true}) {
    const MlaShape shape{.heads = s.heads,
                         .num_tokens = tokens,
                         .num_sequences = s.sequences,
                         .max_query_len = s.queries,
                         .num_sms = 132,
                         .deterministic = deterministic};
    DeviceArray<uint8_t> plan(mla_plan_bytes(shape));
    DeviceArray<uint8_t> workspace(mla_workspace_bytes(shape));
    R1D_MUST(mla_plan(sequences, shape, plan.data(), {}));
    const auto weights = [&](int i) {
      return mla_weights(
          absorbed->data() + static_cast<size_t>(i % layers) * mla_absorbed_bytes(s.heads) / 2,
          s.heads);
    };
    const auto layer_cache = [&](int i) {
      return LatentCache{
          cache->data() + static_cast<size_t>(i % layers) * blocks * 64 * token_bytes / 2,
          64,
          kRow,
          s.fp8_cache ? DType::kF8E4M3 : DType::kBF16};
    };
    const MlaStep step{.shape = shape,
                       .sequences = sequences,
                       .rope = {table.data(), true},
                       .softmax_scale = 0.1F,
                       .plan = plan.data(),
                       .q_latent = q_latent.data(),
                       .workspace = workspace.data()};
    const double with_output = test::graph_time_us(
        calls,
        [&](int i, cudaStream_t stream) {
          R1D_MUST(mla_attend(q->data(),
                              weights(i),
                              layer_cache(i),
                              blocks,
                              step,
                              {.quantized = quantized},
                              {stream, true}));
          R1D_MUST(products.enqueue(i % layers, quantized, tokens, {stream, true}));
        },
        kReplays);
    const auto attend = [&](bool dependent) {
      return test::graph_time_us(
          calls,
          [&](int i, cudaStream_t stream) {
            R1D_MUST(mla_attend(q->data(),
                                weights(i),
                                layer_cache(i),
                                blocks,
                                step,
                                {.bf16 = rows},
                                {stream, dependent}));
          },
          kReplays);
    };
    const double dependent = attend(true);
    if (deterministic) {
      std::printf(" | deterministic %6.1f (with o %6.1f)", dependent, with_output);
      break;
    }
    chain = dependent;
    const double plain = attend(false);
    const double absorb = test::graph_time_us(
        calls,
        [&](int i, cudaStream_t stream) {
          R1D_MUST(mla_absorb_queries(
              q->data(), weights(i), step.rope, 0.1F, shape, q_latent.data(), {stream, false}));
        },
        kReplays);
    const double decode = test::graph_time_us(
        calls,
        [&](int i, cudaStream_t stream) {
          R1D_MUST(mla_decode(q_latent.data(),
                              layer_cache(i),
                              blocks,
                              sequences,
                              shape,
                              plan.data(),
                              workspace.data(),
                              {stream, false}));
        },
        kReplays);
    const double expand = test::graph_time_us(
        calls,
        [&](int i, cudaStream_t stream) {
          R1D_MUST(mla_expand_values(
              workspace.data(), weights(i), shape, plan.data(), {.bf16 = rows}, {stream, false}));
        },
        kReplays);
    const double projections = test::graph_time_us(
        calls,
        [&](int i, cudaStream_t stream) {
          R1D_MUST(mla_absorb_queries(
              q->data(), weights(i), step.rope, 0.1F, shape, q_latent.data(), {stream, true}));
          R1D_MUST(mla_expand_values(
              workspace.data(), weights(i), shape, plan.data(), {.bf16 = rows}, {stream, true}));
        },
        kReplays);
    std::printf(
        " | chain %6.1f (with o %6.1f, plain %6.1f) absorb %4.1f decode %6.1f expand %4.1f, absorb "
        "+ expand "
        "programmatic %5.1f",
        chain,
        with_output,
        plain,
        absorb,
        decode,
        expand,
        projections);
  }
  const double floor = bytes / 4.3e6;
  std::printf(" us | %4.0f GB/s floor %5.1f (%.2fx)", bytes / chain / 1e3, floor, chain / floor);
  if (s.best > 0) std::printf(" | public %5.1f (%.2fx)", s.best, chain / s.best);
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace r1d::kernels

// Arguments: numbers of shapes (all).
int main(int argc, char** argv) {
  const r1d::kernels::Shape shapes[] = {
      {16, 1, 1024, 1, 17.4},     {16, 1, 4096, 1, 22.4},     {16, 1, 16384, 1, 29.1},
      {16, 16, 1024, 1, 23.3},    {16, 16, 4096, 1, 36.7},    {16, 64, 1024, 1, 39.8},
      {16, 64, 4096, 1, 87.7},    {16, 128, 1024, 1, 49.3},   {16, 256, 2048, 1, 0},
      {16, 1, 4096, 2, 0},        {16, 16, 4096, 2, 0},       {16, 1, 4096, 4, 0},
      {16, 16, 4096, 4, 0},       {16, 64, 4096, 4, 0},       {128, 1, 4096, 1, 0},
      {128, 16, 4096, 1, 0},      {128, 64, 4096, 1, 0},      {16, 1, 4096, 1, 0, true},
      {16, 16, 4096, 1, 0, true}, {16, 64, 4096, 1, 0, true}, {16, 256, 2048, 1, 0, true},
      {16, 16, 4096, 2, 0, true}, {16, 64, 4096, 4, 0, true}, {128, 16, 4096, 1, 0, true},
  };
  const int total = static_cast<int>(std::size(shapes));
  for (int i = 0; i < total; ++i) {
    bool wanted = argc == 1;
    for (int k = 1; k < argc; ++k) wanted |= std::atoi(argv[k]) == i;
    if (wanted) r1d::kernels::measure(shapes[i]);
  }
}
