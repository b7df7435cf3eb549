// SPDX-License-Identifier: Apache-2.0
// Ranks as streams: all on one GPU, and on two where there are two. Ranks that share a GPU run only
// while all their blocks fit it side by side, so messages are small there.
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "kernels/all_reduce/all_reduce.h"
#include "kernels/embed/fill_in_tokens.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;
using test::from_bf16;
using test::random_floats;
using test::to_bf16;

__nv_bfloat16* bf16(DeviceArray<uint16_t>& array) {
  return reinterpret_cast<__nv_bfloat16*>(array.data());
}

// A stream a rank that shares a GPU needs a hardware queue of its own, or one rank's wait holds up
// the other's kernels. Read when CUDA starts, so set before main().
[[maybe_unused]] const int kQueues = setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);

// Waits; so that ranks come at different times.
__global__ void delay(int64_t clocks) {
  const int64_t start = clock64();
  while (clock64() - start < clocks) {
  }
}

// What rank `rank` gives to collective `k` in round `round`: whole numbers, exact in any order.
__host__ __device__ float sample(int64_t i, int rank, int k, uint32_t round) {
  return static_cast<float>((i * 7 + rank * 3 + k * 5 + static_cast<int64_t>(round) * 11) % 31 -
                            15);
}
__global__ void fill_samples(
    __nv_bfloat16* to, int64_t count, int rank, int k, const uint32_t* round) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
    to[i] = __float2bfloat16_rn(sample(i, rank, k, *round));
}
__global__ void count_wrong(const __nv_bfloat16* got,
                            int64_t count,
                            int world,
                            int k,
                            const uint32_t* round,
                            unsigned long long* wrong) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    float want = 0;
    for (int rank = 0; rank < world; ++rank) want += sample(i, rank, k, *round);
    if (__bfloat162float(got[i]) != want) atomicAdd(wrong, 1ULL);
  }
}
__global__ void next_round(uint32_t* round) {
  ++*round;
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

bool reach_each_other() {
  int forth = 0;
  int back = 0;
  R1D_MUST(cudaDeviceCanAccessPeer(&forth, 0, 1));
  R1D_MUST(cudaDeviceCanAccessPeer(&back, 1, 0));
  return forth != 0 && back != 0;
}

// No first launch may load code while a kernel waits for another rank's.
void load_kernels() {
  cudaFuncAttributes attributes{};
  R1D_MUST(load_all_reduce());
  R1D_MUST(cudaFuncGetAttributes(&attributes, delay));
  R1D_MUST(cudaFuncGetAttributes(&attributes, fill_samples));
  R1D_MUST(cudaFuncGetAttributes(&attributes, count_wrong));
  R1D_MUST(cudaFuncGetAttributes(&attributes, next_round));
}

// A world of ranks, each with a region, an epoch and a stream.
class World {
 public:
  World(int world, int devices, int64_t one_shot_bytes, int64_t two_shot_bytes)
      : world_(world), devices_(devices) {
    const PeerLayout layout = plan_peer_layout(world, one_shot_bytes, two_shot_bytes);
    R1D_MUST(cudaMallocHost(&abort_, sizeof(uint32_t)));
    for (int rank = 0; rank < world; ++rank) {
      use(rank);
      load_kernels();
      for (int other = 0; other < devices; ++other) reach(rank % devices, other);
      Rank& r = ranks_.emplace_back();
      R1D_MUST(cudaMalloc(&r.region, static_cast<size_t>(layout.bytes)));
      R1D_MUST(cudaMalloc(&r.epoch, sizeof(uint32_t)));
      R1D_MUST(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking));
    }
    for (int rank = 0; rank < world; ++rank) {
      PeerMemory& peers = ranks_[static_cast<size_t>(rank)].peers;
      for (int other = 0; other < world; ++other)
        peers.region[other] = ranks_[static_cast<size_t>(other)].region;
      peers.layout = layout;
      peers.rank = rank;
      peers.max_blocks = devices == world ? kMaxPeerBlocks : 16;
      peers.epoch = ranks_[static_cast<size_t>(rank)].epoch;
      peers.abort = abort_;
    }
    clear();
  }
  ~World() {
    synchronize();
    for (Rank& r : ranks_) {
      cudaStreamDestroy(r.stream);
      cudaFree(r.region);
      cudaFree(r.epoch);
    }
    cudaFreeHost(abort_);
    cudaSetDevice(0);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] int size() const { return world_; }
  void use(int rank) const { R1D_MUST(cudaSetDevice(rank % devices_)); }
  [[nodiscard]] const PeerMemory& peers(int rank) const { return at(rank).peers; }
  [[nodiscard]] cudaStream_t stream(int rank) const { return at(rank).stream; }
  [[nodiscard]] uint32_t* epoch(int rank) const { return at(rank).epoch; }
  void set_abort(uint32_t value) { *static_cast<volatile uint32_t*>(abort_) = value; }
  void synchronize() const {
    for (const Rank& r : ranks_) R1D_MUST(cudaStreamSynchronize(r.stream));
  }
  // As before the first epoch; nothing runs.
  void clear() {
    synchronize();
    const uint32_t first = 1;
    for (Rank& r : ranks_) {
      R1D_MUST(cudaMemset(r.region, 0, static_cast<size_t>(r.peers.layout.bytes)));
      R1D_MUST(cudaMemcpy(r.epoch, &first, sizeof(first), cudaMemcpyHostToDevice));
    }
    for (int device = 0; device < devices_; ++device) {
      R1D_MUST(cudaSetDevice(device));
      R1D_MUST(cudaDeviceSynchronize());
    }
    set_abort(0);
  }
  // body(rank, launch) -> cudaError_t on every rank, then the end of the step.
  template <typename Body>
  void step(const Body& body, uint32_t count = 1) {
    for (int rank = 0; rank < world_; ++rank) {
      use(rank);
      const Launch launch{.stream = stream(rank)};
      R1D_MUST(body(rank, launch));
      R1D_MUST(advance_epoch(epoch(rank), count, launch));
    }
    synchronize();
  }

 private:
  struct Rank {
    std::byte* region = nullptr;
    uint32_t* epoch = nullptr;
    cudaStream_t stream = nullptr;
    PeerMemory peers;
  };
  [[nodiscard]] const Rank& at(int rank) const { return ranks_[static_cast<size_t>(rank)]; }

  static void reach(int from, int to) {
    if (from == to) return;
    const cudaError_t error = cudaDeviceEnablePeerAccess(to, 0);
    if (error != cudaErrorPeerAccessAlreadyEnabled) R1D_MUST(error);
    cudaGetLastError();
  }

  const int world_;
  const int devices_;
  uint32_t* abort_ = nullptr;
  std::vector<Rank> ranks_;
};

