// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "r1d/ops/collectives.h"

namespace r1d::ops {

const char* way_name(CollectiveWay way) {
  switch (way) {
    case CollectiveWay::kOneShot:
      return "one-shot";
    case CollectiveWay::kTwoShot:
      return "two-shot";
    case CollectiveWay::kNccl:
      return "NCCL";
  }
  return "";
}

// One-shot sends 2 (world - 1) bytes a byte in one trip, two-shot 2 (world - 1) / world in two; at
// 450 GB/s and 2 us for the second trip they meet at 900 KB, 200 KB and 73 KB for 2, 4 and 8 ranks.
// Two-shot stays ahead of NCCL while the trips count; the bound is the room it has in one call.
CollectiveTable collective_table(int32_t world_size) {
  constexpr int64_t kKib = 1024;
  constexpr int64_t kTwoShot = 4096 * kKib;
  if (world_size <= 2) return {.one_shot_bytes = 512 * kKib, .two_shot_bytes = kTwoShot};
  if (world_size <= 4) return {.one_shot_bytes = 192 * kKib, .two_shot_bytes = kTwoShot};
  return {.one_shot_bytes = 72 * kKib, .two_shot_bytes = kTwoShot};
}

CollectiveWay choose_way(const CollectiveTable& table, const CollectiveCase& sum) {
  if (!sum.peer_memory) return CollectiveWay::kNccl;
  if (sum.bytes <= table.one_shot_bytes) return CollectiveWay::kOneShot;
  const bool ours = sum.recorded || sum.deterministic || sum.bytes <= table.two_shot_bytes;
  return ours ? CollectiveWay::kTwoShot : CollectiveWay::kNccl;
}

namespace {

// Infinite where the way was not measured.
double graph_micros(const CollectiveRow& row, CollectiveWay way) {
  for (const CollectiveTiming& timing : row.timings) {
    if (timing.way == way_name(way) && timing.graph_micros) return *timing.graph_micros;
  }
  return std::numeric_limits<double>::infinity();
}

}  // namespace

CollectiveTable fastest_table(std::span<const CollectiveRow> rows) {
  std::vector<const CollectiveRow*> sorted;
  for (const CollectiveRow& row : rows) sorted.push_back(&row);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) {
    return a->bytes < b->bytes;
  });
  CollectiveTable table{.measured = true};
  bool one_shot_leads = true;
  for (const CollectiveRow* row : sorted) {
    const double one_shot = graph_micros(*row, CollectiveWay::kOneShot);
    const double two_shot = graph_micros(*row, CollectiveWay::kTwoShot);
    const double nccl = graph_micros(*row, CollectiveWay::kNccl);
    if (std::min(one_shot, two_shot) > nccl || std::isinf(two_shot)) break;
    one_shot_leads = one_shot_leads && one_shot <= two_shot;
    if (one_shot_leads) table.one_shot_bytes = row->bytes;
    table.two_shot_bytes = row->bytes;
  }
  return table;
}

}  // namespace r1d::ops
