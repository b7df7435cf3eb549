// SPDX-License-Identifier: Apache-2.0
// Problem   token[r] from logits[r, :V], each row with its own parameters, as engine::sample_token:
//           finite check, raw logprobs, penalties, biases, masks, argmax; or a draw from
//           exp((logit - highest) / T) cut by min_p, top_k, top_p.
// Layout    logits [rows, row_stride] f32, row-major; ids from V on do not exist.
// Bound     4 V bytes per row, read once: 517 KB, 0.12 us per row of 129280 at 4.3 TB/s. A draw
//           takes an exponential in double per token: 17 operations at 64 a cycle and SM, 0.19 us
//           per row over 132 SMs.
// Launch    A cluster of 8 blocks of 512 threads per row holds the row in shared memory, V / 8
//           values each behind 33 KB of its own, so that no pass after the first reads global
//           memory. Shared memory and registers allow two blocks per SM. Without clusters (before
//           sm_90) one block per row walks a copy of the row in the workspace.
// Numerics  A weight is a 64-bit integer in units of 2^-44 of the highest weight, so sums are exact
//           whatever their order, and 2^18 of them stay under 2^62. An exponential is good to 2^-50
//           relative, then rounded to a unit: a sum of n weights is off by about sqrt(n / 12)
//           units, 2^7 for n = 2^18, and by n / 2 at worst. A draw that falls within that error of
//           a boundary between two tokens may take the other one: n boundaries make it a share of
//           about n^1.5 / 2^45 of all draws, 2^-19 for n = 2^17; far less for the few tokens that
//           matter in practice. Tokens under 2^-45 of the highest weight are never drawn (all of
//           them together weigh less than V 2^-45).
// Source    Positions in the sorted order come from a descent through histograms of weights, not
//           from a sort: see the README.
#include <algorithm>

#include "r1d/base/random.h"

#include "kernels/sampler/row.cuh"
#include "kernels/sampler/sampler.h"

namespace r1d::kernels {
namespace {

using namespace sampling;  // NOLINT: the folder's own

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 1024;
constexpr int kListed = 1024;  // tokens that are sorted rather than split further

constexpr double kUnits = 0x1p44;  // the highest weight
constexpr uint64_t kHighestWeight = 1ULL << 44;
constexpr double kLog2E = 1.4426950408889634;
constexpr double kLeastExponent = -45;  // 2^-45 is half a unit
constexpr double kFloor = -60;

// What a block of a team keeps in shared memory, the row behind it.
struct alignas(16) Board {
  uint64_t bins[kBins];         // this block's sums; afterwards the sorted list
  uint64_t sums[kBins];         // the team's, inclusive: weight down to the end of the bin
  uint64_t listed[2][kListed];  // this block's candidates; turns, so that peers may still read the
                                // last one
  uint64_t mail[2][kSamplerTeam][3];  // what the peers sent; turns
  uint64_t scratch[kWarps];
  SamplerRow params;
  double log_total;
  uint64_t answer[2];
  uint32_t num_listed;
  uint32_t key_low;
  uint32_t key_high;
};
static_assert(sizeof(SamplerRow) % 4 == 0 && sizeof(SamplerRow) / 4 <= kThreads);
static_assert(kWarps % kSamplerTeam == 0);
static_assert(kBins == 2 * kThreads && kListed == 2 * kThreads, "two entries a thread");
static_assert(sizeof(Board) + 4 * (kSamplerMaxVocab / kSamplerTeam + 4) <= 227 * 1024);

// The row's share stands behind it. As a function, so that code that is not inlined still knows
// that it is shared memory.
__device__ __forceinline__ Board& board() {
  extern __shared__ __align__(16) unsigned char shared[];
  return *reinterpret_cast<Board*>(shared);
}

// ---- teams --------------------------------------------------------------------------------------

template <int kTeam>
__device__ __forceinline__ void team_arrive() {
#ifdef R1D_SM90
  if constexpr (kTeam > 1) cluster_arrive();
#endif
}
template <int kTeam>
__device__ __forceinline__ void team_wait() {
#ifdef R1D_SM90
  if constexpr (kTeam > 1) {
    cluster_wait();
    return;
  }
#endif
  __syncthreads();
}
template <int kTeam>
__device__ __forceinline__ void team_sync() {
  team_arrive<kTeam>();
  team_wait<kTeam>();
}
template <int kTeam>
__device__ __forceinline__ int team_rank() {
#ifdef R1D_SM90
  if constexpr (kTeam > 1) return static_cast<int>(cluster_rank());
#endif
  return 0;
}
// Reads and writes the same place in the shared memory of a peer.
template <int kTeam>
__device__ __forceinline__ uint32_t load_peer(const uint32_t* mine, int rank) {
#ifdef R1D_SM90
  if constexpr (kTeam > 1) {
    uint32_t value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];"
                 : "=r"(value)
                 : "r"(cluster_address(smem_address(mine), static_cast<uint32_t>(rank))));
    return value;
  }
#endif
  return *mine;
}
template <int kTeam>
__device__ __forceinline__ uint64_t load_peer(const uint64_t* mine, int rank) {
#ifdef R1D_SM90
  if constexpr (kTeam > 1) {
    uint64_t value;
    asm volatile("ld.shared::cluster.u64 %0, [%1];"
                 : "=l"(value)
                 : "r"(cluster_address(smem_address(mine), static_cast<uint32_t>(rank))));
    return value;
  }
#endif
  return *mine;
}
template <int kTeam>
__device__ __forceinline__ void store_peer(uint64_t* mine, int rank, uint64_t value) {
#ifdef R1D_SM90
  if constexpr (kTeam > 1) {
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(
                     cluster_address(smem_address(mine), static_cast<uint32_t>(rank))),
                 "l"(value)
                 : "memory");
    return;
  }