struct Shape {
  int world;
  int devices;
};
std::string shape_name(const testing::TestParamInfo<Shape>& info) {
  return std::to_string(info.param.world) + "RanksOn" + std::to_string(info.param.devices);
}

class AllReduceTest : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    R1D_NEEDS_GPU(80);
    if (GetParam().devices > device_count()) GTEST_SKIP() << "needs two GPUs";
    if (GetParam().devices > 1 && !reach_each_other())
      GTEST_SKIP() << "needs GPUs that reach each other's memory";
  }
  [[nodiscard]] static bool shares_gpu() { return GetParam().world > GetParam().devices; }
};

using Arrays = std::vector<std::unique_ptr<DeviceArray<uint16_t>>>;

// One array a rank, on its device; poisoned, or rows of `host`.
Arrays make_arrays(const World& world, const std::vector<std::vector<uint16_t>>& host) {
  Arrays arrays;
  for (int rank = 0; rank < world.size(); ++rank) {
    world.use(rank);
    arrays.push_back(std::make_unique<DeviceArray<uint16_t>>(host[static_cast<size_t>(rank)]));
  }
  return arrays;
}
Arrays make_arrays(const World& world, size_t count) {
  Arrays arrays;
  for (int rank = 0; rank < world.size(); ++rank) {
    world.use(rank);
    arrays.push_back(std::make_unique<DeviceArray<uint16_t>>(count));
  }
  return arrays;
}

