// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/collective_bench.h"

#include "r1d/base/status.h"
#include "r1d/ops/collectives.h"
#ifdef R1D_HAVE_CUDA
#include "ops/cuda/collective_bench.h"
#endif

namespace r1d::ops {

absl::StatusOr<std::vector<CollectiveRow>> bench_collectives(
    const CollectiveBenchOptions& options) {
  if (options.world_size < 2) {
    return invalid_argument("collectives: expected 2 ranks or more, found {}", options.world_size);
  }
  if (!options.cuda) return cpu::bench_collectives(options);
#ifdef R1D_HAVE_CUDA
  return cuda::bench_collectives(options);
#else
  return failed_precondition("this binary was built without CUDA");
#endif
}

}  // namespace r1d::ops