#endif
  *mine = value;
}

// ---- order, weights, bins -----------------------------------------------------------------------

// 2^f for |f| <= 1/2, to 2^-51.5: interpolation of degree 10 at the Chebyshev points.
__device__ __forceinline__ double exp2_fraction(double f) {
  double p = 0x1.e6063f7217bc6p-28;
  p = __fma_rn(p, f, 0x1.b675bca4eeebbp-24);
  p = __fma_rn(p, f, 0x1.62bfd47773353p-20);
  p = __fma_rn(p, f, 0x1.ffcb54062e698p-17);
  p = __fma_rn(p, f, 0x1.430913096fd9fp-13);
  p = __fma_rn(p, f, 0x1.5d87fe9d7a584p-10);
  p = __fma_rn(p, f, 0x1.3b2ab6fba1ddap-7);
  p = __fma_rn(p, f, 0x1.c6b08d703ce49p-5);
  p = __fma_rn(p, f, 0x1.ebfbdff82c598p-3);
  p = __fma_rn(p, f, 0x1.62e42fefa3a19p-1);
  return __fma_rn(p, f, 1.0);
}

// Weights and bins of a row at one temperature. The explicit roundings make a weight the same
// number wherever it is computed.
struct Scale {
  float highest;
  double per_unit;      // log2(e) / T
  float bins_per_unit;  // the last bin begins where weights end

  __device__ Scale(float highest_logit, double temperature)
      : highest(highest_logit),
        per_unit(kLog2E / temperature),
        bins_per_unit(static_cast<float>((kBins - 1) * per_unit / -kLeastExponent)) {}

  // Without branches, so that a thread's next tokens fill the long chain's gaps. Below half a unit
  // the last addition rounds to 0; the floor keeps the exponent's bits in range, and takes NaN.
  __device__ __forceinline__ uint64_t weight(float logit) const {
    const double exponent = fmax(__dmul_rn(__dsub_rn(logit, highest), per_unit), kFloor);
    constexpr double kRound = 0x1.8p52;  // adding it leaves the integer in the low bits
    const double shifted = __dadd_rn(exponent, kRound);
    const double power = exp2_fraction(__dsub_rn(exponent, __dsub_rn(shifted, kRound)));
    const int high = __double2hiint(power) + ((__double2loint(shifted) + 44) << 20);
    const double units = __hiloint2double(high, __double2loint(power));
    const uint64_t rounded = __double_as_longlong(__dadd_rn(units, 0x1p52)) & 0xFFFFFFFFFFFFFULL;
    return logit == highest ? kHighestWeight : rounded;
  }
  // Falls with the logit and never rises, so a bin is a stretch of the sorted order.
  __device__ __forceinline__ int bin(float logit) const {
    if (logit == highest) return 0;
    return static_cast<int>(fminf(__fmul_rn(__fsub_rn(highest, logit), bins_per_unit), kBins - 1));
  }
};

// A token's place in the sorted order, and the weight of all down to it.
struct Position {
  uint64_t candidate;
  uint64_t through;
};

// ---- a row --------------------------------------------------------------------------------------

// One block's share of a row. All blocks of a team run the same code on the same sums, so that each
// knows every result.
template <int kTeam>
class Row {
 public:
  // `copy`: memory for the row where there is no team, else not used.
  __device__ Row(float* copy, int share_size, int vocab)
      : copy_(copy),
        rank_(team_rank<kTeam>()),
        begin_(rank_ * share_size),
        size_(max(0, min(share_size, vocab - begin_))) {}

