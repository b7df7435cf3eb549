// SPDX-License-Identifier: Apache-2.0
#include "r1d/device/gpu_table.h"

#include <algorithm>
#include <array>
#include <cstdlib>

namespace r1d::device {
namespace {

constexpr double kTera = 1e12;
constexpr double kGiga = 1e9;

constexpr int64_t gib(double value) {
  return static_cast<int64_t>(value * 0x1p30);
}

// Memory is what cudaGetDeviceProperties calls totalGlobalMem, which is less than the name says:
// ECC, page tables and firmware have their share. Bandwidths and dense rates (half of what NVIDIA
// prints with sparsity) are the vendor's data sheets; NVLink is given there for both directions
// together, so half of it comes in.
constexpr std::array<GpuModel, 8> kModels{{
    // H200 data sheet (SXM): 141 GB, 4.8 TB/s, 1979 / 3958 TFLOPS sparse, NVLink 900 GB/s. 139.7
    // GiB
    // on the machines r1d is measured on, where large reads reach 4.2 to 4.3 TB/s
    // (docs/performance.md).
    {.name = "h200",
     .product = "NVIDIA H200",
     .compute_capability = 90,
     .num_multiprocessors = 132,
     .memory_bytes = gib(139.7),
     .memory_bandwidth = 4.8 * kTera,
     .bf16_flops = 989.5 * kTera,
     .fp8_flops = 1979 * kTera,
     .link_bandwidth = 450 * kGiga},
    // H100 data sheet (SXM): 80 GB, 3.35 TB/s, rates as above. PyTorch prints 79.11 GiB
    // (vllm-project/vllm issue 27508).
    {.name = "h100-80gb",
     .product = "NVIDIA H100 80GB",
     .compute_capability = 90,
     .num_multiprocessors = 132,
     .memory_bytes = gib(79.1),
     .memory_bandwidth = 3.35 * kTera,
     .bf16_flops = 989.5 * kTera,
     .fp8_flops = 1979 * kTera,
     .link_bandwidth = 450 * kGiga},
    // H100 data sheet (NVL): 94 GB, 3.9 TB/s, 1671 / 3341 TFLOPS sparse, NVLink bridge 600 GB/s
    // between two.
    {.name = "h100-94gb",
     .product = "NVIDIA H100 NVL",
     .compute_capability = 90,
     .num_multiprocessors = 132,
     .memory_bytes = gib(93.0),
     .memory_bandwidth = 3.9 * kTera,
     .bf16_flops = 835.5 * kTera,
     .fp8_flops = 1670.5 * kTera,
     .link_bandwidth = 300 * kGiga},
    // H20 data sheet: 96 GB, 4.0 TB/s, 148 / 296 TFLOPS dense, NVLink 900 GB/s; 78 SMs.
    {.name = "h20",
     .product = "NVIDIA H20",
     .compute_capability = 90,
     .num_multiprocessors = 78,
     .memory_bytes = gib(95.0),
     .memory_bandwidth = 4.0 * kTera,
     .bf16_flops = 148 * kTera,
     .fp8_flops = 296 * kTera,
     .link_bandwidth = 450 * kGiga},
    // HGX B200 data sheet, an eighth of it: 2.25 / 4.5 PFLOPS dense, NVLink 1.8 TB/s. Memory 178.35
    // GiB, 148 SMs and 7.67 TB/s (7680 bits at 3996 MHz) as a driver told pytorch/ao, pull request
    // 4002; the sheet says 8 TB/s.
    {.name = "b200",
     .product = "NVIDIA B200",
     .compute_capability = 100,
     .num_multiprocessors = 148,
     .memory_bytes = gib(178.3),
     .memory_bandwidth = 7.67 * kTera,
     .bf16_flops = 2250 * kTera,
     .fp8_flops = 4500 * kTera,
     .link_bandwidth = 900 * kGiga},
    // A100 data sheet (SXM): 80 GB, 2039 GB/s, 312 TFLOPS dense, no FP8, NVLink 600 GB/s. PyTorch
    // prints 79.25 GiB (levihsu/OOTDiffusion issue 235).
    {.name = "a100-80gb",
     .product = "NVIDIA A100",
     .compute_capability = 80,
     .num_multiprocessors = 108,
     .memory_bytes = gib(79.2),
     .memory_bandwidth = 2.039 * kTera,
     .bf16_flops = 312 * kTera,
     .fp8_flops = 0,
     .link_bandwidth = 300 * kGiga},
    // The same with 40 GB: 1555 GB/s. PyTorch prints 39.50 GiB (TianheWu/CoSeR issue 10).
    {.name = "a100-40gb",
     .product = "NVIDIA A100",
     .compute_capability = 80,
     .num_multiprocessors = 108,
     .memory_bytes = gib(39.5),
     .memory_bandwidth = 1.555 * kTera,
     .bf16_flops = 312 * kTera,
     .fp8_flops = 0,
     .link_bandwidth = 300 * kGiga},
    // L40S data sheet: 48 GB, 864 GB/s, 362 / 733 TFLOPS dense, PCIe 4.0 x16 (64 GB/s both ways).
    {.name = "l40s",
     .product = "NVIDIA L40S",
     .compute_capability = 89,
     .num_multiprocessors = 142,
     .memory_bytes = gib(44.4),
     .memory_bandwidth = 0.864 * kTera,
     .bf16_flops = 362 * kTera,
     .fp8_flops = 733 * kTera,
     .link_bandwidth = 32 * kGiga,
     .has_nvlink = false},
}};

}  // namespace

std::span<const GpuModel> gpu_models() {
  return kModels;
}

const GpuModel* find_gpu_model(std::string_view name) {
  const auto* found = std::find_if(
      kModels.begin(), kModels.end(), [&](const GpuModel& model) { return model.name == name; });
  return found == kModels.end() ? nullptr : found;
}

const GpuModel* match_gpu_model(std::string_view product, int64_t memory_bytes) {
  const GpuModel* best = nullptr;
  for (const GpuModel& model : kModels) {
    const int64_t distance = std::abs(model.memory_bytes - memory_bytes);
    // Another product that only begins alike ("NVIDIA H200 NVL", a slice of a GPU) is no match.
    if (!product.starts_with(model.product) || distance > model.memory_bytes / 20) continue;
    if (best == nullptr || distance < std::abs(best->memory_bytes - memory_bytes)) best = &model;
  }
  return best;
}

}  // namespace r1d::device
