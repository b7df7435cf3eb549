// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/collectives.h"

#include <algorithm>
#include <set>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/fault.h"
#include "r1d/base/status.h"
#include "r1d/device/nccl_info.h"

namespace r1d::ops::cuda {
namespace {

using kernels::Launch;

constexpr uint32_t kFirstEpoch = 1;  // cleared memory has 0
// Behind the epoch: what a new communicator sums first.
constexpr int64_t kZerosAt = 128;
constexpr int64_t kNumZeros = 64;

absl::Status aborted_status() {
  return unavailable("the communicator was aborted: another rank failed or is late");
}

// What all ways must move through a rank's memory: parts in, sums out.
Cost cost_of(int64_t values) {
  return {.bytes = 4.0 * static_cast<double>(values)};
}

bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

bool fused_serves(const Collectives::SumNorm& sum, int capability) {
  return kernels::plan_fused(sum.tokens, sum.cols, capability).threads > 0 &&
         is_aligned(sum.partial) && is_aligned(sum.residual) && is_aligned(sum.weight) &&
         is_aligned(sum.out.bf16) && sum.out.stride % kernels::kPeerVector == 0;
}

}  // namespace

kernels::PeerLayout peer_layout(const CollectiveTable& table, int32_t world_size) {
  // Larger two-shots go in pieces, which cost 5 us each.
  constexpr int64_t kPiece = int64_t{32} << 20;
  return kernels::plan_peer_layout(
      world_size, table.one_shot_bytes, std::min(table.two_shot_bytes, kPiece));
}

// ---- what ranks share --------------------------------------------------------------------------

CollectiveGroup::CollectiveGroup(const CollectiveOptions& wanted)
    : options(wanted), rendezvous(world_size()), shown(wanted.devices.size()) {}

absl::StatusOr<std::shared_ptr<CollectiveGroup>> CollectiveGroup::create(
    const CollectiveOptions& options) {
  const std::set<int32_t> different(options.devices.begin(), options.devices.end());
  if (options.nccl && different.size() != options.devices.size()) {
    return invalid_argument("ranks that share a GPU cannot join an NCCL communicator");
  }
  if (options.nccl) R1D_RETURN_IF_ERROR(device::nccl_version().status());
  std::shared_ptr<CollectiveGroup> group(new CollectiveGroup(options));
  R1D_ASSIGN_OR_RETURN(group->word_,
                       device::PinnedMemory::allocate(sizeof(uint32_t), "abort flag of ranks"));
  group->set_word(0);
  return group;
}

void CollectiveGroup::set_word(uint32_t value) {
  std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(word_.data())).store(value);
}

absl::Status CollectiveGroup::renew() {
  set_word(0);
  if (!options.nccl) return absl::OkStatus();
  R1D_ASSIGN_OR_RETURN(nccl_id, device::make_nccl_id());
  return absl::OkStatus();
}

// ---- joining -----------------------------------------------------------------------------------

Collectives::Collectives(std::shared_ptr<CollectiveGroup> group,
                         int32_t rank,
                         int capability,
                         const device::Stream& stream,
                         Launches& launches)
    : group_(std::move(group)),
      rank_(rank),
      capability_(capability),
      stream_(stream),
      launches_(launches) {}

Collectives::~Collectives() = default;

absl::Status Collectives::attach(float* logits) {
  R1D_RETURN_IF_ERROR(share_memory(logits));
  return connect();
}