  // Copies the share in; best() and bad() of the raw row come with it.
  __device__ void load(const float* logits, bool aligned) {
    const Seen seen =
        scan<kThreads, 8>(logits + begin_, size_, aligned, [this](int i, auto values) {
          *reinterpret_cast<decltype(values)*>(share() + i) = values;
        });
    let_dependents_start();
    team_wait<kTeam>();
    exchange(block_reduce(seen.candidate(begin_), Larger{}),
             block_reduce(seen.fault(begin_), Larger{}),
             0);
    best_ = combine_mail(0, Larger{});
    const uint64_t worst = combine_mail(1, Larger{});
    bad_ = fault_token(worst);
  }

  // Highest logit, lowest id among equals; 0 when every logit is -inf.
  [[nodiscard]] __device__ uint64_t best() const { return best_; }
  // The lowest id whose logit was not finite, or -1.
  [[nodiscard]] __device__ int32_t bad() const { return bad_; }

  // Penalties, then biases, then masks, in the CPU's arithmetic; best() follows.
  __device__ void edit(const SamplerRow& row, const SamplerInput& input) {
    __syncthreads();
    for (int i = threadIdx.x; i < row.num_penalties; i += kThreads) {
      const SamplerTokenCount entry = input.penalties[row.first_penalty + i];
      if (float* logit = find(entry.token)) *logit = penalized(*logit, entry.count, row);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < row.num_biases; i += kThreads) {
      const SamplerTokenBias entry = input.biases[row.first_bias + i];
      if (float* logit = find(entry.token)) *logit = __fadd_rn(*logit, entry.bias);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < row.num_masked; i += kThreads) {
      if (float* logit = find(input.masked[row.first_masked + i])) *logit = -INFINITY;
    }
    __syncthreads();
    uint64_t mine = 0;
    for (int i = threadIdx.x; i < size_; i += kThreads) {
      if (share()[i] > -INFINITY) mine = Larger{}(mine, candidate(share()[i], begin_ + i));
    }
    exchange(block_reduce(mine, Larger{}), 0, 0);
    best_ = combine_mail(0, Larger{});
  }

  // Sum of all weights.
  [[nodiscard]] __device__ uint64_t total(const Scale& scale) {
    uint64_t mine = 0;
    each([&](float logit, int /*i*/) { return scale.weight(logit); },
         [&](float /*logit*/, uint64_t weight) { mine += weight; });
    exchange(block_reduce(mine, Sum{}), 0, 0);
    return combine_mail(0, Sum{});
  }

  // The `count` most likely tokens (kListed at most, no more than the vocabulary), best first, into
  // top().
  __device__ void list_top(const Scale& scale, int count) {
    build(scale, /*counting=*/true, 0);
    const uint64_t last = descend(scale, /*counting=*/true, 0, count - 1).candidate;
    gather([last](float logit, int32_t id) { return candidate(logit, id) >= last; });
    sort(collect());
  }
  [[nodiscard]] __device__ uint64_t top(int i) const { return board().bins[i]; }

  // Draws in id order, without cuts.
  [[nodiscard]] __device__ int32_t draw_from_all(const Scale& scale, const SamplerRow& row) {
    return find_in_id_order([&scale](float logit, int32_t /*id*/) { return scale.weight(logit); },
                            [&row](uint64_t total) { return drawn(row, total); });
  }

  // Draws in the sorted order from what min_p, top_k and top_p leave.
  [[nodiscard]] __device__ int32_t draw(const Scale& scale, const SamplerRow& row) {
    uint64_t cut = 0;  // the least candidate that stays
    if (row.min_p > 0) cut = static_cast<uint64_t>(least_key(scale, row)) << 32;
    enum : int { kTopK, kTopP, kDraw };
    uint64_t kept = 0;
    Position position{};
#pragma unroll 1
    for (int stage = row.top_k > 0 ? kTopK : kTopP; stage <= kDraw; ++stage) {
      const bool counting = stage == kTopK;
      if (stage != kDraw || !built_) build(scale, counting, cut);
      uint64_t target = 0;
      if (stage == kTopK) {
        if (static_cast<uint64_t>(row.top_k) >= all()) continue;
        target = static_cast<uint64_t>(row.top_k) - 1;
      } else if (stage == kTopP) {
        kept = all();
        if (row.top_p >= 1) continue;
        const double wanted = max(1.0, ceil(row.top_p * static_cast<double>(kept)));
        target = min(static_cast<uint64_t>(wanted), kept) - 1;
      } else {
        target = drawn(row, kept);
      }
      position = descend(scale, counting, cut, target);
      if (stage == kTopK) cut = position.candidate;
      if (stage == kTopP) kept = position.through;
    }
    return sampler_candidate_token(position.candidate);
  }

 private:
  // This block's logits.
  __device__ __forceinline__ float* share() const {
    if constexpr (kTeam > 1) return reinterpret_cast<float*>(&board() + 1);
    return copy_;
  }

