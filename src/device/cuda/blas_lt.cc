// SPDX-License-Identifier: Apache-2.0
#include <cublasLt.h>
#include <map>
#include <tuple>
#include <utility>

#include "r1d/base/log.h"
#include "r1d/base/status.h"
#include "r1d/device/cuda.h"

namespace r1d::device {
namespace {

#define R1D_CUBLAS_TRY(call)                                                                  \
  do {                                                                                        \
    if (const cublasStatus_t r1d_status = (call); r1d_status != CUBLAS_STATUS_SUCCESS) {      \
      return unavailable(                                                                     \
          "{}: {} at {}:{}", #call, cublasLtGetStatusString(r1d_status), __FILE__, __LINE__); \
    }                                                                                         \
  } while (false)

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA recommends for Hopper

struct Destroy {
  void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  void operator()(cublasLtMatmulDescOpaque_t* desc) const { cublasLtMatmulDescDestroy(desc); }
  void operator()(cublasLtMatrixLayoutOpaque_t* layout) const {
    cublasLtMatrixLayoutDestroy(layout);
  }
  void operator()(cublasLtMatmulPreferenceOpaque_t* preference) const {
    cublasLtMatmulPreferenceDestroy(preference);
  }
};
using Handle = std::unique_ptr<cublasLtContext, Destroy>;
using Desc = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy>;

// One shape as cuBLASLt wants it (column-major: out^T [N, M] = w [K, N]^T x^T [K, M]), and the
// kernel it chose.
struct Plan {
  Desc desc;
  Layout w, x, out;
  cublasLtMatmulAlgo_t algorithm{};
};

absl::StatusOr<Layout> make_layout(cudaDataType_t type,
                                   int64_t rows,
                                   int64_t cols,
                                   int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  R1D_CUBLAS_TRY(cublasLtMatrixLayoutCreate(
      &layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), stride));
  return Layout(layout);
}

absl::StatusOr<Plan> make_plan(cublasLtHandle_t handle, const BlasLt::Product& product) {
  Plan plan;
  cublasLtMatmulDesc_t desc = nullptr;
  R1D_CUBLAS_TRY(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.desc.reset(desc);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  R1D_CUBLAS_TRY(cublasLtMatmulDescSetAttribute(
      desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  R1D_ASSIGN_OR_RETURN(plan.w, make_layout(CUDA_R_16BF, product.k, product.n, product.w_stride));
  R1D_ASSIGN_OR_RETURN(plan.x, make_layout(CUDA_R_16BF, product.k, product.m, product.x_stride));
  R1D_ASSIGN_OR_RETURN(
      plan.out,
      make_layout(
          product.f32_out ? CUDA_R_32F : CUDA_R_16BF, product.n, product.m, product.out_stride));
  cublasLtMatmulPreference_t preference = nullptr;
  R1D_CUBLAS_TRY(cublasLtMatmulPreferenceCreate(&preference));
  const Preference owner(preference);
  R1D_CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(preference,
                                                      CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &kWorkspaceBytes,
                                                      sizeof(kWorkspaceBytes)));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle,
                                                               desc,
                                                               plan.w.get(),
                                                               plan.x.get(),
                                                               plan.out.get(),
                                                               plan.out.get(),
                                                               preference,
                                                               1,
                                                               &found,
                                                               &count);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) {
    return invalid_argument(
        "cuBLASLt has no bf16 kernel for m {}, n {}, k {}", product.m, product.n, product.k);
  }
  plan.algorithm = found.algo;
  return plan;
}

}  // namespace

struct BlasLt::State {
  // The first six: shape and strides; the last: the output's type.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool>;
  Handle handle;
  DeviceMemory workspace;
  std::map<Key, Plan> plans;
};

BlasLt::BlasLt() = default;
BlasLt::BlasLt(BlasLt&&) noexcept = default;
BlasLt& BlasLt::operator=(BlasLt&&) noexcept = default;
BlasLt::~BlasLt() = default;

int64_t BlasLt::workspace_bytes() {
  return static_cast<int64_t>(kWorkspaceBytes);
}

absl::StatusOr<BlasLt> BlasLt::create() {
  BlasLt blas;
  blas.state_ = std::make_unique<State>();
  cublasLtHandle_t handle = nullptr;
  R1D_CUBLAS_TRY(cublasLtCreate(&handle));
  blas.state_->handle.reset(handle);
  R1D_ASSIGN_OR_RETURN(blas.state_->workspace,
                       DeviceMemory::allocate(kWorkspaceBytes, "cuBLASLt workspace"));
  return blas;
}

absl::Status BlasLt::multiply(const Product& product, const Stream& stream) {
  if (product.m == 0 || product.n == 0) return absl::OkStatus();
  const State::Key key{product.m,
                       product.n,
                       product.k,
                       product.x_stride,
                       product.w_stride,
                       product.out_stride,
                       product.f32_out};
  auto found = state_->plans.find(key);
  if (found == state_->plans.end()) {
    R1D_ASSIGN_OR_RETURN(Plan plan, make_plan(state_->handle.get(), product));
    // Prefill steps come in as many lengths as prompts do: forget rather than grow.
    constexpr size_t kMaxPlans = 256;
    if (state_->plans.size() >= kMaxPlans) state_->plans.clear();
    found = state_->plans.emplace(key, std::move(plan)).first;
  }
  const Plan& plan = found->second;
  const float one = 1;
  const float zero = 0;
  R1D_CUBLAS_TRY(cublasLtMatmul(state_->handle.get(),
                                plan.desc.get(),
                                &one,
                                product.w,
                                plan.w.get(),
                                product.x,
                                plan.x.get(),
                                &zero,
                                product.out,
                                plan.out.get(),
                                product.out,
                                plan.out.get(),
                                &plan.algorithm,
                                state_->workspace.data(),
                                kWorkspaceBytes,
                                stream.get()));
  return absl::OkStatus();
}

}  // namespace r1d::device
