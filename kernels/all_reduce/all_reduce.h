// SPDX-License-Identifier: Apache-2.0
// Sums over the ranks of one host through memory that the GPUs write into each other (NVLink or
// PCIe peer access), for messages that are too small for NCCL to be fast. All ranks call the same
// in the same order, each on its own device; every rank gets the same bits, since all add in rank
// order, in f32, and round once.
//
// Epochs. Collective number `index` of a step has epoch *epoch + index; advance_epoch() ends the
// step. The epoch lives in device memory, so that a recorded graph counts on at each replay. It
// tells data from what stood there before: no buffer is cleared in between, but it must not come
// back to a value (32 bits: all ranks clear their regions long before). The buffers of an epoch
// are those of its parity. A rank that has finished epoch e - 1 has heard from every other in it,
// so all others have left e - 2, and buffers of e's parity are free: this needs that no index is
// left out, and that every kernel begins to send only when the kernels before it in its stream are
// done (launch.h).
//
// Abort. A rank waits for the others by polling its own memory. Now and then it looks at *abort,
// which the host sets; then all waits end, missing parts count as zeros, and results mean nothing.
// After an abort all ranks clear their regions and epochs before the next collective.
//
// Launchers enqueue, never synchronise; an empty message enqueues nothing and takes no index.
// cudaErrorInvalidValue: null pointers, or more than the region holds.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_bf16.h>

#include "kernels/all_reduce/all_reduce_plan.h"
#include "kernels/common/launch.h"
#include "kernels/norm/norm.h"

namespace r1d::kernels {

// Peer memory as one rank sees it.
struct PeerMemory {
  std::byte* region[kMaxPeers] = {};  // [rank]: each rank's, zeroed before the first epoch
  PeerLayout layout;
  int32_t rank = 0;
  int32_t max_blocks = kMaxPeerBlocks;  // CTAs of a two-shot; the same on every rank
  const uint32_t* epoch = nullptr;      // on this rank's device; begins at 1
  const uint32_t* abort = nullptr;      // host memory that the device reads
};

// out = bf16(add + sum over ranks of `in`); without `add` bf16(sum). out may be `in` or `add`.
struct AllReduce {
  const __nv_bfloat16* in = nullptr;
  const __nv_bfloat16* add = nullptr;
  __nv_bfloat16* out = nullptr;
  int64_t count = 0;   // values
  uint32_t index = 0;  // of the collective in its step
};
// Every rank sends all to all others, 8 bytes of data with two flags a store: one trip.
// count <= layout.one_shot_values().
cudaError_t all_reduce_one_shot(const PeerMemory& peers, const AllReduce& a, const Launch& launch);
// Every rank sums its shard and sends the sum: two trips, 2 (world - 1) / world of the bytes.
// count <= layout.two_shot_values().
cudaError_t all_reduce_two_shot(const PeerMemory& peers, const AllReduce& a, const Launch& launch);

// One-shot, then residual += sum, then the norm of the new residual: the same bits as add_norm()
// of all ranks' parts. tokens * cols <= layout.one_shot_values(); plan_fused() must serve the
// shape; rows are 16-byte aligned, `partial` and `residual` dense. The weight is read before the
// dependency wait.
struct AllReduceAddNorm {
  const __nv_bfloat16* partial = nullptr;  // [T, D]
  __nv_bfloat16* residual = nullptr;       // [T, D], the same on every rank
  const float* weight = nullptr;           // [D]
  float eps = 1e-6F;
  int64_t tokens = 0;
  int64_t cols = 0;
  NormOutput out = {};
  int capability = 90;
  uint32_t index = 0;
};
cudaError_t all_reduce_add_norm(const PeerMemory& peers,
                                const AllReduceAddNorm& a,
                                const Launch& launch);

// Every rank but 0 writes its columns into rank 0's matrix; rank 0 waits for all. Takes no index of
// its own: `index` is that of the next all-reduce, and between two of these there is one.
struct GatherColumns {
  const float* in = nullptr;  // [rows, cols], dense; not looked at on rank 0
  float* out = nullptr;       // rank 0's matrix
  int64_t rows = 0;
  int64_t cols = 0;  // of a rank, the same on all
  int64_t first_col = 0;
  int64_t out_stride = 0;  // values
  uint32_t index = 0;
};
cudaError_t gather_columns(const PeerMemory& peers, const GatherColumns& a, const Launch& launch);

// *epoch += count: the end of a step of `count` collectives.
cudaError_t advance_epoch(uint32_t* epoch, uint32_t count, const Launch& launch);

// Loads the code of all of these into the current device, so that no first launch has to while a
// kernel waits for another GPU.
cudaError_t load_all_reduce();

}  // namespace r1d::kernels