  // Where the draw falls in [0, total).
  static __device__ uint64_t drawn(const SamplerRow& row, uint64_t total) {
    const double unit = base::random_unit(row.seed, row.draw);
    return min(static_cast<uint64_t>(unit * static_cast<double>(total)), total - 1);
  }

  static __device__ float penalized(float raw, int32_t count, const SamplerRow& row) {
    double logit = raw;
    if (row.repetition_penalty != 1) {
      logit = logit > 0 ? logit / row.repetition_penalty : __dmul_rn(logit, row.repetition_penalty);
    }
    logit = __dsub_rn(logit, __dmul_rn(row.frequency_penalty, count));
    if (count > 0) logit = __dsub_rn(logit, row.presence_penalty);
    return static_cast<float>(logit);
  }

  // The token's logit when it is in this block's share.
  __device__ float* find(int32_t token) const {
    const int i = token - begin_;
    return token >= 0 && i >= 0 && i < size_ ? share() + i : nullptr;
  }

  // ---- sums over the block and the team

  template <typename Combine>
  __device__ uint64_t block_reduce(uint64_t value, Combine combine) {
    value = warp_reduce(value, combine);
    if (threadIdx.x % 32 == 0) board().scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = board().scratch[0];
    for (int i = 1; i < kWarps; ++i) value = combine(value, board().scratch[i]);
    __syncthreads();
    return value;
  }

