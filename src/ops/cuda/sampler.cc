// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/sampler.h"

#include <algorithm>
#include <cstring>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

namespace r1d::ops::cuda {
namespace {

using kernels::SampledRow;
using kernels::SamplerRow;
using kernels::SamplerTokenBias;
using kernels::SamplerTokenCount;

constexpr size_t kAlignment = 16;

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Where a request's arrays stand in the staging area.
struct Offsets {
  explicit Offsets(const SampleRequest& request)
      : counts(aligned(request.rows.size() * sizeof(SamplerRow))),
        biases(counts + aligned(request.counts.size() * sizeof(SamplerTokenCount))),
        masked(biases + aligned(request.biases.size() * sizeof(SamplerTokenBias))),
        end(masked + aligned(request.masked.size() * sizeof(int32_t))) {}
  size_t counts;
  size_t biases;
  size_t masked;
  size_t end;
};

// Where the most likely tokens of `rows` rows stand, and their log-probabilities behind them.
struct TopOffsets {
  TopOffsets(size_t rows, size_t top)
      : logprobs(aligned(rows * top * sizeof(int32_t))),
        end(logprobs + aligned(rows * top * sizeof(float))) {}
  size_t logprobs;
  size_t end;
};
size_t sampled_bytes(size_t rows) {
  return aligned(rows * sizeof(SampledRow));
}

// A start; reserve() doubles.
size_t first_input_bytes(size_t rows) {
  constexpr size_t kListBytes = size_t{1} << 20;
  return rows * sizeof(SamplerRow) + kListBytes;
}
size_t first_top_bytes(size_t rows) {
  constexpr size_t kTop = 32;
  return TopOffsets(rows, kTop).end;
}

SamplerRow device_row(const SampleRow& row) {
  SamplerRow out;
  out.temperature = row.temperature;
  out.top_p = row.top_p;
  out.min_p = row.min_p;
  out.repetition_penalty = row.repetition_penalty;
  out.frequency_penalty = row.frequency_penalty;
  out.presence_penalty = row.presence_penalty;
  out.seed = row.seed;
  out.draw = row.draw;
  out.top_k = row.top_k;
  out.forced = row.forced;
  out.num_logprobs = row.num_logprobs;
  out.num_penalties = row.num_counts;
  out.first_penalty = row.first_count;
  out.num_biases = row.num_biases;
  out.first_bias = row.first_bias;
  out.num_masked = row.num_masked;
  out.first_masked = row.first_masked;
  return out;
}

SampleResult::Fault fault_of(int32_t status) {
  switch (status) {
    case kernels::kSamplerNotFinite:
      return SampleResult::Fault::kNotFinite;
    case kernels::kSamplerAllMasked:
      return SampleResult::Fault::kAllMasked;
    default:
      return SampleResult::Fault::kNone;
  }
}

template <typename T>
T* at(std::byte* base, size_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

}  // namespace

void DeviceSampler::layout(Arena& arena) {
  workspace_ = arena.take<std::byte>(plan_.workspace_bytes);
}

int64_t DeviceSampler::buffer_bytes() const {
  const auto rows = static_cast<size_t>(max_rows_);
  return static_cast<int64_t>(first_input_bytes(rows) + sampled_bytes(rows) +
                              first_top_bytes(rows));
}

const SampledRow* DeviceSampler::sampled() const {
  return at<const SampledRow>(sampled_.data(), 0);
}

absl::Status DeviceSampler::create() {
  const auto rows = static_cast<size_t>(max_rows_);
  const size_t inputs = first_input_bytes(rows);
  const size_t top = first_top_bytes(rows);
  for (Host& host : hosts_) {
    R1D_RETURN_IF_ERROR(reserve_host(host, inputs, sampled_bytes(rows) + top));
  }
  R1D_ASSIGN_OR_RETURN(inputs_, device::DeviceMemory::allocate(inputs, "sampling parameters"));
  R1D_ASSIGN_OR_RETURN(sampled_,
                       device::DeviceMemory::allocate(sampled_bytes(rows), "sampled tokens"));
  R1D_ASSIGN_OR_RETURN(top_, device::DeviceMemory::allocate(top, "most likely tokens"));
  return absl::OkStatus();
}

absl::Status DeviceSampler::reserve_host(Host& host, size_t inputs, size_t results) {
  if (inputs > host.inputs.size()) {
    R1D_ASSIGN_OR_RETURN(host.inputs,
                         device::PinnedMemory::allocate(inputs, "sampling parameters"));
  }
  if (results > host.results.size()) {
    R1D_ASSIGN_OR_RETURN(host.results, device::PinnedMemory::allocate(results, "sampled tokens"));
  }
  return absl::OkStatus();
}

// Lists of penalised tokens grow with the history, so their size has no bound worth taking at
// start. What another request on its way still needs is not touched before the stream is done.
absl::Status DeviceSampler::reserve(const SampleRequest& request,
                                    Host& host,
                                    const device::Stream& stream) {
  const size_t rows = request.rows.size();
  const size_t inputs = Offsets(request).end;
  const size_t top = TopOffsets(rows, static_cast<size_t>(request.top_stride)).end;
  if (inputs > inputs_.size()) {
    R1D_RETURN_IF_ERROR(stream.synchronize());
    R1D_ASSIGN_OR_RETURN(inputs_,
                         device::DeviceMemory::allocate(2 * inputs, "sampling parameters"));
  }
  if (top > top_.size()) {
    R1D_RETURN_IF_ERROR(stream.synchronize());
    R1D_ASSIGN_OR_RETURN(top_, device::DeviceMemory::allocate(2 * top, "most likely tokens"));
  }
  return reserve_host(host, inputs_.size(), sampled_bytes(rows) + top_.size());
}

size_t DeviceSampler::stage(const SampleRequest& request, std::byte* base) {
  const Offsets offsets(request);
  std::transform(request.rows.begin(), request.rows.end(), at<SamplerRow>(base, 0), device_row);
  std::transform(request.counts.begin(),
                 request.counts.end(),
                 at<SamplerTokenCount>(base, offsets.counts),
                 [](const TokenCount& count) {
                   return SamplerTokenCount{count.token, count.count};
                 });
  std::transform(request.biases.begin(),
                 request.biases.end(),
                 at<SamplerTokenBias>(base, offsets.biases),
                 [](const TokenBias& bias) {
                   return SamplerTokenBias{bias.token, bias.bias};
                 });
  std::copy(request.masked.begin(), request.masked.end(), at<int32_t>(base, offsets.masked));
  return offsets.end;
}

absl::Status DeviceSampler::enqueue(const SampleRequest& request,
                                    const float* logits,
                                    int64_t stride,
                                    const device::Stream& stream) {
  Host& host = hosts_[num_enqueued_ % hosts_.size()];
  R1D_RETURN_IF_ERROR(reserve(request, host, stream));
  const Offsets offsets(request);
  const TopOffsets top(request.rows.size(), static_cast<size_t>(request.top_stride));
  std::byte* in = inputs_.data();
  const auto rows = static_cast<int32_t>(request.rows.size());
  // Cut for these rows. Where blocks do not share a row, scratch stands behind the counters of all
  // the rows a plan is for, so there one plan serves every launch and the counters stay zero.
  const kernels::SamplerPlan plan =
      plan_.team == 1 ? plan_ : kernels::plan_sampler(rows, request.vocab, capability_, num_sms_);
  const kernels::SamplerInput input{.logits = logits,
                                    .row_stride = stride,
                                    .rows = rows,
                                    .vocab = request.vocab,
                                    .params = at<SamplerRow>(in, 0),
                                    .penalties = at<SamplerTokenCount>(in, offsets.counts),
                                    .biases = at<SamplerTokenBias>(in, offsets.biases),
                                    .masked = at<int32_t>(in, offsets.masked)};
  const kernels::Launch launch{.stream = stream.get()};
  if (request.greedy) {
    R1D_CUDA_TRY(kernels::sample_greedy(
        input, at<SampledRow>(sampled_.data(), 0), plan, workspace_, launch));
  } else {
    std::byte* parameters = host.inputs.data();
    R1D_RETURN_IF_ERROR(stream.copy_in(in, parameters, stage(request, parameters)));
    const bool wants_top = request.top_stride > 0;
    R1D_CUDA_TRY(kernels::sample_tokens(
        input,
        {.sampled = at<SampledRow>(sampled_.data(), 0),
         .top_tokens = wants_top ? at<int32_t>(top_.data(), 0) : nullptr,
         .top_logprobs = wants_top ? at<float>(top_.data(), top.logprobs) : nullptr,
         .top_stride = request.top_stride},
        plan,
        workspace_,
        launch));
  }
  const size_t sampled = sampled_bytes(request.rows.size());
  R1D_RETURN_IF_ERROR(stream.copy_out(host.results.data(), sampled_.data(), sampled));
  if (!request.greedy && top.end > 0) {
    R1D_RETURN_IF_ERROR(stream.copy_out(host.results.data() + sampled, top_.data(), top.end));
  }
  ++num_enqueued_;
  return absl::OkStatus();
}

void DeviceSampler::collect(SampleRequest& request) {
  R1D_CHECK(num_collected_ < num_enqueued_);
  std::byte* results = hosts_[num_collected_++ % hosts_.size()].results.data();
  const auto* sampled = at<const SampledRow>(results, 0);
  request.results.resize(request.rows.size());
  for (size_t i = 0; i < request.rows.size(); ++i) {
    request.results[i] = {.token = sampled[i].token,
                          .fault = fault_of(sampled[i].status),
                          .bad_token = sampled[i].bad_token,
                          .bad_logit = sampled[i].bad_logit,
                          .logprob = sampled[i].logprob};
  }
  const size_t stride = static_cast<size_t>(request.top_stride);
  const TopOffsets offsets(request.rows.size(), stride);
  std::byte* top = results + sampled_bytes(request.rows.size());
  const auto* tokens = at<const int32_t>(top, 0);
  const auto* logprobs = at<const float>(top, offsets.logprobs);
  const size_t count = request.greedy ? 0 : request.rows.size() * stride;
  request.top_tokens.assign(tokens, tokens + count);
  request.top_logprobs.assign(logprobs, logprobs + count);
}

}  // namespace r1d::ops::cuda
