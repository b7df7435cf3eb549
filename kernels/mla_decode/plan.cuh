// SPDX-License-Identifier: Apache-2.0
// How a step's cached pages are divided among the blocks of mla_decode, and where each writes.
//
// A page is 64 tokens of one sequence. Sequences stand in a row on a line of pages; sequence s
// begins at start[s] and is followed by a gap of kGapPages, which stands for what a sequence costs
// beside its pages. Part p of the line is [p * pages_per_part, (p + 1) * pages_per_part).
//   even            A block takes the pages of its part. A sequence cut by parts p0 .. p1 has one
//                   split in each: slot 2 p0 + 1 (it begins inside p0), then 2 p (it enters p).
//   deterministic   A sequence is cut into splits of split_pages(its pages); a block takes the
//                   splits that begin in its part. Slot kMaxSplits * s + split.
// A sequence of one split needs no slot: its sums are final.
#pragma once

#include <cstdint>

#include "kernels/mla_decode/mla_decode.h"

namespace r1d::kernels::mla {

constexpr int kPage = 64;     // tokens
constexpr int kLatent = 512;  // values that are key and value
constexpr int kRope = 64;     // values that are key only
constexpr int kRow = kLatent + kRope;
constexpr int kNope = 128;
constexpr int kValue = 128;
constexpr int kMaxSequences = 4096;
constexpr int kMaxQuery = 4;
constexpr int kGapPages = 1;
constexpr int kSplitPages = 8;  // deterministic: 512 tokens,
constexpr int kMaxSplits = 32;  // or more, so that no sequence has more splits than this
constexpr int kMaxParts = 160;  // of the even division

// Columns are (query token, head) pairs; a block of mla_decode takes `columns` of them.
struct Tiling {
  int columns = 0;  // 16, 32 or 64
  int groups = 0;   // blocks side by side that share a part's pages
  int parts = 0;
};
inline Tiling tiling(const MlaShape& shape) {
  const int all = shape.heads * shape.max_query_len;
  Tiling t;
  t.columns = all <= 16 ? 16 : all <= 32 ? 32 : 64;
  t.groups = (all + t.columns - 1) / t.columns;
  t.parts = shape.num_sms / t.groups;
  t.parts = t.parts < 1 ? 1 : t.parts > kMaxParts ? kMaxParts : t.parts;
  return t;
}
inline int64_t num_slots(const MlaShape& shape) {
  return shape.deterministic ? int64_t{kMaxSplits} * shape.num_sequences
                             : int64_t{2} * tiling(shape).parts;
}

// The workspace: whole sums, then those of splits with their log2-sum-exp.
struct WorkspaceView {
  void* latent;    // bf16 [T, H, 512], of sequences with one split
  float* partial;  // [slot, group, column, 512], each split divided by its own sum
  float* lse;      // [slot, group, column], base 2; -inf for a split that sees nothing
  size_t bytes;
};
inline WorkspaceView workspace_view(const void* workspace, const MlaShape& shape) {
  const Tiling t = tiling(shape);
  const int64_t rows = num_slots(shape) * t.groups * t.columns;
  auto* base = static_cast<uint8_t*>(const_cast<void*>(workspace));
  const size_t latent = static_cast<size_t>(shape.num_tokens) * shape.heads * kLatent * 2;
  const size_t partial = static_cast<size_t>(rows) * kLatent * sizeof(float);
  WorkspaceView view;
  view.latent = base;
  view.partial = reinterpret_cast<float*>(base + latent);
  view.lse = reinterpret_cast<float*>(base + latent + partial);
  view.bytes = (latent + partial + rows * sizeof(float) + 255) / 256 * 256;
  return view;
}

// Where the sums of one token are. Split k is slot first for k = 0, else next + (k - 1) * step.
struct alignas(16) TokenSplits {
  int32_t first;
  int32_t next;
  int32_t step;
  int32_t count;  // 0: the result is zeros; 1: in WorkspaceView::latent
  int32_t query;  // the token's number within its sequence
  int32_t unused[3];
};

// A sequence as mla_decode reads it; a part's record is a copy of the first it has pages of.
struct alignas(16) PlannedSequence {
  int32_t start;
  int32_t context_len;
  int32_t query_begin;
  int32_t query_len;
  int32_t block_begin;
  int32_t index;  // of the sequence; num_sequences: the part has no pages
  int32_t pages_per_part;
  int32_t first_block;  // of a part, where blocks are pages: id of the one it begins with
};

// The plan in device memory.
struct PlanView {
  TokenSplits* tokens;         // [T]
  PlannedSequence* sequences;  // [num_sequences]
  PlannedSequence* parts;      // [parts]
  size_t bytes;
};
inline PlanView plan_view(const void* plan, const MlaShape& shape) {
  auto* base = static_cast<uint8_t*>(const_cast<void*>(plan));
  const size_t tokens = sizeof(TokenSplits) * shape.num_tokens;
  const size_t sequences = sizeof(PlannedSequence) * shape.num_sequences;
  PlanView view;
  view.tokens = reinterpret_cast<TokenSplits*>(base);
  view.sequences = reinterpret_cast<PlannedSequence*>(base + tokens);
  view.parts = reinterpret_cast<PlannedSequence*>(base + tokens + sequences);
  view.bytes = tokens + sequences + sizeof(PlannedSequence) * tiling(shape).parts;
  return view;
}

__host__ __device__ inline int pages_of(int context_len) {
  return (context_len + kPage - 1) / kPage;
}
// A deterministic split's pages: a matter of the sequence's own length.
__host__ __device__ inline int split_pages(int pages) {
  const int least = (pages + kMaxSplits - 1) / kMaxSplits;
  return (least + kSplitPages - 1) / kSplitPages * kSplitPages;
}

#ifdef __CUDACC__
// A block's walk over its part: one item is a run of pages of one sequence.
template <bool kDeterministic>
class Walk {
 public:
  PlannedSequence sequence;
  int begin = 0;  // pages [begin, end) of it
  int end = 0;
  int slot = -1;  // -1: whole

