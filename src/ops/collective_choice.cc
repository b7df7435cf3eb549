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

// Measured on two H200 (kernels/all_reduce/README.md): one-shot takes 1.7 us and 5.75 a MiB,
// two-shot 6.1 and 3.2, so they meet at 1.7 MiB; two-shot beats NCCL at every size looked at. Of
// more ranks one-shot sends 2 (world - 1) bytes a byte and two-shot 2 (world - 1) / world, where
// two ranks send 2 and 1: at the same rates they meet at 370 and 130 KiB of 4 and 8 ranks. NCCL
// sends as many bytes as two-shot there too, but how they compare at large sizes was not measured,
// so two-shot is taken for what goes in one piece.
CollectiveTable collective_table(int32_t world_size) {
  constexpr int64_t kKib = 1024;
  constexpr int64_t kMib = 1024 * kKib;
  if (world_size <= 2) {
    return {.one_shot_bytes = 1536 * kKib, .two_shot_bytes = 256 * kMib, .measured = true};
  }
  if (world_size <= 4) return {.one_shot_bytes = 368 * kKib, .two_shot_bytes = 32 * kMib};
  return {.one_shot_bytes = 128 * kKib, .two_shot_bytes = 32 * kMib};
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