std::vector<std::vector<uint16_t>> random_parts(int world, size_t count, uint64_t seed) {
  std::vector<std::vector<uint16_t>> parts;
  for (int rank = 0; rank < world; ++rank)
    parts.push_back(to_bf16(random_floats(count, seed + static_cast<uint64_t>(rank))));
  return parts;
}

// bf16(add + sum in rank order), as the header promises, to the bit.
std::vector<uint16_t> reference(const std::vector<std::vector<uint16_t>>& parts,
                                const std::vector<uint16_t>* add) {
  std::vector<uint16_t> sums(parts.front().size());
  for (size_t i = 0; i < sums.size(); ++i) {
    float sum = 0;
    for (const auto& part : parts) sum += bf16_to_f32(part[i]);
    if (add != nullptr) sum = bf16_to_f32((*add)[i]) + sum;
    sums[i] = f32_to_bf16(sum);
  }
  return sums;
}

using Form = cudaError_t (*)(const PeerMemory&, const AllReduce&, const Launch&);

// Sums on every rank, out of place, in place, and onto a residual.
void check_sums(World& world, Form form, size_t count) {
  SCOPED_TRACE(std::to_string(count) + " values");
  const auto parts = random_parts(world.size(), count, 40 + count);
  const std::vector<uint16_t> base = to_bf16(random_floats(count, 3));
  const std::vector<std::vector<uint16_t>> bases(static_cast<size_t>(world.size()), base);
  Arrays in = make_arrays(world, parts);
  Arrays residual = make_arrays(world, bases);
  Arrays out = make_arrays(world, count);
  const auto call = [&](Arrays& from, Arrays* add, Arrays& to) {
    world.step([&](int rank, const Launch& launch) {
      const auto r = static_cast<size_t>(rank);
      const AllReduce a{.in = bf16(*from[r]),
                        .add = add == nullptr ? nullptr : bf16(*(*add)[r]),
                        .out = bf16(*to[r]),
                        .count = static_cast<int64_t>(count)};
      return form(world.peers(rank), a, launch);
    });
  };
  const auto expect = [&](Arrays& got, const std::vector<uint16_t>& want) {
    for (int rank = 0; rank < world.size(); ++rank) {
      world.use(rank);
      ASSERT_EQ(got[static_cast<size_t>(rank)]->download(), want) << "rank " << rank;
    }
  };
  call(in, nullptr, out);
  expect(out, reference(parts, nullptr));
  call(in, &residual, residual);
  expect(residual, reference(parts, &base));
  call(in, nullptr, in);
  expect(in, reference(parts, nullptr));
}

TEST_P(AllReduceTest, OneShotIsTheSumInRankOrder) {
  constexpr int64_t kMost = 131072;
  World world(GetParam().world, GetParam().devices, kMost, 16);
  for (const size_t count : {1, 2, 3, 4, 5, 7, 8, 9, 127, 1000, 7168, 14337, 65536})
    check_sums(world, all_reduce_one_shot, count);
}

TEST_P(AllReduceTest, TwoShotIsTheSumInRankOrder) {
  World world(GetParam().world, GetParam().devices, 16, int64_t{4} << 20);
  for (const size_t count : {1, 2, 7, 8, 9, 17, 1000, 7168, 14337, 100003, 524288, 2097152})
    check_sums(world, all_reduce_two_shot, count);
}

