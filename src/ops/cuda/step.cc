// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/step.h"

#include <algorithm>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

namespace r1d::ops::cuda {
namespace {

using kernels::MlaPrefillTile;
using kernels::PrefillSequence;

constexpr size_t kPieceAlignment = 16;

// Key rows that are expanded at once: as many as a step has tokens, so that a first chunk always
// fits, and no fewer than it takes to keep the GPU busy.
int64_t key_rows(const CudaOptions& options) {
  constexpr int64_t kLeast = 8192;
  return std::max<int64_t>(options.max_tokens, std::min<int64_t>(kLeast, options.max_model_len));
}

// Keys of all sequences that can take the naive form in one step.
int64_t longest_keys(const CudaOptions& options) {
  const int64_t sequences = std::min<int64_t>(
      options.max_sequences, options.max_tokens / (DeviceStep::kMaxDecodeQuery + 1));
  return std::max<int64_t>(sequences, 1) * options.max_model_len;
}

int64_t windows_at_most(int64_t keys, int64_t capacity) {
  return (keys + capacity - 1) / capacity;
}

int64_t tiles_at_most(const CudaOptions& options) {
  return options.max_tokens / 128 + options.max_sequences + 1;
}

// Upper bound of what begin() lays out.
size_t staging_bytes(const CudaOptions& options,
                     bool splits_prefill,
                     int64_t longest,
                     int64_t capacity) {
  const int64_t sequences = std::max<int64_t>(options.max_sequences, DeviceStep::kMaxGraphTokens);
  const int64_t blocks = options.max_sequences *
                         ((options.max_model_len + options.block_size - 1) / options.block_size);
  int64_t bytes = 4 * (std::max<int64_t>(options.max_tokens, DeviceStep::kMaxGraphTokens) +
                       5 * sequences + blocks);
  if (splits_prefill) {
    bytes += windows_at_most(longest, capacity) *
             (tiles_at_most(options) * static_cast<int64_t>(sizeof(MlaPrefillTile)) +
              options.max_sequences * static_cast<int64_t>(sizeof(PrefillSequence)) +
              2 * static_cast<int64_t>(kPieceAlignment));
  }
  return static_cast<size_t>(bytes) + 16 * kPieceAlignment;
}

}  // namespace

DeviceStep::DeviceStep(const ModelDims& dims, const CudaOptions& options, bool splits_prefill)
    : dims_(dims),
      options_(options),
      splits_prefill_(splits_prefill),
      key_capacity_(key_rows(options)),
      longest_keys_(longest_keys(options)) {}

int64_t DeviceStep::input_bytes() const {
  return static_cast<int64_t>(
      staging_bytes(options_, splits_prefill_, longest_keys_, key_capacity_));
}

absl::Status DeviceStep::create() {
  const auto bytes = static_cast<size_t>(input_bytes());
  for (auto& staging : staging_) {
    R1D_ASSIGN_OR_RETURN(staging, device::PinnedMemory::allocate(bytes, "inputs of a step"));
  }
  R1D_ASSIGN_OR_RETURN(inputs_, device::DeviceMemory::allocate(bytes, "inputs of a step"));
  return absl::OkStatus();
}

void DeviceStep::layout(Arena& arena) {
  const int64_t tokens = std::max<int64_t>(options_.max_tokens, kMaxGraphTokens);
  positions_ = arena.take<int32_t>(tokens);
  slots_ = arena.take<int64_t>(tokens);
  cos_sin_ = arena.take<float>(tokens * dims_.qk_rope_head_dim);
}

template <typename T>
DeviceStep::Piece<T> DeviceStep::take(int64_t count) {
  const size_t offset = used_;
  used_ += (static_cast<size_t>(count) * sizeof(T) + kPieceAlignment - 1) / kPieceAlignment *
           kPieceAlignment;
  R1D_CHECK(used_ <= inputs_.size());
  return {reinterpret_cast<T*>(staging_[turn_].data() + offset),
          reinterpret_cast<T*>(inputs_.data() + offset)};
}

absl::Status DeviceStep::begin(const StepInputs& inputs,
                               int32_t padded_tokens,
                               const device::Stream& stream) {
  R1D_RETURN_IF_ERROR(check(inputs));
  turn_ = 1 - turn_;
  used_ = 0;
  order(inputs);
  count_work(inputs);
  lay_out_tokens(inputs, padded_tokens);
  lay_out_rows(inputs, padded_tokens);
  lay_out_sequences(inputs, padded_tokens);
  lay_out_windows(inputs);
  return stream.copy_in(inputs_.data(), staging_[turn_].data(), used_);
}

absl::Status DeviceStep::check(const StepInputs& inputs) const {
  const auto tokens = static_cast<int64_t>(inputs.token_ids.size());
  if (tokens > options_.max_tokens ||
      static_cast<int64_t>(inputs.sequences.size()) > options_.max_sequences) {
    return invalid_argument("step: {} tokens of {} sequences, workspaces were taken for {} and {}",
                            tokens,
                            inputs.sequences.size(),
                            options_.max_tokens,
                            options_.max_sequences);
  }
  for (const TokenId id : inputs.token_ids) {
    if (id < follow_row(options_.max_sequences - 1)) {
      return invalid_argument("step: token id {} follows row {}, a step samples at most {}",
                              id,
                              -1 - id,
                              options_.max_sequences);
    }
  }
  int64_t covered = 0;
  for (const SequenceSpan& span : inputs.sequences) {
    covered += span.query_len;
    const int64_t blocks = (span.context_len + options_.block_size - 1) / options_.block_size;
    if (span.query_len < 1 || span.query_begin < 0 || span.query_begin + span.query_len > tokens ||
        span.context_len < span.query_len || span.context_len > options_.max_model_len ||
        static_cast<int64_t>(span.block_table.size()) < blocks) {
      return invalid_argument(
          "step: a sequence of {} query tokens at {}, context {}, {} blocks does not fit {} tokens",
          span.query_len,
          span.query_begin,
          span.context_len,
          span.block_table.size(),
          tokens);
    }
  }
  if (covered != tokens)
    return invalid_argument("step: {} tokens, sequences cover {}", tokens, covered);
  for (const int32_t row : inputs.logit_rows) {
    if (row < 0 || row >= tokens)
      return invalid_argument("step: logit row {} of {} tokens", row, tokens);
  }
  return absl::OkStatus();
}

void DeviceStep::order(const StepInputs& inputs) {
  const auto is_decode = [&](size_t s) {
    return !splits_prefill_ || inputs.sequences[s].query_len <= kMaxDecodeQuery;
  };
  order_.resize(inputs.sequences.size());
  for (size_t s = 0; s < order_.size(); ++s) order_[s] = s;
  const auto middle = std::stable_partition(order_.begin(), order_.end(), is_decode);
  num_decode_ = static_cast<int32_t>(middle - order_.begin());
  num_sequences_ = static_cast<int32_t>(order_.size());
}

void DeviceStep::count_work(const StepInputs& inputs) {
  total_context_ = decode_context_ = max_context_ = 0;
  prefill_pairs_ = 0;
  for (size_t i = 0; i < order_.size(); ++i) {
    const SequenceSpan& span = inputs.sequences[order_[i]];
    total_context_ += span.context_len;
    max_context_ = std::max<int64_t>(max_context_, span.context_len);
    if (i < static_cast<size_t>(num_decode_)) {
      decode_context_ += span.context_len;
    } else {
      const auto queries = static_cast<double>(span.query_len);
      prefill_pairs_ += queries * (static_cast<double>(span.context_len) - (queries - 1) / 2);
    }
  }
}

void DeviceStep::lay_out_tokens(const StepInputs& inputs, int32_t padded_tokens) {
  const auto real = static_cast<int32_t>(inputs.token_ids.size());
  num_tokens_ = std::max(real, padded_tokens);
  const auto live = take<int32_t>(1);
  *live.host = real;
  live_tokens_ = live.device;
  const auto ids = take<int32_t>(num_tokens_);
  token_begin_.assign(inputs.sequences.size(), 0);
  int32_t next = 0;
  num_decode_tokens_ = 0;
  max_decode_query_ = 1;
  for (size_t i = 0; i < order_.size(); ++i) {
    const SequenceSpan& span = inputs.sequences[order_[i]];
    token_begin_[order_[i]] = next;
    std::copy_n(inputs.token_ids.begin() + span.query_begin, span.query_len, ids.host + next);
    next += span.query_len;
    if (i < static_cast<size_t>(num_decode_)) {
      num_decode_tokens_ = next;
      max_decode_query_ = std::max(max_decode_query_, span.query_len);
    }
  }
  std::fill(ids.host + next, ids.host + num_tokens_, 0);
  follows_ = std::any_of(ids.host, ids.host + next, [](int32_t id) { return id < 0; });
  if (padded_tokens > 0) num_decode_tokens_ = num_tokens_;
  ids_ = ids.device;
}

void DeviceStep::lay_out_rows(const StepInputs& inputs, int32_t padded_tokens) {
  const auto real = static_cast<int32_t>(inputs.logit_rows.size());
  num_logit_rows_ = std::max(real, padded_tokens);
  const auto rows = take<int32_t>(num_logit_rows_);
  int32_t row = 0;
  // Rows ascend, and so do the sequences' spans where the caller laid them out in order; look up
  // each.
  for (const int32_t token : inputs.logit_rows) {
    for (size_t s = 0; s < inputs.sequences.size(); ++s) {
      const SequenceSpan& span = inputs.sequences[s];
      const int32_t inside = token - span.query_begin;
      if (inside >= 0 && inside < span.query_len) rows.host[row] = token_begin_[s] + inside;
    }
    ++row;
  }
  for (; row < num_logit_rows_; ++row) rows.host[row] = row;
  logit_rows_ = rows.device;
}

void DeviceStep::lay_out_sequences(const StepInputs& inputs, int32_t padded_tokens) {
  const int32_t count = std::max(num_sequences_, padded_tokens);
  const auto query_begin = take<int32_t>(count);
  const auto query_len = take<int32_t>(count);
  const auto context_len = take<int32_t>(count);
  const auto block_begin = take<int32_t>(count);
  int64_t num_blocks = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (i >= num_sequences_) {  // padding
      query_begin.host[i] = i;
      query_len.host[i] = 1;
      context_len.host[i] = 0;
      block_begin.host[i] = 0;
      continue;
    }
    const SequenceSpan& span = inputs.sequences[order_[static_cast<size_t>(i)]];
    query_begin.host[i] = token_begin_[order_[static_cast<size_t>(i)]];
    query_len.host[i] = span.query_len;
    context_len.host[i] = span.context_len;
    block_begin.host[i] = static_cast<int32_t>(num_blocks);
    num_blocks += (span.context_len + options_.block_size - 1) / options_.block_size;
  }
  const auto block_ids = take<int32_t>(num_blocks);
  for (int32_t i = 0; i < num_sequences_; ++i) {
    const SequenceSpan& span = inputs.sequences[order_[static_cast<size_t>(i)]];
    const int64_t blocks = (span.context_len + options_.block_size - 1) / options_.block_size;
    std::copy_n(span.block_table.begin(), blocks, block_ids.host + block_begin.host[i]);
  }
  num_sequences_ = count;
  if (padded_tokens > 0) num_decode_ = count;
  sequences_ = {.query_begin = query_begin.device,
                .query_len = query_len.device,
                .context_len = context_len.device,
                .block_begin = block_begin.device,
                .block_ids = block_ids.device,
                .num_sequences = count};
}

