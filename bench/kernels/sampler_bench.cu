// SPDX-License-Identifier: Apache-2.0
// The sampler over rows of R1's vocabulary: microseconds by graph replay (also with programmatic
// launch), against reading the logits once at 4.3 TB/s, and against the CPU's sampler on one core.
// Then the rate of the dummy weights' fill.
#include <chrono>
#include <cstdio>
#include <cstring>

#include "kernels/random_fill/random_fill.h"
#include "kernels/sampler/sampler.h"
#include "tests/kernels/sampler_reference.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;
using test::graph_time_us;
using test::ReferenceRow;

constexpr int32_t kVocab = 129280;
constexpr double kBytesPerUs = 4.3e6;

struct Mode {
  const char* name;
  bool fast_path;
  ReferenceRow row;
};

// A head of 200 tokens over a bulk 8 below it, as a language model gives.
std::vector<float> model_like(size_t rows) {
  std::vector<float> logits = test::random_floats(rows * kVocab, 1, 2.5F);
  const std::vector<float> head = test::random_floats(rows * 200, 2, 2.5F);
  for (size_t i = 0; i < head.size(); ++i) logits[i / 200 * kVocab + (i % 200) * 641] = head[i] + 8;
  return logits;
}

double cpu_us_per_row(const std::vector<float>& logits, const Mode& mode) {
  std::vector<double> times;
  for (int64_t r = 0; r < 9; ++r) {
    std::vector<float> row(logits.begin() + r % 4 * kVocab, logits.begin() + (r % 4 + 1) * kVocab);
    ReferenceRow params = mode.row;
    params.seed = static_cast<uint64_t>(r);
    const auto begin = std::chrono::steady_clock::now();
    const auto sampled = test::reference_sample(row.data(), kVocab, kVocab - 1, params);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    if (!sampled.ok) std::abort();
    times.push_back(took.count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void bench_sampler(int num_sms, int capability) {
  ReferenceRow greedy;
  greedy.temperature = 0;
  ReferenceRow plain;
  ReferenceRow nucleus;
  nucleus.temperature = 0.6;
  nucleus.top_p = 0.95;
  ReferenceRow top_k = nucleus;
  top_k.top_k = 50;
  ReferenceRow logprobs = nucleus;
  logprobs.num_logprobs = 5;
  const Mode modes[] = {{"greedy, fast path", true, greedy},
                        {"greedy", false, greedy},
                        {"T 1", false, plain},
                        {"T 0.6 top_p 0.95", false, nucleus},
                        {"T 0.6 top_p 0.95 top_k 50", false, top_k},
                        {"T 0.6 top_p 0.95, 5 logprobs", false, logprobs}};
  constexpr size_t kMostRows = 512;
  const std::vector<float> host = model_like(kMostRows);
  DeviceArray<float> logits(host);
  std::printf("%-30s %5s %9s %9s %7s %8s %7s %11s %8s\n",
              "sampler",
              "rows",
              "us",
              "us pdl",
              "GB/s",
              "floor us",
              "share",
              "CPU us",
              "CPU/GPU");
  for (const Mode& mode : modes) {
    const double cpu_us = cpu_us_per_row(host, mode);
    for (const int32_t rows : {1, 16, 64, 256}) {
      std::vector<SamplerRow> params(static_cast<size_t>(rows));
      for (size_t r = 0; r < params.size(); ++r) {
        params[r].temperature = mode.row.temperature;
        params[r].top_p = mode.row.top_p;
        params[r].top_k = mode.row.top_k;
        params[r].num_logprobs = mode.row.num_logprobs;
        params[r].seed = r;
      }
      DeviceArray<SamplerRow> device_params(params);
      DeviceArray<SampledRow> sampled(params.size());
      DeviceArray<int32_t> top_tokens(params.size() * 5);
      DeviceArray<float> top_logprobs(params.size() * 5);
      const SamplerPlan plan = plan_sampler(rows, kVocab, capability, num_sms);
      DeviceArray<uint8_t> workspace(static_cast<size_t>(plan.workspace_bytes), 0);
      const int copies = static_cast<int>(kMostRows) / rows;  // 265 MB in all
      double us[2];
      for (const bool dependent : {false, true}) {
        us[dependent] = graph_time_us(std::min(copies, 64), [&](int i, cudaStream_t stream) {
          const SamplerInput input{.logits = logits.data() + static_cast<int64_t>(i) *
                                                                 (copies / std::min(copies, 64)) *
                                                                 rows * kVocab,
                                   .row_stride = kVocab,
                                   .rows = rows,
                                   .vocab = kVocab,
                                   .params = device_params.data()};
          const Launch launch{.stream = stream, .dependent = dependent};
          if (mode.fast_path) {
            R1D_MUST(sample_greedy(input, sampled.data(), plan, workspace.data(), launch));
          } else {
            R1D_MUST(sample_tokens(input,
                                   {sampled.data(), top_tokens.data(), top_logprobs.data(), 5},
                                   plan,
                                   workspace.data(),
                                   launch));
          }
        });
      }
      const double bytes = 4.0 * rows * kVocab;
      const double floor_us = bytes / kBytesPerUs;
      std::printf("%-30s %5d %9.2f %9.2f %7.0f %8.2f %6.0f%% %11.0f %8.0f\n",
                  mode.name,
                  rows,
                  us[0],
                  us[1],
                  bytes / us[0] / 1e3,
                  floor_us,
                  100 * floor_us / us[0],
                  rows * cpu_us,
                  rows * cpu_us / us[0]);
    }
  }
}

void bench_random_fill() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  DeviceArray<uint8_t> out(kBytes);
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
    RandomFill fill{.key = 1, .center = 0, .amplitude = 1, .dtype = dtype};
    fill.col_end = 7168;
    fill.row_end = kBytes / fill.col_end / dtype_bytes(dtype);
    const double us = graph_time_us(1, [&](int, cudaStream_t stream) {
      R1D_MUST(random_fill(fill, out.data(), {.stream = stream}));
    });
    fill.col_begin = 1;  // rows that begin nowhere in particular
    const double odd_us = graph_time_us(1, [&](int, cudaStream_t stream) {
      R1D_MUST(random_fill(fill, out.data(), {.stream = stream}));
    });
    std::printf(
        "random_fill %-8s 1 GiB: %.0f us, %.0f GB/s; 85 GB in %.0f ms; unaligned rows %.0f us, "
        "%.0f GB/s\n",
        dtype_name(dtype),
        us,
        kBytes / us / 1e3,
        85e9 / (kBytes / us) / 1e3,
        odd_us,
        kBytes / odd_us / 1e3);
  }
}

}  // namespace
}  // namespace r1d::kernels

int main() {
  const int capability = r1d::kernels::test::compute_capability();
  if (capability == 0) {
    std::printf("no GPU\n");
    return 0;
  }
  cudaDeviceProp properties{};
  R1D_MUST(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d SMs\n", properties.name, properties.multiProcessorCount);
  r1d::kernels::bench_sampler(properties.multiProcessorCount, capability);
  r1d::kernels::bench_random_fill();
  return 0;
}