TEST_P(AllReduceTest, ThousandsOfEpochsInGraphsWithLateRanks) {
  constexpr int kCalls = 48;
  constexpr int kReplays = 64;
  World world(GetParam().world, GetParam().devices, 16384, 65536);
  const auto count_of = [](int k) { return int64_t{1} + (k * 1237) % 8000; };
  struct Side {
    std::unique_ptr<DeviceArray<uint16_t>> in, out;
    std::unique_ptr<DeviceArray<uint32_t>> round;
    std::unique_ptr<DeviceArray<unsigned long long>> wrong;
    cudaGraphExec_t exec = nullptr;
  };
  std::vector<Side> sides(static_cast<size_t>(world.size()));
  std::mt19937_64 random(9);
  for (int rank = 0; rank < world.size(); ++rank) {
    world.use(rank);
    Side& side = sides[static_cast<size_t>(rank)];
    side.in = std::make_unique<DeviceArray<uint16_t>>(8192);
    side.out = std::make_unique<DeviceArray<uint16_t>>(8192);
    side.round = std::make_unique<DeviceArray<uint32_t>>(std::vector<uint32_t>{0});
    side.wrong =
        std::make_unique<DeviceArray<unsigned long long>>(std::vector<unsigned long long>{0});
    cudaGraph_t graph = nullptr;
    cudaStream_t stream = world.stream(rank);
    R1D_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int k = 0; k < kCalls; ++k) {
      const int64_t count = count_of(k);
      fill_samples<<<1, 256, 0, stream>>>(bf16(*side.in), count, rank, k, side.round->data());
      delay<<<1, 1, 0, stream>>>(static_cast<int64_t>(random() % 30000));
      const AllReduce a{.in = bf16(*side.in),
                        .out = bf16(*side.out),
                        .count = count,
                        .index = static_cast<uint32_t>(k)};
      const Launch launch{.stream = stream};
      R1D_MUST(k % 3 == 2 ? all_reduce_two_shot(world.peers(rank), a, launch)
                          : all_reduce_one_shot(world.peers(rank), a, launch));
      count_wrong<<<1, 256, 0, stream>>>(
          bf16(*side.out), count, world.size(), k, side.round->data(), side.wrong->data());
    }
    R1D_MUST(advance_epoch(world.epoch(rank), kCalls, {.stream = stream}));
    next_round<<<1, 1, 0, stream>>>(side.round->data());
    R1D_MUST(cudaStreamEndCapture(stream, &graph));
    R1D_MUST(cudaGraphInstantiate(&side.exec, graph, 0));
    R1D_MUST(cudaGraphUpload(side.exec, stream));
    cudaGraphDestroy(graph);
  }
  world.synchronize();
  for (int replay = 0; replay < kReplays; ++replay) {
    for (int rank = 0; rank < world.size(); ++rank) {
      world.use(rank);
      R1D_MUST(cudaGraphLaunch(sides[static_cast<size_t>(rank)].exec, world.stream(rank)));
    }
  }
  world.synchronize();
  for (int rank = 0; rank < world.size(); ++rank) {
    world.use(rank);
    Side& side = sides[static_cast<size_t>(rank)];
    EXPECT_EQ(side.round->download().front(), static_cast<uint32_t>(kReplays));
    EXPECT_EQ(side.wrong->download().front(), 0U) << "rank " << rank;
    uint32_t epoch = 0;
    R1D_MUST(cudaMemcpy(&epoch, world.epoch(rank), sizeof(epoch), cudaMemcpyDeviceToHost));
    EXPECT_EQ(epoch, 1U + kCalls * kReplays);
    cudaGraphExecDestroy(side.exec);
  }
}