// Fills the key buffer window by window, sequence after sequence.
void DeviceStep::lay_out_windows(const StepInputs& inputs) {
  windows_.clear();
  const int32_t count = num_prefill();
  if (count == 0) return;
  std::vector<PrefillSequence> whole;
  int64_t keys_left = 0;
  int32_t block_begin = 0;
  for (size_t i = 0; i < order_.size(); ++i) {
    const SequenceSpan& span = inputs.sequences[order_[i]];
    if (i >= static_cast<size_t>(num_decode_)) {
      whole.push_back({.query_begin = token_begin_[order_[i]],
                       .query_len = span.query_len,
                       .context_len = span.context_len,
                       .block_begin = block_begin});
      keys_left += span.context_len;
    }
    block_begin += (span.context_len + options_.block_size - 1) / options_.block_size;
  }
  while (keys_left > 0) {
    int64_t used = 0;
    for (PrefillSequence& sequence : whole) {
      sequence.position_begin += sequence.num_positions;
      const int64_t wanted = sequence.context_len - sequence.position_begin;
      sequence.num_positions = static_cast<int32_t>(std::min(wanted, key_capacity_ - used));
      sequence.key_begin = static_cast<int32_t>(used);
      used += sequence.num_positions;
    }
    keys_left -= used;
    const auto tiles = kernels::plan_mla_prefill(whole.data(), count);
    const auto sequences = take<PrefillSequence>(count);
    const auto tile_piece = take<MlaPrefillTile>(static_cast<int64_t>(tiles.size()));
    std::copy(whole.begin(), whole.end(), sequences.host);
    std::copy(tiles.begin(), tiles.end(), tile_piece.host);
    windows_.push_back({.sequences = sequences.device,
                        .tiles = tile_piece.device,
                        .num_tiles = static_cast<int32_t>(tiles.size()),
                        .num_keys = used});
  }
}

kernels::StepSequences DeviceStep::all() const {
  return sequences_;
}

kernels::StepSequences DeviceStep::decode() const {
  kernels::StepSequences decode = sequences_;
  decode.num_sequences = num_decode_;
  return decode;
}

}  // namespace r1d::ops::cuda
