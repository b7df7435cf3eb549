// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/step_cost.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <sys/mman.h>

#include "r1d/base/status.h"

namespace r1d::cli::bench {
namespace {

// One reading takes a few milliseconds: long beside waking the threads, short beside a neighbour's
// turn on the machine.
constexpr size_t kSampleBytes = size_t{64} << 20;
// Stays in a core's first cache.
constexpr size_t kPieceBytes = 16384;

}  // namespace

absl::StatusOr<StepCost> step_cost(const checkpoint::WeightSource& weights) {
  const checkpoint::ModelConfig& config = weights.config();
  StepCost cost;
  for (const checkpoint::TensorSpec& spec : checkpoint::expected_tensors(config, false)) {
    if (spec.name == "model.embed_tokens.weight") continue;  // one row of it
    R1D_ASSIGN_OR_RETURN(const checkpoint::StoredTensor stored, weights.find(spec.name));
    const double share =
        spec.expert < 0 ? 1.0
                        : static_cast<double>(config.num_experts_per_tok) / config.n_routed_experts;
    const double elements = share * static_cast<double>(stored.rows * stored.cols);
    cost.decode_bytes += elements * static_cast<double>(dtype_bytes(stored.dtype));
    if (spec.rank_1) continue;
    (spec.name == "lm_head.weight" ? cost.flops_per_logits : cost.flops_per_token) += 2 * elements;
  }
  return cost;
}

absl::StatusOr<std::unique_ptr<PlainRead>> PlainRead::create(int32_t num_threads,
                                                             size_t total_bytes) {
  const size_t size = std::max<size_t>(total_bytes / kSampleBytes, 1) * kSampleBytes;
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return resource_exhausted("cannot take {} bytes to read plainly from", size);
  }
  madvise(data, size, MADV_HUGEPAGE);  // as weights have it
  return std::unique_ptr<PlainRead>(
      new PlainRead(static_cast<std::byte*>(data), size, num_threads));
}

PlainRead::PlainRead(std::byte* data, size_t size, int32_t num_threads)
    : data_(data), size_(size), pool_(num_threads) {
  std::memset(data_, 1, size_);  // pages that nobody wrote are all one page of zeros
}

PlainRead::~PlainRead() {
  munmap(data_, size_);
}

double PlainRead::bytes_per_second() {
  const auto num_tasks = static_cast<int64_t>(pool_.num_threads());
  const size_t part = kSampleBytes / static_cast<size_t>(num_tasks) / kPieceBytes * kPieceBytes;
  const TimePoint start = clock_.now();
  pool_.parallel_for(num_tasks, [&](int64_t task, int32_t /*thread*/) {
    alignas(64) std::byte buffer[kPieceBytes];
    const std::byte* from = data_ + next_ + static_cast<size_t>(task) * part;
    for (size_t i = 0; i < part; i += kPieceBytes) {
      std::memcpy(buffer, from + i, kPieceBytes);
      asm volatile("" : : "r"(buffer) : "memory");  // the copy is wanted
    }
  });
  next_ = (next_ + kSampleBytes) % size_;
  return static_cast<double>(part * static_cast<size_t>(num_tasks)) /
         seconds_between(start, clock_.now());
}

}  // namespace r1d::cli::bench