  // Sum of the values of lower threads; `total` of all.
  __device__ uint64_t block_scan(uint64_t value, uint64_t& total) {
    const int lane = threadIdx.x % 32;
    uint64_t inclusive = value;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint64_t lower = __shfl_up_sync(0xFFFFFFFFU, inclusive, offset);
      if (lane >= offset) inclusive += lower;
    }
    if (lane == 31) board().scratch[threadIdx.x / 32] = inclusive;
    __syncthreads();
    uint64_t before = 0;
    total = 0;
    for (int i = 0; i < kWarps; ++i) {
      if (i < static_cast<int>(threadIdx.x) / 32) before += board().scratch[i];
      total += board().scratch[i];
    }
    __syncthreads();
    return before + inclusive - value;
  }

  // Sends three values, the same in every thread, to all blocks of the team; they lie in the mail
  // afterwards. Also orders all of the team's writes to shared memory before it. A turn's mail and
  // list are written again two exchanges later, and a block gets there only after every peer has
  // passed the exchange between: nobody reads them any more.
  __device__ void exchange(uint64_t a, uint64_t b, uint64_t c) {
    turn_ ^= 1;
    if (threadIdx.x < kTeam) {
      store_peer<kTeam>(&board().mail[turn_][rank_][0], threadIdx.x, a);
      store_peer<kTeam>(&board().mail[turn_][rank_][1], threadIdx.x, b);
      store_peer<kTeam>(&board().mail[turn_][rank_][2], threadIdx.x, c);
    }
    team_sync<kTeam>();
  }
  template <typename Combine>
  [[nodiscard]] __device__ uint64_t combine_mail(int which, Combine combine) const {
    uint64_t value = board().mail[turn_][0][which];
    for (int r = 1; r < kTeam; ++r) value = combine(value, board().mail[turn_][r][which]);
    return value;
  }

  // ---- histograms

  __device__ void clear_bins() {
    for (int i = threadIdx.x; i < kBins; i += kThreads) board().bins[i] = 0;
    sorted_bin_ = -1;
    __syncthreads();
  }
  // A 64-bit sum from two 32-bit atomics, which shared memory has in hardware.
  __device__ void add(int bin, uint64_t weight) {
    const auto low = static_cast<uint32_t>(weight);
    const uint32_t before = atomicAdd(low_half(bin), low);
    const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) atomicAdd(high_half(bin), high);
  }
  // Low halves, then high halves, so that neighbours lie in neighbouring banks.
  __device__ uint32_t* low_half(int bin) const {
    return reinterpret_cast<uint32_t*>(board().bins) + bin;
  }
  __device__ uint32_t* high_half(int bin) const {
    return low_half(bin) + kBins;
  }
  // bins of all blocks -> inclusive sums, the same in every block.
  __device__ void merge_bins() {
    team_sync<kTeam>();
    constexpr int kShare = kBins / kTeam;
    for (int i = threadIdx.x; i < kShare; i += kThreads) {
      const int bin = rank_ * kShare + i;
      uint64_t sum = 0;
#pragma unroll
      for (int r = 0; r < kTeam; ++r) {
        sum += load_peer<kTeam>(low_half(bin), r);
        sum += static_cast<uint64_t>(load_peer<kTeam>(high_half(bin), r)) << 32;
      }
#pragma unroll
      for (int r = 0; r < kTeam; ++r) store_peer<kTeam>(&board().sums[bin], r, sum);
    }
    team_sync<kTeam>();
    const uint64_t first = board().sums[2 * threadIdx.x];
    const uint64_t both = first + board().sums[2 * threadIdx.x + 1];
    uint64_t total = 0;
    const uint64_t before = block_scan(both, total);
    board().sums[2 * threadIdx.x] = before + first;
    board().sums[2 * threadIdx.x + 1] = before + both;
    __syncthreads();
  }
  [[nodiscard]] __device__ uint64_t all() const {
    return board().sums[kBins - 1];
  }
  [[nodiscard]] __device__ uint64_t before_bin(int bin) const {
    return bin == 0 ? 0 : board().sums[bin - 1];
  }

  // use(logit, value(logit, i)) for every logit of this block, four values under way at a time.
  template <typename Value, typename Use>
  __device__ __forceinline__ void each(const Value& value, const Use& use) {
    constexpr int kAhead = 4;
    for (int base = threadIdx.x; base < size_; base += kThreads * kAhead) {
      float logits[kAhead];
      uint64_t values[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int i = base + j * kThreads;
        logits[j] = i < size_ ? share()[i] : -INFINITY;
        values[j] = value(logits[j], i);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (base + j * kThreads < size_) use(logits[j], values[j]);
      }
    }
  }

  // Weights (or counts) of the candidates from `cut` up, in bins of equal width from the highest
  // logit down.
  __device__ void build(const Scale& scale, bool counting, uint64_t cut) {
    clear_bins();
    uint64_t tail = 0;  // the last bin may be most of the vocabulary: no atomics for it
    const auto put = [&](float logit, uint64_t weight) {
      if (weight == 0) return;
      const int bin = scale.bin(logit);
      if (bin == kBins - 1) {
        tail += weight;
      } else {
        add(bin, weight);
      }
    };
    const auto stays = [&](float logit, int i) {
      return cut == 0 || candidate(logit, begin_ + i) >= cut;
    };
    if (counting) {
      each([&](float logit, int i) -> uint64_t { return stays(logit, i) ? 1 : 0; }, put);
    } else {
      each([&](float logit, int i) { return stays(logit, i) ? scale.weight(logit) : 0; }, put);
    }
    tail = warp_reduce(tail, Sum{});
    if (threadIdx.x % 32 == 0 && tail != 0) add(kBins - 1, tail);
    merge_bins();
    built_ = true;
  }

  // The bin in which the sum passes `target`, which is below the sum of all.
  __device__ int crossing(uint64_t target) {
    for (int i = 0; i < 2; ++i) {
      const int bin = 2 * threadIdx.x + i;
      if (before_bin(bin) <= target && target < board().sums[bin]) board().answer[0] = bin;
    }
    __syncthreads();
    const int bin = static_cast<int>(board().answer[0]);
    __syncthreads();
    return bin;
  }

  // ---- lists of candidates

  struct Members {
    uint64_t count;
    uint32_t key_low;  // of all of them
    uint32_t key_high;
  };
  // Counts the candidates that belong and lists them; lists are whole when the team's count is at
  // most kListed.
  template <typename Belongs>
  __device__ Members gather(const Belongs& belongs) {
    if (threadIdx.x == 0) {
      board().num_listed = 0;
      board().key_low = UINT32_MAX;
      board().key_high = 0;
    }
    __syncthreads();
    uint64_t* const list = board().listed[turn_ ^ 1];  // the next exchange's turn
    const int lane = threadIdx.x % 32;
    uint32_t low = UINT32_MAX;
    uint32_t high = 0;
    constexpr int kAhead = 4;
    for (int base = threadIdx.x - lane; base < size_; base += kThreads * kAhead) {
      uint32_t mine = 0;
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int i = base + j * kThreads + lane;
        if (i < size_ && belongs(share()[i], begin_ + i)) mine |= 1U << j;
      }
      const auto found = static_cast<uint32_t>(__popc(mine));
      uint32_t at =
          found == 0 ? 0 : atomicAdd(&board().num_listed, found);  // any order: sorted later
      for (; mine != 0; mine &= mine - 1, ++at) {
        const int i = base + (__ffs(static_cast<int>(mine)) - 1) * kThreads + lane;
        const uint64_t packed = candidate(share()[i], begin_ + i);
        low = min(low, key_of(packed));
        high = max(high, key_of(packed));
        if (at < kListed) list[at] = packed;
      }
    }
    low = __reduce_min_sync(0xFFFFFFFFU, low);
    high = __reduce_max_sync(0xFFFFFFFFU, high);
    if (lane == 0) {
      atomicMin(&board().key_low, low);
      atomicMax(&board().key_high, high);
    }
    __syncthreads();
    exchange(board().num_listed, ~board().key_low, board().key_high);
    return {.count = combine_mail(0, Sum{}),
            .key_low = ~static_cast<uint32_t>(combine_mail(1, Larger{})),
            .key_high = static_cast<uint32_t>(combine_mail(2, Larger{}))};
  }
  // Copies the team's lists behind one another into bins; returns how many there are.
  __device__ int collect() {
    constexpr int kWarpsPerPeer = kWarps / kTeam;
    const int from = threadIdx.x / 32 / kWarpsPerPeer;
    int count = 0;
    int before = 0;
    for (int r = 0; r < kTeam; ++r) {
      if (r == from) before = count;
      count += static_cast<int>(board().mail[turn_][r][0]);
    }
    const auto theirs = static_cast<int>(board().mail[turn_][from][0]);
    for (int i = threadIdx.x % (32 * kWarpsPerPeer); i < theirs; i += 32 * kWarpsPerPeer) {
      board().bins[before + i] = load_peer<kTeam>(&board().listed[turn_][i], from);
    }
    for (int i = count + threadIdx.x; i < kListed; i += kThreads) board().bins[i] = 0;
    __syncthreads();
    return count;
  }
  // Bitonic, descending; zeros stand behind. A warp's pairs stay in its 64 entries while steps are
  // at most 32.
  __device__ void sort(int count) {
    for (int run = 2; run / 2 < count; run *= 2) {
#pragma unroll 1
      for (int step = run / 2; step > 0; step /= 2) {
        const int i = 2 * threadIdx.x - (threadIdx.x & (step - 1));
        if (threadIdx.x / (run / 2) * run < count) {
          const uint64_t a = board().bins[i];
          const uint64_t b = board().bins[i + step];
          const bool descending = (i & run) == 0;
          if ((a < b) == descending) {
            board().bins[i] = b;
            board().bins[i + step] = a;
          }
        }
        if (step > 32 || (step == 1 && run > 32)) {
          __syncthreads();
        } else {
          __syncwarp();
        }
      }
    }
  }

  // ---- searches

  // The first candidate of the sorted order, among those from `cut` up, down to which the sum of
  // weights (or the count) passes `target`. build() with the same arguments comes before it; target
  // < all().
  __device__ Position descend(const Scale& scale, bool counting, uint64_t cut, uint64_t target) {
    const auto weight = [&](uint32_t key) { return counting ? 1 : scale.weight(logit_of(key)); };
    const int bin = crossing(target);
    uint64_t before = before_bin(bin);
    if (bin != sorted_bin_) {  // otherwise the list of top_p's cut is also the draw's
      uint32_t low = 0;
      uint32_t high = UINT32_MAX;
      const auto belongs = [&](float logit, int32_t id) {
        if (scale.bin(logit) != bin) return false;
        const uint64_t packed = candidate(logit, id);
        return packed >= cut && key_of(packed) >= low && key_of(packed) <= high;
      };
      for (;;) {
        const Members members = gather(belongs);
        if (members.count <= kListed) break;
        low = members.key_low;
        high = members.key_high;
        if (low == high) return among_equals(high, weight(high), cut, before, target);
        const int shift = max(0, 22 - __clz(static_cast<int>(high - low)));  // 1024 bins at most
        clear_bins();
        built_ = false;
        for (int i = threadIdx.x; i < size_; i += kThreads) {
          if (!belongs(share()[i], begin_ + i)) continue;
          const uint32_t key = key_of(candidate(share()[i], begin_ + i));
          const uint64_t share = weight(key);
          if (share != 0) add(static_cast<int>((high - key) >> shift), share);
        }
        merge_bins();
        const int part = crossing(target - before);
        before += before_bin(part);
        high -= static_cast<uint32_t>(part) << shift;
        const uint32_t width = 1U << shift;
        if (high - low >= width) low = high - width + 1;
      }
      sort(collect());
      if (built_) sorted_bin_ = bin;
    }
    const uint64_t first = board().bins[2 * threadIdx.x];
    const uint64_t second = board().bins[2 * threadIdx.x + 1];
    const uint64_t first_weight = first == 0 ? 0 : weight(key_of(first));
    const uint64_t second_weight = second == 0 ? 0 : weight(key_of(second));
    uint64_t total = 0;
    const uint64_t lower = before + block_scan(first_weight + second_weight, total);
    const uint64_t middle = lower + first_weight;
    const uint64_t upper = middle + second_weight;
    if (lower <= target && target < upper) {
      board().answer[0] = target < middle ? first : second;
      board().answer[1] = target < middle ? middle : upper;
    }
    return answer();
  }

  // `before` is the weight in front of a run of tokens with one logit.
  __device__ Position
  among_equals(uint32_t key, uint64_t weight, uint64_t cut, uint64_t before, uint64_t target) {
    const uint64_t rank = (target - before) / weight;
    const int32_t id = find_in_id_order(
        [=](float logit, int32_t id) -> uint64_t {
          const uint64_t packed = candidate(logit, id);
          return key_of(packed) == key && packed >= cut ? 1 : 0;
        },
        [rank](uint64_t /*total*/) { return rank; });
    return {.candidate = sampler_candidate(sampler_key_bits(key), id),
            .through = before + (rank + 1) * weight};
  }

  __device__ Position answer() {
    __syncthreads();
    const Position position{.candidate = board().answer[0], .through = board().answer[1]};
    __syncthreads();
    return position;
  }

  // The first id, in id order, at which the sum of value(logit, id) passes target_of(sum of
  // all), which is below that sum. Each thread sums a run of ids; runs are odd so that the threads
  // of a warp read different banks.
  template <typename Value, typename Target>
  __device__ int32_t find_in_id_order(const Value& value, const Target& target_of) {
    const int run = ((size_ + kThreads - 1) / kThreads) | 1;
    const int first = min(static_cast<int>(threadIdx.x) * run, size_);
    const int last = min(first + run, size_);
    uint64_t mine = 0;
#pragma unroll 4
    for (int i = first; i < last; ++i) mine += value(share()[i], begin_ + i);
    uint64_t total = 0;
    uint64_t sum = block_scan(mine, total);
    exchange(total, 0, 0);
    for (int r = 0; r < rank_; ++r) sum += board().mail[turn_][r][0];
    const uint64_t target = target_of(combine_mail(0, Sum{}));
    if (threadIdx.x == 0) board().answer[0] = 0;
    __syncthreads();
    if (sum <= target && target < sum + mine) {
      board().answer[0] = first + 1;
      board().answer[1] = sum;
    }
    __syncthreads();
    if (board().answer[0] != 0) {  // the run is this block's: all its threads share it
      const int begin = static_cast<int>(board().answer[0]) - 1;
      const int end = min(begin + run, size_);
      sum = board().answer[1];
      for (int i = begin + threadIdx.x; sum <= target; i += kThreads) {
        const uint64_t one = i < end ? value(share()[i], begin_ + i) : 0;
        const uint64_t lower = sum + block_scan(one, total);
        if (lower <= target && target < lower + one) board().answer[0] = begin_ + i + 1;
        sum += total;
      }
    }
    __syncthreads();
    exchange(board().answer[0], 0, 0);
    return static_cast<int32_t>(combine_mail(0, Larger{})) - 1;
  }

  // The least key whose weight is min_p or more, computed as the CPU does. A search with 32 probes
  // at a time.
  __device__ uint32_t least_key(const Scale& scale, const SamplerRow& row) {
    if (threadIdx.x < 32) {
      uint32_t below = sampler_order_key(__float_as_uint(-INFINITY));
      uint32_t enough = sampler_order_key(__float_as_uint(scale.highest));
      while (enough - below > 1) {
        const uint32_t step = (enough - below + 31) / 32;
        const uint32_t offset = step * (threadIdx.x + 1);
        const uint32_t probe = offset < enough - below ? below + offset : enough;
        const double distance = static_cast<double>(logit_of(probe)) - scale.highest;
        const bool passes = probe == enough || exp(distance / row.temperature) >= row.min_p;
        const auto lane =
            static_cast<uint32_t>(__ffs(static_cast<int>(__ballot_sync(0xFFFFFFFFU, passes))) - 1);
        enough = __shfl_sync(0xFFFFFFFFU, probe, static_cast<int>(lane));
        below += step * lane;
      }
      if (threadIdx.x == 0) board().answer[0] = enough;
    }
    __syncthreads();
    const auto key = static_cast<uint32_t>(board().answer[0]);
    __syncthreads();
    return key;
  }

  float* const copy_;
  const int rank_;
  const int begin_;
  const int size_;
  int turn_ = 0;
  bool built_ = false;   // the sums are build()'s
  int sorted_bin_ = -1;  // of them, which one's candidates stand sorted in board().bins
  uint64_t best_ = 0;
  int32_t bad_ = -1;
};

