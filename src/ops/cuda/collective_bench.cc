// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/collective_bench.h"

#include <algorithm>
#include <functional>
#include <thread>

#include "r1d/base/dtype.h"
#include "r1d/base/status.h"
#include "r1d/device/gpu_info.h"

#include "ops/collective_samples.h"
#include "ops/cuda/collectives.h"

namespace r1d::ops::cuda {
namespace {

constexpr int64_t kOneShotBytes = int64_t{4} << 20;  // room to look past the table's choice
constexpr int64_t kTwoShotBytes = int64_t{256} << 20;
constexpr int64_t kFusedTokens = 132;  // a decode step's: more are no latency problem
constexpr int32_t kWarmUps = 3;

enum class Way : uint8_t { kOneShot, kTwoShot, kNccl, kFused };
constexpr Way kWays[] = {Way::kOneShot, Way::kTwoShot, Way::kNccl, Way::kFused};

std::string name_of(Way way) {
  return way == Way::kFused ? "fused" : way_name(static_cast<CollectiveWay>(way));
}

// One rank: its device, its collectives, and the arrays that it sums.
class BenchRank {
 public:
  BenchRank(const CollectiveBenchOptions& options,
            std::shared_ptr<CollectiveGroup> group,
            int32_t rank,
            int capability)
      : options_(options),
        group_(std::move(group)),
        rank_(rank),
        launches_(stream_, /*dependent=*/capability == 90),
        collectives_(group_, rank, capability, stream_, launches_) {}

  absl::Status run() {
    R1D_RETURN_IF_ERROR(open());
    for (const int64_t bytes : options_.bytes) {
      R1D_RETURN_IF_ERROR(fill(bytes));
      CollectiveRow row{.bytes = bytes,
                        .chosen = way_name(choose_way(
                            collective_table(options_.world_size),
                            {.bytes = bytes, .peer_memory = collectives_.has_peer_memory()})),
                        .timings = {}};
      for (const Way way : kWays) {
        if (!serves(way, bytes)) continue;
        R1D_ASSIGN_OR_RETURN(CollectiveTiming timing, measure(way, bytes));
        row.timings.push_back(std::move(timing));
      }
      rows_.push_back(std::move(row));
    }
    return absl::OkStatus();
  }

  [[nodiscard]] const std::vector<CollectiveRow>& rows() const { return rows_; }
  void abort() { collectives_.abort(); }

 private:
  absl::Status open() {
    R1D_RETURN_IF_ERROR(device::use_device(rank_));
    R1D_ASSIGN_OR_RETURN(stream_, device::Stream::create());
    R1D_ASSIGN_OR_RETURN(begin_, device::Event::create());
    R1D_ASSIGN_OR_RETURN(end_, device::Event::create());
    const auto most =
        static_cast<size_t>(*std::max_element(options_.bytes.begin(), options_.bytes.end()));
    R1D_ASSIGN_OR_RETURN(in_, device::DeviceMemory::allocate(most, "what is summed"));
    R1D_ASSIGN_OR_RETURN(out_, device::DeviceMemory::allocate(most, "the sum"));
    const auto cols = static_cast<size_t>(options_.row_bytes / 2);
    const auto tokens = static_cast<size_t>(kFusedTokens);
    R1D_ASSIGN_OR_RETURN(weight_, device::DeviceMemory::allocate(cols * 4, "weight"));
    R1D_ASSIGN_OR_RETURN(normed_, device::DeviceMemory::allocate(tokens * cols * 2, "normed"));
    R1D_ASSIGN_OR_RETURN(codes_, device::DeviceMemory::allocate(tokens * cols, "codes"));
    R1D_ASSIGN_OR_RETURN(scales_,
                         device::DeviceMemory::allocate((cols + 127) / 128 * tokens * 4, "scales"));
    return collectives_.attach(nullptr);
  }

  [[nodiscard]] bool serves(Way way, int64_t bytes) const {
    switch (way) {
      case Way::kOneShot:
        return collectives_.has_peer_memory() && bytes <= kOneShotBytes;
      case Way::kTwoShot:
        return collectives_.has_peer_memory();
      case Way::kNccl:
        return true;
      case Way::kFused:
        break;
    }
    return collectives_.has_peer_memory() && bytes <= kOneShotBytes &&
           bytes % options_.row_bytes == 0 && bytes / options_.row_bytes <= kFusedTokens;
  }