// The fused kernel's outputs are those of add_norm() over all ranks' parts, to the bit.
void check_fused(World& world, int64_t tokens, int64_t cols, bool quantized) {
  SCOPED_TRACE(std::to_string(tokens) + " x " + std::to_string(cols));
  const auto count = static_cast<size_t>(tokens * cols);
  const auto parts = random_parts(world.size(), count, 70);
  const std::vector<uint16_t> base = to_bf16(random_floats(count, 5));
  const std::vector<float> weight = random_floats(static_cast<size_t>(cols), 6);
  const int64_t stride = (tokens + 3) / 4 * 4;
  const size_t num_scales = static_cast<size_t>((cols + 127) / 128 * stride);
  const int capability = test::compute_capability();

  world.use(0);
  std::vector<uint16_t> joined;
  for (const auto& part : parts) joined.insert(joined.end(), part.begin(), part.end());
  DeviceArray<uint16_t> all(joined), want_residual(base), want(count);
  DeviceArray<uint8_t> want_codes(count);
  DeviceArray<float> want_scales(num_scales, 0), want_weight(weight);
  AddNorm reference{.partial = all.data(),
                    .parts = world.size(),
                    .residual = bf16(want_residual),
                    .weight = want_weight.data(),
                    .tokens = tokens,
                    .cols = cols,
                    .out = {.bf16 = bf16(want)},
                    .capability = capability};
  if (quantized) reference.out.quantized = {want_codes.data(), want_scales.data(), cols, stride};
  R1D_MUST(add_norm(reference, {.stream = world.stream(0)}));
  world.synchronize();

  struct Side {
    std::unique_ptr<DeviceArray<uint16_t>> part, residual, out;
    std::unique_ptr<DeviceArray<uint8_t>> codes;
    std::unique_ptr<DeviceArray<float>> scales, weight;
  };
  std::vector<Side> sides(static_cast<size_t>(world.size()));
  for (int rank = 0; rank < world.size(); ++rank) {
    world.use(rank);
    Side& side = sides[static_cast<size_t>(rank)];
    side.part = std::make_unique<DeviceArray<uint16_t>>(parts[static_cast<size_t>(rank)]);
    side.residual = std::make_unique<DeviceArray<uint16_t>>(base);
    side.out = std::make_unique<DeviceArray<uint16_t>>(count);
    side.codes = std::make_unique<DeviceArray<uint8_t>>(count);
    side.scales = std::make_unique<DeviceArray<float>>(num_scales, 0);
    side.weight = std::make_unique<DeviceArray<float>>(weight);
  }
  world.step([&](int rank, const Launch& launch) {
    Side& side = sides[static_cast<size_t>(rank)];
    AllReduceAddNorm a{.partial = bf16(*side.part),
                       .residual = bf16(*side.residual),
                       .weight = side.weight->data(),
                       .tokens = tokens,
                       .cols = cols,
                       .out = {.bf16 = bf16(*side.out)},
                       .capability = capability};
    if (quantized) a.out.quantized = {side.codes->data(), side.scales->data(), cols, stride};
    return all_reduce_add_norm(world.peers(rank), a, launch);
  });
  for (int rank = 0; rank < world.size(); ++rank) {
    world.use(rank);
    Side& side = sides[static_cast<size_t>(rank)];
    ASSERT_EQ(side.residual->download(), want_residual.download()) << "rank " << rank;
    ASSERT_EQ(side.out->download(), want.download()) << "rank " << rank;
    if (!quantized) continue;
    ASSERT_EQ(side.codes->download(), want_codes.download()) << "rank " << rank;
    ASSERT_EQ(side.scales->download(), want_scales.download()) << "rank " << rank;
  }
}

TEST_P(AllReduceTest, FusedIsAddNormOfAllParts) {
  World world(GetParam().world, GetParam().devices, int64_t{2} << 20, 16);
  for (const int64_t tokens : {1, 2, 5, 16, 17, 32, 33, 36}) {
    for (const int64_t cols : {7168, 2048, 512, 136}) {
      const FusedPlan plan = plan_fused(tokens, cols, test::compute_capability());
      // Blocks of all ranks fit a shared GPU side by side.
      const int64_t room = plan.threads > 256 ? 100 : 256;
      if (shares_gpu() && world.size() * tokens * plan.cluster > room) continue;
      check_fused(world, tokens, cols, cols % 128 == 0);
    }
  }
}

