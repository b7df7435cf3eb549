// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/gemm.h"

#include <algorithm>

#include "r1d/base/check.h"

namespace r1d::ops::cpu {
namespace {

// Tasks a thread gets on average: threads that start late or share a core leave work to the others.
constexpr int64_t kTasksPerThread = 6;
// A task below this costs more in cold caches than its hand-out brings.
constexpr int64_t kMinTaskWork = int64_t{1} << 16;
// Rows of a task come in multiples of this; of many tokens, in whole blocks.
constexpr int64_t kTaskRows = 16;
constexpr int64_t kManyTokens = 16;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int64_t work_of(const GemmJob& job) {
  return job.tokens * job.weights.rows * job.weights.cols;
}

}  // namespace

Matrix slice_rows(const Matrix& matrix, int64_t first, int64_t count) {
  R1D_DCHECK(first >= 0 && count >= 0 && first + count <= matrix.rows);
  Matrix slice = matrix;
  slice.rows = count;
  slice.data =
      static_cast<const std::byte*>(matrix.data) + first * matrix.cols * dtype_bytes(matrix.dtype);
  if (matrix.scale == nullptr) return slice;
  const int64_t scale_row = first + matrix.scale_row_offset;
  slice.scale += scale_row / Matrix::kScaleBlock * matrix.scale_cols;
  slice.scale_row_offset = static_cast<int32_t>(scale_row % Matrix::kScaleBlock);
  return slice;
}

Gemm::Gemm(Parallel& parallel, bool bf16_dot, int64_t max_cols)
    : parallel_(parallel),
      bf16_dot_(bf16_dot && has_bf16_dot()),
      max_cols_(ceil_div(max_cols, 16) * 16),
      panel_size_(std::max(kPanelRows * max_cols_, kGemmScratch)) {}

void Gemm::layout(Arena& arena) {
  panels_ = arena.take<float>(parallel_.num_threads() * panel_size_);
}

Gemm::Cut Gemm::cut(const GemmJob& job, int64_t first_task, int64_t work_per_task) const {
  const int64_t row_work = std::max<int64_t>(1, job.tokens * job.weights.cols);
  const int64_t granule = job.tokens < kManyTokens ? kTaskRows : kBlockRows;
  const int64_t rows = ceil_div(ceil_div(work_per_task, row_work), granule) * granule;
  int64_t tokens = std::max<int64_t>(1, job.tokens);
  if (rows == kBlockRows && rows * row_work > work_per_task) {
    // Only into pieces that still pay for converting the weights again.
    const int64_t wanted = work_per_task / (rows * job.weights.cols);
    tokens = std::max<int64_t>(1, wanted / kBlockTokens) * kBlockTokens;
  }
  return {.first_task = first_task, .rows = rows, .tokens = tokens};
}

void Gemm::run(std::span<const GemmJob> jobs) {
  int64_t work = 0;
  for (const GemmJob& job : jobs) work += work_of(job);
  const int64_t work_per_task =
      std::max(kMinTaskWork, work / (parallel_.num_threads() * kTasksPerThread));
  cuts_.clear();
  int64_t num_tasks = 0;
  for (const GemmJob& job : jobs) {
    R1D_CHECK(job.weights.cols <= max_cols_);
    cuts_.push_back(cut(job, num_tasks, work_per_task));
    num_tasks +=
        ceil_div(job.weights.rows, cuts_.back().rows) * ceil_div(job.tokens, cuts_.back().tokens);
  }
  parallel_.run(num_tasks, work, [this, jobs](int64_t task, int32_t thread) {
    run_task(jobs, task, thread);
  });
}

void Gemm::run_task(std::span<const GemmJob> jobs, int64_t task, int32_t thread) const {
  const auto after =
      std::upper_bound(cuts_.begin(), cuts_.end(), task, [](int64_t t, const Cut& cut) {
        return t < cut.first_task;
      });
  const auto job_idx = static_cast<size_t>(after - cuts_.begin()) - 1;
  const GemmJob& job = jobs[job_idx];
  const Cut& cut = cuts_[job_idx];
  const int64_t row_chunks = ceil_div(job.weights.rows, cut.rows);
  const int64_t piece = task - cut.first_task;
  const int64_t row = piece % row_chunks * cut.rows;
  const int64_t token = piece / row_chunks * cut.tokens;
  const GemmRange range{.row_begin = row,
                        .row_end = std::min(row + cut.rows, job.weights.rows),
                        .token_begin = token,
                        .token_end = std::min(token + cut.tokens, job.tokens)};
  const bool bf16 = bf16_dot_ && !job.exact && job.weights.dtype != DType::kF32;
  (bf16 ? gemm_range_bf16 : gemm_range)(job, range, panel(thread));
}

}  // namespace r1d::ops::cpu
