// SPDX-License-Identifier: Apache-2.0
// Problem   ids[t] < 0 -> the token that the step before sampled in row -1 - ids[t].
// Layout    a thread a token. Between ranks 8-byte words, token below epoch, at the row's place in
//           every other rank's region.
// Bound     latency: one trip to L2, over NVLink one store more.
// Launch    256 threads a block; all reads and writes behind the dependency wait.
// Numerics  none.
#include "kernels/all_reduce/peer.cuh"
#include "kernels/embed/fill_in_tokens.h"
#include "kernels/norm/row.cuh"

namespace r1d::kernels {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void send_token(void* to, int32_t token, uint32_t epoch) {
  const uint64_t word = uint64_t{epoch} << 32 | static_cast<uint32_t>(token);
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
// 0 after an abort.
__device__ __forceinline__ int32_t wait_token(const PeerMemory& peers,
                                              const void* from,
                                              uint32_t epoch) {
  for (uint32_t tries = 1;; ++tries) {
    uint64_t word;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
    if (static_cast<uint32_t>(word >> 32) == epoch) return static_cast<int32_t>(word);
    if (aborted(peers, tries)) return 0;
  }
}

__global__ void __launch_bounds__(kThreads) fill_in_alone(FillInTokens a) {
  inputs_wait();
  dependents_launch();
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= a.tokens) return;
  const int32_t id = a.ids[t];
  if (id < 0) a.ids[t] = a.sampled[-1 - id].token;
}

__global__ void __launch_bounds__(kThreads)
    fill_in_shared(PeerMemory peers, FillInTokens a, uint32_t index) {
  inputs_wait();
  dependents_launch();
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= a.tokens) return;
  const int32_t id = a.ids[t];
  if (id >= 0) return;
  const int32_t row = -1 - id;
  const uint32_t epoch = epoch_of(peers, index);
  const int64_t at = peers.layout.token_at(row);
  if (peers.rank != 0) {
    a.ids[t] = wait_token(peers, peers.region[peers.rank] + at, epoch);
    return;
  }
  const int32_t token = a.sampled[row].token;
  a.ids[t] = token;
  for (int to = 1; to < peers.layout.world; ++to) send_token(peers.region[to] + at, token, epoch);
}

Grid grid_of(int64_t tokens) {
  return {.blocks = static_cast<unsigned>((tokens + kThreads - 1) / kThreads), .threads = kThreads};
}

}  // namespace

cudaError_t fill_in_tokens(const FillInTokens& a, const Launch& launch) {
  if (a.tokens < 0) return cudaErrorInvalidValue;
  if (a.tokens == 0) return cudaSuccess;
  if (a.ids == nullptr || a.sampled == nullptr) return cudaErrorInvalidValue;
  return enqueue(fill_in_alone, grid_of(a.tokens), launch, a);
}

cudaError_t fill_in_tokens(const PeerMemory& peers,
                           const FillInTokens& a,
                           uint32_t index,
                           const Launch& launch) {
  if (a.tokens < 0) return cudaErrorInvalidValue;
  if (a.tokens == 0) return cudaSuccess;
  if (a.ids == nullptr || peers.epoch == nullptr || peers.abort == nullptr ||
      peers.layout.world < 2 || (peers.rank == 0 && a.sampled == nullptr)) {
    return cudaErrorInvalidValue;
  }
  return enqueue(fill_in_shared, grid_of(a.tokens), launch, peers, a, index);
}

cudaError_t load_fill_in_tokens() {
  const void* const kernels[] = {reinterpret_cast<const void*>(&fill_in_alone),
                                 reinterpret_cast<const void*>(&fill_in_shared)};
  for (const void* kernel : kernels) {
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace r1d::kernels
