// SPDX-License-Identifier: Apache-2.0
// What packing does for a load: the weights of all ranks into memory, from a checkpoint and
// from its packed files, with and without checksums, in turns.
//
//   r1d_packed_bench CHECKPOINT PACKED [ROUNDS] [cold]
//
// The yardstick is the plain read of the packed files by as many threads. `cold`: before each turn
// the page cache lets go of the files, so that the disk is read. Figures are medians over the
// rounds, in GB of weights (not of bytes read) a second.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <unistd.h>
#include <vector>

#include <fmt/format.h>

#include "r1d/base/check.h"
#include "r1d/base/file.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/checkpoint/weight_load.h"
#include "r1d/ops/cpu_ops.h"

#include "checkpoint/packed_file.h"
#include "model/weight_store.h"

namespace r1d {
namespace {

using checkpoint::WeightSource;

struct Bench {
  std::string checkpoint;
  std::string packed;
  checkpoint::PackedInfo info;

  void on_every_rank(const std::function<void(int32_t)>& run) const {
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < info.world_size; ++rank) threads.emplace_back(run, rank);
    for (std::thread& thread : threads) thread.join();
  }

  void load(const WeightSource& source) const {
    std::vector<checkpoint::RankShard> shards;
    std::vector<ops::ModelDims> dims;
    for (int32_t rank = 0; rank < info.world_size; ++rank) {
      shards.push_back(
          checkpoint::make_rank_shard(source.config(), rank, info.world_size, info.expert_split)
              .value());
      dims.push_back(model::make_dims(source.config(), shards.back()));
    }
    const auto ops = ops::make_local_cpu_ops(dims, {.max_tokens = 1});
    checkpoint::WeightLoad files({}, info.world_size);
    on_every_rank([&](int32_t rank) {
      const auto index = static_cast<size_t>(rank);
      const auto store = model::WeightStore::load(source.for_rank(rank),
                                                  shards[index],
                                                  *ops[index],
                                                  /*with_mtp=*/false,
                                                  files,
                                                  [](int64_t) { return absl::OkStatus(); });
      if (!store.ok()) std::fprintf(stderr, "%s\n", message_of(store.status()).c_str());
      R1D_CHECK(store.ok());
    });
  }

  void read_plainly() const {
    on_every_rank([&](int32_t rank) {
      const auto path = packed + "/" + checkpoint::packed_file_name(rank, info.world_size);
      const auto file = File::open(path).value();
      std::vector<std::byte> buffer(4 << 20);
      for (int64_t at = 0; at < file.size(); at += std::ssize(buffer)) {
        const auto size = std::min(std::ssize(buffer), file.size() - at);
        R1D_CHECK(file.read_at(at, std::span(buffer).first(static_cast<size_t>(size))).ok());
      }
    });
  }

  void forget() const {
    for (const std::string& dir : {checkpoint, packed}) {
      for (const auto& entry : std::filesystem::directory_iterator(dir)) {
        const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
        ::fsync(file);
        ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        ::close(file);
      }
    }
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::Status run(const Bench& bench, int rounds, bool cold) {
  R1D_ASSIGN_OR_RETURN(const auto original, checkpoint::open_hugging_face(bench.checkpoint));
  R1D_ASSIGN_OR_RETURN(const auto verified, checkpoint::open_packed(bench.packed, {}));
  R1D_ASSIGN_OR_RETURN(const auto trusted,
                       checkpoint::open_packed(bench.packed, {.verify_checksums = false}));
  struct Way {
    const char* name;
    std::function<void()> run;
    std::vector<double> seconds;
  };
  std::array<Way, 4> ways{Way{"plain read of the packed files", [&] { bench.read_plainly(); }, {}},
                          Way{"safetensors", [&] { bench.load(*original); }, {}},
                          Way{"packed, checksums compared", [&] { bench.load(*verified); }, {}},
                          Way{"packed, not compared", [&] { bench.load(*trusted); }, {}}};
  for (int round = 0; round < rounds; ++round) {
    for (Way& way : ways) {
      if (cold) bench.forget();
      const auto start = std::chrono::steady_clock::now();
      way.run();
      way.seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  }
  int64_t bytes = 0;
  for (const int64_t size : bench.info.file_bytes) bytes += size;
  const double gigabytes = static_cast<double>(bytes) / 1e9;
  fmt::print("{:.2f} GB, {} ranks, {} rounds, {}\n",
             gigabytes,
             bench.info.world_size,
             rounds,
             cold ? "from the disk" : "from the page cache");
  for (const Way& way : ways) {
    const double seconds = median(way.seconds);
    fmt::print("{:<32} {:6.2f} s  {:5.2f} GB/s  best {:.2f} s\n",
               way.name,
               seconds,
               gigabytes / seconds,
               *std::min_element(way.seconds.begin(), way.seconds.end()));
  }
  return absl::OkStatus();
}

absl::Status run_main(int argc, char** argv) {
  if (argc < 3)
    return invalid_argument("usage: r1d_packed_bench CHECKPOINT PACKED [ROUNDS] [cold]");
  Bench bench{.checkpoint = argv[1], .packed = argv[2], .info = {}};
  R1D_ASSIGN_OR_RETURN(bench.info, checkpoint::read_packed_info(bench.packed));
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 5;
  if (rounds < 1) return invalid_argument("ROUNDS: expected 1 or more, found {}", argv[3]);
  return run(bench, rounds, argc > 4 && std::string_view(argv[4]) == "cold");
}

}  // namespace
}  // namespace r1d

int main(int argc, char** argv) {
  const absl::Status status = r1d::run_main(argc, argv);
  if (!status.ok()) std::fprintf(stderr, "%s\n", r1d::message_of(status).c_str());
  return status.ok() ? 0 : 1;
}