  absl::Status fill(int64_t bytes) {
    values_.resize(static_cast<size_t>(bytes / 2));
    for (size_t i = 0; i < values_.size(); ++i)
      values_[i] = f32_to_bf16(collective_sample(static_cast<int64_t>(i), rank_));
    R1D_RETURN_IF_ERROR(stream_.copy_in(in_.data(), values_.data(), static_cast<size_t>(bytes)));
    return stream_.synchronize();
  }

  absl::Status call(Way way, int64_t bytes) {
    auto* in = reinterpret_cast<__nv_bfloat16*>(in_.data());
    auto* out = reinterpret_cast<__nv_bfloat16*>(out_.data());
    if (way != Way::kFused) {
      return collectives_.all_reduce({.in = in, .out = out, .count = bytes / 2},
                                     static_cast<CollectiveWay>(way));
    }
    const int64_t cols = options_.row_bytes / 2;
    kernels::NormOutput to{.bf16 = reinterpret_cast<__nv_bfloat16*>(normed_.data()),
                           .stride = cols};
    if (cols % 128 == 0) {
      to.quantized = {.data = reinterpret_cast<uint8_t*>(codes_.data()),
                      .scale = reinterpret_cast<float*>(scales_.data()),
                      .cols = cols,
                      .scale_stride = kFusedTokens};
    }
    // The residual stands where sums come out.
    return collectives_.all_reduce_add_norm(
        {.partial = in,
         .residual = out,
         .weight = reinterpret_cast<const float*>(weight_.data()),
         .eps = 1e-6F,
         .tokens = bytes / options_.row_bytes,
         .cols = cols,
         .out = to});
  }

  // The first calls are careful: they load code.
  absl::Status step(Collectives::Mode mode, int32_t calls, Way way, int64_t bytes) {
    R1D_RETURN_IF_ERROR(collectives_.begin_step(mode));
    for (int32_t i = 0; i < calls; ++i) R1D_RETURN_IF_ERROR(call(way, bytes));
    R1D_ASSIGN_OR_RETURN(num_collectives_, collectives_.end_step());
    return absl::OkStatus();
  }

  // Median device time of `enqueue`, all ranks starting together.
  absl::StatusOr<double> time(const std::function<absl::Status()>& enqueue) {
    std::vector<double> micros;
    for (int32_t repeat = 0; repeat < options_.repeats + kWarmUps; ++repeat) {
      R1D_RETURN_IF_ERROR(collectives_.meet());
      R1D_RETURN_IF_ERROR(begin_.record(stream_));
      R1D_RETURN_IF_ERROR(enqueue());
      R1D_RETURN_IF_ERROR(end_.record(stream_));
      R1D_RETURN_IF_ERROR(stream_.synchronize());
      R1D_RETURN_IF_ERROR(collectives_.finish_step(num_collectives_));
      R1D_ASSIGN_OR_RETURN(const double once, end_.micros_since(begin_));
      if (repeat >= kWarmUps) micros.push_back(once);
    }
    return median(std::move(micros));
  }

  absl::StatusOr<CollectiveTiming> measure(Way way, int64_t bytes) {
    CollectiveTiming timing{.way = name_of(way), .graph_micros = {}, .single_micros = {}};
    R1D_RETURN_IF_ERROR(stream_.zero(out_.data(), static_cast<size_t>(bytes)));
    R1D_RETURN_IF_ERROR(step(Collectives::Mode::kCareful, 1, way, bytes));
    R1D_RETURN_IF_ERROR(stream_.synchronize());
    R1D_RETURN_IF_ERROR(collectives_.finish_step(num_collectives_));
    R1D_ASSIGN_OR_RETURN(timing.correct, holds_sum(bytes));
    R1D_ASSIGN_OR_RETURN(timing.single_micros,
                         time([&] { return step(Collectives::Mode::kFree, 1, way, bytes); }));
    // So many calls a graph that launching it does not count; then the graph goes, since NCCL's
    // calls must not stay in one.
    const auto calls = static_cast<int32_t>(std::clamp<int64_t>((64 << 20) / bytes, 4, 200));
    R1D_RETURN_IF_ERROR(collectives_.begin_step(Collectives::Mode::kRecorded));
    R1D_RETURN_IF_ERROR(device::Graph::begin_recording(stream_));
    absl::Status recorded;
    for (int32_t i = 0; recorded.ok() && i < calls; ++i) recorded = call(way, bytes);
    if (recorded.ok()) {
      const auto count = collectives_.end_step();
      recorded = count.status();
      if (count.ok()) num_collectives_ = *count;
    }
    const auto graph = device::Graph::end_recording(stream_);
    R1D_RETURN_IF_ERROR(recorded);
    R1D_RETURN_IF_ERROR(graph.status());
    R1D_RETURN_IF_ERROR(graph->upload(stream_));
    R1D_RETURN_IF_ERROR(stream_.synchronize());
    R1D_ASSIGN_OR_RETURN(const double micros, time([&] { return graph->launch(stream_); }));
    timing.graph_micros = micros / calls;
    return timing;
  }