TEST_P(AllReduceTest, ColumnsReachRankZero) {
  World world(GetParam().world, GetParam().devices, 64, 64);
  for (const int64_t cols : {3, 128, 1000}) {
    for (const int64_t rows : {1, 5, 64}) {
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols));
      const int64_t stride = cols * world.size();
      const std::vector<float> whole = random_floats(static_cast<size_t>(rows * stride), 8);
      std::vector<std::unique_ptr<DeviceArray<float>>> own;
      for (int rank = 0; rank < world.size(); ++rank) {
        world.use(rank);
        std::vector<float> part;
        for (int64_t row = 0; row < rows; ++row) {
          const auto* from = &whole[static_cast<size_t>(row * stride + rank * cols)];
          part.insert(part.end(), from, from + cols);
        }
        own.push_back(std::make_unique<DeviceArray<float>>(part));
      }
      world.use(0);
      DeviceArray<float> out(whole);  // its own columns stand there; the others are poisoned below
      std::vector<float> before = whole;
      for (int64_t i = 0; i < rows * stride; ++i)
        if (i % stride >= cols) before[static_cast<size_t>(i)] = NAN;
      out.upload(before);
      // An all-reduce between two gathers, as in a step.
      Arrays sums = make_arrays(world, random_parts(world.size(), 8, 1));
      world.step([&](int rank, const Launch& launch) {
        const auto r = static_cast<size_t>(rank);
        const AllReduce sum{.in = bf16(*sums[r]), .out = bf16(*sums[r]), .count = 8};
        const cudaError_t error = all_reduce_one_shot(world.peers(rank), sum, launch);
        if (error != cudaSuccess) return error;
        return gather_columns(world.peers(rank),
                              {.in = own[r]->data(),
                               .out = out.data(),
                               .rows = rows,
                               .cols = cols,
                               .first_col = rank * cols,
                               .out_stride = stride,
                               .index = 1},
                              launch);
      });
      world.use(0);
      ASSERT_EQ(out.download(), whole);
    }
  }
}

// Each form waits for a rank that never comes, until the word is set; then all is as new.
TEST_P(AllReduceTest, AbortEndsTheWaitForALostRankAndClearedMemoryServesAgain) {
  constexpr int64_t kTokens = 2;
  constexpr int64_t kCols = 1024;
  World world(GetParam().world, GetParam().devices, 1 << 20, 1 << 20);
  world.use(0);
  DeviceArray<uint16_t> part(to_bf16(random_floats(kTokens * kCols, 1)));
  DeviceArray<uint16_t> out(kTokens * kCols, 0);
  DeviceArray<float> weight(random_floats(kCols, 2));
  DeviceArray<float> logits(static_cast<size_t>(world.size()) * 8, 0);
  const AllReduce sum{.in = bf16(part), .out = bf16(out), .count = kTokens * kCols};
  const AllReduceAddNorm fused{.partial = bf16(part),
                               .residual = bf16(out),
                               .weight = weight.data(),
                               .tokens = kTokens,
                               .cols = kCols,
                               .out = {.bf16 = bf16(out)},
                               .capability = test::compute_capability()};
  const GatherColumns gather{
      .out = logits.data(), .rows = 1, .cols = 8, .out_stride = 8 * world.size()};
  for (int form = 0; form < 4; ++form) {
    SCOPED_TRACE(form);
    world.use(0);
    const Launch launch{.stream = world.stream(0)};
    const PeerMemory& peers = world.peers(0);
    R1D_MUST(form == 0   ? all_reduce_one_shot(peers, sum, launch)
             : form == 1 ? all_reduce_two_shot(peers, sum, launch)
             : form == 2 ? all_reduce_add_norm(peers, fused, launch)
                         : gather_columns(peers, gather, launch));
    EXPECT_EQ(cudaStreamQuery(world.stream(0)), cudaErrorNotReady);
    world.set_abort(1);
    R1D_MUST(cudaStreamSynchronize(world.stream(0)));
    for (const float value : from_bf16(out.download())) ASSERT_TRUE(std::isfinite(value));
    world.clear();
    check_sums(world, all_reduce_one_shot, 1000);
    check_sums(world, all_reduce_two_shot, 1000);
  }
}

