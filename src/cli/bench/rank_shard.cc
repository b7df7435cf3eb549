// SPDX-License-Identifier: Apache-2.0
// `r1d bench offline --rank-shard`: decode and prefill steps of one rank on a GPU, or of all ranks
// on as many, without a server: what a step takes, where its time goes, and how far that is from
// what the memory and the tensor cores allow.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/shard_plan.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/device/gpu_info.h"
#include "r1d/engine/engine.h"
#include "r1d/engine/rank_group.h"
#include "r1d/model/deepseek_v3.h"
#include "r1d/ops/cuda_ops.h"

#include "cli/bench/bench.h"
#include "cli/bench/latent_blocks.h"
#include "cli/bench/step_arrays.h"
#include "cli/progress_bar.h"
#include "cli/setup.h"

namespace r1d::cli::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double upper_median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// FP8 tensor cores of an H200 as measured at 8192^3 under its power limit; kinds whose flops bind
// are all FP8 but attention.
constexpr double kFlops = 1.278e15;

class RankShardBench {
 public:
  explicit RankShardBench(const RankShardOptions& options)
      : options_(options),
        ranks_(static_cast<size_t>(options.all_ranks ? options.world_size : 1)),
        group_(static_cast<int32_t>(ranks_.size()), [this] {
          for (const Rank& rank : ranks_)
            if (rank.ops) rank.ops->abort();
        }) {}

  absl::Status run() {
    R1D_RETURN_IF_ERROR(open());
    R1D_RETURN_IF_ERROR(load());
    R1D_RETURN_IF_ERROR(warm_up());
    R1D_RETURN_IF_ERROR(on_first([&](ops::CudaProbe& probe) -> absl::Status {
      R1D_ASSIGN_OR_RETURN(bandwidth_, probe.read_bandwidth(size_t{1} << 30));
      return absl::OkStatus();
    }));
    fmt::print("read bandwidth, 1 GiB: {:.2f} TB/s\n", bandwidth_ * 1e-12);
    for (const auto& [batch, context] : options_.decode)
      R1D_RETURN_IF_ERROR(decode(batch, context));
    for (const int32_t tokens : options_.prefill) R1D_RETURN_IF_ERROR(prefill(tokens));
    return absl::OkStatus();
  }

 private:
  struct Rank {
    checkpoint::RankShard shard;
    std::unique_ptr<ops::Ops> ops;  // outlives what stands on its device
    ops::CudaProbe* probe = nullptr;
    std::unique_ptr<model::DeepSeekV3> model;
    std::vector<std::unique_ptr<ops::Buffer>> buffers;
    std::vector<ops::LatentPages> pages;
    double step_micros = 0;
  };

  // On every rank's thread.
  absl::Status each(const std::function<absl::Status(Rank&)>& job) {
    return group_.run([&](int32_t r) { return job(ranks_[static_cast<size_t>(r)]); });
  }
  // On the first one's alone.
  absl::Status on_first(const std::function<absl::Status(ops::CudaProbe&)>& job) {
    return group_.run([&](int32_t r) { return r == 0 ? job(*ranks_[0].probe) : absl::OkStatus(); });
  }

  absl::Status open() {
    if (cache_dtype_ == DType::kF32) {
      return invalid_argument("--kv-cache-dtype f32: expected auto, bf16 or fp8 with --rank-shard");
    }
    R1D_ASSIGN_OR_RETURN(const auto config, checkpoint::ModelConfig::load(options_.model_config));
    source_ = checkpoint::make_dummy_source(config, 1);
    if (cache_dtype_ == DType::kF8E4M3) {
      constexpr int32_t kBlocks = 64;
      fp8_blocks_ = random_fp8_blocks(
          engine::latent_format(source_->config(), cache_dtype_), kBlockSize, kBlocks);
    }
    int32_t longest = 1;
    int32_t most_sequences = 1;
    for (const auto& [batch, context] : options_.decode) {
      longest = std::max(longest, context);
      most_sequences = std::max(most_sequences, batch);
      blocks_ = std::max(blocks_, int64_t{batch} * ((context + kBlockSize - 1) / kBlockSize));
    }
    for (const int32_t tokens : options_.prefill) {
      longest = std::max(longest, tokens);
      max_tokens_ = std::max(max_tokens_, tokens);
      blocks_ = std::max<int64_t>(blocks_, (tokens + kBlockSize - 1) / kBlockSize);
    }
    R1D_RETURN_IF_ERROR(make_ops({.device = 0,
                                  .max_tokens = max_tokens_,
                                  .max_sequences = most_sequences,
                                  .max_model_len = longest,
                                  .block_size = kBlockSize,
                                  .deterministic = options_.deterministic}));
    return each([](Rank& rank) {
      rank.probe = ops::cuda_probe(*rank.ops);
      return rank.ops->attach();
    });
  }