// Every rank offers its region when it can reach all others; they use them when all do.
absl::Status Collectives::share_memory(float* logits) {
  const CollectiveOptions& options = group_->options;
  const int32_t world = group_->world_size();
  const int32_t own = options.devices[static_cast<size_t>(rank_)];
  bool reach = options.peer_memory && world <= kernels::kMaxPeers;
  for (const int32_t peer : options.devices) {
    if (!reach || peer == own) continue;
    R1D_ASSIGN_OR_RETURN(reach, device::can_access_peer(own, peer));
  }
  if (!reach && !options.nccl) {
    return failed_precondition(
        "GPU {} cannot reach the memory of all others, and NCCL was not asked for", own);
  }
  R1D_CUDA_TRY(kernels::load_all_reduce());
  R1D_CUDA_TRY(kernels::load_fill_in_tokens());
  peers_.layout = peer_layout(options.table, world);
  if (reach) {
    R1D_ASSIGN_OR_RETURN(
        region_,
        device::DeviceMemory::allocate(static_cast<size_t>(peers_.layout.bytes), "peer memory"));
  }
  R1D_ASSIGN_OR_RETURN(epoch_, device::DeviceMemory::allocate(kZerosAt + 2 * kNumZeros, "epoch"));
  group_->shown[static_cast<size_t>(rank_)] = {
      .peers = reach, .region = region_.data(), .logits = logits};
  R1D_RETURN_IF_ERROR(meet());
  const auto& shown = group_->shown;
  has_peers_ = std::all_of(shown.begin(), shown.end(), [](const auto& s) { return s.peers; });
  if (!has_peers_) return absl::OkStatus();
  for (int32_t peer = 0; peer < world; ++peer) {
    peers_.region[peer] = shown[static_cast<size_t>(peer)].region;
    const int32_t device = options.devices[static_cast<size_t>(peer)];
    if (device != own) R1D_RETURN_IF_ERROR(device::enable_peer_access(device));
  }
  peers_.rank = rank_;
  peers_.max_blocks = options.max_blocks;
  peers_.epoch = reinterpret_cast<const uint32_t*>(epoch_.data());
  peers_.abort = group_->abort_word();
  return absl::OkStatus();
}

// All ranks together: cleared memory, no abort, a communicator.
absl::Status Collectives::connect() {
  R1D_RETURN_IF_ERROR(clear());
  R1D_RETURN_IF_ERROR(group_->rendezvous.meet([this] { return group_->renew(); }));
  if (!group_->options.nccl) return absl::OkStatus();
  R1D_ASSIGN_OR_RETURN(auto made,
                       device::NcclComm::join(group_->nccl_id, group_->world_size(), rank_));
  const std::shared_ptr<device::NcclComm> joined = std::move(made);
  set_comm(joined);
  // The first operation loads code: here, where no step waits. abort() may have missed the
  // communicator that was not there yet.
  if (aborted()) return aborted_status();
  std::byte* zeros = epoch_.data() + kZerosAt;
  R1D_RETURN_IF_ERROR(joined->all_reduce_bf16(zeros, zeros, kNumZeros, stream_));
  return stream_.synchronize();
}

absl::Status Collectives::clear() {
  since_clear_ = 0;
  index_ = 0;
  if (region_.size() > 0) R1D_RETURN_IF_ERROR(stream_.zero(region_.data(), region_.size()));
  R1D_RETURN_IF_ERROR(stream_.copy_in(epoch_.data(), &kFirstEpoch, sizeof(kFirstEpoch)));
  return stream_.synchronize();
}

// Long before 32 bits of epochs come round. Between two meetings nobody sends.
absl::Status Collectives::clear_in_time() {
  if (since_clear_ < group_->options.clear_after) return absl::OkStatus();
  R1D_RETURN_IF_ERROR(stream_.synchronize());
  R1D_RETURN_IF_ERROR(meet());
  R1D_RETURN_IF_ERROR(clear());
  return meet();
}

std::shared_ptr<device::NcclComm> Collectives::comm() const {
  base::MutexLock lock(comm_mu_);
  return comm_;
}

void Collectives::set_comm(std::shared_ptr<device::NcclComm> comm) {
  base::MutexLock lock(comm_mu_);
  comm_.swap(comm);
}

absl::Status Collectives::meet() {
  return group_->rendezvous.meet();
}

