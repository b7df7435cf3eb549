// SPDX-License-Identifier: Apache-2.0
// GPUs that a plan can be made for without having one. Figures and their sources stand in
// src/device/gpu_table.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace r1d::device {

struct GpuModel {
  std::string_view name;     // "h200": what `r1d plan --gpu` takes
  std::string_view product;  // "NVIDIA H200": begins what the driver calls it; "" if ambiguous
  int32_t compute_capability = 0;  // 10 * major + minor
  int32_t num_multiprocessors = 0;
  int64_t memory_bytes = 0;     // what the driver lets programs have
  double memory_bandwidth = 0;  // bytes/s, data sheet
  double bf16_flops = 0;        // dense, data sheet
  double fp8_flops = 0;         // the same; 0: no FP8 tensor cores
  double link_bandwidth = 0;    // bytes/s into one GPU from all others together
  bool has_nvlink = true;       // else the link is PCIe
};

[[nodiscard]] std::span<const GpuModel> gpu_models();

// Null when the table has none of that name.
[[nodiscard]] const GpuModel* find_gpu_model(std::string_view name);

// The model whose GPU a driver calls `product` with this much memory; null when the table has none.
[[nodiscard]] const GpuModel* match_gpu_model(std::string_view product, int64_t memory_bytes);

}  // namespace r1d::device
