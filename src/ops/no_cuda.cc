// SPDX-License-Identifier: Apache-2.0
// What a build without a CUDA toolkit answers.
#ifndef R1D_HAVE_CUDA

#include "r1d/base/status.h"
#include "r1d/ops/cuda_ops.h"

#include "ops/cuda_memory.h"

namespace r1d::ops {

absl::StatusOr<std::unique_ptr<Ops>> make_cuda_ops(const ModelDims& dims,
                                                   const CudaOptions& options) {
  static_cast<void>(dims);
  static_cast<void>(options);
  return failed_precondition("this binary was built without CUDA");
}

absl::StatusOr<std::vector<std::unique_ptr<Ops>>> make_cuda_ranks(
    const std::vector<ModelDims>& dims, const CudaOptions& options, const CudaRankOptions& ranks) {
  static_cast<void>(dims);
  static_cast<void>(options);
  static_cast<void>(ranks);
  return failed_precondition("this binary was built without CUDA");
}

int64_t cuda_workspace_bytes(const ModelDims& dims,
                             const CudaOptions& options,
                             const GpuTarget& gpu) {
  return cuda_workspace_formula(dims, options, gpu);
}

CudaProbe* cuda_probe(Ops& ops) {
  static_cast<void>(ops);
  return nullptr;
}

}  // namespace r1d::ops

#endif