  absl::Status make_ops(const ops::CudaOptions& options) {
    const auto split = options_.expert_parallel ? checkpoint::ExpertSplit::kExpert
                                                : checkpoint::ExpertSplit::kTensor;
    std::vector<ops::ModelDims> dims;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const int32_t index = options_.all_ranks ? static_cast<int32_t>(r) : options_.rank;
      R1D_ASSIGN_OR_RETURN(
          ranks_[r].shard,
          checkpoint::make_rank_shard(source_->config(), index, options_.world_size, split));
      dims.push_back(model::make_dims(source_->config(), ranks_[r].shard));
    }
    if (!options_.all_ranks) {
      R1D_ASSIGN_OR_RETURN(ranks_[0].ops, ops::make_cuda_ops(dims[0], options));
      return absl::OkStatus();
    }
    R1D_ASSIGN_OR_RETURN(auto made, ops::make_cuda_ranks(dims, options, {}));
    for (size_t r = 0; r < ranks_.size(); ++r) ranks_[r].ops = std::move(made[r]);
    return absl::OkStatus();
  }

  absl::Status load() {
    const auto start = Clock::now();
    R1D_ASSIGN_OR_RETURN(const int64_t total,
                         model::rank_weight_bytes(*source_, ranks_[0].shard, false));
    {
      ProgressBar bar("weights");
      int64_t done = 0;  // of the first rank
      R1D_RETURN_IF_ERROR(each([&](Rank& rank) -> absl::Status {
        const auto progress = [&](int64_t bytes) {
          if (&rank != ranks_.data()) return absl::OkStatus();
          done += bytes;
          bar.update(static_cast<double>(done) / static_cast<double>(total));
          return absl::OkStatus();
        };
        R1D_ASSIGN_OR_RETURN(
            rank.model,
            model::DeepSeekV3::load(*source_, rank.shard, *rank.ops, max_tokens_, false, progress));
        return take_pages(rank);
      }));
    }
    const std::string which =
        options_.all_ranks ? fmt::format("{} ranks", options_.world_size)
                           : fmt::format("rank {} of {}", options_.rank, options_.world_size);
    fmt::print(
        "{}; {} {}: {:.1f} GB of dummy weights, {:.1f} GB of latent cache a rank, {:.1f} s\n",
        device::describe_gpus(),
        options_.model_config,
        which,
        static_cast<double>(total) * 1e-9,
        static_cast<double>(blocks_ * kBlockSize *
                            engine::cache_bytes_per_token(source_->config(), cache_dtype_)) *
            1e-9,
        seconds_since(start));
    return absl::OkStatus();
  }

  // Latents of unit size: attention over zeros would be a cheaper problem than a real one.
  absl::Status take_pages(Rank& rank) {
    const checkpoint::ModelConfig& config = source_->config();
    const int64_t rows = blocks_ * kBlockSize;
    const int64_t token_bytes = engine::latent_format(config, cache_dtype_).bytes_per_token();
    for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      R1D_ASSIGN_OR_RETURN(auto buffer,
                           rank.ops->allocate(static_cast<size_t>(rows * token_bytes),
                                              ops::MemoryKind::kLatentCache,
                                              "latent cache"));
      R1D_RETURN_IF_ERROR(cache_dtype_ == DType::kF8E4M3 ? fill_fp8(rank, *buffer)
                                                         : fill_bf16(rank, *buffer, layer));
      rank.pages.push_back({.data = buffer->data(),
                            .dtype = cache_dtype_,
                            .num_blocks = blocks_,
                            .block_size = kBlockSize,
                            .width = config.latent_width()});
      rank.buffers.push_back(std::move(buffer));
    }
    return absl::OkStatus();
  }

  absl::Status fill_bf16(Rank& rank, ops::Buffer& buffer, int32_t layer) const {
    return rank.ops
        ->fill(buffer.data(),
               {.key = static_cast<uint64_t>(layer) + 1,
                .center = 0,
                .amplitude = 1.7F,
                .dtype = DType::kBF16,
                .row_begin = 0,
                .row_end = blocks_ * kBlockSize,
                .col_begin = 0,
                .col_end = source_->config().latent_width()})
        .status();
  }

  // The same blocks again and again.
  absl::Status fill_fp8(Rank& rank, ops::Buffer& buffer) const {
    for (size_t at = 0; at < buffer.size(); at += fp8_blocks_.size()) {
      const size_t count = std::min(fp8_blocks_.size(), buffer.size() - at);
      R1D_RETURN_IF_ERROR(
          rank.ops->upload(buffer.data() + at, std::span(fp8_blocks_).first(count)));
    }
    return absl::OkStatus();
  }

  // Of the first rank's GPU.
  absl::StatusOr<int64_t> bytes_in_use() {
    int64_t in_use = 0;
    R1D_RETURN_IF_ERROR(group_.run([&](int32_t r) -> absl::Status {
      if (r != 0) return absl::OkStatus();
      R1D_ASSIGN_OR_RETURN(const auto bytes, ranks_[0].ops->device_bytes());
      if (bytes) in_use = bytes->total - bytes->free_now;
      return absl::OkStatus();
    }));
    return in_use;
  }

  // What a daemon does when its weights are there: decode steps of every batch size, which load
  // the kernels' code, and record and replay the steps.
  absl::Status warm_up() {
    R1D_ASSIGN_OR_RETURN(const int64_t before, bytes_in_use());
    int64_t code = 0;
    const auto start = Clock::now();
    const std::vector<int32_t> sizes = ranks_[0].ops->batch_sizes_to_warm();
    for (const int32_t size : sizes) {
      const StepArrays step = make_step(size, 1, 1, kBlockSize, source_->config().vocab_size, 3);
      for (int i = 0; i < 2; ++i) R1D_RETURN_IF_ERROR(forward(step));
      if (code == 0) {
        R1D_ASSIGN_OR_RETURN(code, bytes_in_use());
      }
    }
    const double seconds = seconds_since(start);
    R1D_ASSIGN_OR_RETURN(const int64_t after, bytes_in_use());
    // Forgets the graphs: costs are those of the step recorded last.
    R1D_RETURN_IF_ERROR(each([](Rank& rank) {
      rank.probe->only(nullptr);
      return absl::OkStatus();
    }));
    fmt::print(
        "warm-up: {} batch sizes in {:.2f} s; of the GPU, the first took {:.1f} MB (code, less "
        "scratch memory of loading), the others {:.1f} MB\n",
        sizes.size(),
        seconds,
        static_cast<double>(code - before) * 1e-6,
        static_cast<double>(after - code) * 1e-6);
    return absl::OkStatus();
  }

  absl::Status forward(const StepArrays& step) {
    return each([&](Rank& rank) -> absl::Status {
      std::atomic<uint64_t> layers{0};
      R1D_RETURN_IF_ERROR(rank.model->forward(step.inputs(), rank.pages, nullptr, layers));
      R1D_ASSIGN_OR_RETURN(rank.step_micros, rank.probe->last_step_micros());
      return absl::OkStatus();
    });
  }

  // Median device time of a step, the slowest rank's, after the runs that load and record it.
  absl::StatusOr<double> time_step(const StepArrays& step, int repeats) {
    for (int i = 0; i < 2; ++i) R1D_RETURN_IF_ERROR(forward(step));
    std::vector<double> micros;
    for (int i = 0; i < repeats; ++i) {
      R1D_RETURN_IF_ERROR(forward(step));
      double slowest = 0;
      for (const Rank& rank : ranks_) slowest = std::max(slowest, rank.step_micros);
      micros.push_back(slowest);
    }
    return upper_median(std::move(micros));
  }

  absl::Status decode(int32_t batch, int32_t context) {
    const StepArrays step =
        make_step(batch, 1, context, kBlockSize, source_->config().vocab_size, 7);
    R1D_ASSIGN_OR_RETURN(const double micros, time_step(step, options_.repeats));
    const int64_t nodes = ranks_[0].probe->graph_nodes();
    const auto host_start = Clock::now();
    for (int i = 0; i < 5; ++i) R1D_RETURN_IF_ERROR(forward(step));
    const double wall = seconds_since(host_start) / 5 * 1e6;
    int32_t active = 0;
    R1D_RETURN_IF_ERROR(on_first([&](ops::CudaProbe& probe) -> absl::Status {
      R1D_ASSIGN_OR_RETURN(active, probe.active_experts());
      return absl::OkStatus();
    }));
    const auto costs = ranks_[0].probe->costs();
    fmt::print(
        "\ndecode, batch {} at context {}: {:.3f} ms a step ({:.3f} ms with the host's part), {} "
        "graph nodes, {} "
        "experts active in the last layer (uniform: {:.1f})\n",
        batch,
        context,
        micros * 1e-3,
        wall * 1e-3,
        nodes,
        active,
        uniform_active(batch));
    print_summary(costs, micros, batch);
    return options_.per_op ? print_kinds(step, costs, micros) : absl::OkStatus();
  }

  absl::Status prefill(int32_t tokens) {
    const StepArrays step =
        make_step(1, tokens, tokens, kBlockSize, source_->config().vocab_size, 9);
    R1D_ASSIGN_OR_RETURN(const double micros, time_step(step, std::min(options_.repeats, 5)));
    const auto costs = ranks_[0].probe->costs();
    fmt::print("\nprefill, one chunk of {} tokens: {:.1f} ms, {:.0f} tokens/s\n",
               tokens,
               micros * 1e-3,
               tokens / micros * 1e6);
    print_summary(costs, micros, 1);
    return options_.per_op ? print_kinds(step, costs, micros) : absl::OkStatus();
  }

  [[nodiscard]] double uniform_active(int32_t tokens) const {
    const checkpoint::ModelConfig& config = source_->config();
    const double share = static_cast<double>(config.num_experts_per_tok) / config.n_routed_experts;
    return config.n_routed_experts * (1 - std::pow(1 - share, tokens));
  }

  [[nodiscard]] double floor_micros(const ops::KernelCost& cost) const {
    return std::max(cost.bytes / bandwidth_, cost.flops / kFlops) * 1e6;
  }

  void print_summary(const std::vector<ops::KernelCost>& costs,
                     double micros,
                     int32_t batch) const {
    double bytes = 0;
    double floor = 0;
    for (const ops::KernelCost& cost : costs) {
      bytes += cost.bytes;
      floor += floor_micros(cost);
    }
    const int32_t collectives = 2 * source_->config().num_hidden_layers + 1;
    fmt::print(
        "  {:.2f} GB due, floor {:.3f} ms ({:.0f} % of it reached), {:.2f} TB/s = {:.0f} % of the "
        "read bandwidth\n",
        bytes * 1e-9,
        floor * 1e-3,
        100 * floor / micros,
        bytes / micros * 1e-6,
        100 * bytes / micros * 1e6 / bandwidth_);
    if (options_.collective_us > 0) {
      const double whole = micros + collectives * options_.collective_us;
      fmt::print("  with {} collectives of {} us: {:.3f} ms, {:.0f} tokens/s\n",
                 collectives,
                 options_.collective_us,
                 whole * 1e-3,
                 batch / whole * 1e6);
    }
  }

  absl::Status show_only(const std::string* kind) {
    return each([&](Rank& rank) {
      rank.probe->only(kind);
      return absl::OkStatus();
    });
  }

  // Each kind alone, all its calls of the step in one graph.
  absl::Status print_kinds(const StepArrays& step,
                           const std::vector<ops::KernelCost>& costs,
                           double whole) {
    fmt::print("  {:<14} {:>6} {:>10} {:>9} {:>9} {:>9} {:>8} {:>7}\n",
               "kind",
               "calls",
               "us a step",
               "us each",
               "MB each",
               "floor us",
               "GB/s",
               "share");
    double sum = 0;
    for (const ops::KernelCost& cost : costs) {
      R1D_RETURN_IF_ERROR(show_only(&cost.name));
      R1D_ASSIGN_OR_RETURN(const double micros, time_step(step, std::min(options_.repeats, 9)));
      sum += micros;
      const auto calls = static_cast<double>(cost.calls);
      fmt::print("  {:<14} {:>6} {:>10.1f} {:>9.2f} {:>9.2f} {:>9.2f} {:>8.0f} {:>6.0f}%\n",
                 cost.name,
                 cost.calls,
                 micros,
                 micros / calls,
                 cost.bytes / calls * 1e-6,
                 floor_micros(cost) / calls,
                 cost.bytes / micros * 1e-3,
                 100 * cost.bytes / micros * 1e6 / bandwidth_);
    }
    R1D_RETURN_IF_ERROR(show_only(nullptr));
    fmt::print("  sum of the kinds alone {:.1f} us; the step overlaps {:.1f} us of it\n",
               sum,
               sum - whole);
    return absl::OkStatus();
  }

  static constexpr int32_t kBlockSize = 64;
  const RankShardOptions& options_;
  const DType cache_dtype_ = cache_dtype(options_.kv_cache_dtype, engine::Device::kCuda);
  std::unique_ptr<checkpoint::WeightSource> source_;
  std::vector<std::byte> fp8_blocks_;  // what an FP8 cache is filled with
  std::vector<Rank> ranks_;
  engine::RankGroup group_;
  int64_t blocks_ = 1;
  int32_t max_tokens_ = 256;
  double bandwidth_ = 1;
};

}  // namespace

absl::Status rank_shard(const RankShardOptions& options) {
  return RankShardBench(options).run();
}

}  // namespace r1d::cli::bench