// What follows a row of the step before gets rank 0's token everywhere, replayed as well as not;
// other ids stay.
TEST_P(AllReduceTest, TokensOfRankZeroReachAllThatFollowThem) {
  World world(GetParam().world, GetParam().devices, 64, 64);
  constexpr int kRounds = 5;
  const std::vector<int32_t> ids = {7, -1, 0, -3, -2, 129279, -300, -1};
  const std::vector<SampledRow> none(300);
  std::vector<std::unique_ptr<DeviceArray<int32_t>>> ranks_ids;
  std::vector<std::unique_ptr<DeviceArray<uint16_t>>> sums;
  for (int rank = 0; rank < world.size(); ++rank) {
    world.use(rank);
    R1D_MUST(load_fill_in_tokens());
    ranks_ids.push_back(std::make_unique<DeviceArray<int32_t>>(ids));
    sums.push_back(std::make_unique<DeviceArray<uint16_t>>(4, 0));
  }
  world.use(0);
  DeviceArray<SampledRow> sampled(none);
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    std::vector<SampledRow> rows = none;
    for (size_t row = 0; row < rows.size(); ++row) {
      rows[row].token = static_cast<int32_t>(1000 * (round + 1) + static_cast<int>(row));
    }
    world.use(0);
    R1D_MUST(cudaMemcpy(
        sampled.data(), rows.data(), rows.size() * sizeof(SampledRow), cudaMemcpyHostToDevice));
    // The others come first and wait; a sum ends the step, as in a model.
    for (int rank = world.size() - 1; rank >= 0; --rank) {
      world.use(rank);
      auto& own = *ranks_ids[static_cast<size_t>(rank)];
      R1D_MUST(
          cudaMemcpy(own.data(), ids.data(), ids.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
      const Launch launch{.stream = world.stream(rank)};
      R1D_MUST(fill_in_tokens(world.peers(rank),
                              {.ids = own.data(),
                               .tokens = static_cast<int64_t>(ids.size()),
                               .sampled = rank == 0 ? sampled.data() : nullptr},
                              0,
                              launch));
      __nv_bfloat16* sum = bf16(*sums[static_cast<size_t>(rank)]);
      R1D_MUST(all_reduce_one_shot(
          world.peers(rank), {.in = sum, .out = sum, .count = 4, .index = 0}, launch));
      R1D_MUST(advance_epoch(world.epoch(rank), 1, launch));
    }
    world.synchronize();
    for (int rank = 0; rank < world.size(); ++rank) {
      world.use(rank);
      const std::vector<int32_t> got = ranks_ids[static_cast<size_t>(rank)]->download();
      for (size_t t = 0; t < ids.size(); ++t) {
        const int32_t want = ids[t] < 0 ? rows[static_cast<size_t>(-1 - ids[t])].token : ids[t];
        ASSERT_EQ(got[t], want) << "rank " << rank << " token " << t;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ranks,
    AllReduceTest,
    testing::Values(Shape{2, 1}, Shape{3, 1}, Shape{4, 1}, Shape{8, 1}, Shape{2, 2}),
    shape_name);

TEST(AllReduceLauncherTest, RefusesWhatDoesNotFit) {
  std::byte region{};
  uint32_t word = 0;
  __nv_bfloat16 value{};
  PeerMemory peers{.layout = plan_peer_layout(2, 64, 64), .epoch = &word, .abort = &word};
  const AllReduce sum{.in = &value, .out = &value, .count = 8};
  EXPECT_EQ(all_reduce_one_shot(peers, sum, {}), cudaErrorInvalidValue);  // no regions
  peers.region[0] = peers.region[1] = &region;
  const AllReduce large{.in = &value, .out = &value, .count = 1 << 20};
  EXPECT_EQ(all_reduce_one_shot(peers, large, {}), cudaErrorInvalidValue);
  EXPECT_EQ(all_reduce_two_shot(peers, large, {}), cudaErrorInvalidValue);
  EXPECT_EQ(all_reduce_two_shot(peers, {.in = &value, .out = &value, .count = -1}, {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(all_reduce_one_shot(peers, {}, {}), cudaSuccess);  // nothing to do
  EXPECT_EQ(all_reduce_add_norm(peers, {.tokens = 1, .cols = 7}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(gather_columns(peers, {.rows = 1, .cols = 1}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(advance_epoch(nullptr, 1, {}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace r1d::kernels
