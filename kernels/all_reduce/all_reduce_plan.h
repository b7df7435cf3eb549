// SPDX-License-Identifier: Apache-2.0
// How all-reduces over peer memory are cut and where their data stands: pure host arithmetic, no
// CUDA, so that host builds test it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace r1d::kernels {

inline constexpr int kMaxPeers = 8;          // ranks that meet in peer memory
inline constexpr int kMaxPeerBlocks = 128;   // CTAs with flags of their own
inline constexpr int kWordValues = 4;        // bf16 values in a 16-byte word of data and flags
inline constexpr int kPeerVector = 8;        // bf16 values in a 16-byte vector
inline constexpr int kMaxPeerTokens = 4096;  // sampled tokens that rank 0 sends
inline constexpr int64_t kPeerAlignment = 256;

// What a flag says: the sender's part of the sum is there; the sum of its shard is there; its
// columns of the logits are there.
enum class PeerFlag : int32_t { kPart, kShard, kColumns, kCount };

// A rank's region of peer memory; every rank's is laid out alike. Offsets in bytes.
//   words    [2 parities][world senders][words_each] x 16 bytes     one-shot
//   vectors  [2 phases][2 parities][world][vectors_each] x 16       two-shot: parts, then sums
//   flags    [PeerFlag][world senders][kMaxPeerBlocks] x 4
//   tokens   [kMaxPeerTokens] x 8                                   from rank 0
struct PeerLayout {
  int32_t world = 0;
  int64_t words_each = 0;
  int64_t vectors_each = 0;
  int64_t vectors_at = 0;
  int64_t flags_at = 0;
  int64_t tokens_at = 0;
  int64_t bytes = 0;

  [[nodiscard]] constexpr int64_t word_at(uint32_t epoch, int32_t sender, int64_t word) const {
    return ((int64_t{epoch & 1} * world + sender) * words_each + word) * 16;
  }
  [[nodiscard]] constexpr int64_t vector_at(int32_t phase,
                                            uint32_t epoch,
                                            int32_t sender,
                                            int64_t vector) const {
    return vectors_at +
           (((phase * 2 + int64_t{epoch & 1}) * world + sender) * vectors_each + vector) * 16;
  }
  [[nodiscard]] constexpr int64_t flag_at(PeerFlag flag, int32_t sender, int32_t block) const {
    return flags_at + ((static_cast<int64_t>(flag) * world + sender) * kMaxPeerBlocks + block) * 4;
  }
  [[nodiscard]] constexpr int64_t token_at(int32_t row) const {
    return tokens_at + int64_t{row} * 8;
  }
  // Most values of one call.
  [[nodiscard]] constexpr int64_t one_shot_values() const { return words_each * kWordValues; }
  [[nodiscard]] constexpr int64_t two_shot_values() const {
    return (vectors_each - kMaxPeerBlocks) * world * kPeerVector;
  }
};

// Room for one-shot messages of up to `one_shot_bytes` of bf16, two-shot ones of `two_shot_bytes`.
constexpr PeerLayout plan_peer_layout(int32_t world,
                                      int64_t one_shot_bytes,
                                      int64_t two_shot_bytes) {
  const auto up = [](int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; };
  PeerLayout layout{.world = world};
  layout.words_each = up(one_shot_bytes, 2 * kWordValues) / (2 * kWordValues);
  // A CTA's share of a shard is rounded up to whole vectors.
  layout.vectors_each =
      up(two_shot_bytes, 2 * kPeerVector * world) / (2 * kPeerVector * world) + kMaxPeerBlocks;
  layout.vectors_at = up(2 * world * layout.words_each * 16, kPeerAlignment);
  layout.flags_at = up(layout.vectors_at + 4 * world * layout.vectors_each * 16, kPeerAlignment);
  layout.tokens_at =
      up(layout.flags_at + static_cast<int64_t>(PeerFlag::kCount) * world * kMaxPeerBlocks * 4,
         kPeerAlignment);
  layout.bytes = up(layout.tokens_at + int64_t{kMaxPeerTokens} * 8, kPeerAlignment);
  return layout;
}

// Two-shot: CTA b takes vectors [b * world * per_shard, ...); of these, shard s (the next
// per_shard) is summed by rank s.
struct TwoShotPlan {
  static constexpr int kThreads = 512;
  int32_t blocks = 0;
  int64_t per_shard = 0;  // vectors
};
constexpr TwoShotPlan plan_two_shot(int64_t values, int32_t world, int32_t max_blocks) {
  const int64_t vectors = (values + kPeerVector - 1) / kPeerVector;
  const int64_t shards = (vectors + world - 1) / world;
  TwoShotPlan plan;
  plan.blocks = static_cast<int32_t>(
      std::clamp<int64_t>((shards + TwoShotPlan::kThreads - 1) / TwoShotPlan::kThreads,
                          1,
                          std::min(max_blocks, kMaxPeerBlocks)));
  plan.per_shard = (shards + plan.blocks - 1) / plan.blocks;
  return plan;
}

// The fused form: a token over `cluster` CTAs of `segment` vectors, one vector a thread. threads ==
// 0: it does not serve this shape. The same cut as kernels/norm at these sizes, so that a row's sum
// has one order.
struct FusedPlan {
  int32_t cluster = 1;
  int32_t segment = 0;
  int32_t threads = 0;
};
constexpr FusedPlan plan_fused(int64_t tokens, int64_t cols, int capability) {
  constexpr int64_t kGroupVectors = 16;  // of 128 values, which share a scale
  constexpr int64_t kMostThreads = 1024;
  constexpr int64_t kEighths = 16;  // so many tokens over clusters of 8 CTAs: still one CTA an SM
  constexpr int64_t kQuarters = 32;
  FusedPlan plan;
  if (tokens < 1 || cols < 1 || cols % kPeerVector != 0) return plan;
  const int64_t vectors = cols / kPeerVector;
  if (capability >= 90 && tokens <= kQuarters && vectors >= 8 * kGroupVectors * 2) {
    plan.cluster = tokens <= kEighths ? 8 : 4;
  }
  const int64_t per_cta = (vectors + plan.cluster - 1) / plan.cluster;
  const int64_t segment = (per_cta + kGroupVectors - 1) / kGroupVectors * kGroupVectors;
  const int64_t threads = (segment + 31) / 32 * 32;
  if (threads > kMostThreads) return {};
  plan.segment = static_cast<int32_t>(segment);
  plan.threads = static_cast<int32_t>(threads);
  return plan;
}

// CTAs that send columns of `rows` x `cols` values; the same on every rank.
constexpr int32_t gather_blocks(int64_t rows, int64_t cols) {
  constexpr int64_t kValuesEach = 4096;
  return static_cast<int32_t>(
      std::clamp<int64_t>((rows * cols + kValuesEach - 1) / kValuesEach, 1, kMaxPeerBlocks));
}

}  // namespace r1d::kernels
