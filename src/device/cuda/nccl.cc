// SPDX-License-Identifier: Apache-2.0
#include "r1d/device/nccl.h"

#include "r1d/base/status.h"
#include "r1d/device/nccl_info.h"

#ifdef R1D_HAVE_NCCL

#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <nccl.h>

#include "r1d/base/log.h"

namespace r1d::device {
namespace {

// The functions of NCCL that are used, found by name.
struct Library {
  absl::Status status;
  decltype(&::ncclGetVersion) get_version = nullptr;
  decltype(&::ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&::ncclCommInitRank) comm_init_rank = nullptr;
  decltype(&::ncclCommDestroy) comm_destroy = nullptr;
  decltype(&::ncclCommAbort) comm_abort = nullptr;
  decltype(&::ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&::ncclGetErrorString) get_error_string = nullptr;
  decltype(&::ncclGetLastError) get_last_error = nullptr;
  decltype(&::ncclAllReduce) all_reduce = nullptr;
  decltype(&::ncclSend) send = nullptr;
  decltype(&::ncclRecv) recv = nullptr;
  decltype(&::ncclGroupStart) group_start = nullptr;
  decltype(&::ncclGroupEnd) group_end = nullptr;
};

// dlerror() of the call that just failed.
std::string loader_error() {
  const char* error = dlerror();
  return error == nullptr ? "unknown error" : error;
}

template <typename Function>
void find(void* handle, const char* name, Function& function, absl::Status& status) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function == nullptr && status.ok()) {
    status = failed_precondition("NCCL: {}", loader_error());
  }
}

Library load_library() {
  // NVLink multicast is left alone: a program that dies in it can take a host's GPUs with it. And
  // connections are made when ranks join, where a rank that waits is expected, not in a step. Both
  // stay as the operator has set them.
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  setenv("NCCL_RUNTIME_CONNECT", "0", /*overwrite=*/0);
  Library library;
  void* handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    library.status = failed_precondition("NCCL: {}", loader_error());
    return library;
  }
  find(handle, "ncclGetVersion", library.get_version, library.status);
  find(handle, "ncclGetUniqueId", library.get_unique_id, library.status);
  find(handle, "ncclCommInitRank", library.comm_init_rank, library.status);
  find(handle, "ncclCommDestroy", library.comm_destroy, library.status);
  find(handle, "ncclCommAbort", library.comm_abort, library.status);
  find(handle, "ncclCommGetAsyncError", library.comm_get_async_error, library.status);
  find(handle, "ncclGetErrorString", library.get_error_string, library.status);
  find(handle, "ncclGetLastError", library.get_last_error, library.status);
  find(handle, "ncclAllReduce", library.all_reduce, library.status);
  find(handle, "ncclSend", library.send, library.status);
  find(handle, "ncclRecv", library.recv, library.status);
  find(handle, "ncclGroupStart", library.group_start, library.status);
  find(handle, "ncclGroupEnd", library.group_end, library.status);
  return library;
}

// Loaded once and never unloaded: its threads may outlive any owner.
const Library& library() {
  static const Library loaded = load_library();
  return loaded;
}

absl::Status nccl_status(ncclResult_t result, const char* call, ncclComm_t comm) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const char* detail = library().get_last_error(comm);
  return unavailable("{}: {}{}{}",
                     call,
                     library().get_error_string(result),
                     detail != nullptr && *detail != '\0' ? ": " : "",
                     detail == nullptr ? "" : detail);
}

absl::Status aborted_status() {
  return unavailable("the NCCL communicator was aborted");
}

}  // namespace

