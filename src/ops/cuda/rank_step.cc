// SPDX-License-Identifier: Apache-2.0
// A rank's step: eager, recorded or replayed as a graph, its collectives, abort and rejoin.
#include <algorithm>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

#include "kernels/embed/fill_in_tokens.h"
#include "kernels/rope/rope.h"
#include "ops/cuda/rank.h"
#include "ops/cuda_memory.h"

namespace r1d::ops::cuda {

using kernels::Launch;

std::vector<int32_t> CudaOps::batch_sizes_to_warm() const {
  std::vector<int32_t> sizes;
  for (const int32_t size : kGraphBuckets) {
    if (!sizes.empty() && sizes.back() >= options_.max_sequences) break;
    sizes.push_back(std::min(size, options_.max_sequences));
  }
  return sizes;
}

absl::Status CudaOps::begin_step(const StepInputs& inputs) {
  if (preparer_) {
    R1D_RETURN_IF_ERROR(stream_.synchronize());
    preparer_.reset();  // no weights come after the first step: its scratch memory goes back
    // Freeing may wait for what runs on the other GPUs, so nothing there may wait for this one.
    if (collectives_) R1D_RETURN_IF_ERROR(collectives_->meet());
  }
  const int32_t bucket = bucket_of(inputs);
  choose_mode(bucket);
  if (collectives_) R1D_RETURN_IF_ERROR(collectives_->begin_step(collective_mode(inputs)));
  num_tokens_ = static_cast<int64_t>(inputs.token_ids.size());
  num_logit_rows_ = static_cast<int64_t>(inputs.logit_rows.size());
  logits_target_ = nullptr;
  sample_ = rank_ == 0 ? inputs.sample : nullptr;
  normed_of_ = nullptr;
  R1D_RETURN_IF_ERROR(step_.begin(inputs, bucket, stream_));
  R1D_RETURN_IF_ERROR(begin_.record(stream_));
  if (mode_ == Mode::kReplay) return absl::OkStatus();
  if (mode_ == Mode::kRecord) {
    R1D_RETURN_IF_ERROR(device::Graph::begin_recording(stream_));
    recording_ = true;
  }
  launches_.start_step();
  const kernels::BeginStep begin{.sequences = step_.all(),
                                 .block_size = options_.block_size,
                                 .tokens = step_.num_tokens(),
                                 .positions = step_.positions(),
                                 .slots = step_.slots(),
                                 .inv_freq = inv_freq_,
                                 .cos_sin_scale = dims_.rope_cos_sin_scale,
                                 .rope = dims_.qk_rope_head_dim,
                                 .cos_sin = step_.cos_sin()};
  R1D_RETURN_IF_ERROR(launches_(
      Kind::kBegin, {}, [&](const Launch& launch) { return kernels::begin_step(begin, launch); }));
  R1D_RETURN_IF_ERROR(fill_in_tokens());
  return attention_.begin_step();
}

// In a recorded step always: it is replayed for steps that follow and for others.
absl::Status CudaOps::fill_in_tokens() {
  if (mode_ != Mode::kRecord && !step_.follows()) return absl::OkStatus();
  const kernels::FillInTokens fill{.ids = step_.ids(),
                                   .tokens = step_.num_tokens(),
                                   .sampled = rank_ == 0 ? sampler_.sampled() : nullptr};
  if (collectives_) return collectives_->fill_in_tokens(fill);
  return launches_(Kind::kBegin, {}, [&](const Launch& launch) {
    return kernels::fill_in_tokens(fill, launch);
  });
}

// Without peer memory tokens reach the other ranks through the host alone.
int32_t CudaOps::steps_ahead() const {
  return !collectives_ || collectives_->has_peer_memory() ? kMaxLaunched - 1 : 0;
}

absl::Status CudaOps::end_step() {
  R1D_RETURN_IF_ERROR(launch_step());
  return wait_step();
}

absl::Status CudaOps::launch_step() {
  R1D_CHECK(num_launched_ - num_waited_ < kMaxLaunched);
  R1D_RETURN_IF_ERROR(end_collectives());
  R1D_RETURN_IF_ERROR(launch_graph());
  const bool sample = sample_ != nullptr && !sample_->rows.empty();
  if (sample) R1D_RETURN_IF_ERROR(enqueue_sampler());
  R1D_RETURN_IF_ERROR(end_.record(stream_));
  if (logits_target_ != nullptr && num_logit_rows_ > 0) {
    const int64_t bytes = num_logit_rows_ * logit_columns_ * int64_t{sizeof(float)};
    R1D_RETURN_IF_ERROR(stream_.copy_out(logits_target_, logits_, static_cast<size_t>(bytes)));
  }
  LaunchedStep& step = launched_[num_launched_++ % launched_.size()];
  step.sample = sample ? sample_ : nullptr;
  step.num_collectives = num_collectives_;
  return step.done.record(stream_);
}

absl::Status CudaOps::wait_step() {
  R1D_CHECK(num_waited_ < num_launched_);
  const LaunchedStep& step = launched_[num_waited_++ % launched_.size()];
  R1D_RETURN_IF_ERROR(step.done.synchronize());
  if (collectives_) R1D_RETURN_IF_ERROR(collectives_->finish_step(step.num_collectives));
  if (step.sample != nullptr) sampler_.collect(*step.sample);
  return absl::OkStatus();
}

void CudaOps::abort() {
  if (collectives_) collectives_->abort();  // else nobody waits for another
}

absl::Status CudaOps::rejoin() {
  if (!collectives_) return failed_precondition("a GPU whose step failed is not used again");
  if (recording_) {
    recording_ = false;
    // What was recorded is thrown away, whatever became of it.
    static_cast<void>(device::Graph::end_recording(stream_));
  }
  R1D_RETURN_IF_ERROR(collectives_->rejoin());
  num_waited_ = num_launched_;  // they are done, and void
  sampler_.forget();
  graphs_.clear();
  seen_.clear();
  preparer_.reset();
  return collectives_->meet();
}

int32_t CudaOps::bucket_of(const StepInputs& inputs) const {
  const auto tokens = static_cast<int32_t>(inputs.token_ids.size());
  const bool decodes = std::all_of(inputs.sequences.begin(),
                                   inputs.sequences.end(),
                                   [](const SequenceSpan& span) { return span.query_len == 1; });
  const bool records = options_.graphs && (!collectives_ || collectives_->has_peer_memory());
  if (!records || !decodes || tokens == 0 || tokens > kGraphBuckets.back() ||
      inputs.logit_rows.size() != inputs.token_ids.size()) {
    return 0;
  }
  return *std::lower_bound(kGraphBuckets.begin(), kGraphBuckets.end(), tokens);
}

void CudaOps::choose_mode(int32_t bucket) {
  bucket_ = bucket;
  mode_ = Mode::kEager;
  if (bucket == 0) return;
  BucketGraph& entry = graphs_[bucket];
  if (entry.graph) {
    mode_ = Mode::kReplay;
  } else if (entry.warmed) {
    mode_ = Mode::kRecord;
  }
  entry.warmed = true;
}

Collectives::Mode CudaOps::collective_mode(const StepInputs& inputs) {
  if (mode_ == Mode::kReplay) return Collectives::Mode::kFree;
  if (mode_ == Mode::kRecord) return Collectives::Mode::kRecorded;
  if (bucket_ > 0) return Collectives::Mode::kCareful;
  const auto has = [&](bool decode) {
    return std::any_of(
        inputs.sequences.begin(), inputs.sequences.end(), [&](const SequenceSpan& span) {
          return (span.query_len <= DeviceStep::kMaxDecodeQuery) == decode;
        });
  };
  int32_t power = 0;
  while ((size_t{1} << power) < inputs.token_ids.size()) ++power;
  const bool first = seen_.insert({power, has(true), has(false)}).second;
  return first ? Collectives::Mode::kCareful : Collectives::Mode::kFree;
}

absl::Status CudaOps::end_collectives() {
  if (!collectives_) return absl::OkStatus();
  if (mode_ == Mode::kReplay) {
    num_collectives_ = graphs_[bucket_].num_collectives;
    return absl::OkStatus();
  }
  R1D_ASSIGN_OR_RETURN(num_collectives_, collectives_->end_step());
  return absl::OkStatus();
}

absl::Status CudaOps::launch_graph() {
  if (mode_ == Mode::kEager) return absl::OkStatus();
  BucketGraph& entry = graphs_[bucket_];
  if (mode_ == Mode::kRecord) {
    recording_ = false;
    R1D_ASSIGN_OR_RETURN(entry.graph, device::Graph::end_recording(stream_));
    entry.num_collectives = num_collectives_;
    if (collectives_) {
      // Making a graph may take memory: no rank starts before all have theirs.
      R1D_RETURN_IF_ERROR(entry.graph->upload(stream_));
      R1D_RETURN_IF_ERROR(stream_.synchronize());
      R1D_RETURN_IF_ERROR(collectives_->meet());
    }
    R1D_RETURN_IF_ERROR(begin_.record(stream_));
  }
  graph_nodes_ = entry.graph->num_nodes();
  return entry.graph->launch(stream_);
}

absl::Status CudaOps::enqueue_sampler() {
  bool& loaded = sampler_loaded_[sample_->greedy ? 0 : 1];
  // The first launch loads code, which may wait for all kernels: none may be waiting for a rank.
  if (collectives_ && !loaded) R1D_RETURN_IF_ERROR(stream_.synchronize());
  loaded = true;
  return sampler_.enqueue(*sample_, logits_, logit_columns_, stream_);
}

}  // namespace r1d::ops::cuda