  __device__ Walk(const PlanView& plan, int num_sequences, int part)
      : sequence(plan.parts[part]),
        all_(plan.sequences),
        num_sequences_(num_sequences),
        part_(part) {
    from_ = part * sequence.pages_per_part;
    to_ = from_ + sequence.pages_per_part;
  }
  // Page of `sequence` at the part's begin; before next().
  __device__ int first_page() const { return from_ - sequence.start; }
  // The next item; false when there is none.
  __device__ bool next() {
    if (kDeterministic && within_ && split_item()) return true;
    while (true) {
      if (!fresh_) {
        if (sequence.index + 1 >= num_sequences_) return false;
        sequence = all_[sequence.index + 1];
      }
      fresh_ = false;
      if (sequence.index >= num_sequences_ || sequence.start >= to_) return false;
      pages_ = pages_of(sequence.context_len);
      if (pages_ == 0) continue;
      if (kDeterministic) {
        size_ = split_pages(pages_);
        split_ = (max(from_ - sequence.start, 0) + size_ - 1) / size_ - 1;
        if (split_item()) return true;
      } else {
        begin = max(from_ - sequence.start, 0);
        end = min(to_ - sequence.start, pages_);
        if (begin >= end) continue;  // the part begins in the sequence's gap
        slot = begin == 0 && end == pages_ ? -1 : 2 * part_ + (begin == 0 ? 1 : 0);
        return true;
      }
    }
  }

 private:
  __device__ bool split_item() {
    ++split_;
    begin = split_ * size_;
    end = min(begin + size_, pages_);
    slot = pages_ <= size_ ? -1 : kMaxSplits * sequence.index + split_;
    within_ = begin < pages_ && sequence.start + begin < to_;
    return within_;
  }

  const PlannedSequence* all_;
  int num_sequences_;
  int part_;
  int from_ = 0;
  int to_ = 0;
  int pages_ = 0;
  int size_ = 1;
  int split_ = 0;
  bool within_ = false;
  bool fresh_ = true;
};
#endif

}  // namespace r1d::kernels::mla