// The word, and which communicator it is, belong to the moment of the abort: after a rejoin they
// would be those of the next life. connect() sets a communicator before it looks whether an abort
// has come, so none is missed.
void Collectives::abort() {
  std::shared_ptr<device::NcclComm> current;
  group_->rendezvous.abort([&] {
    group_->set_word(1);
    current = comm();
  });
  if (current) current->abort();
}

absl::Status Collectives::rejoin() {
  if (const auto current = comm()) current->abort();
  set_comm(nullptr);
  // No rank may clear its memory while another still sends.
  R1D_RETURN_IF_ERROR(group_->rendezvous.rejoin(stream_.synchronize()));
  return connect();
}

// ---- a step ------------------------------------------------------------------------------------

absl::Status Collectives::begin_step(Mode mode) {
  if (aborted()) return aborted_status();
  mode_ = mode == Mode::kFree && group_->options.always_careful ? Mode::kCareful : mode;
  index_ = 0;
  return clear_in_time();
}

absl::StatusOr<uint32_t> Collectives::end_step() {
  const uint32_t count = index_;
  index_ = 0;
  if (count == 0) return count;
  R1D_RETURN_IF_ERROR(launches_(Kind::kAllReduce, {}, [&](const Launch& launch) {
    return kernels::advance_epoch(reinterpret_cast<uint32_t*>(epoch_.data()), count, launch);
  }));
  return count;
}

absl::Status Collectives::finish_step(uint32_t count) {
  since_clear_ += count;
  if (aborted()) return aborted_status();
  const auto current = comm();
  return current ? current->async_error() : absl::OkStatus();
}

absl::Status Collectives::may_begin() {
  switch (base::hit_fault(base::FaultPoint::kCollective, rank_)) {
    case base::FaultAction::kError:
      return unavailable("fault point ops.collective");
    case base::FaultAction::kHang:
      return group_->rendezvous.wait_for_abort();
    default:
      return absl::OkStatus();
  }
}

// Every collective goes through here.
template <typename Enqueue>
absl::Status Collectives::carefully(Enqueue&& enqueue) {
  if (aborted()) return aborted_status();
  if (mode_ != Mode::kCareful) return enqueue();
  R1D_RETURN_IF_ERROR(stream_.synchronize());
  R1D_RETURN_IF_ERROR(meet());
  R1D_RETURN_IF_ERROR(enqueue());
  return stream_.synchronize();
}

CollectiveWay Collectives::choose(int64_t count) const {
  const CollectiveOptions& options = group_->options;
  return choose_way(options.table,
                    {.bytes = count * 2,
                     .peer_memory = has_peers_,
                     .recorded = mode_ == Mode::kRecorded,
                     .deterministic = options.deterministic || !options.nccl});
}

absl::Status Collectives::all_reduce(const Sum& sum, std::optional<CollectiveWay> way) {
  if (sum.count == 0) return absl::OkStatus();
  const CollectiveWay chosen = way.value_or(choose(sum.count));
  return carefully(
      [&] { return enqueue({.in = sum.in, .out = sum.out, .count = sum.count}, chosen); });
}

absl::Status Collectives::enqueue(const kernels::AllReduce& sum, CollectiveWay way) {
  switch (way) {
    case CollectiveWay::kOneShot:
      return launches_(Kind::kAllReduce, cost_of(sum.count), [&](const Launch& launch) {
        kernels::AllReduce call = sum;
        call.index = index_++;
        return kernels::all_reduce_one_shot(peers_, call, launch);
      });
    case CollectiveWay::kTwoShot:
      return two_shot(sum);
    case CollectiveWay::kNccl:
      break;
  }
  return launches_.library(Kind::kAllReduce, cost_of(sum.count), [&]() -> absl::Status {
    const auto current = comm();
    if (current == nullptr) return failed_precondition("there is no NCCL communicator");
    return current->all_reduce_bf16(sum.in, sum.out, sum.count, stream_);
  });
}

