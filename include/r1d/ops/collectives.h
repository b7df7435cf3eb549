// SPDX-License-Identifier: Apache-2.0
// Which way a sum over ranks goes, and what each way takes. Pure choices, and a bench for them; no
// CUDA types.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::ops {

enum class CollectiveWay : uint8_t {
  kOneShot,  // all to all over peer memory: one trip
  kTwoShot,  // shards are summed and sent on: two trips, fewer bytes
  kNccl,
};
[[nodiscard]] const char* way_name(CollectiveWay way);  // "one-shot", "two-shot", "NCCL"

// Up to how many bytes of bf16 each way is the fastest; NCCL above both.
struct CollectiveTable {
  int64_t one_shot_bytes = 0;
  int64_t two_shot_bytes = 0;
  bool measured = false;  // else computed from link rates; `r1d bench collectives` measures
};
[[nodiscard]] CollectiveTable collective_table(int32_t world_size);

// What a sum of `bytes` needs to know.
struct CollectiveCase {
  int64_t bytes = 0;
  bool peer_memory = true;  // the GPUs write into each other's memory
  bool recorded = false;    // into a graph, where NCCL's calls must not be
  bool deterministic =
      false;  // bits may not depend on how many bytes there are: never NCCL's order
};
[[nodiscard]] CollectiveWay choose_way(const CollectiveTable& table, const CollectiveCase& sum);

// ---- `r1d bench collectives` -------------------------------------------------------------------

struct CollectiveBenchOptions {
  bool cuda = false;  // GPUs 0 .. world_size - 1; else the CPU's local communicator
  int32_t world_size = 2;
  std::vector<int64_t> bytes;  // of bf16 on GPUs, of f32 on the CPU
  int64_t row_bytes = 14336;   // of a token, for the fused form
  int32_t repeats = 20;
};

// Microseconds of one call, medians of the slowest rank; none where that way does not serve.
struct CollectiveTiming {
  std::string way;  // way_name(), "fused", "local"
  std::optional<double> graph_micros;
  std::optional<double> single_micros;
  bool correct = true;  // every rank had the sum
};
struct CollectiveRow {
  int64_t bytes = 0;
  std::string chosen;
  std::vector<CollectiveTiming> timings;
};
// The table that these rows ask for: sizes in a row, from the smallest on, at which a way is the
// fastest in graphs.
[[nodiscard]] CollectiveTable fastest_table(std::span<const CollectiveRow> rows);

// kFailedPrecondition: too few GPUs, no NCCL.
[[nodiscard]] absl::StatusOr<std::vector<CollectiveRow>> bench_collectives(
    const CollectiveBenchOptions& options);

}  // namespace r1d::ops
