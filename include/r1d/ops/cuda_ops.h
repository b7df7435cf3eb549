// SPDX-License-Identifier: Apache-2.0
// The CUDA implementation: bf16 activations, our kernels (kernels/), one Ops per GPU. No CUDA types
// here: host code that is built without a toolkit reads this header, and then every call says so
// (kFailedPrecondition).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/ops/ops.h"

namespace r1d::ops {

struct CudaOptions {
  int32_t device = 0;         // index of the GPU; of several ranks, rank 0's
  int32_t world_size = 1;     // ranks that meet, for the memory this takes
  int32_t max_tokens = 0;     // largest T of a step; workspaces are taken for it at creation
  int32_t max_sequences = 0;  // most sequences of a step
  int32_t max_model_len = 0;  // longest context of a sequence, tokens
  int32_t block_size = 64;    // of the latent cache
  // A request's tokens do not depend on what else is in the batch: no sum's order depends on it.
  bool deterministic = false;
  // Steps in which every sequence has one token are recorded as CUDA graphs, one per bucket of
  // batch sizes, and replayed.
  bool graphs = true;
  // Another rank's kernels run beside this one's, so none may count on the whole GPU. In tests.
  bool shares_gpu = false;
};

// kFailedPrecondition when the GPU is too old for the model (named, with what it has and needs),
// kUnavailable when the driver refuses. Call from any thread; the object is then driven by one
// thread, which calls attach() first.
[[nodiscard]] absl::StatusOr<std::unique_ptr<Ops>> make_cuda_ops(const ModelDims& dims,
                                                                 const CudaOptions& options);

// How ranks reach each other.
struct CudaRankOptions {
  std::vector<int32_t> devices = {};  // [rank]; empty: options.device and those behind it
  bool peer_memory = true;            // use our collectives where GPUs reach each other's memory
  bool nccl = true;                   // false: ours alone, so that ranks may share a GPU, in tests
};

// One Ops a rank; each is driven by a thread of its own, all make the same calls in the same order.
// As make_cuda_ops; kFailedPrecondition also without NCCL.
[[nodiscard]] absl::StatusOr<std::vector<std::unique_ptr<Ops>>> make_cuda_ranks(
    const std::vector<ModelDims>& dims, const CudaOptions& options, const CudaRankOptions& ranks);

// What the sizes of workspaces depend on.
struct GpuTarget {
  int32_t compute_capability = 90;  // 10 * major + minor
  int32_t num_multiprocessors = 132;
};

// What a rank's model has, as far as operators take memory for it.
struct CudaLayers {
  int32_t attention = 0;
  int32_t moe = 0;
  int64_t local_experts = 0;  // of one layer
  bool fp8 = false;
};

// Bytes that make_cuda_ops takes on the GPU as workspaces. Pure, and the same in builds without a
// toolkit.
[[nodiscard]] int64_t cuda_workspace_bytes(const ModelDims& dims,
                                           const CudaOptions& options,
                                           const GpuTarget& gpu);

// What a rank on a GPU takes besides weights as loaded, latent cache and activations: workspaces,
// and (as kWeights) weights in the forms that kernels read. Pure.
[[nodiscard]] MemoryUse plan_cuda_memory(const ModelDims& dims,
                                         const CudaOptions& options,
                                         const GpuTarget& gpu,
                                         const CudaLayers& layers);

// The driver's share of recorded decode steps, estimated.
[[nodiscard]] int64_t cuda_graph_bytes(const CudaOptions& options, const CudaLayers& layers);

// What a kind of kernel owes in one step, all layers together: what its inputs and outputs weigh,
// each once, and the multiply-adds times two.
struct KernelCost {
  std::string name;  // "qkv_a", "mla_decode", "experts"
  int64_t calls = 0;
  double bytes = 0;
  double flops = 0;
};

// Measuring, for `r1d bench`. Same thread rules as Ops.
class CudaProbe {
 public:
  virtual ~CudaProbe() = default;
  // Device time of the last step, from its first kernel to its last.
  [[nodiscard]] virtual absl::StatusOr<double> last_step_micros() = 0;
  // Costs of the last step that was enqueued or recorded, in the order of a step. Experts: as many
  // as the tokens choose when all are equally likely; active_experts() says what they did choose.
  [[nodiscard]] virtual std::vector<KernelCost> costs() const = 0;
  // From now on steps hold kernels of this kind alone (null: all again), so that last_step_micros()
  // is theirs. Results mean nothing meanwhile.
  virtual void only(const std::string* name) = 0;
  [[nodiscard]] virtual int64_t graph_nodes() const = 0;  // of the last replayed graph
  // How many different experts the last step's last mixture of experts chose, of all ranks.
  [[nodiscard]] virtual absl::StatusOr<int32_t> active_experts() = 0;
  // Bytes a second that reading `bytes` of device memory reaches: the median of a few runs.
  [[nodiscard]] virtual absl::StatusOr<double> read_bandwidth(size_t bytes) = 0;
};
// Null when `ops` is another implementation.
[[nodiscard]] CudaProbe* cuda_probe(Ops& ops);

}  // namespace r1d::ops