  absl::StatusOr<bool> holds_sum(int64_t bytes) {
    std::vector<uint16_t> sums(static_cast<size_t>(bytes / 2));
    R1D_RETURN_IF_ERROR(stream_.copy_out(sums.data(), out_.data(), static_cast<size_t>(bytes)));
    R1D_RETURN_IF_ERROR(stream_.synchronize());
    for (size_t i = 0; i < sums.size(); ++i) {
      const float want = collective_sample_sum(static_cast<int64_t>(i), options_.world_size);
      if (bf16_to_f32(sums[i]) != want) return false;
    }
    return true;
  }

  const CollectiveBenchOptions& options_;
  const std::shared_ptr<CollectiveGroup> group_;
  const int32_t rank_;
  device::Stream stream_;
  device::Event begin_;
  device::Event end_;
  device::DeviceMemory in_, out_, weight_, normed_, codes_, scales_;
  Launches launches_;
  Collectives collectives_;
  std::vector<uint16_t> values_;
  std::vector<CollectiveRow> rows_;
  uint32_t num_collectives_ = 0;
};

// The slowest rank's times; correct when all are.
void merge(const std::vector<CollectiveRow>& rank, std::vector<CollectiveRow>& rows) {
  const auto slower = [](std::optional<double>& time, const std::optional<double>& other) {
    if (time && other) *time = std::max(*time, *other);
  };
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t t = 0; t < rows[r].timings.size(); ++t) {
      CollectiveTiming& timing = rows[r].timings[t];
      const CollectiveTiming& other = rank[r].timings[t];
      slower(timing.graph_micros, other.graph_micros);
      slower(timing.single_micros, other.single_micros);
      timing.correct = timing.correct && other.correct;
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<CollectiveRow>> bench_collectives(
    const CollectiveBenchOptions& options) {
  R1D_ASSIGN_OR_RETURN(const auto gpus, device::list_gpus());
  if (static_cast<int64_t>(gpus.size()) < options.world_size) {
    return failed_precondition(
        "--world-size {} needs as many GPUs, there are {}", options.world_size, gpus.size());
  }
  CollectiveOptions collective{
      .devices = {}, .table = {.one_shot_bytes = kOneShotBytes, .two_shot_bytes = kTwoShotBytes}};
  for (int32_t rank = 0; rank < options.world_size; ++rank) collective.devices.push_back(rank);
  R1D_ASSIGN_OR_RETURN(auto group, CollectiveGroup::create(collective));
  std::vector<std::unique_ptr<BenchRank>> ranks;
  for (int32_t rank = 0; rank < options.world_size; ++rank) {
    const device::GpuInfo& gpu = gpus[static_cast<size_t>(rank)];
    ranks.push_back(std::make_unique<BenchRank>(
        options, group, rank, 10 * gpu.compute_major + gpu.compute_minor));
  }
  std::vector<absl::Status> outcomes(ranks.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    threads.emplace_back([&, rank] {
      outcomes[rank] = ranks[rank]->run();
      if (outcomes[rank].ok()) return;
      for (const auto& other : ranks) other->abort();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& outcome : outcomes) {
    if (outcome.code() != absl::StatusCode::kUnavailable) R1D_RETURN_IF_ERROR(outcome);
  }
  for (const absl::Status& outcome : outcomes) R1D_RETURN_IF_ERROR(outcome);
  std::vector<CollectiveRow> rows = ranks.front()->rows();
  for (const auto& rank : ranks) merge(rank->rows(), rows);
  return rows;
}

}  // namespace r1d::ops::cuda