// ---- kernels ------------------------------------------------------------------------------------

template <int kTeam>
__device__ __forceinline__ void sample_row(const SamplerInput& input,
                                           const SamplerOutput& output,
                                           int share_size,
                                           bool aligned,
                                           float* workspace) {
  team_arrive<kTeam>();  // load() waits: peers must have started before anything is sent to them
  wait_for_inputs();
  const int64_t number = blockIdx.x / kTeam;
  const float* const logits = input.logits + number * input.row_stride;
  if (threadIdx.x < sizeof(SamplerRow) / 4) {  // visible behind load()'s barriers
    reinterpret_cast<uint32_t*>(&board().params)[threadIdx.x] =
        reinterpret_cast<const uint32_t*>(input.params + number)[threadIdx.x];
  }
  const SamplerRow& params = board().params;
  Row<kTeam> row(workspace + number * share_size, share_size, input.vocab);
  const bool writes = team_rank<kTeam>() == 0 && threadIdx.x == 0;
  SampledRow sampled;

  // ---- the raw row
  row.load(logits, aligned);
  if (row.bad() >= 0) {
    sampled.status = kSamplerNotFinite;
    sampled.bad_token = row.bad();
    sampled.bad_logit = logits[row.bad()];
    if (writes) output.sampled[number] = sampled;
    return;  // no peer reads this block's memory any more
  }
  if (params.num_logprobs >= 0) {
    const Scale raw(logit_of(key_of(row.best())), 1);
    const double log_total = raw.highest + log(static_cast<double>(row.total(raw)) / kUnits);
    if (writes) board().log_total = log_total;  // for itself
    const int count = min(min(params.num_logprobs, input.vocab), output.top_stride);
    if (count > 0) {
      row.list_top(raw, count);
      for (int i = threadIdx.x; i < count && team_rank<kTeam>() == 0; i += kThreads) {
        const uint64_t token = row.top(i);
        output.top_tokens[number * output.top_stride + i] = sampler_candidate_token(token);
        output.top_logprobs[number * output.top_stride + i] =
            static_cast<float>(logit_of(key_of(token)) - log_total);
      }
      __syncthreads();
    }
  }

  // ---- the choice
  if (params.num_penalties > 0 || params.num_biases > 0 || params.num_masked > 0)
    row.edit(params, input);
  if (params.forced >= 0) {
    sampled.token = params.forced;
  } else if (row.best() == 0) {
    sampled.status = kSamplerAllMasked;
  } else if (params.temperature <= 0) {
    sampled.token = sampler_candidate_token(row.best());
  } else {
    const Scale scale(logit_of(key_of(row.best())), params.temperature);
    const bool cuts = params.top_k > 0 || params.top_p < 1 || params.min_p > 0;
    sampled.token = cuts ? row.draw(scale, params) : row.draw_from_all(scale, params);
  }
  if (writes) {
    if (params.num_logprobs >= 0 && sampled.token >= 0) {
      sampled.logprob = static_cast<float>(logits[sampled.token] - board().log_total);
    }
    output.sampled[number] = sampled;
  }
  team_sync<kTeam>();  // a peer may still read this block's lists
}

