// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/status.h"
#include "r1d/device/cuda.h"

namespace r1d::device {

absl::StatusOr<bool> can_access_peer(int32_t device, int32_t peer) {
  int can = 0;
  R1D_CUDA_TRY(cudaDeviceCanAccessPeer(&can, device, peer));
  return can != 0;
}

absl::Status enable_peer_access(int32_t peer) {
  const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
  if (error == cudaErrorPeerAccessAlreadyEnabled) {
    cudaGetLastError();  // NCCL was first: no error of what comes next
    return absl::OkStatus();
  }
  R1D_CUDA_TRY(error);
  return absl::OkStatus();
}

}  // namespace r1d::device
