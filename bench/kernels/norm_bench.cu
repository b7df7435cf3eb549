// SPDX-License-Identifier: Apache-2.0
// Times add_norm, rms_norm, mla_split_norm, begin_step and embed at R1's sizes: medians over graph
// replays of chains of calls, without and with programmatic dependent launch.
#include <cstdio>

#include "kernels/embed/embed.h"
#include "kernels/norm/norm.h"
#include "kernels/rope/rope.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

constexpr double kBytesPerUs = 4.3e6;
constexpr int64_t kHidden = 7168;

void report(const char* name,
            int64_t tokens,
            double bytes,
            const std::function<void(int, const Launch&)>& body) {
  const int calls = tokens > 1024 ? 10 : 200;
  double us[2];
  for (const bool dependent : {false, true}) {
    us[dependent] = test::graph_time_us(calls, [&](int i, cudaStream_t stream) {
      body(i, {.stream = stream, .dependent = dependent});
    });
  }
  std::printf(
      "%-28s %5d tokens %8.2f us, dependent %8.2f us  %6.0f GB/s  floor %7.2f us (%3.0f %%)\n",
      name,
      static_cast<int>(tokens),
      us[0],
      us[1],
      bytes / us[1] * 1e-3,
      bytes / kBytesPerUs,
      100 * bytes / kBytesPerUs / us[1]);
}

struct Rows {
  explicit Rows(int64_t tokens, int64_t cols)
      : residual(static_cast<size_t>(tokens * cols), 0),
        parts(static_cast<size_t>(tokens * cols * (tokens <= 64 ? 32 : 2)), 0),
        out(static_cast<size_t>(tokens * cols)),
        codes(static_cast<size_t>(tokens * cols)),
        scales(static_cast<size_t>((cols + 127) / 128 * ((tokens + 3) / 4 * 4))),
        weight(static_cast<size_t>(cols), 0) {}
  DeviceArray<uint16_t> residual, parts, out;
  DeviceArray<uint8_t> codes;
  DeviceArray<float> scales, weight;
};
__nv_bfloat16* bf16(DeviceArray<uint16_t>& a) {
  return reinterpret_cast<__nv_bfloat16*>(a.data());
}

void bench_add_norm(int64_t tokens) {
  Rows r(tokens, kHidden);
  const double values = static_cast<double>(tokens * kHidden);
  AddNorm a{.partial = r.parts.data(),
            .residual = bf16(r.residual),
            .weight = r.weight.data(),
            .tokens = tokens,
            .cols = kHidden};
  a.out.quantized = {r.codes.data(), r.scales.data(), kHidden, (tokens + 3) / 4 * 4};
  report("add_norm fp8 out", tokens, 7 * values, [&](int, const Launch& launch) {
    add_norm(a, launch);
  });
  a.capability = 80;
  if (tokens <= 16) {
    report("  without cluster", tokens, 7 * values, [&](int, const Launch& launch) {
      add_norm(a, launch);
    });
  }
  a.capability = 90;
  if (tokens <= 64) {
    a.parts = 8;
    report("  8 bf16 parts", tokens, 21 * values, [&](int, const Launch& launch) {
      add_norm(a, launch);
    });
    a.parts = 16;
    a.partial_f32 = true;
    report("  16 f32 parts", tokens, 69 * values, [&](int, const Launch& launch) {
      add_norm(a, launch);
    });
  }
  RmsNorm n{.x = bf16(r.residual), .weight = r.weight.data(), .tokens = tokens, .cols = kHidden};
  n.out.bf16 = bf16(r.out);
  report("rms_norm bf16 out", tokens, 4 * values, [&](int, const Launch& launch) {
    rms_norm(n, launch);
  });
}

void bench_split(int64_t tokens) {
  Rows r(tokens, 2112);
  DeviceArray<uint16_t> cache(static_cast<size_t>(tokens * 576));
  std::vector<int64_t> order;
  for (int64_t t = 0; t < tokens; ++t) order.push_back(t);
  DeviceArray<int64_t> slots(order);
  DeviceArray<float> angles(static_cast<size_t>(tokens * 64));
  MlaSplitNorm a{.x = bf16(r.residual),
                 .tokens = tokens,
                 .q_lora = 1536,
                 .latent = 512,
                 .rope = 64,
                 .q_weight = r.weight.data(),
                 .kv_weight = r.weight.data(),
                 .cos_sin = angles.data(),
                 .cache = {cache.data(), 64, 576},
                 .slots = slots.data()};
  a.q.quantized = {r.codes.data(), r.scales.data(), 1536, (tokens + 3) / 4 * 4};
  const double bytes = static_cast<double>(tokens) * (2112 * 2 + 1536 + 1152 + 256);
  report("mla_split_norm fp8 out", tokens, bytes, [&](int, const Launch& launch) {
    mla_split_norm(a, launch);
  });
}

void bench_step(int64_t tokens) {
  // One decode token a sequence, or one prompt.
  const int64_t count = tokens > 1024 ? 1 : tokens;
  std::vector<int32_t> begin, len, context, block_begin;
  for (int64_t s = 0; s < count; ++s) {
    begin.push_back(static_cast<int32_t>(s));
    len.push_back(static_cast<int32_t>(tokens / count));
    context.push_back(8192);
    block_begin.push_back(static_cast<int32_t>(s * 128));
  }
  DeviceArray<int32_t> d_begin(begin), d_len(len), d_context(context), d_blocks(block_begin);
  DeviceArray<int32_t> ids(static_cast<size_t>(count * 128), 0);
  DeviceArray<int32_t> positions(static_cast<size_t>(tokens));
  DeviceArray<int64_t> slots(static_cast<size_t>(tokens));
  DeviceArray<float> freq(32, 0), angles(static_cast<size_t>(tokens * 64));
  const BeginStep a{.sequences = {d_begin.data(),
                                  d_len.data(),
                                  d_context.data(),
                                  d_blocks.data(),
                                  ids.data(),
                                  static_cast<int32_t>(count)},
                    .block_size = 64,
                    .tokens = tokens,
                    .positions = positions.data(),
                    .slots = slots.data(),
                    .inv_freq = freq.data(),
                    .rope = 64,
                    .cos_sin = angles.data()};
  report("begin_step", tokens, 268.0 * static_cast<double>(tokens), [&](int, const Launch& l) {
    begin_step(a, l);
  });

  DeviceArray<uint16_t> table(static_cast<size_t>(16160 * kHidden), 0);
  DeviceArray<uint16_t> out(static_cast<size_t>(tokens * kHidden));
  std::vector<int32_t> rows;
  for (int64_t t = 0; t < tokens; ++t) rows.push_back(static_cast<int32_t>(t * 7919 % 16160));
  DeviceArray<int32_t> d_rows(rows);
  const Embed e{.table = table.data(),
                .rows = 16160,
                .cols = kHidden,
                .ids = d_rows.data(),
                .tokens = tokens,
                .out = bf16(out)};
  report("embed", tokens, 4.0 * static_cast<double>(tokens * kHidden), [&](int, const Launch& l) {
    embed(e, l);
  });
}

}  // namespace
}  // namespace r1d::kernels

int main() {
  using namespace r1d::kernels;  // NOLINT: a program of one file
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
  for (const int64_t tokens : {1, 4, 8, 16, 17, 32, 64, 132, 133, 256, 1024, 8192})
    bench_add_norm(tokens);
  for (const int64_t tokens : {1, 8, 64, 256, 8192}) bench_split(tokens);
  for (const int64_t tokens : {1, 64, 8192}) bench_step(tokens);
  return 0;
}