template <int kTeam>
__global__ void __launch_bounds__(kThreads, 2) sample_rows(
    SamplerInput input, SamplerOutput output, int share_size, bool aligned, float* workspace) {
#ifndef R1D_SM90
  if constexpr (kTeam > 1) {
    __trap();  // the plan asked for clusters, the code was built without
  } else
#endif
    sample_row<kTeam>(input, output, share_size, aligned, workspace);
}

}  // namespace

SamplerPlan plan_sampler(int32_t rows, int32_t vocab, int32_t compute_capability, int32_t num_sms) {
  SamplerPlan plan;
  plan.rows = rows;
  plan.team = compute_capability >= 90 ? kSamplerTeam : 1;
  // Four blocks an SM over all rows, but at least one vector per thread in each.
  const int64_t wanted = divide_up(4 * static_cast<int64_t>(num_sms), std::max(rows, 1));
  plan.greedy_splits =
      static_cast<int32_t>(std::clamp<int64_t>(wanted, 1, divide_up(vocab, 4 * kGreedyThreads)));
  plan.workspace_bytes = counter_bytes(rows);
  if (plan.team == 1) plan.workspace_bytes += static_cast<int64_t>(rows) * share_of(vocab, 1) * 4;
  return plan;
}

cudaError_t sample_tokens(const SamplerInput& input,
                          const SamplerOutput& output,
                          const SamplerPlan& plan,
                          void* workspace,
                          const Launch& launch) {
  if (!serves(input, plan) || output.top_stride < 0 || output.top_stride > kSamplerMaxLogprobs) {
    return cudaErrorInvalidValue;
  }
  if (input.rows == 0) return cudaSuccess;
  const int share = share_of(input.vocab, plan.team);
  auto* const copies =
      reinterpret_cast<float*>(static_cast<std::byte*>(workspace) + counter_bytes(plan.rows));
  Grid grid{.blocks = dim3(static_cast<unsigned>(input.rows * plan.team)),
            .threads = dim3(kThreads),
            .shared_bytes = sizeof(Board),
            .cluster = plan.team};
  if (plan.team == 1) {
    return enqueue(sample_rows<1>, grid, launch, input, output, share, is_aligned(input), copies);
  }
  grid.shared_bytes += static_cast<size_t>(share) * sizeof(float);
  return enqueue(
      sample_rows<kSamplerTeam>, grid, launch, input, output, share, is_aligned(input), copies);
}

}  // namespace r1d::kernels
