// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/cpu/host_memory.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/parallel.h"

namespace r1d::ops::cpu {

// Rows [first, first + count) of a matrix; an FP8 slice may begin inside a scale block.
[[nodiscard]] Matrix slice_rows(const Matrix& matrix, int64_t first, int64_t count);

// Runs products on the rank's threads. Confined to the rank's thread.
class Gemm {
 public:
  // `bf16_dot` asks for bf16 products where the CPU has them. max_cols: of any weight matrix.
  Gemm(Parallel& parallel, bool bf16_dot, int64_t max_cols);

  void layout(Arena& arena);

  // All jobs in one pass over the threads: the experts of a layer share it. No job reads what
  // another writes.
  void run(std::span<const GemmJob> jobs);
  void run(const GemmJob& job) { run(std::span(&job, 1)); }

  // One thread's scratch, kPanelRows rows or kGemmScratch; for use inside a task of that thread.
  [[nodiscard]] float* panel(int32_t thread) const { return panels_ + thread * panel_size_; }

 private:
  // How a job is cut into tasks: rows fastest.
  struct Cut {
    int64_t first_task = 0;
    int64_t rows = 0;    // weight rows per task
    int64_t tokens = 0;  // tokens per task
  };
  [[nodiscard]] Cut cut(const GemmJob& job, int64_t first_task, int64_t work_per_task) const;
  void run_task(std::span<const GemmJob> jobs, int64_t task, int32_t thread) const;

  Parallel& parallel_;
  const bool bf16_dot_;
  const int64_t max_cols_;
  const int64_t panel_size_;  // floats
  float* panels_ = nullptr;   // [threads, panel_size]
  std::vector<Cut> cuts_;     // of the jobs of the current run
};

}  // namespace r1d::ops::cpu