absl::StatusOr<std::string> nccl_version() {
  R1D_RETURN_IF_ERROR(library().status);
  int version = 0;
  R1D_RETURN_IF_ERROR(nccl_status(library().get_version(&version), "ncclGetVersion", nullptr));
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

absl::StatusOr<NcclId> make_nccl_id() {
  static_assert(sizeof(ncclUniqueId) == sizeof(NcclId));
  R1D_RETURN_IF_ERROR(library().status);
  ncclUniqueId unique;
  R1D_RETURN_IF_ERROR(nccl_status(library().get_unique_id(&unique), "ncclGetUniqueId", nullptr));
  NcclId id;
  std::memcpy(id.bytes.data(), &unique, id.bytes.size());
  return id;
}

struct NcclComm::State {
  int32_t world_size = 0;
  int32_t rank = 0;
  base::Mutex mu;
  ncclComm_t comm ABSL_GUARDED_BY(mu) = nullptr;  // null: aborted
  bool in_call ABSL_GUARDED_BY(mu) = false;       // the rank's thread is in NCCL
  bool abort_wanted ABSL_GUARDED_BY(mu) = false;

  // Runs call(comm) -> absl::Status outside the lock; no abort frees the communicator meanwhile.
  template <typename Call>
  absl::Status run(Call&& call) {
    ncclComm_t current = nullptr;
    {
      base::MutexLock lock(mu);
      if (comm == nullptr || abort_wanted) return aborted_status();
      in_call = true;
      current = comm;
    }
    absl::Status status = call(current);
    {
      base::MutexLock lock(mu);
      in_call = false;
      if (!abort_wanted) return status;
      comm = nullptr;
    }
    drop(current);
    return aborted_status();
  }

  void request_abort() {
    ncclComm_t current = nullptr;
    {
      base::MutexLock lock(mu);
      abort_wanted = true;
      if (in_call) return;  // run() sees it
      current = comm;
      comm = nullptr;
    }
    drop(current);
  }

  static void drop(ncclComm_t current) {
    if (current == nullptr) return;
    const absl::Status status =
        nccl_status(library().comm_abort(current), "ncclCommAbort", nullptr);
    if (!status.ok()) base::make_logger("device")->warn("{}", message_of(status));
  }
};

NcclComm::NcclComm(std::unique_ptr<State> state) : state_(std::move(state)) {}

NcclComm::~NcclComm() {
  ncclComm_t current = nullptr;
  {
    base::MutexLock lock(state_->mu);
    std::swap(current, state_->comm);
  }
  if (current == nullptr) return;
  const absl::Status status =
      nccl_status(library().comm_destroy(current), "ncclCommDestroy", nullptr);
  if (!status.ok()) base::make_logger("device")->warn("{}", message_of(status));
}

absl::StatusOr<std::unique_ptr<NcclComm>> NcclComm::join(const NcclId& id,
                                                         int32_t world_size,
                                                         int32_t rank) {
  R1D_RETURN_IF_ERROR(library().status);
  ncclUniqueId unique;
  std::memcpy(&unique, id.bytes.data(), sizeof(unique));
  ncclComm_t comm = nullptr;
  R1D_RETURN_IF_ERROR(nccl_status(
      library().comm_init_rank(&comm, world_size, unique, rank), "ncclCommInitRank", nullptr));
  auto state = std::make_unique<State>();
  state->world_size = world_size;
  state->rank = rank;
  {
    base::MutexLock lock(state->mu);
    state->comm = comm;
  }
  return std::unique_ptr<NcclComm>(new NcclComm(std::move(state)));
}

absl::Status NcclComm::all_reduce_bf16(const void* in,
                                       void* out,
                                       int64_t count,
                                       const Stream& stream) {
  return state_->run([&](ncclComm_t comm) {
    return nccl_status(
        library().all_reduce(
            in, out, static_cast<size_t>(count), ncclBfloat16, ncclSum, comm, stream.get()),
        "ncclAllReduce",
        comm);
  });
}

absl::Status NcclComm::gather_columns_f32(
    float* matrix, int64_t rows, int64_t cols, int64_t stride, const Stream& stream) {
  const int32_t rank = state_->rank;
  const int32_t world = state_->world_size;
  const auto count = static_cast<size_t>(cols);
  return state_->run([&](ncclComm_t comm) -> absl::Status {
    ncclResult_t result = library().group_start();
    for (int64_t row = 0; row < rows && result == ncclSuccess; ++row) {
      if (rank != 0) {
        result = library().send(matrix + row * cols, count, ncclFloat32, 0, comm, stream.get());
      }
      for (int32_t from = 1; rank == 0 && from < world && result == ncclSuccess; ++from) {
        float* to = matrix + row * stride + from * cols;
        result = library().recv(to, count, ncclFloat32, from, comm, stream.get());
      }
    }
    const ncclResult_t ended = library().group_end();
    R1D_RETURN_IF_ERROR(nccl_status(result, rank == 0 ? "ncclRecv" : "ncclSend", comm));
    return nccl_status(ended, "ncclGroupEnd", comm);
  });
}

absl::Status NcclComm::async_error() {
  return state_->run([&](ncclComm_t comm) -> absl::Status {
    ncclResult_t error = ncclSuccess;
    R1D_RETURN_IF_ERROR(
        nccl_status(library().comm_get_async_error(comm, &error), "ncclCommGetAsyncError", comm));
    return nccl_status(error, "NCCL, in the background", comm);
  });
}

void NcclComm::abort() {
  state_->request_abort();
}

}  // namespace r1d::device

#else  // built without NCCL

namespace r1d::device {

struct NcclComm::State {};

NcclComm::NcclComm(std::unique_ptr<State> state) : state_(std::move(state)) {}
NcclComm::~NcclComm() = default;

absl::StatusOr<NcclId> make_nccl_id() {
  return nccl_version().status();
}
absl::StatusOr<std::unique_ptr<NcclComm>> NcclComm::join(const NcclId& /*id*/,
                                                         int32_t /*world_size*/,
                                                         int32_t /*rank*/) {
  return nccl_version().status();
}
absl::Status NcclComm::all_reduce_bf16(const void* /*in*/,
                                       void* /*out*/,
                                       int64_t /*count*/,
                                       const Stream& /*stream*/) {
  return nccl_version().status();
}
absl::Status NcclComm::gather_columns_f32(float* /*matrix*/,
                                          int64_t /*rows*/,
                                          int64_t /*cols*/,
                                          int64_t /*stride*/,
                                          const Stream& /*stream*/) {
  return nccl_version().status();
}
absl::Status NcclComm::async_error() {
  return nccl_version().status();
}
void NcclComm::abort() {}

}  // namespace r1d::device

#endif