// In pieces that the region has room for.
absl::Status Collectives::two_shot(const kernels::AllReduce& sum) {
  const int64_t most = peers_.layout.two_shot_values();
  for (int64_t first = 0; first < sum.count; first += most) {
    kernels::AllReduce call{.in = sum.in + first,
                            .add = sum.add == nullptr ? nullptr : sum.add + first,
                            .out = sum.out + first,
                            .count = std::min(most, sum.count - first)};
    const Cost cost = cost_of(call.count);
    R1D_RETURN_IF_ERROR(launches_(Kind::kAllReduce, cost, [&](const Launch& launch) {
      call.index = index_++;
      return kernels::all_reduce_two_shot(peers_, call, launch);
    }));
  }
  return absl::OkStatus();
}

absl::Status Collectives::all_reduce_add_norm(const SumNorm& sum) {
  if (sum.tokens == 0) return absl::OkStatus();
  return carefully([&] { return sum_norm(sum); });
}

absl::Status Collectives::sum_norm(const SumNorm& sum) {
  const int64_t count = sum.tokens * sum.cols;
  const CollectiveWay way = choose(count);
  if (way == CollectiveWay::kOneShot && fused_serves(sum, capability_)) {
    return launches_(Kind::kAllReduce, cost_of(2 * count), [&](const Launch& launch) {
      return kernels::all_reduce_add_norm(peers_,
                                          {.partial = sum.partial,
                                           .residual = sum.residual,
                                           .weight = sum.weight,
                                           .eps = sum.eps,
                                           .tokens = sum.tokens,
                                           .cols = sum.cols,
                                           .out = sum.out,
                                           .capability = capability_,
                                           .index = index_++},
                                          launch);
    });
  }
  if (way == CollectiveWay::kNccl) {
    R1D_RETURN_IF_ERROR(enqueue({.in = sum.partial, .out = sum.partial, .count = count}, way));
    return norm_of(sum, 1);
  }
  R1D_RETURN_IF_ERROR(
      enqueue({.in = sum.partial, .add = sum.residual, .out = sum.residual, .count = count}, way));
  return norm_of(sum, 0);
}

// out = norm(residual), with `partial` added first when parts is 1.
absl::Status Collectives::norm_of(const SumNorm& sum, int32_t parts) {
  return launches_(Kind::kNorm, cost_of(sum.tokens * sum.cols), [&](const Launch& launch) {
    return kernels::add_norm({.partial = sum.partial,
                              .parts = parts,
                              .residual = sum.residual,
                              .weight = sum.weight,
                              .eps = sum.eps,
                              .tokens = sum.tokens,
                              .cols = sum.cols,
                              .out = sum.out,
                              .capability = capability_},
                             launch);
  });
}

absl::Status Collectives::fill_in_tokens(const kernels::FillInTokens& fill) {
  R1D_CHECK(has_peers_);
  return carefully([&] {
    return launches_(Kind::kAllReduce, {}, [&](const Launch& launch) {
      return kernels::fill_in_tokens(peers_, fill, index_, launch);
    });
  });
}

absl::Status Collectives::gather(float* own, int64_t rows, int64_t cols) {
  const int64_t stride = cols * group_->world_size();
  const Cost cost{.bytes = 4.0 * static_cast<double>(rows * stride)};
  return carefully([&]() -> absl::Status {
    if (has_peers_) {
      return launches_(Kind::kGatherLogits, cost, [&](const Launch& launch) {
        return kernels::gather_columns(peers_,
                                       {.in = own,
                                        .out = group_->shown.front().logits,
                                        .rows = rows,
                                        .cols = cols,
                                        .first_col = rank_ * cols,
                                        .out_stride = stride,
                                        .index = index_},
                                       launch);
      });
    }
    return launches_.library(Kind::kGatherLogits, cost, [&]() -> absl::Status {
      const auto current = comm();
      if (current == nullptr) return failed_precondition("there is no NCCL communicator");
      return current->gather_columns_f32(own, rows, cols, stride, stream_);
    });
  });
}

}  // namespace r1d::ops::cuda
