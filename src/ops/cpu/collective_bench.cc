// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/collective_bench.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "r1d/base/status.h"

#include "ops/collective_samples.h"
#include "ops/cpu/local_group.h"

namespace r1d::ops::cpu {
namespace {

// One rank's part of a row: times of its calls, and whether it had the sum each time.
struct RankRun {
  std::vector<double> micros;
  bool correct = true;
  absl::Status status;
};

RankRun run_rank(LocalGroup& group, int32_t rank, int64_t values, int32_t repeats) {
  using Clock = std::chrono::steady_clock;
  RankRun run;
  std::vector<float> data(static_cast<size_t>(values));
  for (int32_t repeat = 0; repeat < repeats && run.status.ok(); ++repeat) {
    for (int64_t i = 0; i < values; ++i) data[static_cast<size_t>(i)] = collective_sample(i, rank);
    run.status = group.barrier();
    if (!run.status.ok()) break;
    const auto start = Clock::now();
    run.status = group.all_reduce_sum(rank, data);
    run.micros.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    for (int64_t i = 0; i < values; ++i) {
      run.correct = run.correct &&
                    data[static_cast<size_t>(i)] == collective_sample_sum(i, group.world_size());
    }
  }
  return run;
}

absl::StatusOr<CollectiveRow> bench_row(const CollectiveBenchOptions& options, int64_t bytes) {
  LocalGroup group(options.world_size);
  std::vector<RankRun> runs(static_cast<size_t>(options.world_size));
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < options.world_size; ++rank) {
    threads.emplace_back([&, rank] {
      runs[static_cast<size_t>(rank)] =
          run_rank(group, rank, bytes / int64_t{sizeof(float)}, options.repeats);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CollectiveTiming timing{.way = "local", .graph_micros = {}, .single_micros = 0.0};
  for (const RankRun& run : runs) {
    R1D_RETURN_IF_ERROR(run.status);
    timing.single_micros = std::max(*timing.single_micros, median(run.micros));
    timing.correct = timing.correct && run.correct;
  }
  return CollectiveRow{.bytes = bytes, .chosen = timing.way, .timings = {timing}};
}

}  // namespace

absl::StatusOr<std::vector<CollectiveRow>> bench_collectives(
    const CollectiveBenchOptions& options) {
  std::vector<CollectiveRow> rows;
  for (const int64_t bytes : options.bytes) {
    R1D_ASSIGN_OR_RETURN(CollectiveRow row, bench_row(options, bytes));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace r1d::ops::cpu
