// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/mutex.h"
#include "r1d/device/cuda.h"
#include "r1d/device/nccl.h"
#include "r1d/ops/collectives.h"

#include "kernels/all_reduce/all_reduce.h"
#include "kernels/embed/fill_in_tokens.h"
#include "kernels/norm/norm.h"
#include "ops/cuda/launches.h"
#include "ops/rendezvous.h"

namespace r1d::ops::cuda {

struct CollectiveOptions {
  std::vector<int32_t> devices;  // [rank]; one GPU may serve several ranks, without NCCL
  CollectiveTable table;
  bool peer_memory = true;  // where the GPUs allow it
  bool nccl = true;         // false: our kernels alone; needs peer memory
  bool deterministic = false;
  bool always_careful = false;                   // see Collectives::Mode
  int32_t max_blocks = kernels::kMaxPeerBlocks;  // of a two-shot; fewer for ranks that share a GPU
  int64_t clear_after = int64_t{1} << 30;        // collectives until epochs begin anew
};

// Room in a rank's peer region for what the table sends through it.
[[nodiscard]] kernels::PeerLayout peer_layout(const CollectiveTable& table, int32_t world_size);

// What the ranks of one process share: where they meet, and what they show to each other.
// Threads: any; published fields are written by their rank before a meeting and read behind it.
class CollectiveGroup {
 public:
  [[nodiscard]] static absl::StatusOr<std::shared_ptr<CollectiveGroup>> create(
      const CollectiveOptions& options);

  [[nodiscard]] int32_t world_size() const { return static_cast<int32_t>(options.devices.size()); }
  [[nodiscard]] const uint32_t* abort_word() const {
    return reinterpret_cast<const uint32_t*>(word_.data());
  }
  // 1: kernels stop waiting.
  void set_word(uint32_t value);
  // By one rank while the others wait: nothing is aborted any more, and there is a new NCCL id.
  [[nodiscard]] absl::Status renew();

  const CollectiveOptions options;
  Rendezvous rendezvous;
  struct Shown {
    bool peers = false;  // this rank can reach all others' memory
    std::byte* region = nullptr;
    float* logits = nullptr;
  };
  std::vector<Shown> shown;  // [rank]
  device::NcclId nccl_id;    // of the communicator to join next

 private:
  explicit CollectiveGroup(const CollectiveOptions& wanted);
  device::PinnedMemory word_;
};

// One rank's collectives on its stream: the choice of the way, epochs, careful first steps, abort
// and rejoin. All ranks make the same calls in the same order.
// Threads: confined to the rank's thread but for abort(). Calls enqueue.
class Collectives {
 public:
  // How a step's collectives are enqueued. kCareful: the ranks meet on the host before each, with
  // idle GPUs, and wait behind it. A kernel that waits for another GPU must not run while this
  // process loads code or frees memory, either of which may wait for all kernels; so this is how
  // steps that may do so run. kRecorded: into a graph, which is launched after a meeting.
  enum class Mode : uint8_t { kFree, kCareful, kRecorded };

  Collectives(std::shared_ptr<CollectiveGroup> group,
              int32_t rank,
              int capability,
              const device::Stream& stream,
              Launches& launches);
  ~Collectives();

  // Takes memory and joins the others; the thread's device is chosen. `logits`: rank 0's matrix
  // that gather() fills.
  [[nodiscard]] absl::Status attach(float* logits);

  // Before anything of the step is enqueued or recorded. Once in so many collectives the ranks meet
  // here and begin their epochs anew.
  [[nodiscard]] absl::Status begin_step(Mode mode);
  // Every rank: before a first launch that follows something which may wait for all kernels.
  [[nodiscard]] absl::Status meet();

  // Before each collective of a step, also of one that is replayed: where tests let this rank's
  // part in it get lost, so that the others' kernels wait.
  [[nodiscard]] absl::Status may_begin();

  struct Sum {
    const __nv_bfloat16* in = nullptr;
    __nv_bfloat16* out = nullptr;  // may be `in`
    int64_t count = 0;
  };
  // out = sum over ranks. `way`: instead of the chosen one.
  [[nodiscard]] absl::Status all_reduce(const Sum& sum, std::optional<CollectiveWay> way = {});

  struct SumNorm {
    __nv_bfloat16* partial = nullptr;   // [T, D], dense; scratch afterwards
    __nv_bfloat16* residual = nullptr;  // [T, D], dense
    const float* weight = nullptr;
    float eps = 0;
    int64_t tokens = 0;
    int64_t cols = 0;
    kernels::NormOutput out;
  };
  // residual += sum over ranks of partial; out = norm(residual).
  [[nodiscard]] absl::Status all_reduce_add_norm(const SumNorm& sum);

  // Rank 0's logits matrix (rows `cols * world` apart) gets all ranks' columns; its own stand
  // there. `own`: the other ranks' [rows, cols].
  [[nodiscard]] absl::Status gather(float* own, int64_t rows, int64_t cols);

  // Ids that stand for tokens which rank 0 sampled in the step before become those. Needs peer
  // memory.
  [[nodiscard]] absl::Status fill_in_tokens(const kernels::FillInTokens& fill);

  // Ends a step that was enqueued: epochs move on by the collectives that it had. Returns how many.
  [[nodiscard]] absl::StatusOr<uint32_t> end_step();
  // After the stream is done: kUnavailable when the step was aborted or NCCL failed. `count`:
  // collectives of the step, also of one that was replayed.
  [[nodiscard]] absl::Status finish_step(uint32_t count);

  void abort();  // any thread
  [[nodiscard]] bool aborted() const { return group_->rendezvous.aborted(); }
  // After abort(), once no rank is in a step. When one rank cannot, all get its error.
  [[nodiscard]] absl::Status rejoin();

  [[nodiscard]] bool has_peer_memory() const { return has_peers_; }

 private:
  [[nodiscard]] absl::Status share_memory(float* logits);
  [[nodiscard]] absl::Status connect();
  [[nodiscard]] absl::Status clear();
  [[nodiscard]] absl::Status clear_in_time();
  [[nodiscard]] std::shared_ptr<device::NcclComm> comm() const;
  void set_comm(std::shared_ptr<device::NcclComm> comm);
  [[nodiscard]] CollectiveWay choose(int64_t count) const;
  template <typename Enqueue>
  [[nodiscard]] absl::Status carefully(Enqueue&& enqueue);
  [[nodiscard]] absl::Status enqueue(const kernels::AllReduce& sum, CollectiveWay way);
  [[nodiscard]] absl::Status two_shot(const kernels::AllReduce& sum);
  [[nodiscard]] absl::Status sum_norm(const SumNorm& sum);
  [[nodiscard]] absl::Status norm_of(const SumNorm& sum, int32_t parts);

  const std::shared_ptr<CollectiveGroup> group_;
  const int32_t rank_;
  const int capability_;
  const device::Stream& stream_;
  Launches& launches_;
  bool has_peers_ = false;
  device::DeviceMemory region_;
  device::DeviceMemory epoch_;
  kernels::PeerMemory peers_;
  mutable base::Mutex comm_mu_;
  // Shared with an abort() that runs.
  std::shared_ptr<device::NcclComm> comm_ ABSL_GUARDED_BY(comm_mu_);
  Mode mode_ = Mode::kFree;
  uint32_t index_ = 0;       // of the next collective in this step
  int64_t since_clear_ = 0;  // collectives
};

}  // namespace r1d::ops::cuda
